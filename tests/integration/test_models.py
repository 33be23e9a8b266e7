"""Every model of the installed anomalib: its backbone is pre-trained and handed over, or it is refused with the reason.

The rows are compared with the models that anomalib has: one that a later anomalib adds fails the first test.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anomalib.models
import pytest
import timm
import torch
import torchvision
from anomalib.engine import Engine
from anomalib.models import Fastflow
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import InputError, MsaclPretraining
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.transfer import TORCHVISION, find_backbone
from tests.conftest import make_recipe, phantom

RESNET = {"backbone": "resnet18"}
DINO = {"encoder_name": "vit_small_patch14_dinov2"}


@dataclass(frozen=True)
class Row:
    """How a model is built small, and where its backbone is.

    Attributes:
        networks: Names of the networks that get the weights.
        options: Arguments of the model.
        side: Side of the images in pixels.
        trained: Networks that the detector goes on training.
    """

    networks: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    side: int = 64
    trained: tuple[str, ...] = ()


EXTRACTOR = ("model.feature_extractor.feature_extractor",)
ENCODER = ("model.encoder.feature_extractor",)
INNER = ("model.feature_extractor.feature_extractor.feature_extractor",)

WORKS: dict[str, Row] = {
    "AnomalyDINO": Row(("model.feature_encoder.feature_extractor",), DINO, 56),
    "Cfa": Row(("model.feature_extractor",), RESNET),
    "Cflow": Row(ENCODER, {**RESNET, "layers": ["layer2", "layer3"], "coupling_blocks": 2}),
    "Csflow": Row(INNER, {"cross_conv_hidden_channels": 16, "n_coupling_blocks": 1}, 128),
    "Dfkde": Row(EXTRACTOR, {**RESNET, "n_pca_components": 4}),
    "Dfm": Row(EXTRACTOR, {**RESNET, "pooling_kernel_size": 2}),
    "Dinomaly": Row(ENCODER, {**DINO, "decoder_depth": 8}, 56),
    "Fastflow": Row(("model.feature_extractor",), {**RESNET, "flow_steps": 1}),
    "FoundAD": Row(("model.encoder._model",), {"encoder_name": "dinov2_vit_small_14", "image_size": 56}, 56),
    "Fre": Row(EXTRACTOR, {**RESNET, "input_dim": 1024, "latent_dim": 16}),
    "GeneralAD": Row(
        ("model.feature_extractor.pretrained_model",),
        {"backbone": "vit_tiny_patch16_224.augreg_in21k", "layers": [6, 12], "hidden_dim": 64},
    ),
    "Glass": Row(
        ("model.forward_modules.feature_aggregator.feature_extractor",),
        {**RESNET, "input_shape": (64, 64), "pretrain_embed_dim": 64, "target_embed_dim": 64, "step": 1},
    ),
    "InpFormer": Row(ENCODER, DINO, 56),
    "L2BT": Row(("model.teacher.fe.feature_extractor",), {}, 56),
    "MHPatchcore": Row(EXTRACTOR, {"backbone": "resnet18.tv_in1k", "memory_bank_size": 50, "local_coreset_size": 20}),
    "Padim": Row(EXTRACTOR, {**RESNET, "n_features": 20}),
    "Patchcore": Row(EXTRACTOR, {"backbone": "vit_tiny_patch16_224", "layers": ["blocks.5", "blocks.8"]}),
    "Patchflow": Row(EXTRACTOR, {**RESNET, "flow_feature_dim": 16, "flow_hidden_dim": 16}),
    "Rad": Row(EXTRACTOR, {"backbone": "vit_tiny_patch16_224", "layers": [5, 8], "k_image": 4}),
    "ReverseDistillation": Row(ENCODER, RESNET),
    "Stfpm": Row(("model.teacher_model.feature_extractor",), RESNET),
    "SuperADD": Row(
        ("model.backbone.dino",),
        {"backbone": "vit_small_patch16_dinov3", "patch_size": 64, "patch_overlap": 16, "layers": [1, 3]},
        112,
    ),
    "Supersimplenet": Row(INNER, RESNET, 128),  # its noise does not fit smaller maps
    "Uflow": Row(EXTRACTOR, {**RESNET, "flow_steps": 1}),
    "UniNet": Row(
        ("model.teachers.source_teacher", "model.teachers.target_teacher"),
        {"teacher_backbone": "resnet50", "student_backbone": "resnet50"},
        trained=("model.teachers.target_teacher",),
    ),
}
# Networks of the same kind with fewer weights: L2BT names its teacher of 87 million itself; Dinomaly, InpFormer and
# FoundAD take no other width than that of the name; UniNet has two networks of 26 million.
SMALLER: dict[str, dict[str, Any]] = {
    "resnet50": {"layers": (1, 1, 1, 1)},
    "vit_small_patch16_dinov3": {"depth": 4},
    "vit_base_patch14_reg4_dinov2": {"embed_dim": 96, "num_heads": 2},
    "vit_small_patch14_dinov2": {"mlp_ratio": 0.5},
}
REFUSED = {"Draem", "Dsr", "EfficientAd", "Ganomaly"}
# Refused before their constructors, which need other packages or the network, have a say.
REFUSED_BY_KIND = {
    "AiVad": r"AiVad reads video",
    "Fuvas": r"Fuvas reads video",
    "CFM": r"CFM reads point clouds beside images",
    "AnomalyVFM": r"AnomalyVFM compares images with text prompts or a few examples and is never fitted",
    "VlmAd": r"VlmAd compares images with text prompts",
    "WinClip": r"WinClip compares images with text prompts",
}


@functools.cache
def models() -> dict[str, type[AnomalibModule]]:
    """Every model class of the installed anomalib, found on disk, not through a list that may be incomplete."""
    names = [module.name for module in pkgutil.walk_packages(anomalib.models.__path__, "anomalib.models.")]
    return {
        name: member
        for module in map(importlib.import_module, (name for name in names if name.endswith(".lightning_model")))
        for name, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, AnomalibModule) and member.__module__ == module.__name__
    }


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build pre-trained networks with random weights: what a hub would send does not matter here."""
    create, load = timm.create_model, nn.Module.load_state_dict

    def create_without_weights(name: str, *arguments: Any, **options: Any) -> nn.Module:
        return create(name, *arguments, **{**options, **SMALLER.get(name.partition(".")[0], {}), "pretrained": False})

    monkeypatch.setattr(timm, "create_model", create_without_weights)
    shallow = functools.partial(ResNet, Bottleneck, SMALLER["resnet50"]["layers"])
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: shallow())
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})
    monkeypatch.setattr(
        nn.Module, "load_state_dict", lambda self, state, *rest, **more: state and load(self, state, *rest, **more)
    )


