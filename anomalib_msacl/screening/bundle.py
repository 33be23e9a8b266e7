"""The bundle: one small JSON file beside an exported model, with all that is needed to use it as it was tested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import anomalib_msacl
from anomalib_msacl.data.units import Unit, recorded_unit
from anomalib_msacl.errors import InputError

FORMAT = 1
ENDING = ".bundle.json"
CHANNELS = 3
_LARGEST = 50_000_000  # bytes; calibration scores take about twenty each
_ONLY_TOLD = ("versions", "calibration", "format")  # entries that change no row of a table


@dataclass(frozen=True)
class Limits:
    """Threshold and range of raw scores, of images or of pixels.

    Attributes:
        threshold: Raw score whose normalised one is 0.5; None where there is none.
        low: Lower end of the range that scores are normalised by.
        high: Its upper end.
        chosen: How the threshold was chosen, in one sentence.
        sensitivity: That of anomalib's post-processor: normalised scores above 1 minus it are called abnormal.
    """

    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    chosen: str = ""
    sensitivity: float = 0.5

    @property
    def decision(self) -> float:
        """The raw score above which something is called abnormal."""
        threshold, low, high = self.known()
        return threshold + (0.5 - self.sensitivity) * (high - low)

    def normalised(self, raw: float) -> float:
        """Return anomalib's normalised score: 0.5 at the threshold, cut off at 0 and 1."""
        threshold, low, high = self.known()
        width = high - low
        if width == 0:
            return 0.5 + 0.5 * ((raw > threshold) - (raw < threshold))
        return min(1.0, max(0.0, (raw - threshold) / width + 0.5))

    def raw(self, normalised: float) -> float | None:
        """Return the raw score of a normalised one; None where that was cut off."""
        threshold, low, high = self.known()
        return (normalised - 0.5) * (high - low) + threshold if 0 < normalised < 1 else None

    def known(self) -> tuple[float, float, float]:
        """Return threshold, lower and upper end.

        Raises:
            InputError: If there are none.
        """
        if self.threshold is None or self.low is None or self.high is None:
            raise InputError(
                "the model has no threshold, or no range of scores, so that it decides nothing: fit it with "
                "NormalsThreshold or with validation images, and export it again"
            )
        return self.threshold, self.low, self.high


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out normal images that the threshold comes from.

    Attributes:
        scores: Raw scores, ascending.
        unit: What each is the largest of: a patient's images, or those of a file; or it is that of an image.
        level: A difference to incoming scores is told where chance would make it with a probability below this.
    """

    scores: tuple[float, ...]
    unit: Unit = "image"
    level: float = 0.01


@dataclass(frozen=True)
class Bundle:
    """What an exported model is, where it comes from, and how its images are read.

    Attributes:
        model: Class of the model, with its module.
        backbone: Name of its backbone, empty where it has none that is pre-trained.
        backbone_sha256: Digest of the backbone's weights, empty as well.
        weights_sha256: Digest of everything that the model has learned.
        versions: Versions of the packages that made the export.
        transform: What the model does to its images, step by step: size, interpolation, normalisation.
        size: Height and width that images are resized to, or the shorter side; empty where they are not.
        image: Threshold and range of the scores of images.
        pixel: Those of the anomaly maps.
        reading: How the training read its files, see :class:`anomalib_msacl.medical.reading.Reading`; None if
            anomalib's own reader did, which knows 8 bits only.
        calibration: Scores that the threshold comes from; None where it was not chosen by held-out normal images.
        files: Digests of the exported files, by name; empty for a checkpoint.
        channels: Number of channels of the images.
        format: Version of this format.
    """

    model: str
    backbone: str
    backbone_sha256: str
    weights_sha256: str
    versions: Mapping[str, str]
    transform: tuple[str, ...]
    size: tuple[int, ...]
    image: Limits
    pixel: Limits
    reading: Mapping[str, Any] | None = None
    calibration: Calibration | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    channels: int = CHANNELS
    format: int = FORMAT

    @cached_property
    def version(self) -> str:
        """Name of the program and of all that decides a result, short enough for a column of a table.

        It has the files, the thresholds and the reading, too: of two models with one ``model.xml`` the weights differ.
        """
        decides = {name: value for name, value in asdict(self).items() if name not in _ONLY_TOLD}
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        return f"anomalib-msacl {anomalib_msacl.__version__}, {self.model.rsplit('.', 1)[-1]} {digest[:12]}"

    def write(self, model: Path) -> Path:
        """Write the bundle beside an exported model, with the digests of its files.

        Args:
            model: ``model.xml``, with its ``model.bin``, or ``model.onnx``.

        Returns:
            The file, ``model.bundle.json``.
        """
        content = asdict(self) | {"files": {path.name: sha256(path) for path in _parts(model)}}
        target = bundle_path(model)
        target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return target


def bundle_path(model: Path) -> Path:
    """Return where the bundle of an exported model is."""
    return model.with_name(model.stem + ENDING)


def read_bundle(model: Path) -> Bundle:
    """Read the bundle of an exported model, and see that it belongs to it.

    Args:
        model: ``model.xml`` or ``model.onnx``.

    Returns:
        The bundle.

    Raises:
        InputError: If there is none, it cannot be read, it is of another format, or the model is not the one that it
            was written for.
    """
    path = bundle_path(model)
    if not path.is_file():
        raise InputError(
            f"{model} has no {path.name} beside it, which says how images are read and what the threshold is: export "
            "the checkpoint by anomalib-msacl export, and copy all files of the export together"
        )
    bundle = _parsed(path)
    for name, digest in bundle.files.items():
        part = model.with_name(Path(name).name)
        if not part.is_file():
            raise InputError(f"{part} is missing, which {path.name} names: copy all files of the export together")
        if sha256(part) != digest:
            raise InputError(
                f"{part} is not the file that {path.name} was written for (their digests differ): copy all files of "
                "one export together"
            )
    if set(bundle.files) != {part.name for part in _parts(model)}:
        raise InputError(f"{path.name} was written for {', '.join(bundle.files)}, not for {model.name}: export again")
    if bundle.channels != CHANNELS:
        raise InputError(
            f"{path.name} says that the model takes images of {bundle.channels} channels, but images are read with "
            f"{CHANNELS}: export a model of {CHANNELS}"
        )
    return bundle


def copy_bundle(model: str | Path, target: str | Path) -> Path:
    """Let a changed copy of an exported model, say a smaller one, have the bundle of the model.

    Args:
        model: The exported ``model.xml`` with its bundle.
        target: The other model.

    Returns:
        The bundle of the other model.

    Raises:
        InputError: As :func:`read_bundle`, for the first model.
    """
    return read_bundle(Path(model)).write(Path(target))


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _in_parts(file)


def _in_parts(file: Any) -> str:
    """Return a digest where Python is older than 3.11."""
    digest = hashlib.sha256()
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()


def _parts(model: Path) -> list[Path]:
    """Return the files that an exported model consists of."""
    others = [model.with_suffix(".bin")] if model.suffix == ".xml" else [model.with_name(model.name + ".data")]
    return [model, *(path for path in others if path.is_file())]


def _parsed(path: Path) -> Bundle:
    """Read a bundle, with a sentence about whatever is wrong with it."""
    try:
        with path.open("rb") as file:
            content = dict(json.loads(file.read(_LARGEST)))
        _check_format(path, content)
        return _bundle(content)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): export the checkpoint again") from error


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` where a bundle is of another format."""
    number = content.get("format")
    if number != FORMAT:
        made_by = dict(content.get("versions", {})).get("anomalib-msacl", "of an unknown version")
        raise InputError(
            f"{path} is of format {number}, made by anomalib-msacl {made_by}, but this version, "
            f"{anomalib_msacl.__version__}, reads format {FORMAT}: export the checkpoint again, or install that version"
        )


def _bundle(content: dict[str, Any]) -> Bundle:
    """Build a bundle from plain data, or raise."""
    odd = {part.name for part in fields(Bundle)} ^ set(content)
    if odd:
        raise TypeError(f"{', '.join(sorted(odd))} missing or not known")
    calibration = content["calibration"]
    if calibration is not None:
        unit = recorded_unit(calibration, content["reading"])
        known = {"scores": tuple(float(score) for score in calibration["scores"]), "unit": unit}
        others = {name: value for name, value in calibration.items() if name != "patients"}  # of earlier versions
        calibration = Calibration(**{**others, **known})
    parts = {
        "image": Limits(**content["image"]),
        "pixel": Limits(**content["pixel"]),
        "calibration": calibration,
        "transform": tuple(content["transform"]),
        "size": tuple(int(side) for side in content["size"]),
        "files": {str(name): str(digest) for name, digest in content["files"].items()},
    }
    return Bundle(**{**content, **parts})
