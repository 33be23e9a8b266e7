"""Weights: where they come from, the folder format, hand-over, and what is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import save_file
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from anomalib_msacl import InputError, Msacl
from anomalib_msacl.backbone import Provenance, create_backbone, push_backbone, save_backbone
from anomalib_msacl.backbone.card import CardFacts, model_card
from anomalib_msacl.backbone.folder import FILES
from anomalib_msacl.backbone.tensors import digest
from anomalib_msacl.transfer import transfer

SHARED = Path(__file__).parents[4] / "shared" / "weights" / "tf_efficientnet_lite0"


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def save(model: nn.Module, name: str, directory: Path) -> Path:
    return save_backbone(model, directory, provenance(name), "# a card")


def provenance(name: str = "test_resnet", **changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "description": "a test",
        "license": "apache-2.0",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (64, 64),
    }
    return Provenance(name, **{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> tuple[nn.Module, Path]:
    model, _ = create_backbone("test_resnet", "random")
    return model, save(model, "test_resnet", tmp_path / "saved")


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_a_saved_folder_loads_in_timm_bit_by_bit(name: str, tmp_path: Path) -> None:
    model, _ = create_backbone(name, "random")
    directory = save(model, name, tmp_path / "saved")
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert same(model, timm.create_model(f"local-dir:{directory}", pretrained=True))
    assert same(model, create_backbone(f"local-dir:{directory}")[0])
    assert same(model, create_backbone(name, str(directory))[0])
    assert create_backbone(f"local-dir:{directory}").provenance.architecture == name


def test_the_configuration_describes_the_new_weights_only(folder: tuple[nn.Module, Path]) -> None:
    config = json.loads((folder[1] / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["input_size"], config["tag"]) == ([0.1, 0.2, 0.3], [3, 64, 64], "msacl")
    assert not {"hf_hub_id", "url", "paper_ids", "origin_url"} & config.keys()
    origin = create_backbone(f"local-dir:{folder[1]}")[1]
    assert (origin.mean, origin.std, origin.license) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "apache-2.0")


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(folder: tuple[nn.Module, Path]) -> None:
    other, _ = create_backbone("test_resnet", "random")
    save(other, "test_resnet", folder[1])
    assert same(other, create_backbone("test_resnet", str(folder[1]))[0])
    assert list(folder[1].parent.iterdir()) == [folder[1]]


@pytest.mark.parametrize("prefix", ["", "model.feature_extractor.feature_extractor.", "model.encoder.backbone."])
def test_a_checkpoint_is_read_whatever_stands_before_the_names(prefix: str, tmp_path: Path) -> None:
    model, _ = create_backbone("test_resnet", "random")
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": {**state, "head.weight": torch.zeros(2)}, "epoch": 3}, tmp_path / "model.ckpt")
    assert same(model, create_backbone("test_resnet", str(tmp_path / "model.ckpt"))[0])


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    model, _ = create_backbone("test_resnet", "random")
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    assert same(model, create_backbone("test_resnet", str(tmp_path / "x.safetensors"))[0])


def test_offline_weights_are_imagenets() -> None:
    model, origin = create_backbone("tf_efficientnet_lite0", "offline")
    assert (origin.mean, origin.license) == ((0.5, 0.5, 0.5), "apache-2.0")
    other, _ = create_backbone("tf_efficientnet_lite0", "offline")
    assert same(model, other)
    # BatchNorm of a trained network: positive variances that are not the initial ones.
    variance = model.state_dict()["bn2.running_var"]
    assert float(variance.min()) > 0
    assert float((variance - 1).abs().min()) > 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared ImageNet weights, which are not part of the package")
def test_offline_weights_equal_timms_own() -> None:
    offline, _ = create_backbone("tf_efficientnet_lite0", "offline")
    folder, origin = create_backbone("tf_efficientnet_lite0", str(SHARED))
    assert origin.mean == (0.5, 0.5, 0.5)
    ours, theirs = offline.state_dict(), folder.state_dict()
    assert all(torch.allclose(ours[name], theirs[name]) for name in ours if "num_batches_tracked" not in name)


def test_offline_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(InputError, match=r"offline holds tf_efficientnet_lite0 only, not 'resnet18'"):
        create_backbone("resnet18", "offline")


@pytest.mark.parametrize("name", ["test_resnet", "convnext_atto", "tf_efficientnet_lite0"])
def test_hand_over_fills_what_anomalib_builds(name: str) -> None:
    model, _ = create_backbone(name, "random")
    target = timm.create_model(name, features_only=True, out_indices=(1, 2), exportable=True)
    transfer(model, target)
    images = torch.rand(2, 3, 64, 64)
    expected = model.eval().forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    for ours, theirs in zip(expected, target.eval()(images), strict=True):
        assert torch.equal(ours, theirs)


def test_hand_over_between_architectures_is_refused() -> None:
    model, _ = create_backbone("test_resnet", "random")
    with pytest.raises(InputError, match="weights of another architecture"):
        transfer(model, timm.create_model("resnet18", features_only=True))


def test_an_unknown_backbone_is_named_with_similar_ones() -> None:
    with pytest.raises(InputError, match=r"unknown backbone 'resnet1'; timm knows for example .*resnet"):
        create_backbone("resnet1", "random")


def test_a_hub_that_cannot_be_reached_gives_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot get the weights of 'tf_efficientnet_lite0' from the hub .*offline"):
        create_backbone("tf_efficientnet_lite0")


def test_weights_of_another_architecture_are_refused(folder: tuple[nn.Module, Path]) -> None:
    with pytest.raises(InputError, match=r"are of architecture 'test_resnet', not of the backbone 'resnet18'"):
        create_backbone("resnet18", str(folder[1]))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_refused_in_one_sentence(folder: tuple[nn.Module, Path], damage: str) -> None:
    path = folder[1] / damage
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"not a weights folder|cannot read weights"):
        create_backbone(f"local-dir:{folder[1]}")


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read weights from"):
        create_backbone("test_resnet", str(tmp_path / "none.ckpt"))


def test_the_digest_sees_one_bit_and_the_names() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2)}
    changed = {**tensors, "a": torch.tensor([0.0, 0.0, 1e-45])}
    renamed = {"a": tensors["a"], "c": tensors["b"]}
    assert len({digest(tensors), digest(changed), digest(renamed)}) == 3
    assert digest(tensors) == digest(dict(reversed(tensors.items())))


@pytest.mark.parametrize(
    "mine",
    [
        {"precious.txt": "mine"},
        {"config.json": '{"study": "lung"}'},
        {"config.json": '{"architectures": ["BertModel"]}', "model.safetensors": "", "README.md": ""},
        {"config.json": '{"architecture": "resnet18"}', "scans/1.nii": "mine"},
        {"model.safetensors": "without a configuration"},
        {"config.json": '{"architecture": "resnet18"}', "README.md/notes.txt": "mine"},
    ],
)
def test_a_folder_with_something_else_in_it_is_never_replaced(mine: dict[str, str], tmp_path: Path) -> None:
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    model, _ = create_backbone("test_resnet", "random")
    other = max(mine, key=lambda name: "/" in name).split("/")[0]
    with pytest.raises(InputError, match=rf"holds something else \(.*{other}.*\); name a new or empty folder"):
        save(model, "test_resnet", tmp_path)
    assert {name: (tmp_path / name).read_text() for name in mine} == mine


def test_weights_with_a_file_of_the_users_beside_them_are_not_replaced(folder: tuple[nn.Module, Path]) -> None:
    (folder[1] / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(notes.txt\)"):
        save(folder[0], "test_resnet", folder[1])
    assert (folder[1] / "notes.txt").read_text() == "mine"


def test_weights_and_their_further_files_are_replaced(tmp_path: Path) -> None:
    for text in ("first", "second"):
        model, made = create_backbone("test_resnet", "random")
        save_backbone(model, tmp_path / "saved", made, text, {"candidates.csv": text, "figures.txt": text})
        (tmp_path / "saved" / ".DS_Store").write_text("of a file manager")
    (tmp_path / "saved" / "figures.txt").unlink()  # which a save without it would not make again
    save(model, "test_resnet", tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(FILES)


def test_weights_stay_where_new_ones_cannot_be_put(
    folder: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(create_backbone("test_resnet", str(folder[1]))[0].state_dict())
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "weights":
            raise OSError("Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="Input/output error"):
        save(create_backbone("test_resnet", "random")[0], "test_resnet", folder[1])
    assert digest(create_backbone("test_resnet", str(folder[1]))[0].state_dict()) == before


def test_hand_over_reaches_models_that_timm_wraps() -> None:
    model, _ = create_backbone("deit_tiny_patch16_224", "random")
    target = timm.create_model("deit_tiny_patch16_224", features_only=True)
    transfer(model, target)
    assert torch.equal(target.state_dict()["model.cls_token"], model.state_dict()["cls_token"])


def test_a_file_without_a_state_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    with pytest.raises(InputError, match="do not fit the backbone"):
        create_backbone("test_resnet", str(tmp_path / "tensor.ckpt"))


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_checkpoints_of_other_programs_are_read(name: str, key: str | None, tmp_path: Path) -> None:
    classifier = timm.create_model("test_resnet", num_classes=7)
    state = classifier.state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / name)
    model, made = create_backbone("test_resnet", str(tmp_path / name))
    assert all(torch.equal(tensor, state[own]) for own, tensor in model.state_dict().items())
    assert made.description == f"file: {name}"


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("old", [False, True])
def test_a_download_that_was_cut_off_is_told(part: float, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    model = timm.create_model("test_resnet", num_classes=0)
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for content in (whole[: int(part * len(whole))], b"hello world"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read weights from .*model\.pth \("):
            create_backbone("test_resnet", str(path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "model"])
def test_only_safetensors_and_checkpoints_are_read(name: str, tmp_path: Path) -> None:
    model, _ = create_backbone("test_resnet", "random")
    torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(
        InputError, match=r"only \.safetensors files, folders with a model.safetensors, and checkpoints"
    ):
        create_backbone("test_resnet", str(tmp_path / name))


def test_a_folder_with_pickled_weights_only_is_refused(folder: tuple[nn.Module, Path]) -> None:
    (folder[1] / "model.safetensors").unlink()
    torch.save(folder[0].state_dict(), folder[1] / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot read weights from .*model.safetensors: there is no such file"):
        create_backbone("test_resnet", str(folder[1]))


def test_arguments_of_the_architecture_travel_with_the_weights(tmp_path: Path) -> None:
    model, origin = create_backbone("test_vit", "random", {"img_size": 64})
    directory = save_backbone(model, tmp_path / "saved", replace(origin, layers=("blocks.1",)))
    again, made = create_backbone("test_vit", str(directory))
    assert same(model, again)
    assert made.layers == ("blocks.1",)
    assert made.model_args["img_size"] in (64, [64, 64])
    assert same(model, timm.create_model(f"local-dir:{directory}", pretrained=True))
    with pytest.raises(InputError, match=r"pos_embed has shape .* they were made for another input size"):
        create_backbone("test_vit", str(directory), {"img_size": 96})
    with pytest.raises(InputError, match=r"'test_vit' cannot be created with \{'legs': 4\} .*; correct the arguments"):
        create_backbone("test_vit", "random", {"legs": 4})


def test_a_folder_of_a_classifier_is_read_and_saved_again(tmp_path: Path) -> None:
    classifier = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(
        classifier, str(tmp_path / "theirs"), model_args={"num_classes": 7}, safe_serialization=True
    )
    model, origin = create_backbone("test_resnet", str(tmp_path / "theirs"))
    directory = save_backbone(model, tmp_path / "ours", origin)
    assert same(model, create_backbone("test_resnet", str(directory))[0])
    assert torch.equal(model.state_dict()["conv1.0.weight"], classifier.state_dict()["conv1.0.weight"])


def test_a_variant_that_was_registered_keeps_its_own_name(tmp_path: Path) -> None:
    def test_variant(pretrained: bool = False, **arguments: Any) -> nn.Module:
        model: nn.Module = timm.models.test_resnet(pretrained=pretrained, **arguments)
        return model

    test_variant.__module__ = timm.models.test_resnet.__module__
    timm.models.register_model(test_variant)
    model, made = create_backbone("test_variant", "random")
    directory = save_backbone(model, tmp_path / "saved", made)
    again, made = create_backbone("test_variant", str(directory))
    assert same(model, again)
    assert made.architecture == "test_variant"


def test_tags_of_weights_are_not_part_of_the_architecture(tmp_path: Path) -> None:
    model, made = create_backbone("test_resnet.r160_in1k", "random")
    assert made.architecture == "test_resnet"
    directory = save_backbone(model, tmp_path / "saved", made)
    assert same(model, create_backbone("test_resnet.r160_in1k", str(directory))[0])


class FakeTorchvision:
    """Stands for torchvision's entry of weights, without a download."""

    def __init__(self, name: str) -> None:
        self.DEFAULT, self.name = self, "IMAGENET1K_V1"
        torch.manual_seed(3)
        self.network = torchvision.models.get_model(name, weights=None).eval()

    def get_state_dict(self, **options: object) -> dict[str, torch.Tensor]:
        assert options["weights_only"]  # a file in the cache of downloads must not run code
        assert options["check_hash"]
        return dict(self.network.state_dict())


