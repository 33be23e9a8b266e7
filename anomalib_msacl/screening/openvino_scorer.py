"""Exported models, run by OpenVINO alone."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_msacl.errors import InputError, first_line
from anomalib_msacl.medical.image import Array
from anomalib_msacl.screening.bundle import CHANNELS, Bundle, read_bundle
from anomalib_msacl.screening.lighter import lighten
from anomalib_msacl.screening.scorer import Scored
from anomalib_msacl.screening.signal_stack import kept_signal_stack

_PROBE = 64  # pixels of the image that the model is tried with
_CLOSE = 1e-3  # between a normalised score and that of the raw one


class OpenVINOScorer:
    """An exported model on the CPU, with one request for each thread that calls it.

    The graph gives normalised scores, cut off at 0 and 1. The raw ones are taken from inside of it; where that
    is not possible they are worked out from the normalised ones, and those cut off have none.

    Args:
        path: ``model.xml`` or ``model.onnx``, with its bundle beside it.
        workers: Number of threads that call it.
        threads: Number of cores that it may use.
        maps: Whether anomaly maps are wanted.

    Raises:
        InputError: If OpenVINO is not installed, the model cannot be read, or its bundle does not match.
    """

    def __init__(self, path: Path, workers: int, threads: int, maps: bool = True) -> None:
        try:
            import openvino  # noqa: PLC0415
        except ImportError as error:
            raise InputError(f'{path} needs OpenVINO: run pip install "anomalib-msacl[screen]"') from error
        self.bundle: Bundle = read_bundle(path)
        self.bundle.image.known()
        core = openvino.Core()
        try:
            network = core.read_model(path)
        except RuntimeError as error:
            raise InputError(f"{path} cannot be read as a model ({first_line(error)}): export it again") from error
        _check_shapes(network, path)
        lighten(network, maps)
        self._raw = _add_raw_output(network)
        self._has_map = any("anomaly_map" in output.names for output in network.outputs)
        config = {
            "INFERENCE_PRECISION_HINT": "f32",  # else processors with bf16 compute in it
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": workers,
        }
        with kept_signal_stack():
            compiled = core.compile_model(network, "CPU", config)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(workers):
            self._requests.put(compiled.create_infer_request())
        self._raw = self._raw and self._raw_is_right()

    def score(self, image: Array) -> Scored:
        """Return what the model says of an image of shape ``(3, H, W)`` in [0, 1], float32."""
        request = self._requests.get()
        try:
            found = request.infer([image[None]], share_inputs=True)
            score = float(found["pred_score"].item())
            plane = np.array(found["anomaly_map"], dtype=np.float32).squeeze() if self._has_map else None
            raw = float(found[len(found) - 1].item()) if self._raw else self.bundle.image.raw(score)
            return Scored(raw, score, bool(found["pred_label"].item()), plane)
        finally:
            self._requests.put(request)

    def _raw_is_right(self) -> bool:
        """Try the model on one image: the raw score must give the normalised one."""
        probe = np.linspace(0, 1, 3 * _PROBE * _PROBE, dtype=np.float32).reshape(3, _PROBE, _PROBE)
        found = self.score(probe)
        return found.raw is not None and abs(self.bundle.image.normalised(found.raw) - found.score) < _CLOSE


def _check_shapes(network: Any, path: Path) -> None:
    """Raise :class:`InputError` where a model does not take one image of three channels and any size."""
    shape = network.inputs[0].get_partial_shape()
    if len(network.inputs) != 1 or len(shape) != 4:
        raise InputError(f"{path} takes other inputs than images ({shape}): export a detector of anomalib")
    channels = shape[1]
    if channels.is_static and channels.get_length() != CHANNELS:
        raise InputError(
            f"{path} takes images of {channels.get_length()} channels, but images are read with {CHANNELS}: export a "
            f"model of {CHANNELS}"
        )
    if shape[0].is_static and shape[0].get_length() != 1:
        raise InputError(f"{path} takes {shape[0].get_length()} images at once: export it for one, or any number")
    if shape[2].is_static or shape[3].is_static:
        raise InputError(f"{path} takes images of one size only ({shape}): export it without input_size")
    names = {name for output in network.outputs for name in output.names}
    missing = {"pred_score", "pred_label"} - names
    if missing:
        raise InputError(f"{path} has no output {' and '.join(sorted(missing))}: export a detector of anomalib")


def _add_raw_output(network: Any) -> bool:
    """Add the raw score as a last output: anomalib chooses between it and the normalised one in a ``Select``."""
    node = network.output("pred_score").get_node().input_value(0).get_node()
    if node.get_type_name() != "Select":
        return False
    network.add_outputs([node.input_value(2)])
    return True
