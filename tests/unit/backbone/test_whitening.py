"""Whitening folded into the weights: same network, whitened feature maps."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import nn

from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.encoder import Encoder
from anomalib_msacl.backbone.moments import Moments, Ranges
from anomalib_msacl.backbone.realignment import realign
from anomalib_msacl.backbone.streams import stream_of
from anomalib_msacl.backbone.whitening import deviation, range_factors, rescale, whiten, whitening_map

STAGES = {
    "tf_efficientnet_lite0": ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"],
    "mobilenetv2_100": ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"],
}


def encoder_of(name: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(lively(create_backbone(name, "random")[0])).eval()


def lively(backbone: nn.Module) -> nn.Module:
    """Random scales and shifts, for timm begins with blocks that add nothing, and statistics other than 0 and 1."""
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
    backbone.train()(images(16))
    return backbone


def images(batch: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def covariance(maps: torch.Tensor) -> torch.Tensor:
    return maps.movedim(1, 0).flatten(1).double().cov(correction=0)


@pytest.mark.parametrize("name", STAGES)
def test_the_network_computes_what_it_did_and_its_maps_are_whitened(name: str) -> None:
    encoder = encoder_of(name)
    index = range(len(encoder.stages))
    with torch.no_grad():
        output, before = encoder.backbone(images()), encoder.intermediates(images(), list(index))
        names = whiten(encoder, [images()[:8], images()[8:]], std=0.1)
        torch.testing.assert_close(encoder.backbone(images()), output, rtol=1e-3, atol=1e-4)
        after = encoder.intermediates(images(), list(index))
    assert names
    for stage in index:
        if encoder.stages[stage]["module"] not in names:
            torch.testing.assert_close(after[stage], before[stage], rtol=1e-3, atol=1e-4)
            continue
        found = covariance(after[stage])
        assert float(found.diagonal().mean().sqrt()) == pytest.approx(0.1, rel=0.01)
        spread = [torch.linalg.eigvalsh(matrix) for matrix in (covariance(before[stage]), found)]
        assert spread[1].max() / spread[1].mean() < 0.5 * spread[0].max() / spread[0].mean()


def test_stages_are_whitened_down_to_the_deepest_layer() -> None:
    name = "tf_efficientnet_lite0"
    encoder = encoder_of(name)
    assert encoder.layers == ["blocks.2", "blocks.4"]
    assert whiten(encoder, [images()], std=1.0) == STAGES[name][:-1]
    deepest = Encoder(encoder_of(name).backbone, ["blocks.6"]).eval()
    assert whiten(deepest, [images()], std=1.0) == STAGES[name]


@pytest.mark.parametrize("name", STAGES)
def test_realigned_stages_undo_an_affine_change_of_what_they_read(name: str) -> None:
    encoder = encoder_of(name)
    before = copy.deepcopy(encoder)
    with torch.no_grad():
        output = before.backbone(images())
        whiten(encoder, [images()], std=1.0)
        for parameter in encoder.backbone.blocks[5].parameters():
            parameter.normal_()
        maps = encoder(images(), pooled=False)[0]
        explained = realign(encoder, before, [images()[:8], images()[8:]])
        assert explained == pytest.approx(1, abs=1e-3)
        for found, expected in zip(encoder(images(), pooled=False)[0], maps, strict=True):
            assert torch.equal(found, expected)
        error = (encoder.backbone(images()) - output).square().mean() / output.var()
    assert error < 1e-2


def test_realigning_finds_the_best_affine_map() -> None:
    encoder = encoder_of("tf_efficientnet_lite0")
    before = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.backbone.blocks[3].parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape))
        old, new = (
            network(images(), pooled=False)[0][-1].movedim(1, -1).flatten(0, 2).double().numpy()
            for network in (before, encoder)
        )
    best = LinearRegression().fit(new, old)
    oracle = r2_score(old, best.predict(new), multioutput="variance_weighted")
    assert realign(encoder, before, [images()]) == pytest.approx(oracle, abs=0.02)
    assert oracle < 0.999


def test_weights_that_are_not_finite_are_no_traceback() -> None:
    encoder = encoder_of("tf_efficientnet_lite0")
    before = copy.deepcopy(encoder)
    torch.nn.init.constant_(encoder.backbone.blocks[3][0].conv_pwl.weight, torch.nan)
    assert realign(encoder, before, [images()]) is None


def test_what_cannot_be_realigned_is_left() -> None:
    backbone = encoder_of("tf_efficientnet_lite0").backbone
    for encoder in (encoder_of("resnet18"), Encoder(backbone, ["blocks.6"]).eval()):
        before = copy.deepcopy(encoder)
        for tensor in before.state_dict().values():
            tensor.zero_()
        state = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        assert realign(encoder, before, [images()]) is None
        assert all(torch.equal(state[key], tensor) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnet26d"])
def test_channels_of_a_resnet_get_equal_ranges_and_the_rest_stays(name: str) -> None:
    encoder = encoder_of(name)
    index = range(len(encoder.stages))
    with torch.no_grad():
        output, before = encoder.backbone(images()), encoder.intermediates(images(), list(index))
        assert whiten(encoder, [images()[:8], images()[8:]], std=0.1) == ["layer1", "layer2", "layer3"]
        torch.testing.assert_close(encoder.backbone(images()), output, rtol=1e-3, atol=1e-4)
        after = encoder.intermediates(images(), list(index))
    torch.testing.assert_close(after[4], before[4], rtol=1e-3, atol=1e-4)
    for stage in (1, 2, 3):
        ranges = [float(channel.max() - channel.mean()) for channel in before[stage].movedim(1, 0)]
        mean = sum(ranges) / len(ranges)
        # A tenth of the mean range is mixed in, or channels that hardly vary would be blown up.
        factors = torch.tensor([1 / (0.9 * each + 0.1 * mean) for each in ranges])
        expected = before[stage] * factors[:, None, None]
        expected *= 0.1 / covariance(expected).diagonal().mean().sqrt()
        torch.testing.assert_close(after[stage], expected.to(after[stage]), rtol=1e-3, atol=1e-4)


def test_a_channel_that_is_silent_nearly_everywhere_does_not_drown_the_others() -> None:
    """Equal deviations make its one patch the farthest of all, of a normal image; equal ranges do not."""
    maps = torch.rand(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    maps[:, 0] = 0
    maps[0, 0, 3, 3] = 1
    ranges = Ranges(8)
    for part in maps.split(2):
        ranges.add(part)
    scaled = maps * range_factors(ranges, 0.1)[:, None, None]
    assert float(covariance(scaled).diagonal().mean().sqrt()) == pytest.approx(0.1, rel=1e-6)
    highest = scaled.amax(dim=(0, 2, 3))
    assert float(highest[0] / highest[1:].mean()) < 1.5
    equal_deviations = maps / maps.movedim(1, 0).flatten(1).std(dim=1)[:, None, None]
    highest = equal_deviations.amax(dim=(0, 2, 3))
    assert float(highest[0] / highest[1:].mean()) > 5


def test_channels_that_never_vary_keep_finite_factors() -> None:
    for maps in (torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), torch.eye(3)[None, :, :, None].expand(2, 3, 3, 3)):
        ranges = Ranges(3)
        ranges.add(maps)
        factors = range_factors(ranges, 0.1)
        assert factors.isfinite().all()
        assert (factors > 0).all()


def test_the_last_stage_of_a_resnet_is_scaled_where_it_is_a_layer() -> None:
    encoder = Encoder(encoder_of("resnet18").backbone, ["layer4"]).eval()
    assert whiten(encoder, [images()], std=1.0)[-1] == "layer4"
    deviation = covariance(encoder(images(), pooled=False)[0][0]).diagonal().mean().sqrt()
    assert float(deviation.detach()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet10t", ["layer1", "layer2", "layer3"]),
        ("resnext50_32x4d", ["layer1", "layer2", "layer3"]),
        ("resnetaa50", ["layer1", "layer2", "layer3"]),
        ("seresnet18", []),
        ("resnest14d", []),
        ("res2net50_26w_4s", []),
    ],
)
def test_relatives_of_resnet_keep_their_output(name: str, stages: list[str]) -> None:
    encoder = encoder_of(name)
    with torch.no_grad():
        output = encoder.backbone(images())
        assert whiten(encoder, [images()], std=0.1) == stages
        torch.testing.assert_close(encoder.backbone(images()), output, rtol=1e-3, atol=1e-3)


def test_a_stage_that_goes_on_with_the_sum_of_the_stage_before_is_left() -> None:
    backbone = create_backbone("resnet18", "random", {"output_stride": 8, "channels": [64, 64, 64, 128]})[0]
    encoder = Encoder(lively(backbone), ["layer3"]).eval()
    index = list(range(5))
    with torch.no_grad():
        before = encoder.intermediates(images(), index)
        assert whiten(encoder, [images()], std=0.1) == ["layer1"]
        after = encoder.intermediates(images(), index)
    for stage in (2, 3, 4):
        torch.testing.assert_close(after[stage], before[stage], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_the_maps_of_a_transformer_have_one_scale(name: str) -> None:
    """It is told over the layers together, and rescaling multiplies all blocks and the output, nothing else."""
    torch.manual_seed(0)
    backbone = create_backbone(name, "random", {"img_size": 64})[0]
    nn.init.uniform_(backbone.norm.weight, 0.2, 3)
    nn.init.normal_(backbone.norm.bias)
    encoder = Encoder(backbone, ["blocks.2", "blocks.4"]).eval()
    index = list(range(len(encoder.stages)))
    with torch.no_grad():
        output, before = backbone(images()), encoder.intermediates(images(), index)
        std = deviation(encoder, [images()[:8], images()[8:]])
        expected = covariance(torch.cat([before[2], before[4]])).diagonal().mean().sqrt().item()
        assert std == pytest.approx(expected, rel=1e-6)
        assert deviation(encoder, [torch.full((2, 3, 64, 64), torch.nan)]) is None
        assert whiten(encoder, [images()], std=0.1) == []
        assert rescale(encoder, 0.1 / expected) == [stage["module"] for stage in encoder.stages]
        assert deviation(encoder, [images()]) == pytest.approx(0.1, rel=1e-5)
        torch.testing.assert_close(backbone(images()), 0.1 / expected * output, rtol=1e-3, atol=1e-5)
        for stage, maps in encoder.intermediates(images(), index).items():
            torch.testing.assert_close(maps, 0.1 / expected * before[stage], rtol=1e-3, atol=1e-5)


def test_what_has_no_one_scale_tells_none() -> None:
    pooled = create_backbone("test_vit", "random", {"img_size": 64, "global_pool": "avg", "fc_norm": True})[0]
    for backbone in (pooled, create_backbone("resnet18", "random")[0]):
        assert deviation(Encoder(backbone, ["blocks.2"] if backbone is pooled else None), [images()]) is None
    flat = create_backbone("test_vit", "random", {"img_size": 64})[0]
    nn.init.zeros_(flat.norm.weight)
    assert deviation(Encoder(flat, ["blocks.2"]), [images()]) is None
    before = {name: tensor.clone() for name, tensor in pooled.state_dict().items()}
    assert rescale(Encoder(pooled, ["blocks.2"]), 10.0) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in pooled.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
def test_other_architectures_compute_what_they_did(name: str) -> None:
    backbone = create_backbone(name, "random")[0]
    encoder = Encoder(backbone).eval()
    picture = torch.rand(2, 3, 224, 224)
    before = backbone(picture)
    names = whiten(encoder, [picture], std=0.1)
    torch.testing.assert_close(backbone(picture), before, rtol=1e-3, atol=1e-4)
    assert not names or name.startswith(("mobilenet", "resnet"))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_rescaled_maps_are_multiples_and_the_output_stays(name: str) -> None:
    encoder = encoder_of(name)
    index = range(len(encoder.stages))
    with torch.no_grad():
        output, before = encoder.backbone(images()), encoder.intermediates(images(), list(index))
        names = rescale(encoder, 10.0)
        torch.testing.assert_close(encoder.backbone(images()), output, rtol=1e-3, atol=1e-4)
        after = encoder.intermediates(images(), list(index))
    assert names == STAGES.get(name, ["layer1", "layer2", "layer3", "-"])[:-1]
    stem = ["act1"] if name == "resnet18" else []  # which layer1 adds to
    for stage in index:
        factor = 10 if encoder.stages[stage]["module"] in [*names, *stem] else 1
        torch.testing.assert_close(after[stage], factor * before[stage], rtol=1e-3, atol=1e-2)


def test_a_stage_whose_shortcut_is_missing_is_left() -> None:
    backbone = create_backbone("tf_efficientnet_lite0", "random")[0]
    backbone.blocks[2][1].has_skip = False
    assert stream_of(backbone, "blocks.2") is None
    assert stream_of(nn.Sequential(nn.Conv2d(3, 3, 1)), "0") is None


def test_moments_of_batches_are_those_of_all_images() -> None:
    maps = torch.randn(6, 5, 3, 4, generator=torch.Generator().manual_seed(1)) + 2
    moments = Moments(5)
    for part in maps.split(2):
        moments.add(part)
    torch.testing.assert_close(moments.covariance, covariance(maps))


def test_the_map_whitens_and_keeps_the_scale_asked_for() -> None:
    data = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    spread = (data * torch.tensor([1.0, 2.0, 3.0, 4.0])).T.cov()
    matrix = whitening_map(spread, 0.1)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ spread @ matrix.T, 0.01 * torch.eye(4).double(), rtol=0, atol=1e-3)


def test_a_map_that_never_varies_stays_finite() -> None:
    assert whitening_map(torch.zeros(3, 3).double(), 0.1).isfinite().all()
