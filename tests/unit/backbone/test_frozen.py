"""Frozen stages run once, the others after them: together they are the whole."""

from __future__ import annotations

import io

import pytest
import torch

from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.frozen import FrozenStages


def encoder_of(name: str, stride: int = 4, layers: list[str] | None = None) -> Encoder:
    torch.manual_seed(0)
    return Encoder(create_backbone(name, "random")[0], layers, frozen_stride=stride).eval()


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("tf_efficientnet_lite0", "blocks.1"),
        ("mobilenetv2_100", "blocks.1"),
        ("resnet18", "layer1"),
        ("convnext_atto", "stages.0"),
        ("test_resnet", "layer1"),
    ],
)
def test_both_halves_together_give_the_maps_of_the_whole(name: str, stage: str) -> None:
    encoder, images = encoder_of(name), torch.rand(2, 3, 64, 64)
    frozen = FrozenStages(encoder)
    assert frozen.index is not None
    assert encoder.stages[frozen.index]["module"] == stage
    modules = dict(encoder.backbone.named_modules())
    with torch.no_grad():
        whole, pooled = encoder(images)
        encoder.frozen = frozen
        halves, also = encoder(images)
    for one, other in zip([*whole, pooled], [*halves, also], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    assert dict(encoder.backbone.named_modules()) == modules  # everything is back in its place


@pytest.mark.parametrize(
    ("name", "stride", "layers"),
    [("tf_efficientnet_lite0", 0, None), ("test_vit", 4, None), ("tf_efficientnet_lite0", 4, ["blocks.0", "blocks.2"])],
    ids=["nothing frozen", "transformer", "a layer in front"],
)
def test_what_cannot_be_split_runs_as_a_whole(name: str, stride: int, layers: list[str] | None) -> None:
    encoder = encoder_of(name, stride, layers)
    side = encoder.fixed_side or 64
    images, wanted = torch.rand(1, 3, side, side), sorted(set(encoder.index))
    frozen = FrozenStages(encoder)
    assert frozen.index is None
    assert not frozen.fits(encoder)
    with torch.no_grad():
        whole = encoder.intermediates(images, wanted)
        encoder.frozen = frozen
        same = encoder.intermediates(images, wanted)
    assert all(torch.equal(whole[index], same[index]) for index in wanted)


def test_the_copy_fits_until_a_frozen_weight_changes() -> None:
    encoder = encoder_of("tf_efficientnet_lite0")
    frozen = FrozenStages(encoder)
    with torch.no_grad():
        encoder.backbone.blocks[4][0].conv_pw.weight.add_(1)
        assert frozen.fits(encoder)
        encoder.backbone.blocks[1][0].conv_pw.weight.add_(1)
        assert not frozen.fits(encoder)


def test_gradients_are_those_of_the_whole() -> None:
    grads = []
    images = torch.rand(2, 3, 64, 64)
    for apart in (False, True):
        encoder = encoder_of("tf_efficientnet_lite0").train()
        encoder.frozen = FrozenStages(encoder) if apart else None
        maps, pooled = encoder(images)
        (sum(layer.square().mean() for layer in maps) + pooled.square().sum()).backward()
        grads.append(
            {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        )
    assert grads[0].keys() == grads[1].keys()
    for name, one in grads[0].items():
        if one is not None:
            torch.testing.assert_close(one, grads[1][name], rtol=1e-2, atol=1e-3 * float(one.abs().max()) + 1e-9)


def test_the_copy_folds_batch_norm_and_holds_nothing_of_later_stages() -> None:
    frozen = FrozenStages(encoder_of("tf_efficientnet_lite0"))
    modules = list(frozen._encoder.backbone.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in modules)
    assert not any(True for block in frozen._encoder.backbone.blocks[2:] for _ in block.parameters())


def test_channels_last_changes_the_layout_and_not_the_values() -> None:
    # In 64 bits: other orders of the same sums differ by far less than the layout could.
    encoder, images = encoder_of("tf_efficientnet_lite0").double(), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = encoder(images)[0]
        encoder.use(torch.channels_last)
        assert encoder.backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
        after = encoder(images)[0]
        torch.save(encoder, io.BytesIO())  # as exports to torch do
        encoder.use(torch.contiguous_format)
    assert encoder.backbone.conv_stem.weight.is_contiguous()
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
