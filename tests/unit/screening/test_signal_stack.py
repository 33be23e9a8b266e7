"""OpenVINO replaces the stack that signals are handled on; we bring it back."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stack is kept on Linux only")

# A model is compiled, used and freed, the heap is trimmed, and then a signal arrives.
SCRIPT = """
import contextlib, ctypes, faulthandler, gc, os, signal
import numpy, openvino
from openvino import opset13
from anomalib_msacl.screening.signal_stack import _Stack, kept_signal_stack
def stack():
    now = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return now.address
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
before = stack()
with kept_signal_stack():
    source = opset13.parameter([1, 3, -1, -1], numpy.float32)
    compiled = openvino.Core().compile_model(openvino.Model([opset13.relu(source)], [source]), "CPU")
    compiled(numpy.zeros((1, 3, 8, 8), numpy.float32))
print("kept" if stack() == before else "replaced")
del compiled, source
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_a_model_was_compiled() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["kept", "handled"]
