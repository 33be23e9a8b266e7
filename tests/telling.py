"""What is said of bad input, and that it is said at all: what hangs must fail."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

from anomalib_msacl import InputError

LIMIT = 60  # seconds


def told(work: Callable[[], Any]) -> list[BaseException]:
    """Return the error that some work ends with, as a list; empty where there is none."""
    found: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # of another thread: kept, and looked at by the caller
            found.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "hangs"
    return found


def check_sentence(work: Callable[[], Any], words: str) -> None:
    """Fail unless some work ends with one sentence of these words, a regular expression."""
    found = told(work)
    assert found, "nothing was said"
    assert isinstance(found[0], InputError), repr(found[0])
    assert re.search(words, str(found[0])), str(found[0])
    assert "\n" not in str(found[0])
