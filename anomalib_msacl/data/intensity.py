"""Rules that turn the grey values of files into [0, 1], the same for all images of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anomalib_msacl.data.picture import Array, Picture, UnreadableError
from anomalib_msacl.errors import InputError

_WHOLE = (0.1, 99.9)  # percentiles of `auto`, where nothing else says what is black and what is white
_DEPTHS = (8, 10, 12, 14, 16, 32)
_SAMPLES = 2000  # values of an image that percentiles are taken from


@dataclass(frozen=True)
class Sample:
    """What a rule needs to know of a training image.

    Attributes:
        levels: Some of its grey values, shape ``(N,)``; none for colour images.
        highest: The highest of all of them.
        window: Window of the DICOM file, empty without one.
        kind: Kind of file.
        integer: Whether values are unsigned integers.
    """

    levels: Array
    highest: float
    window: str
    kind: str
    integer: bool

    @classmethod
    def of(cls, picture: Picture) -> Sample:
        """Take values of a picture, evenly spaced, padding left out."""
        empty: Array = np.zeros(0, dtype=np.float32)
        inside = picture.levels if picture.padding is None else picture.levels[~picture.padding]
        levels = empty if picture.colour else inside.ravel()
        integer = picture.range is not None and picture.range[0] == 0
        highest = float(picture.values.max())
        return cls(levels[:: len(levels) // _SAMPLES + 1], highest, picture.window, picture.kind, integer)


@dataclass(frozen=True)
class Intensity:
    """How grey values become [0, 1]. Colour images are divided by the highest value of their type.

    Attributes:
        rule: ``auto``, ``dicom``, ``window`` or ``percentile``.
        limits: Of the rule: two values, or two percentiles.
        window: Values that become 0 and 1, fixed by the training images; None before, or where files of their own
            say it.
        own_window: Whether DICOM files are shown by their own window.
        depth: Bits of the integers that become [0, 1]; None where it does not matter.
    """

    rule: str = "auto"
    limits: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    own_window: bool = True
    depth: int | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Sequence[float]]) -> Intensity:
        """Build a rule from what stands in YAML.

        Raises:
            InputError: If there is no such rule, or its two values are not in order.
        """
        if given in ("auto", "dicom"):
            return cls(str(given))
        if isinstance(given, Mapping) and len(given) == 1:
            rule, limits = next(iter(given.items()))
            highest = 100 if rule == "percentile" else np.inf
            lowest = 0 if rule == "percentile" else -np.inf
            ordered = isinstance(limits, Sequence) and len(limits) == 2 and lowest <= limits[0] < limits[1] <= highest
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
            window=_percentiles([*whole, *([] if own else dicom)], _WHOLE),
            depth=next((bits for bits in _DEPTHS if max(integers) < 2**bits), None) if integers else None,
        )

    def apply(self, picture: Picture) -> Array:
        """Return a picture in [0, 1], shape ``(H, W)`` or ``(H, W, 3)``, float32.

        Raises:
            UnreadableError: If the rule does not fit the file.
        """
        if picture.colour:
            return picture.values
        if self.own_window and picture.kind == "dicom" and picture.shown is not None:
            return picture.shown
        if self.rule == "dicom":
            raise UnreadableError("has no window of its own: set another intensity than dicom")
        if self.rule == "window" and self.window:
            scaled = _scaled(picture.values, self.window)
            scaled = 1 - scaled if picture.inverse else scaled
        elif self.rule == "auto" and picture.kind == "picture" and picture.range and picture.range[0] == 0:
            highest = picture.range[1] if picture.range[1] <= 255 else 2.0 ** (self.depth or 16) - 1
            levels = picture.levels
            if picture.inverse and highest < picture.range[1]:
                levels = np.float32(highest) - picture.values
            scaled = _scaled(levels, (0.0, highest))
        else:
            low, high = self.window or (float(picture.levels.min()), float(picture.levels.max()))
            scaled = _scaled(picture.levels, (low, high))
        if picture.padding is not None:
            scaled[picture.padding] = 0
        return scaled

    def __str__(self) -> str:
        """Describe the rule as it can be written into YAML for other images."""
        parts: list[Any] = [self.rule, *([f"{self.limits}"] if self.limits else [])]
        if self.window:
            parts.append(f"from {self.window[0]:g} to {self.window[1]:g}")
        if self.depth:
            parts.append(f"integers of {self.depth} bits")
        return ", ".join(parts)


def _scaled(levels: Array, window: tuple[float, float]) -> Array:
    """Map a window to [0, 1]."""
    low, high = window
    scaled: Array = ((levels - np.float32(low)) / np.float32(high - low or 1)).clip(0, 1).astype(np.float32)
    return scaled


def _percentiles(samples: Sequence[Sample], limits: tuple[float, float]) -> tuple[float, float] | None:
    """Return two percentiles of the values of all samples together, None where there are none."""
    if not samples:
        return None
    low, high = np.percentile(np.concatenate([sample.levels for sample in samples]), limits)
    return float(low), float(high)
