"""Rules that turn the grey values of files into [0, 1], the same for all images of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.window import ALL_OF_8_BITS, Window

_WHOLE = (0.1, 99.9)  # percentiles of `auto`, where nothing else says what is black and what is white
_DEPTHS = (8, 10, 12, 14, 16, 32)
_SAMPLES = 2000  # values of an image that percentiles are taken from
_COLUMNS = 20  # that these come from at least, where an image has many


@dataclass(frozen=True)
class Sample:
    """What a rule needs to know of an image.

    Attributes:
        levels: Some of its grey values, inverted where low ones are bright, shape ``(N,)``; none for colour images.
            Whole numbers take two bytes each where they fit, as a set of volumes has a sample for each slice.
        lowest: The lowest of all values, as stored.
        highest: The highest of them.
        middle: The median of those above the lowest, which is often a black background; the lowest where none are.
        window: Window of the DICOM file, empty without one.
        kind: Kind of file.
        range: Lowest and highest value that the file's type can hold; None where that says nothing.
        shows_nothing: Whether the DICOM file's own window makes all of the image one value.
        unusable: The window that the DICOM file names though it means nothing; empty where there is none.
    """

    levels: Array
    lowest: float
    highest: float
    middle: float
    window: str
    kind: str
    range: tuple[float, float] | None
    shows_nothing: bool
    unusable: str = ""

    @classmethod
    def of(cls, image: RawImage, own_window: bool = True) -> Sample:
        """Take values of an image, evenly spaced, padding left out.

        Args:
            image: The image.
            own_window: Whether it may be shown by a window that files name, as :attr:`Intensity.own_window`; else that
                window is not looked at.
        """
        empty: Array = np.zeros(0, dtype=np.float32)
        inside = image.levels if image.padding is None else image.levels[~image.padding]
        row = image.values[0].size if image.padding is None else int((~image.padding).sum(axis=1).max())
        lowest = float(image.values.min())
        stored = _spaced(image.values, image.values[0].size)
        above = stored[stored > lowest]
        return cls(
            levels=empty if image.colour else _packed(_spaced(inside, row)),
            lowest=lowest,
            highest=float(image.values.max()),
            middle=float(np.median(above)) if above.size else lowest,
            window=image.window,
            kind=image.kind,
            range=image.range,
            shows_nothing=own_window and image.shown is not None and bool(np.ptp(image.shown) == 0),
            unusable=image.unusable,
        )

    @property
    def integer(self) -> bool:
        """Whether values are unsigned integers."""
        return self.range is not None and self.range[0] == 0

    @property
    def deep(self) -> bool:
        """Whether it is a picture of unsigned integers of more than 8 bits."""
        return self.kind == "raster" and self.range is not None and self.range[0] == 0 and self.range[1] > 255


@dataclass(frozen=True)
class Intensity:
    """How grey values become [0, 1]. Colour images are divided by the highest value of their type.

    Attributes:
        rule: ``auto``, ``dicom``, ``window`` or ``percentile``.
        limits: Of the rule: two values, or two percentiles.
        window: Values that become 0 and 1, fixed by the training images; None before, or where files of their own
            say it.
        own_window: Whether DICOM files are shown by a window that files name: their own, or the common one.
        depth: Bits of the integers that become [0, 1]; None where it does not matter.
        common_window: The window that all DICOM training images name, by which ``auto`` shows every DICOM file;
            empty where it does not.
    """

    rule: str = "auto"
    limits: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    own_window: bool = True
    depth: int | None = None
    common_window: str = field(default="", repr=False)  # repr() is part of the key of pre-trained weights

    @classmethod
    def of(cls, given: str | Mapping[str, Sequence[float]]) -> Intensity:
        """Build a rule from what is written in YAML.

        Raises:
            InputError: If there is no such rule, or its two values are not in order.
        """
        if given in ("auto", "dicom"):
            return cls(str(given))
        if isinstance(given, Mapping) and len(given) == 1:
            rule, limits = next(iter(given.items()))
            highest = 100 if rule == "percentile" else np.inf
            lowest = 0 if rule == "percentile" else -np.inf
            numbers = isinstance(limits, Sequence) and all(isinstance(limit, int | float) for limit in limits)
            ordered = numbers and len(limits) == 2 and lowest <= limits[0] < limits[1] <= highest
            if rule in {"window", "percentile"} and ordered:
                pair = (float(limits[0]), float(limits[1]))
                return cls(rule, pair, pair if rule == "window" else None, own_window=False)
        raise InputError(
            f"intensity is {given}: set it to auto, dicom, window: [low, high] or percentile: [p, q] with the first "
            "value below the second"
        )

    def fitted(self, samples: Iterable[Sample]) -> Intensity:
        """Return the rule with its values fixed by training images."""
        known = [sample for sample in samples if len(sample.levels)]
        if self.rule == "percentile":
            return replace(self, window=_percentiles(known, self.limits or _WHOLE))
        if self.rule != "auto":
            return self
        dicom = [sample for sample in known if sample.kind == "dicom"]
        windows = {sample.window for sample in dicom}
        own = len(windows) == 1 and "" not in windows
        whole = [sample for sample in known if not sample.integer and sample.kind != "dicom"]
        integers = [sample.highest for sample in known if sample.integer and sample.kind != "dicom"]
        return replace(
            self,
            own_window=own,
            common_window=next(iter(windows)) if own else "",
            window=_percentiles([*whole, *([] if own else dicom)], _WHOLE),
            depth=next((bits for bits in _DEPTHS if max(integers) < 2**bits), None) if integers else None,
        )

    def apply(self, image: RawImage) -> Array:
        """Return an image in [0, 1], shape ``(H, W)`` or ``(H, W, 3)``, float32.

        Raises:
            UnreadableError: If the rule does not fit the file.
        """
        if image.colour:
            return image.values
        if self.own_window and image.kind == "dicom":
            if self._is_other(image.window):
                return self._by_common_window(image)
            if image.shown is not None and (image.window or self.rule != "dicom"):
                return image.shown
        if self.rule == "dicom":
            raise UnreadableError(_no_window(image))
        if self.rule == "window" and self.window:
            scaled = _scaled(image.values, self.window)
            scaled = 1 - scaled if image.inverse else scaled
        elif self.rule == "auto" and image.kind == "raster" and image.range and image.range[0] == 0:
            highest = image.range[1] if image.range[1] <= 255 else 2.0 ** (self.depth or 16) - 1
            levels = image.levels
            if image.inverse and highest < image.range[1]:
                levels = np.float32(highest) - image.values
            scaled = _scaled(levels, (0.0, highest))
        else:
            low, high = self.window or (float(image.levels.min()), float(image.levels.max()))
            scaled = _scaled(image.levels, (low, high))
        if image.padding is not None:
            scaled[image.padding] = 0
        return scaled

    def unknown(self, sample: Sample) -> str:
        """Say why the rule, or the training images, do not tell how an image becomes [0, 1]; empty where they do.

        ``auto`` goes by what the training images were; of another kind it knows nothing.

        Args:
            sample: A sample of the image.
        """
        if not len(sample.levels) or self.rule not in ("auto", "dicom"):
            return ""
        if self.rule == "dicom":
            return "" if sample.window else _no_window(sample)
        if sample.kind == "dicom" and self.own_window:
            return self._no_common_window(sample) if self._is_other(sample.window) else ""
        if sample.kind == "raster" and sample.integer:
            return self._too_deep(sample) if sample.deep else ""
        return "" if self.window else _unlike(sample)

    def _too_deep(self, sample: Sample) -> str:
        """Say why a picture of more than 8 bits is not read as the training images were; empty where it is.

        Single values may lie beyond those of the training images, as those of a lesion; half of an image may not.
        """
        # pictures of 8 bits that are stored as 16 can be among the training images, too
        if self.depth is None or (self.depth == 8 and sample.highest > 255):
            return f"has more than 8 bits, and the training images had {self.depth or 'none'}"
        if sample.middle > 2**self.depth - 1:
            return f"has values up to {sample.highest:g}, and the training images had {self.depth} bits"
        return ""

    def replaces_window(self, sample: Sample) -> bool:
        """Say whether a grey DICOM file of another window, or of none, is shown by the window of the training images.

        Args:
            sample: A sample of the image.
        """
        return bool(len(sample.levels)) and sample.kind == "dicom" and self._is_other(sample.window)

    def shows_nothing(self, sample: Sample) -> bool:
        """Say whether the rule makes all of a grey image one value because its window lies beyond the image's values.

        Args:
            sample: A sample of the image.
        """
        if not len(sample.levels):
            return False
        if self.replaces_window(sample):
            window = self._common()
            return window is not None and bool(np.ptp(window.shown(np.array([sample.lowest, sample.highest]))) == 0)
        if self.own_window and sample.kind == "dicom" and sample.window:
            return sample.shows_nothing
        if self.rule != "window" or self.window is None:
            return False
        return sample.highest <= self.window[0] or sample.lowest >= self.window[1]

    def _common(self) -> Window | None:
        """Return the common window; None where there is none, or it is a table."""
        if self.common_window == ALL_OF_8_BITS:
            return Window(127.5, 255, "LINEAR_EXACT")  # from 0 to 255
        return Window.named(self.common_window)

    def _is_other(self, window: str) -> bool:
        """Say whether there is a common window, and a DICOM file has another, or none."""
        if self.common_window in ("", window):
            return False
        common = self._common()
        return common is None or common != Window.named(window)

    def _no_common_window(self, image: RawImage | Sample) -> str:
        """Say why a DICOM file of another window cannot be shown by the common one; empty where it can."""
        if self._common() is None:  # a table, which is known by its digest alone
            return f"has another window than the DICOM files of the training ({self.common_window}), or none"
        if self.common_window == ALL_OF_8_BITS and image.range not in {None, (0, 255)}:
            return "has no 8 bits, as all DICOM files of the training, which name no window, have"
        return "" if image.range else _unlike(image)

    def _by_common_window(self, image: RawImage) -> Array:
        """Show a DICOM file of another window, or of none, as if it named the common one."""
        window = self._common()
        reason = self._no_common_window(image)
        if window is None or reason:
            raise UnreadableError(reason)
        shown = window.shown(image.values)
        shown = 1 - shown if image.inverse else shown
        if image.padding is not None:
            shown[image.padding] = 0
        return shown

    def __str__(self) -> str:
        """Describe the rule, and what it has come to by the training images."""
        parts: list[str] = []
        if self.common_window:
            parts.append(f"DICOM files by their common window ({self.common_window})")
        if self.depth:
            parts.append(f"integers of {self.depth} bits as 0 to {2**self.depth - 1}")
        if self.window:
            others = "other files" if parts else "values"
            parts.append(f"{others} from {self.window[0]:g} to {self.window[1]:g}")
        if self.rule == "dicom":
            parts.append("each DICOM file by its own window")
        rule = f"{self.rule} {list(self.limits)}" if self.limits else self.rule
        return f"{rule}: {'; '.join(parts) or 'colours by the highest value of their type'}"


def _spaced(values: Array, row: int) -> Array:
    """Return some values of an image, evenly spaced, of many columns.

    Args:
        values: The values, row by row.
        row: How many of them a row has.
    """
    step = values.size // _SAMPLES + 1
    if _columns(step, row) < min(row / 4, _COLUMNS):  # as where the step is the length of a row
        step += step // 8  # a step or two more would follow a diagonal
        while _columns(step, row) < min(row / 4, _COLUMNS):
            step += 1
    return values.ravel()[::step].copy()  # a view would keep all of the image in memory


def _packed(values: Array) -> Array:
    """Return the same values in two bytes each where they are whole numbers that fit."""
    with np.errstate(invalid="ignore"):  # NaN and values that are too large do not come out again
        packed = values.astype(np.int16)
    return packed if np.array_equal(packed, values) else values


def _columns(step: int, row: int) -> int:
    """Return how many columns every n-th value comes from."""
    return row // math.gcd(step, row)


def _no_window(image: RawImage | Sample) -> str:
    """Say that a DICOM file does not say how it is shown."""
    has = f"has a window that cannot be used ({image.unusable})" if image.unusable else "has no window of its own"
    return f"{has}: set another intensity than dicom"


def _unlike(image: RawImage | Sample) -> str:
    """Say that a file's values mean nothing to the training."""
    return f"is a {image.kind} file whose values no training image was like"


def _scaled(levels: Array, window: tuple[float, float]) -> Array:
    """Map a window to [0, 1]."""
    low, high = window
    scaled: Array = ((levels - np.float32(low)) / np.float32(high - low or 1)).clip(0, 1).astype(np.float32)
    return scaled


def _percentiles(samples: Sequence[Sample], limits: tuple[float, float]) -> tuple[float, float] | None:
    """Return two percentiles of the values of all samples together, None where there are none."""
    if not samples:
        return None
    levels = np.concatenate([sample.levels for sample in samples], dtype=np.float32)
    low, high = np.percentile(levels, limits, overwrite_input=True)  # saves a copy of all of them
    return float(low), float(high)
