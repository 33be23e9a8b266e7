"""Backbones of every kind: pre-training works, and the dense term finds sensible layers by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from PIL import Image

from anomalib_msacl import InputError, Msacl, MsaclPretraining
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.data import CheckedFolder
from anomalib_msacl.transfer import find_backbone
from tests.conftest import make_recipe, phantom

STEP = make_recipe(max_steps=1, batch_size=2, accumulate=1, evaluations=0, centre_images=2)
# Backbone, side of the images, layers and their strides.
BACKBONES = [
    ("resnet18", 64, ["layer2", "layer3"], (8, 16)),
    ("wide_resnet50_2", 64, ["layer2", "layer3"], (8, 16)),
    ("tf_efficientnet_lite0", 64, ["blocks.2", "blocks.4"], (8, 16)),
    ("efficientnet_b0", 64, ["blocks.2", "blocks.4"], (8, 16)),
    ("convnext_tiny", 64, ["stages.1", "stages.2"], (8, 16)),
    ("mobilenetv3_small_100", 64, ["blocks.1", "blocks.3"], (8, 16)),
    ("mobilenetv3_large_100", 64, ["blocks.2", "blocks.4"], (8, 16)),
    ("vit_tiny_patch16_224", 64, ["blocks.5", "blocks.8"], (16, 16)),
    ("vit_small_patch16_224", 64, ["blocks.5", "blocks.8"], (16, 16)),
    ("swin_tiny_patch4_window7_224", 64, ["layers.1", "layers.2"], (8, 16)),
    ("eva02_tiny_patch14_224", 56, ["blocks.5", "blocks.8"], (14, 14)),
    ("xcit_nano_12_p8_224", 64, ["blocks.5", "blocks.8"], (8, 8)),
]
# The same stages with fewer blocks.
SHALLOW: dict[str, dict[str, Any]] = {
    "wide_resnet50_2": {"layers": (1, 1, 1, 1)},
    "convnext_tiny": {"depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2, 2, 2)},
}


@pytest.mark.parametrize(("name", "side", "layers", "strides"), BACKBONES, ids=[row[0] for row in BACKBONES])
def test_a_step_moves_the_layers_that_were_chosen(
    name: str,
    side: int,
    layers: list[str],
    strides: tuple[int, int],
    phantom_root: Path,
    tmp_path: Path,
    make_engine: Callable[..., Engine],
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights_dir": tmp_path / "weights", "backbone_args": SHALLOW.get(name)}
    model = Msacl(name, "random", image_size=side, recipe=STEP, detector=False, **options)
    assert model.encoder.layers == layers
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        before = model.encoder.eval()(images, pooled=False)[0]
    assert [side // one.shape[-1] for one in before] == list(strides)
    assert [one.shape[1] for one in before] == model.encoder.dims
    make_engine(limit_val_batches=0).fit(model, datamodule=phantom(phantom_root, seed=0, train_batch_size=2))
    with torch.no_grad():
        after = model.encoder.eval()(images, pooled=False)[0]
    assert not any(torch.allclose(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "layers", "reason"),
    [
        ("swin_tiny_patch4_window7_224", ["layers.1", "layers.2"], r"cannot take images of 64 x 64 pixels \(Input"),
        ("test_mambaout", ["stages.1", "stages.2"], r"gives its maps with the channels last, which anomalib's models"),
    ],
)
def test_what_anomalibs_extractor_cannot_use_is_refused_before_the_pre_training(
    name: str, layers: list[str], reason: str, make_patchcore: Callable[..., Any], phantom_root: Path, tmp_path: Path
) -> None:
    callback = MsaclPretraining("random", STEP, tmp_path / "msacl")
    engine = Engine(callbacks=[callback], accelerator="cpu", devices=1, default_root_dir=tmp_path)
    with pytest.raises(InputError, match=reason):
        engine.fit(make_patchcore(backbone=name, layers=layers), datamodule=phantom(phantom_root, seed=0))
    assert not any((tmp_path / "msacl").glob("[!.]*"))


def test_architectures_of_one_size_get_their_patches_at_that_size() -> None:
    options = {"img_size": 64}
    model = Msacl("mixer_s32_224", "random", image_size=64, backbone_args=options)
    assert model.encoder.fixed_side == 64
    with pytest.raises(InputError, match=r"'mixer_s32_224' cannot take images of 96 x 96 pixels .* for, or name"):
        Msacl("mixer_s32_224", "random", image_size=96, backbone_args=options)


def test_a_vision_transformer_of_another_size_than_its_own_is_handed_over(
    make_patchcore: Callable[..., Any],
) -> None:
    model = make_patchcore(backbone="vit_tiny_patch16_224", layers=["blocks.5"])
    target = find_backbone(model)
    target.check_size((96, 64))
    backbone, _ = create_backbone(target.architecture, "random", target.model_args)
    target.fill(backbone)
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        theirs = model.model.feature_extractor(images)["blocks.5"]
        ours = backbone.eval().forward_intermediates(images, indices=[5], norm=True, intermediates_only=True)[0]
    assert torch.equal(ours, theirs)


def test_grey_images_are_read_as_anomalib_reads_them(
    make_patchcore: Callable[..., Any], make_engine: Callable[..., Engine], phantom_root: Path, tmp_path: Path
) -> None:
    for path in sorted(phantom_root.rglob("train/good/*.png")):
        (tmp_path / "grey").mkdir(exist_ok=True)
        Image.open(path).convert("L").save(tmp_path / "grey" / path.name)
    data = CheckedFolder("grey", tmp_path / "grey", val_split_mode="from_train", num_workers=0)
    callback = MsaclPretraining("random", STEP, tmp_path / "msacl")
    make_engine(callbacks=[callback]).fit(make_patchcore(), datamodule=data)
    assert callback.directory is not None
