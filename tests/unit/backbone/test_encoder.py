"""The encoder gives the feature maps that anomalib will see."""

import pytest
import torch
from anomalib.models.components import TimmFeatureExtractor
from torch import nn

from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.encoder import Encoder, is_transformer
from anomalib_msacl.errors import InputError
from anomalib_msacl.transfer import transfer

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
LAYERS = {
    "resnet18": ["layer1", "layer2", "layer3"],
    "tf_efficientnet_lite0": ["blocks.1", "blocks.2", "blocks.4"],
    "convnext_atto": ["stages.1", "stages.2"],
    "convnext_femto": ["stages.0", "stages.3"],
    "vit_tiny_patch16_224": ["blocks.2", "blocks.11"],
}


def backbone_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, "random")[0]


def images(batch: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """Give a backbone for tests that change nothing in it."""
    return backbone_of("resnet18")


# Feature maps


@pytest.mark.parametrize("name", LAYERS)
def test_maps_equal_those_of_anomalib(name):
    backbone = backbone_of(name)
    backbone.train()(images(8))  # statistics of BatchNorm other than 0 and 1
    extractor = TimmFeatureExtractor(name, LAYERS[name], pre_trained=False)
    if is_transformer(backbone):
        extractor.feature_extractor.reset_classifier(0)  # anomalib keeps that of a transformer
    transfer(backbone, extractor.feature_extractor)
    expected = extractor(images())
    encoder = Encoder(backbone, LAYERS[name], **PLAIN).eval()
    with torch.no_grad():
        maps, features = encoder(images())
    for layer, found, channels in zip(LAYERS[name], maps, encoder.dims, strict=True):
        torch.testing.assert_close(found, expected[layer])
        assert found.shape[1] == channels
        assert found.std() > 0
    assert encoder.dims == list(extractor.out_dims)
    assert features.shape == (2, encoder.dim)


def test_weights_reach_the_transformer_of_anomalib_as_it_is():
    backbone = backbone_of("vit_tiny_patch16_224")
    extractor = TimmFeatureExtractor("vit_tiny_patch16_224", ["blocks.2"], pre_trained=False)
    transfer(backbone, extractor.feature_extractor)
    for name, value in backbone.named_parameters():
        assert torch.equal(extractor.feature_extractor.get_parameter(name), value)


def test_images_are_normalised_inside(resnet):
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    inside = Encoder(resnet, mean=mean.tolist(), std=std.tolist()).eval()
    outside = Encoder(resnet, **PLAIN).eval()
    normalised = (images() - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(inside(images())[1], outside(normalised)[1])


def test_normalisation_is_no_part_of_the_weights(resnet):
    assert all(name.startswith("backbone.") for name in Encoder(resnet).state_dict())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_pooled_features_are_the_mean_of_the_deepest_map(name):
    backbone = backbone_of(name)
    encoder = Encoder(backbone, **PLAIN).eval()
    deepest = Encoder(backbone, [encoder.stages[-1]["module"]], **PLAIN).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images())[1], deepest(images())[0][0].mean(dim=(2, 3)))


# Layers


