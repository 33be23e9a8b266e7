"""What counts once among the scores that a threshold comes from: a patient, a file or an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from anomalib_msacl.errors import InputError

Unit = Literal["patient", "file", "image"]
"""A patient or a file counts with the largest score of its images."""


def recorded_unit(record: Mapping[str, Any]) -> Unit:
    """Return the unit of recorded scores.

    Args:
        record: Its ``unit`` is returned. Earlier versions recorded ``patients`` instead: whether patients count.

    Raises:
        InputError: If the unit is not known to this version.
    """
    unit = record.get("unit", "patient" if record.get("patients") else "image")
    if unit not in get_args(Unit):
        raise InputError(
            f"the scores that the threshold comes from are those of '{unit}', but this version knows only "
            f"{', '.join(get_args(Unit))}: use the version of anomalib-msacl that the model was made with"
        )
    return cast("Unit", unit)
