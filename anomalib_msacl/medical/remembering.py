"""What each thread remembers of the files that it has read last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


def cached_by_thread(maxsize: int) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator like ``functools.lru_cache``, with a cache for each thread, which ends with it.

    Threads that read a file each, slice by slice, would push each other's files out of a common one.

    Args:
        maxsize: Results that a thread keeps.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        known: Any = threading.local()

        @wraps(function)
        def found(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            if not hasattr(known, "get"):
                known.get = lru_cache(maxsize)(function)
            result: Result = known.get(*args, **kwargs)
            return result

        return found

    return decorate