class Witness(Callback):
    """Keeps the networks' tensors as they are when the detector starts to train."""

    def on_train_start(self, trainer: Any, pl_module: AnomalibModule) -> None:
        del trainer
        self.tensors = tensors(pl_module)


def tensors(model: AnomalibModule) -> dict[str, dict[str, Tensor]]:
    return {
        place: {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for place, network in find_backbone(model).networks.items()
    }


def features(network: nn.Module, images: Tensor) -> Tensor:
    """Whatever the network gives for images, as one vector."""
    with torch.no_grad():
        out = network.eval()(images)
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, list | tuple) else [out]
    return torch.cat([part.flatten() for part in parts])


def build(name: str, row: Row) -> AnomalibModule:
    torch.manual_seed(0)
    transform = Compose([Resize((row.side, row.side), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    return models()[name](pre_processor=PreProcessor(transform), visualizer=False, **row.options)


def contents(state: dict[str, Tensor]) -> list[bytes]:
    return [tensor.numpy().tobytes() for name, tensor in state.items() if not name.startswith(("head", "fc"))]


def test_every_model_has_a_row() -> None:
    assert models().keys() == WORKS.keys() | REFUSED | REFUSED_BY_KIND.keys()
    assert TORCHVISION.keys() <= models().keys()


@pytest.mark.usefixtures("no_downloads")
@pytest.mark.parametrize("name", sorted(WORKS))
def test_pre_training_reaches_the_right_networks_and_the_model_works(
    name: str, phantom_root: Path, tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    row, images = WORKS[name], torch.rand(2, 3, WORKS[name].side, WORKS[name].side)
    model = build(name, row)
    assert tuple(find_backbone(model).networks) == row.networks
    before = {place: features(network, images) for place, network in find_backbone(model).networks.items()}
    others = {place: tensor.clone() for place, tensor in model.model.state_dict().items()}

    recipe = make_recipe(max_steps=2, batch_size=2, accumulate=1, evaluations=0, centre_images=2, learning_rate=1e-3)
    callback, witness = MsaclPretraining("random", recipe, tmp_path / "msacl"), Witness()
    engine = make_engine(callbacks=[callback, witness], max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    data = phantom(phantom_root, seed=0)
    engine.fit(model, datamodule=data)

    saved = Counter(contents(load_file(callback.directory / "model.safetensors")))
    for place, network in find_backbone(model).networks.items():
        handed = contents(witness.tensors[place])
        assert Counter(handed) <= saved
        after = features(network, images)
        assert torch.isfinite(after).all()
        assert not torch.allclose(before[place], after)
        if place not in row.trained:
            assert contents(dict(network.state_dict())) == handed
    assert others.keys() <= model.model.state_dict().keys()

    predictions = engine.predict(model, datamodule=data)
    scores = torch.cat([batch.pred_score.flatten() for batch in predictions])
    assert len(scores) == len(data.test_data)
    assert torch.isfinite(scores).all()


def test_fastflow_on_a_transformer_gets_all_weights_but_those_of_the_classifiers() -> None:
    name, size = "deit_base_distilled_patch16_384", Fastflow.configure_pre_processor((384, 384))
    model = Fastflow(backbone=name, pre_trained=False, flow_steps=1, pre_processor=size, visualizer=False)
    found = find_backbone(model)
    assert (found.architecture.partition(".")[0], list(found.networks)) == (name, ["model.feature_extractor"])
    network = found.networks["model.feature_extractor"]
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    backbone = create_backbone(found.architecture, "random", found.model_args)[0]
    for tensor in backbone.parameters():
        torch.nn.init.uniform_(tensor)
    found.fill(backbone)
    source = backbone.state_dict()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key] if key.startswith("head") else source[key])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_models_without_a_backbone_are_refused_before_training(
    name: str, phantom_root: Path, tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    options = {"dtd_dir": phantom_root} if name == "Draem" else {}
    model = models()[name](visualizer=False, **options)
    engine = make_engine(callbacks=[MsaclPretraining("random", root=tmp_path / "msacl")], max_epochs=1)
    with pytest.raises(InputError, match=rf"MsaclPretraining: {name} has no pre-trained image backbone of timm or"):
        engine.fit(model, datamodule=phantom(phantom_root, seed=0, train_batch_size=1))
    assert not any((tmp_path / "msacl").glob("[!.]*"))


@pytest.mark.parametrize("name", sorted(REFUSED_BY_KIND))
def test_models_of_another_kind_are_refused_in_whatever_stage_they_run(name: str) -> None:
    model = models()[name].__new__(models()[name])
    nn.Module.__init__(model)
    model.k_shot = 0
    for stage in ("fit", "validate", "test"):
        with pytest.raises(InputError, match=REFUSED_BY_KIND[name]):
            MsaclPretraining().setup(None, model, stage)


@pytest.mark.usefixtures("no_downloads")
def test_backbones_of_two_architectures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"cait_m48_448": "cait_xxs24_224", "cait_s24_224": "cait_xxs36_224"}  # the true ones hold 400 million
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(small[name], **options))
    with pytest.raises(InputError, match=r"Uflow joins 2 pre-trained backbones, cait_xxs24_224.* and cait_xxs36_224"):
        find_backbone(models()["Uflow"](backbone="mcait", visualizer=False))


@pytest.mark.usefixtures("no_downloads")
def test_a_network_of_torchvision_that_no_table_names_is_refused() -> None:
    model = build("Cfa", WORKS["Cfa"])
    model.__class__ = type("NewCfa", (type(model),), {})
    with pytest.raises(InputError, match=r"which architecture model.feature_extractor of NewCfa is cannot be told"):
        find_backbone(model)


@pytest.mark.usefixtures("no_downloads")
def test_the_weights_of_a_model_are_those_of_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def ask(_: str, weights: str | None, __: object) -> None:
        asked.append(weights)
        raise InterruptedError

    monkeypatch.setattr("anomalib_msacl.callback.create_backbone", ask)
    for name in ("Cfa", "Csflow", "UniNet", "Stfpm", "FoundAD"):
        model = build(name, WORKS[name])
        with pytest.raises(InterruptedError):
            MsaclPretraining(root=tmp_path)._task(model, find_backbone(model))
    assert asked == ["torchvision", "torchvision", "torchvision", None, None]


def test_glass_without_pre_trained_weights_gets_them_and_goes_on_training_them() -> None:
    row = WORKS["Glass"]
    model = build("Glass", Row(row.networks, {**row.options, "pre_trained": False}))
    assert tuple(find_backbone(model).networks) == row.networks
