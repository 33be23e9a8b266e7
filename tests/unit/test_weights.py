"""Weights: where they come from, the folder format, hand-over, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from anomalib_msacl import InputError
from anomalib_msacl.weights import architecture_of, create_backbone, digest, hand_over, save_backbone

SHARED = Path(__file__).parents[3] / "shared" / "weights" / "tf_efficientnet_lite0"


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def save(model: nn.Module, name: str, directory: Path) -> Path:
    config = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64], "tag": "msacl"}
    return save_backbone(model, name, directory, "# a card", {**config, "license": "apache-2.0"})


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
    assert architecture_of(f"local-dir:{directory}") == name


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
    hand_over(model, target)
    images = torch.rand(2, 3, 64, 64)
    expected = model.eval().forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    for ours, theirs in zip(expected, target.eval()(images), strict=True):
        assert torch.equal(ours, theirs)


def test_hand_over_between_architectures_is_refused() -> None:
    model, _ = create_backbone("test_resnet", "random")
    with pytest.raises(InputError, match="weights of another architecture"):
        hand_over(model, timm.create_model("resnet18", features_only=True))


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


def test_tensors_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    model, _ = create_backbone("test_resnet", "random")
    state = model.state_dict()
    first, second = list(state)[:2]
    del state[second]
    state[first] = torch.zeros(1)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"1 tensors missing, 1 of another shape"):
        create_backbone("test_resnet", str(tmp_path / "x.safetensors"))


class Evil:
    """Runs code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pwned"),))


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.ckpt", "plain.pth"):
        with pytest.raises(InputError, match="cannot read weights"):
            create_backbone("test_resnet", str(tmp_path / name))
    assert not (tmp_path / "pwned").exists()


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


def test_a_folder_with_something_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    model, _ = create_backbone("test_resnet", "random")
    with pytest.raises(InputError, match=r"holds something else; name a new or empty folder"):
        save(model, "test_resnet", tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_hand_over_reaches_models_that_timm_wraps() -> None:
    model, _ = create_backbone("deit_tiny_patch16_224", "random")
    target = timm.create_model("deit_tiny_patch16_224", features_only=True)
    hand_over(model, target)
    assert torch.equal(target.state_dict()["model.cls_token"], model.state_dict()["cls_token"])


def test_a_file_without_a_state_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match="do not fit the backbone"):
        create_backbone("test_resnet", str(tmp_path / "tensor.pth"))
