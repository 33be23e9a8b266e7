"""Keep the stack that signals are handled on, which OpenVINO replaces.

``compile_model`` of OpenVINO 2026.4.1 gives the calling thread another alternate signal stack (``sigaltstack``). When
the compiled model is freed it brings back the one that it found, which is gone by then where several models are not
freed last in, first out. The next signal that Python handles, Ctrl-C say, or the end of a worker of a data loader, then
kills the process with a segmentation fault. docs/upstream.md has a script.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Bring the alternate signal stack of this thread back at the end; nothing but on Linux."""
    if sys.platform != "linux":
        yield
        return
    before = _Stack()
    sigaltstack = ctypes.CDLL(None).sigaltstack
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
