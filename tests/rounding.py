"""What an exported network holds its weights in, and whether they are the original ones within that rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino

WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}


@dataclass(frozen=True)
class Stored:
    """An input of an operation that depends on no image.

    Attributes:
        operation: Type of the operation.
        kind: Element type in the file, of the largest constant behind the input.
        values: What the operation gets.
    """

    operation: str
    kind: str
    values: np.ndarray


def stored(file: Path) -> dict[tuple[str, int], Stored]:
    """Return the weights, banks and so on of a network, by name and input of the operation that uses them.

    OpenVINO itself undoes the rounding, whichever way the file describes it.
    """
    network = openvino.Core().read_model(file)
    kinds: dict[str, tuple[int, str]] = {}  # of what depends on no image: largest size, and its element type
    places, sources, found = [], [], []
    for operation in network.get_ordered_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        inputs = [port.get_source_output() for port in operation.inputs()]
        behind = [kinds.get(source.get_node().get_friendly_name()) for source in inputs]
        if kind == "Constant":
            shape = operation.get_output_shape(0)
            kinds[name] = (math.prod(shape), operation.get_output_element_type(0).to_string())
        elif inputs and all(behind):
            kinds[name] = max(item for item in behind if item)
        else:
            for place, (source, item) in enumerate(zip(inputs, behind, strict=True)):
                if item and item[0] >= 64 and source.get_element_type().to_string().startswith("f"):
                    places.append((name, place))
                    sources.append(source)
                    found.append((kind, item[1]))
    run = openvino.Core().compile_model(openvino.Model(sources, []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = [np.array(value, dtype=np.float64) for value in run({}).to_tuple()]
    rows = zip(places, found, values, strict=True)
    return {place: Stored(operation, kind.lower(), value) for place, (operation, kind), value in rows}


def check_rounding(before: Stored, after: Stored) -> None:
    """Check that values are the original ones within the rounding of the type that the file holds them in."""
    old, new = before.values, after.values
    if after.kind in {"f16", "f32"}:
        assert np.array_equal(new, old.astype(np.float16) if after.kind == "f16" else old)
        return
    fits = []
    for axis in range(old.ndim):  # one of the axes is that of the channels, each of which has a step of its own
        others = tuple(index for index in range(old.ndim) if index != axis)
        high, low = old.max(others, keepdims=True), old.min(others, keepdims=True)
        # i8: seven symmetric bits, which cannot overflow where int8 products are added in 16 bits.
        step = (high.clip(0) - low.clip(None, 0)) / 255 if after.kind == "u8" else np.maximum(high, -low) / 63
        # Half a step, and the step itself is stored in 16 bits: 11 binary digits, not below the smallest of that type.
        fits.append(bool((abs(new - old) <= (0.5 + 0.15) * step + 1e-5).all()))
    assert any(fits)
