"""How the images of a training were read, as plain data that travels with a checkpoint and its exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.intensity import Intensity
from anomalib_msacl.medical.reader import ImageReader
from anomalib_msacl.medical.slices import Slices
from anomalib_msacl.medical.window import Window

READING = "anomalib_msacl_reading"
"""Key of these data in the state of a datamodule, which Lightning keeps in its checkpoints."""

_PAIRS = ("limits", "window")  # of an intensity rule


@dataclass(frozen=True)
class Reading:
    """A reader whose intensity rule is fixed by training images, and how the patients were found out.

    Attributes:
        reader: Reads files to the very pixels that the training saw.
        patient_pattern: As in :class:`anomalib_msacl.medical.MedicalDataModule`.
        patient_tag: As there.
    """

    reader: ImageReader = field(default_factory=ImageReader)
    patient_pattern: str | None = None
    patient_tag: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, which JSON and checkpoints hold without a loss."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reading:
        """Return what :meth:`as_dict` has written.

        Raises:
            InputError: If something is missing, of another kind, or not known to this version.
        """
        try:
            reader = dict(content["reader"])
            rule = dict(reader.pop("intensity"))
            pairs = {name: None if rule[name] is None else _pair(rule[name]) for name in _PAIRS}
            # earlier versions spelt windows as the files did
            common = str(Window.named(rule["common_window"]) or rule["common_window"])
            intensity = _of(Intensity, {**rule, **pairs, "common_window": common})
            slices = _of(Slices, reader.pop("slices"))
            whole = _of(ImageReader, {**reader, "intensity": intensity, "slices": slices})
            found: Reading = _of(cls, {**content, "reader": whole})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"what is known of the reading of the training images is not of this version ({error}): export the "
                "checkpoint again"
            ) from error
        return found


def reading_in(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return these data out of a checkpoint of Lightning; None where it has none."""
    states = (state for state in checkpoint.values() if isinstance(state, Mapping))
    return next((state[READING] for state in states if READING in state), None)


def _pair(values: Any) -> tuple[float, float]:
    """Return two numbers."""
    low, high = values
    return float(low), float(high)


def _of(kind: Any, content: Mapping[str, Any]) -> Any:
    """Build a dataclass from all of its fields, or raise ``TypeError``."""
    odd = {part.name for part in fields(kind)} ^ set(content)
    if odd:
        raise TypeError(f"{', '.join(sorted(odd))} missing or not known")
    return kind(**content)
