"""Resizing that can be exported, and the scope in which exports keep it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data.transforms import ExportableCenterCrop
from anomalib.models.components.base.export_mixin import ExportMixin
from anomalib.pre_processing import PreProcessor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_msacl.errors import InputError
from anomalib_msacl.export import AntialiasedResize, antialiased_exports, exportable, resize_weights

MODES = {False: InterpolationMode.BILINEAR, True: InterpolationMode.BICUBIC}
SIDES = [(224, 200), (61, 333), (48, 32), (30, 24), (1000, 31)]


@pytest.mark.parametrize("cubic", MODES)
@pytest.mark.parametrize("size", [[48, 32], [32, 32], 24, [24]])
@pytest.mark.parametrize("sides", SIDES)
def test_resizing_is_torchvisions(size: int | list[int], sides: tuple[int, int], cubic: bool) -> None:
    images = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    expected = Resize(size, MODES[cubic], antialias=True)(images)
    # torchvision rounds the centres of the pixels, which shows on long sides.
    torch.testing.assert_close(AntialiasedResize(size, cubic)(images), expected, rtol=0, atol=5e-5)
    exact = Resize(size, MODES[cubic], antialias=True)(images.double())
    torch.testing.assert_close(AntialiasedResize(size, cubic)(images.double()), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cubic", MODES)
@pytest.mark.parametrize("crop", [(24, 24), (1, 24), (17, 8)])
@pytest.mark.parametrize("sides", [*SIDES, (201, 224), (65, 60)])
def test_a_crop_is_the_part_that_torchvision_leaves(sides: tuple[int, int], crop: tuple[int, int], cubic: bool) -> None:
    images = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0)).double()
    expected = Compose([Resize(24, MODES[cubic]), CenterCrop(crop)])(images)
    torch.testing.assert_close(AntialiasedResize(24, cubic, crop)(images), expected, rtol=0, atol=1e-6)


def test_an_image_of_the_wanted_size_stays_as_it_is() -> None:
    image = torch.rand(3, 48, 32)
    assert all(torch.equal(AntialiasedResize([48, 32], cubic)(image), image) for cubic in MODES)


@pytest.mark.parametrize("cubic", MODES)
def test_weights_are_means_and_symmetric(cubic: bool) -> None:
    weights = resize_weights(37, 11, cubic)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(11))
    torch.testing.assert_close(weights, weights.flip(0, 1))
    assert cubic or weights.min() == 0


@pytest.mark.parametrize("size", [0, [], [1, 2, 3], [4, -1]])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    with pytest.raises(InputError, match="in pixels"):
        AntialiasedResize(size)


@pytest.mark.parametrize(("size", "crop"), [(8, (9, 8)), ([8, 6], (8, 7)), (8, (0, 8)), (8, (8,))])
def test_a_part_that_is_larger_than_the_whole_is_refused(size: Any, crop: Any) -> None:
    with pytest.raises(InputError, match="within it"):
        AntialiasedResize(size, crop=crop)


@pytest.mark.parametrize(("size", "crop", "cubic"), [([48, 32], None, True), (24, None, False), (24, (17, 24), False)])
def test_openvino_resizes_as_torchvision(
    size: int | list[int], crop: tuple[int, int] | None, cubic: bool, tmp_path: Path
) -> None:
    resize = AntialiasedResize(size, cubic, crop).eval()
    plain = Compose([Resize(size, MODES[cubic]), *([CenterCrop(crop)] if crop else [])])
    dimensions = {axis: torch.export.Dim(name) for axis, name in {0: "batch", 2: "height", 3: "width"}.items()}
    torch.onnx.export(
        resize,
        (torch.zeros(2, 3, 40, 50),),
        tmp_path / "resize.onnx",
        dynamo=True,
        dynamic_shapes=(dimensions,),
        verbose=False,
    )
    openvino.save_model(openvino.Core().read_model(tmp_path / "resize.onnx"), tmp_path / "resize.xml")  # in 16 bits
    for file in ("resize.onnx", "resize.xml"):
        run = openvino.Core().compile_model(tmp_path / file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for sides in SIDES:
            images = torch.rand(1, 3, *sides)
            expected = plain(images).numpy()
            np.testing.assert_allclose(run(images.numpy())[0], expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("mode", "cubic"), [("bilinear", False), (2, False), ("bicubic", True), (3, True)])
def test_modes_may_be_names_or_numbers(mode: Any, cubic: bool) -> None:
    assert exportable(Resize([8, 8], mode)).cubic is cubic


def test_only_antialiased_resizing_is_replaced() -> None:
    plain, coarse = Resize([8, 8], antialias=False), Resize([8, 8], InterpolationMode.NEAREST, antialias=True)
    normalize = Normalize([0.5], [0.5])
    cubic = Resize([8, 8], InterpolationMode.BICUBIC)
    given = Compose([Compose([Resize([9, 8]), cubic]), plain, coarse, CenterCrop(4), normalize])
    found = exportable(given).transforms
    assert [(step.size, step.cubic) for step in found[0].transforms] == [((9, 8), False), ((8, 8), True)]
    assert [type(step) for step in found[1:]] == [Resize, Resize, ExportableCenterCrop, Normalize]
    assert given.transforms[0].transforms[0].antialias
    assert isinstance(exportable(Resize(8)), AntialiasedResize)
    with pytest.raises(InputError, match="max_size"):
        exportable(Resize(8, max_size=20))


def test_a_crop_behind_a_shorter_side_is_computed_at_once() -> None:
    cubic = Resize(9, InterpolationMode.BICUBIC)
    found = exportable(Compose([cubic, CenterCrop((8, 9)), Normalize([0.5], [0.5])])).transforms
    assert (found[0].size, found[0].cubic, found[0].crop) == ((9,), True, (8, 9))
    assert [type(step) for step in found[1:]] == [Normalize]
    for larger in (10, (9, 10)):  # which pads
        found = exportable(Compose([Resize(9), CenterCrop(larger)])).transforms
        assert [type(step) for step in found] == [AntialiasedResize, ExportableCenterCrop]


def test_exports_keep_the_antialiasing_within_the_scope_only(
    make_patchcore: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    versions: list[int] = []

    def export(model: Any, f: str, opset_version: int, **_: Any) -> None:
        seen.append(model.pre_processor.export_transform)
        versions.append(opset_version)
        Path(f).touch()

    monkeypatch.setattr(torch.onnx, "export", export)
    model = make_patchcore()
    model.model.memory_bank = torch.rand(20, 240)
    methods = {name: getattr(ExportMixin, name) for name in ("to_torch", "to_onnx", "to_openvino")}
    usual = model.pre_processor.export_transform
    with antialiased_exports():
        model.to_onnx(tmp_path)
        exported = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
        assert model.pre_processor.export_transform is usual
    model.to_onnx(tmp_path)
    assert isinstance(seen[0].transforms[0], AntialiasedResize)
    assert seen[1] is usual
    assert versions == [18, 14]  # torch's exporter cannot write anomalib's 14, and logs a traceback
    assert not usual.transforms[0].antialias
    images = torch.rand(1, 3, 200, 150)
    torch.testing.assert_close(exported.pre_processor(images), model.pre_processor.transform(images))
    assert {name: getattr(ExportMixin, name) for name in methods} == methods


def test_activations_compute_out_of_place_while_they_are_traced(
    make_patchcore: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_place(model: Any) -> set[bool]:
        return {module.inplace for module in model.modules() if hasattr(module, "inplace")}

    model = make_patchcore()
    model.model.memory_bank = torch.rand(20, 240)
    assert in_place(model) == {True}
    seen: list[set[bool]] = []
    monkeypatch.setattr(torch.onnx, "export", lambda model, f, **_: (seen.append(in_place(model)), Path(f).touch()))
    with antialiased_exports():
        model.to_onnx(tmp_path)
        exported = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
    model.to_onnx(tmp_path)
    assert seen == [{False}, {True}]
    assert in_place(exported) == in_place(model) == {True}


def test_patchcore_is_exported_for_batches_of_any_size(
    make_patchcore: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """anomalib searches for 1024 patches at a time, which torch writes for the two images of its example."""
    images, seen = torch.rand(5, 3, 70, 90), []

    @torch.no_grad()
    def export(model: Any, args: Any, f: str, dynamic_shapes: Any, **_: Any) -> None:
        program = torch.export.export(model, args, dynamic_shapes=dynamic_shapes)  # refuses sides that have limits
        seen.append((program.module()(images), model(images)))
        Path(f).touch()

    monkeypatch.setattr(torch.onnx, "export", export)
    model = make_patchcore(layers=["layer1"])  # 256 patches of an image
    model.model.memory_bank = torch.rand(20, model.model.feature_extractor.out_dims[0])
    with antialiased_exports():
        model.to_onnx(tmp_path)
    ((found, expected),) = seen
    for name in ("pred_score", "anomaly_map"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_the_scope_ends_with_an_error_too(make_patchcore: Callable[..., Any], tmp_path: Path) -> None:
    model = make_patchcore(pre_processor=PreProcessor(Resize(8, max_size=20)))
    usual, method = model.pre_processor.export_transform, ExportMixin.to_onnx
    with pytest.raises(InputError), antialiased_exports():
        model.to_onnx(tmp_path)
    assert ExportMixin.to_onnx is method
    assert model.pre_processor.export_transform is usual


@pytest.mark.parametrize("pre_processor", [PreProcessor(), False])
def test_models_that_do_not_resize_are_exported_as_always(
    make_patchcore: Callable[..., Any], tmp_path: Path, pre_processor: Any
) -> None:
    with antialiased_exports():
        assert make_patchcore(pre_processor=pre_processor).to_torch(tmp_path).exists()