@pytest.mark.parametrize(
    ("name", "args", "node", "layer"),
    [
        ("resnet18", {}, "layer3", 3),
        ("vgg11_bn", {}, "features.28", -1),
        ("efficientnet_b0", {"bn_eps": 1e-5}, "features.6", 3),
    ],
)
def test_torchvisions_weights_give_torchvisions_features(
    name: str, args: dict[str, float], node: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTorchvision(name)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: fake)
    backbone, origin = create_backbone(name, "torchvision", args)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        traced = create_feature_extractor(fake.network, [node])
        assert torch.equal(traced(images)[node], _stage(backbone.eval(), images, node, layer))
    assert (origin.description, origin.mean[0]) == (f"torchvision: {name} (IMAGENET1K_V1)", 0.485)


def _stage(backbone: nn.Module, images: torch.Tensor, node: str, layer: int) -> torch.Tensor:
    """Return the feature map of timm that torchvision calls by the name of the node."""
    if node == "features.6":  # no stage of timm ends there
        maps = backbone.bn1(backbone.conv_stem(images))
        for block in backbone.blocks[:6]:
            maps = block(maps)
        return maps
    return backbone.forward_intermediates(images, intermediates_only=True)[layer]


def test_torchvision_without_the_architecture_or_a_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot get torchvision's weights of 'test_resnet'"):
        create_backbone("test_resnet", "torchvision")
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: FakeTorchvision("resnet34"))
    with pytest.raises(InputError, match=r"torchvision's 'resnet18' is not timm's"):
        create_backbone("resnet18", "torchvision")


