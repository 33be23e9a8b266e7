"""Checks of settings that the detectors of this package share."""

from __future__ import annotations

from typing import Any

from anomalib_msacl.errors import InputError

LARGEST_SIDE = 1 << 14  # of an image in pixels


def check_switches(model: str, **values: Any) -> None:
    """Refuse what is neither true nor false, such as the text ``no``, which Python takes for true.

    Raises:
        InputError: Naming the first of them.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(f"{model}: {name} is {value!r}, but must be true or false.")


def check_whole(model: str, name: str, value: Any, lowest: int, highest: int, what: str = "a whole number") -> None:
    """Refuse what is no whole number of a range.

    Raises:
        InputError: Naming it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise InputError(f"{model}: {name} is {value!r}, but must be {what} from {lowest} to {highest}.")