def test_layers_by_name_and_by_index_in_any_order(resnet):
    by_name, by_index = Encoder(resnet, ["layer3", "layer1"]).eval(), Encoder(resnet, [3, 1]).eval()
    assert by_name.layers == by_index.layers == ["layer3", "layer1"]
    assert by_name.dims == [256, 64]
    with torch.no_grad():
        first, second = by_name(images())[0], by_index(images())[0]
    assert [tuple(found.shape) for found in first] == [(2, 256, 4, 4), (2, 64, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layer", ["layer9", 5, -1])
def test_unknown_layer_names_those_there_are(resnet, layer):
    with pytest.raises(InputError) as caught:
        Encoder(resnet, [layer])
    assert repr(layer) in str(caught.value)
    assert "act1, layer1, layer2, layer3, layer4" in str(caught.value)


def test_backbone_without_feature_maps_is_refused():
    with pytest.raises(InputError, match="Linear gives no intermediate feature maps"):
        Encoder(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("name", "layers", "dim", "granularity"),
    [
        ("resnet18", ["layer2", "layer3"], 512, 32),
        ("tf_efficientnet_lite0", ["blocks.2", "blocks.4"], 320, 32),
        ("convnext_atto", ["stages.1", "stages.2"], 320, 32),
        ("vit_tiny_patch16_224", ["blocks.5", "blocks.8"], 192, 16),
    ],
)
def test_default_layers(name, layers, dim, granularity):
    encoder = Encoder(backbone_of(name))
    assert encoder.layers == layers
    assert encoder.dim == dim
    assert encoder.granularity == granularity


def test_default_layers_have_stride_8_and_16(resnet):
    with torch.no_grad():
        maps, _ = Encoder(resnet).eval()(images())
    assert [64 // found.shape[-1] for found in maps] == [8, 16]


# Training


def frozen_parts(encoder: Encoder, depth: int = 1) -> set[str]:
    """Give the parts of the backbone without a trained parameter."""
    parts: dict[str, list[bool]] = {}
    for name, parameter in encoder.backbone.named_parameters():
        parts.setdefault(".".join(name.split(".")[:depth]), []).append(parameter.requires_grad)
    assert all(len(set(trained)) == 1 for trained in parts.values())  # no part is frozen by halves
    return {name for name, trained in parts.items() if not any(trained)}


@pytest.mark.parametrize(
    ("stride", "frozen"),
    [
        (0, set()),
        (2, {"conv1", "bn1"}),
        (4, {"conv1", "bn1", "layer1"}),
        (8, {"conv1", "bn1", "layer1", "layer2"}),
        (32, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_frozen_stages_of_resnet(stride, frozen):
    assert frozen_parts(Encoder(backbone_of("resnet18"), frozen_stride=stride)) == frozen


def test_frozen_stages_of_other_backbones():
    lite = Encoder(backbone_of("tf_efficientnet_lite0"), frozen_stride=4)
    assert frozen_parts(lite, 2) == {"conv_stem.weight", "bn1.weight", "bn1.bias", "blocks.0", "blocks.1"}
    atto = Encoder(backbone_of("convnext_atto"), frozen_stride=4)
    assert {name for name in frozen_parts(atto, 2) if "stages" in name} == {"stages.0"}
    assert {"stem.0", "stem.1"} <= frozen_parts(atto, 2)


def test_frozen_stages_do_not_move():
    encoder = Encoder(backbone_of("resnet18"), frozen_stride=4)
    before = {name: value.clone() for name, value in encoder.backbone.named_parameters()}
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1, weight_decay=0.1)
    encoder.train()(images())[1].square().sum().backward()
    optimiser.step()
    moved = {name.split(".")[0] for name, value in encoder.backbone.named_parameters() if (value != before[name]).any()}
    assert moved == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("train_batch_norm", [False, True])
def test_batch_norm_is_trained_only_on_request(train_batch_norm):
    encoder = Encoder(backbone_of("resnet18"), train_batch_norm=train_batch_norm)
    before = encoder.backbone.bn1.running_mean.clone()
    parent = nn.Sequential(encoder)  # a parent, such as the Lightning module, sets the mode
    parent.train()
    assert encoder.training
    assert encoder.backbone.layer1.training
    assert encoder.backbone.layer4[1].bn2.training == train_batch_norm
    encoder(images())
    assert torch.equal(encoder.backbone.bn1.running_mean, before) != train_batch_norm
    parent.eval()
    assert not any(module.training for module in encoder.modules())


# What is computed


def test_without_pooled_features_the_deepest_stage_does_not_run(resnet):
    encoder, runs = Encoder(resnet, ["layer1", "layer2"]).eval(), []
    hooks = [
        getattr(resnet, name).register_forward_hook(lambda *_, name=name: runs.append(name))
        for name in ("layer2", "layer3", "layer4")
    ]
    with torch.no_grad():
        with_pooled, pooled = encoder(images())
        assert runs == ["layer2", "layer3", "layer4"]
        runs.clear()
        without, nothing = encoder(images(), pooled=False)
    for hook in hooks:
        hook.remove()
    assert runs == ["layer2"]
    assert pooled.shape == (2, 512)
    assert nothing is None
    assert all(torch.equal(a, b) for a, b in zip(with_pooled, without, strict=True))
