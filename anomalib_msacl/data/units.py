"""What counts once among the scores that a threshold comes from: a patient, a file or an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from anomalib_msacl.errors import InputError

Unit = Literal["patient", "file", "image"]
"""A patient or a file counts with the largest score of its images."""


def recorded_unit(record: Mapping[str, Any], reading: Mapping[str, Any] | None = None) -> Unit:
    """Return the unit of recorded scores.

    Args:
        record: Its ``unit`` is returned. Earlier versions recorded ``patients`` instead: whether patients count, or
            files, which they called patients where there was no rule for them.
        reading: How the images were read, with that rule; None where it is not known.

    Raises:
        InputError: If the unit is not known to this version.
    """
    nameless = isinstance(reading, Mapping) and not (reading.get("patient_pattern") or reading.get("patient_tag"))
    counted: Unit = "file" if nameless else "patient"
    unit = record.get("unit", counted if record.get("patients") else "image")
    if unit not in get_args(Unit):
        raise InputError(
            f"the scores that the threshold comes from are those of '{unit}', but this version knows only "
            f"{', '.join(get_args(Unit))}: use the version of anomalib-msacl that the model was made with"
        )
    return cast("Unit", unit)
