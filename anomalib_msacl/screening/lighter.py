"""The same network with less work, where OpenVINO does not see by itself that it can be saved."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNUSED = "pred_mask"
_MAP = "anomaly_map"
_SMALLEST_KERNEL = 7  # pixels of a side; below, two passes are not faster than one
_RANK_ONE = 1e-6  # part of the first singular value that the second may have


def lighten(network: Any, maps: bool) -> None:
    """Take work out of a network that screening does not need; scores and maps stay the same up to rounding.

    - What nobody reads is not computed: the mask of pixels, and the anomaly map where none is drawn.
    - A blur by a square Gaussian kernel becomes one along each side.
    - Where the nearest of many vectors is looked for and only one of the answers is used, as in PatchCore, the place
      is looked for there alone.

    Args:
        network: An ``openvino.Model``, which is changed.
        maps: Whether anomaly maps are needed.
    """
    unused = {_UNUSED} if maps else {_UNUSED, _MAP}
    for result in network.get_results():
        if result.output(0).names & unused or result.input_value(0).names & unused:
            network.remove_result(result)
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            _separate(node)
        elif node.get_type_name() == "TopK":
            _look_up_once(node)
    network.validate_nodes_and_infer_types()


def _separate(node: Any) -> None:
    """Replace a convolution of one channel by two, where its kernel is a product of two lines."""
    from openvino import opset13 as ops  # noqa: PLC0415

    kernel = _constant(node.input_value(1))
    if kernel is None or kernel.shape[:2] != (1, 1) or min(kernel.shape[2:]) < _SMALLEST_KERNEL:
        return
    left, sizes, right = np.linalg.svd(kernel[0, 0].astype(np.float64))
    if sizes[1] > _RANK_ONE * sizes[0]:
        return
    settings = node.get_attributes()
    image = node.input_value(0)
    for axis, line in enumerate((left[:, 0] * sizes[0], right[0])):
        shape = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
        weights = ops.constant(line.reshape(shape).astype(kernel.dtype))
        along = {
            name: _only(settings[name], axis, neutral)
            for name, neutral in (("strides", 1), ("pads_begin", 0), ("pads_end", 0), ("dilations", 1))
        }
        image = ops.convolution(image, weights, **along, auto_pad=settings["auto_pad"]).output(0)
    _replace(node.output(0), image)


def _look_up_once(node: Any) -> None:
    """Replace the places of the nearest by a search in the one row that is used, and their distances by a minimum."""
    from openvino import opset13 as ops  # noqa: PLC0415

    distances, settings = node.input_value(0), node.get_attributes()
    lookup, rows = _only_lookup(node)
    shape = distances.get_partial_shape()
    if lookup is None or settings["mode"] != "min" or settings["axis"] not in {1, -1} or _number(node) != 1:
        return
    if len(shape) != 2 or shape[1].is_dynamic:
        return
    table = ops.reshape(distances, np.array([*rows, shape[1].get_length()], dtype=np.int64), special_zero=False)
    chosen = ops.gather_nd(table, lookup.input_value(1))
    nearest = ops.topk(chosen, np.int64(1), 1, "min", "value", index_element_type=settings["index_element_type"])
    place = ops.squeeze(nearest.output(1), np.array([1], dtype=np.int64))
    _replace(lookup.output(0), place.output(0))
    least = ops.reduce_min(distances, np.array([1], dtype=np.int64), keep_dims=True)
    _replace(node.output(0), least.output(0))


def _only_lookup(node: Any) -> tuple[Any, Any]:
    """Return the one operation that reads the places, in rows of one image, and the shape of these; or None, None."""
    reshaped = _only_user(node.output(1), "Reshape")
    lookup = reshaped and _only_user(reshaped.output(0), "GatherND")
    rows = reshaped and _constant(reshaped.input_value(1))
    if not lookup or rows is None or len(rows) != 2 or lookup.get_attributes()["batch_dims"]:
        return None, None
    return (lookup, rows) if len(lookup.input_value(1).get_partial_shape()) == 2 else (None, None)


def _only_user(output: Any, kind: str) -> Any:
    """Return the operation that reads an output, if it is the only one and of this kind; else None."""
    users = [user.get_node() for user in output.get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None


def _number(node: Any) -> int | None:
    """Return how many values a search returns, where that is fixed."""
    number = _constant(node.input_value(1))
    return None if number is None else int(number.item())


def _only(values: Any, axis: int, neutral: int) -> list[int]:
    """Return the setting of one side of a kernel, and that of no effect for the other."""
    return [int(value) if index == axis else neutral for index, value in enumerate(values)]


def _constant(output: Any) -> NDArray[Any] | None:
    """Return the value of a constant, behind a conversion of its type too; None for anything else."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _replace(old: Any, new: Any) -> None:
    """Let everything that reads one output read another, which takes over its names."""
    names = old.names
    old.replace(new)
    new.set_names(new.names | names)