def test_a_mismatch_is_told_in_one_sentence(folder: tuple[nn.Module, Path]) -> None:
    model, _ = create_backbone("test_resnet", "random")
    made = provenance(mean=(0.5,) * 3, std=(0.5,) * 3, layers=("layer2", "layer3"))
    save_backbone(model, folder[1], made)
    origin = create_backbone("test_resnet", str(folder[1]))[1]
    half = [0.5] * 3
    assert origin.mismatch(["layer3"], half, half, (64, 64)) == ""
    assert origin.mismatch(["layer3"], half, half, None) == ""
    told = origin.mismatch(["layer1"], [0.485, 0.456, 0.406], half, (96, 96))
    assert "mean [0.5, 0.5, 0.5]" in told
    assert "not mean [0.485, 0.456, 0.406]" in told
    assert "images of 64 x 64 pixels, not 96 x 96" in told
    assert "the layers layer2, layer3, not layer1" in told
    # Weights of others tell no size and no layers: only the normalisation can be wrong.
    other = create_backbone("test_resnet", "random")[1]
    assert other.mismatch(["layer1"], other.mean, other.std, (96, 96)) == ""


class FakeHub:
    """A hub in a folder, with the interface of the hub client that is used."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append((repository, private, exist_ok))
        (self.root / repository).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        assert commit_message
        for name in allow_patterns:
            shutil.copy(Path(folder_path) / name, self.root / repo_id / name)

    def snapshot_download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.revision = revision
        copy = self.root / "cache" / repository
        copy.mkdir(parents=True, exist_ok=True)
        for path in (self.root / repository).iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, copy / path.name)
        return str(copy)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_weights_go_to_a_hub_and_come_back_bit_by_bit(folder: tuple[nn.Module, Path], hub: FakeHub) -> None:
    (folder[1] / "patients.csv").write_text("private")
    name = push_backbone(folder[1], "team/heads")
    assert name == "hf-hub:team/heads"
    assert hub.calls == [("team/heads", True, True)]
    assert sorted(path.name for path in (hub.root / "team/heads").iterdir()) == sorted(FILES)
    (hub.root / "team/heads" / "modeling.py").write_text("raise SystemExit")
    for model, origin in (create_backbone(name), create_backbone("test_resnet", name)):
        assert same(model, folder[0])
        assert origin.mean == (0.1, 0.2, 0.3)
        assert origin.architecture == "test_resnet"
    assert hub.revision is None
    create_backbone(f"{name}@v1")
    assert hub.revision == "v1"
    assert not (hub.root / "cache/team/heads/modeling.py").exists()
    with pytest.raises(InputError, match=r"are of architecture 'test_resnet', not of the backbone 'resnet18'"):
        create_backbone("resnet18", name)


def test_the_hub_client_still_has_the_interface_that_is_stubbed() -> None:
    for real, stub in (
        (huggingface_hub.HfApi.create_repo, FakeHub.create_repo),
        (huggingface_hub.HfApi.upload_folder, FakeHub.upload_folder),
        (huggingface_hub.snapshot_download, FakeHub.snapshot_download),
    ):
        keywords = inspect.getfullargspec(stub).kwonlyargs
        assert set(keywords) <= inspect.signature(real).parameters.keys()


def test_a_hub_that_refuses_is_one_sentence(folder: tuple[nn.Module, Path], hub: FakeHub) -> None:
    with pytest.raises(InputError, match=r"cannot get 'no/body' from the hub"):
        create_backbone("hf-hub:no/body")
    (hub.root / "file").parent.mkdir(exist_ok=True)
    (hub.root / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot push .* to 'file/x' .*log in with"):
        push_backbone(folder[1], "file/x")
    with pytest.raises(InputError, match="is not a weights folder"):
        push_backbone(folder[1].parent, "team/heads")


def test_layers_that_the_architecture_does_not_have_are_told_before_the_training(tmp_path: Path) -> None:
    model = create_backbone("test_resnet", "random")[0]
    folder = save_backbone(model, tmp_path / "weights", provenance(layers=("layer9",), feature_std=0.1))
    with pytest.raises(InputError, match=r"made for the layer 'layer9', which test_resnet does not have"):
        Msacl("test_resnet", str(folder))


def test_other_things_of_that_name_in_a_file_are_passed_over(tmp_path: Path) -> None:
    model = create_backbone("test_resnet", "random")[0]
    save_file({**model.state_dict(), "msacl": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert create_backbone("test_resnet", str(tmp_path / "x.safetensors"))[1].layers == ()


def test_one_number_stands_for_all_channels(tmp_path: Path) -> None:
    model = create_backbone("test_resnet", "random")[0]
    folder = save_backbone(model, tmp_path / "weights", provenance(mean=(0.5,), std=(0.2,)))
    origin = create_backbone("test_resnet", str(folder))[1]
    assert (origin.mean, origin.std) == ((0.5,) * 3, (0.2,) * 3)
    assert origin.mismatch([], [0.5] * 3, [0.2] * 3, None) == ""


@pytest.mark.parametrize("name", ["hf-hub:alone", "hf-hub:a/b/c", "hf-hub:/b"])
def test_a_name_of_the_hub_is_parsed_before_anything_is_fetched(name: str, hub: FakeHub) -> None:
    with pytest.raises(InputError, match="is no repository; name it hf-hub:OWNER/NAME"):
        create_backbone("test_resnet", name)
    assert not hasattr(hub, "revision")


def test_a_licence_cannot_write_other_entries_into_the_card() -> None:
    card = model_card(provenance(license="mit\ntags: [evil]"), CardFacts({}))
    header = card.split("---")[1]
    assert "evil" not in str(yaml.safe_load(header)["tags"])
