"""Networks with less work: the same scores and maps, and nothing changed that is not understood."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalib_msacl.screening.lighter import lighten
from anomalib_msacl.screening.signal_stack import kept_signal_stack

openvino = pytest.importorskip("openvino")
ops = openvino.opset13
PLACES, BANK, DEPTH = 12, 40, 5


def run(network: Any, *inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of a network by name."""
    with kept_signal_stack():
        compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs)
    return {name: np.array(found[output]) for output in compiled.outputs for name in output.names}


def kinds(network: Any) -> Counter[str]:
    """Return how many operations of each kind there are."""
    return Counter(node.get_type_name() for node in network.get_ops())


def named(node: Any, name: str, index: int = 0) -> Any:
    """Return an output of a node, with a name."""
    node.output(index).set_names({name})
    return node.output(index)


def blur(kernel: NDArray[np.float32]) -> Any:
    """Return a network that filters a plane."""
    plane = ops.parameter([-1, 1, -1, -1], np.float32, name="plane")
    half = kernel.shape[0] // 2, kernel.shape[1] // 2
    filtered = ops.convolution(plane, kernel[None, None], [1, 1], half, half, [1, 1])
    return openvino.Model([named(filtered, "anomaly_map")], [plane], "blur")


def search(bank: NDArray[np.float32], rows: int = PLACES) -> Any:
    """Return a network that looks up, as PatchCore does, what is nearest to the patch that is farthest from a bank."""
    patches = ops.parameter([-1, DEPTH], np.float32, name="patches")
    differences = ops.subtract(ops.unsqueeze(patches, np.int64(1)), ops.constant(bank[None]))
    distances = ops.reduce_sum(ops.multiply(differences, differences), np.array([2]))
    nearest = ops.topk(distances, np.int64(1), 1, "min", "value", index_element_type="i64")
    scores = ops.reshape(nearest.output(0), np.array([-1, rows]), special_zero=False)
    places = ops.reshape(nearest.output(1), np.array([-1, rows]), special_zero=False)
    most = ops.topk(scores, np.int64(1), 1, "max", "value", index_element_type="i64").output(1)
    images = ops.shape_of(scores)
    count = ops.range(np.int64(0), ops.gather(images, np.int64(0), np.int64(0)), np.int64(1), "i64")
    where = ops.concat([ops.unsqueeze(count, np.int64(1)), most], 1)
    results = [named(scores, "anomaly_map"), named(ops.gather_nd(places, where), "place")]
    return openvino.Model(results, [patches], "search")


def test_a_gaussian_blur_becomes_two_lines_and_stays_what_it_was() -> None:
    line = np.exp(-(np.arange(-5, 6) ** 2) / 8)
    network, lighter = (blur(np.outer(line, line[1:-1]).astype(np.float32)) for _ in range(2))
    lighten(lighter, maps=True)
    plane = np.random.default_rng(0).random((2, 1, 24, 31), dtype=np.float32)
    assert kinds(lighter)["Convolution"] == 2
    np.testing.assert_allclose(run(lighter, plane)["anomaly_map"], run(network, plane)["anomaly_map"], rtol=1e-5)


@pytest.mark.parametrize(
    "kernel", [np.random.default_rng(0).random((9, 9)), np.outer(*2 * [np.hanning(5)])], ids=["no product", "small"]
)
def test_other_kernels_are_left_alone(kernel: NDArray[np.float64]) -> None:
    network = blur(kernel.astype(np.float32))
    lighten(network, maps=True)
    assert kinds(network)["Convolution"] == 1


@pytest.mark.parametrize("images", [1, 3])
def test_the_nearest_is_looked_up_where_it_is_used(images: int) -> None:
    generator = np.random.default_rng(images)
    bank = generator.random((BANK, DEPTH), dtype=np.float32)
    patches = generator.random((images * PLACES, DEPTH), dtype=np.float32)
    lighter = search(bank)
    lighten(lighter, maps=True)
    found = run(lighter, patches)
    distances = ((patches[:, None] - bank) ** 2).sum(axis=2).reshape(images, PLACES, BANK)
    for image, rows in enumerate(distances):
        np.testing.assert_allclose(found["anomaly_map"][image], rows.min(axis=1), rtol=1e-5)
        assert found["place"][image] == rows[rows.min(axis=1).argmax()].argmin()
    assert kinds(lighter)["ReduceMin"] == 1


def test_places_that_are_all_used_are_all_looked_up() -> None:
    bank = np.random.default_rng(0).random((BANK, DEPTH), dtype=np.float32)
    network = search(bank)
    searches = [node for node in network.get_ops() if node.get_type_name() == "TopK"]
    nearest = next(node for node in searches if node.get_attributes()["mode"] == "min")
    network.add_outputs([nearest.output(1)])
    before = kinds(network)
    lighten(network, maps=True)
    assert kinds(network) == before


def test_an_export_keeps_its_scores_and_maps_and_loses_what_nobody_reads(trained: Any) -> None:
    core = openvino.Core()
    file = next(trained.export.rglob("model.xml"))
    network, lighter, bare = (core.read_model(file) for _ in range(3))
    lighten(lighter, maps=True)
    lighten(bare, maps=False)
    images = np.random.default_rng(0).random((4, 1, 3, 70, 50), dtype=np.float32)
    for image in images:
        plain, light, scores = (run(each, image) for each in (network, lighter, bare))
        np.testing.assert_allclose(light["pred_score"], plain["pred_score"], atol=1e-5)
        np.testing.assert_allclose(light["anomaly_map"], plain["anomaly_map"], atol=1e-4)
        np.testing.assert_allclose(scores["pred_score"], plain["pred_score"], atol=1e-5)
    assert set(light) == set(plain) - {"pred_mask"}
    assert "anomaly_map" not in scores
