"""Bad settings, weights, checkpoints and arguments are told in one sentence, at once.

One row for each case: what is done, and a part of the one sentence that comes. To add a case, add a row. Bad data has a
table of the same kind in ``test_bad_data.py``, and bad input of ``screen`` in ``screening/test_bad_input.py``.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from anomalib.pre_processing import PreProcessor
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import Igd, Msacl, MsaclPretraining, Recipe, pretrain
from anomalib_msacl.backbone import Backbone, Encoder, create_backbone, save_backbone
from anomalib_msacl.checkpoints import check_checkpoint
from anomalib_msacl.data import Phantom
from anomalib_msacl.detectors.msacl.checks import check_fit
from anomalib_msacl.lesions import LesionMixture, MedMix
from anomalib_msacl.pretraining.lightning_model import make_trainer
from anomalib_msacl.recipe import TERMS
from anomalib_msacl.report.sheet import write_lesion_sheet
from tests.conftest import make_recipe
from tests.telling import check_sentence


class Row(NamedTuple):
    """What is done below an empty folder, and a part of what is said."""

    do: Callable[[Path], Any]
    words: str


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("pwned",))


@cache
def backbone() -> Backbone:
    return create_backbone("test_resnet", "random")


def weights(path: Any) -> Any:
    return create_backbone("test_resnet", path if isinstance(path, str) else str(path))


def folder(root: Path, **config: Any) -> Path:
    """Save a folder of weights, and change its configuration."""
    path = save_backbone(backbone().model, root / "weights", backbone().provenance)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return path


def configured(**config: Any) -> Callable[[Path], Any]:
    return lambda root: weights(folder(root, **config))


def with_text(text: str) -> Callable[[Path], Any]:
    """A folder of weights with another text for its configuration."""

    def do(root: Path) -> None:
        (folder(root) / "config.json").write_text(text)
        weights(root / "weights")

    return do


def in_place_of(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A folder of weights with something else for one of its files."""

    def do(root: Path) -> None:
        (folder(root) / name).unlink()
        make(root / "weights" / name)
        weights(root / "weights")

    return do


def checkpoint(content: Any) -> Callable[[Path], Any]:
    """Weights from a checkpoint of this content."""

    def do(root: Path) -> None:
        torch.save(content() if callable(content) else content, root / "model.ckpt")
        weights(root / "model.ckpt")

    return do


def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Path], Any]:
    """Weights from a checkpoint whose tensors are changed."""
    return checkpoint(lambda: {name: change(tensor) for name, tensor in backbone().model.state_dict().items()})


def described(**entry: Any) -> Callable[[Path], Any]:
    """Weights from a checkpoint of `Msacl` that says something else of them."""
    return checkpoint(lambda: {"state_dict": backbone().model.state_dict(), "msacl": {"layers": ["layer2"], **entry}})


def goes_on_from(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A run that is to go on from what was written."""

    def do(root: Path) -> None:
        write(root / "model.ckpt")
        check_checkpoint(msacl(root), root / "model.ckpt")

    return do


def msacl(root: Path, **options: Any) -> Msacl:
    given: dict[str, Any] = {"backbone": "test_resnet", "weights": "random", "image_size": 64, "visualizer": False}
    return Msacl(**{**given, "weights_dir": root / "new", **options})


def model(**options: Any) -> Callable[[Path], Any]:
    return lambda root: msacl(root, **options)


def recipe(**values: Any) -> Callable[[Path], Any]:
    return lambda _: Recipe.of(values)


def images(given: Any, held_out: Any = None, **settings: Any) -> Callable[[Path], Any]:
    """A pre-training on these images."""

    def do(_: Path) -> None:
        made = make_recipe(**{"max_steps": 1, "batch_size": 2, "evaluation_images": 4, **settings})
        pretrain(Encoder(create_backbone("test_resnet", "random").model), backbone().provenance, given, held_out, made)

    return do


def torchvision_cache(root: Path) -> None:
    """A pickle with code where torchvision keeps its downloads."""
    torch.hub.set_dir(str(root / "hub"))
    name = Path(torchvision.models.get_model_weights("resnet18").DEFAULT.url).name
    (root / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(Evil(), root / "hub" / "checkpoints" / name)
    create_backbone("resnet18", "torchvision")


def normalising(*parts: nn.Module) -> PreProcessor:
    return PreProcessor(Compose(list(parts)))


def not_writable(root: Path) -> None:
    (root / "file").touch()
    check_fit(
        make_trainer(make_recipe(max_steps=1)), make_recipe(max_steps=1), root / "file" / "weights", nn.Linear(1, 1)
    )


def split(**options: Any) -> Callable[[Path], Any]:
    return lambda root: Phantom("fundus", root, image_size=64, **options)


RANDOM = torch.rand(4, 3, 64, 64)
ROWS: dict[str, Row] = {
    # Code in files
    "code in torchvision's cache": Row(
        torchvision_cache, r"cannot get torchvision's weights .*Weights only load failed"
    ),
    "code in a checkpoint": Row(checkpoint({"state_dict": Evil()}), r"cannot read weights from .*model\.ckpt"),
    "code beside good weights": Row(
        checkpoint(lambda: {"state_dict": backbone().model.state_dict(), "more": Evil()}), r"cannot read weights from"
    ),
    "code in a checkpoint to go on from": Row(
        goes_on_from(lambda path: torch.save({"state_dict": {}, "x": Evil()}, path)), r"model\.ckpt is no checkpoint"
    ),
    "code in a file of torch": Row(
        lambda root: ((root / "a.pth").write_bytes(pickle.dumps(Evil())), weights(root / "a.pth")),
        r"cannot read weights from .*a\.pth \(.*a checkpoint that holds nothing but tensors",
    ),
    "arguments that read files": Row(
        lambda _: create_backbone("test_resnet", "random", {"checkpoint_path": "evil.pth"}),
        r"backbone_args sets checkpoint_path",
    ),
    **{
        f"{key} in a folder's arguments": Row(configured(model_args={key: "evil.bin"}), rf"sets {key} in model_args")
        for key in ("pretrained_cfg", "checkpoint_path", "pretrained", "cache_dir")
    },
    # Names of weights and backbones
    "a number for weights": Row(lambda _: create_backbone("test_resnet", 3), r"weights is 3, but must be timm"),  # type: ignore[arg-type]
    "nothing for weights": Row(lambda _: create_backbone("test_resnet", ""), r"weights is '', but must be timm"),
    "a number for a backbone": Row(model(backbone=3), r"backbone is 3, but must be a name"),
    "an unknown backbone": Row(model(backbone="no_such_net"), r"unknown backbone 'no_such_net'"),
    "a list for arguments": Row(model(backbone_args=[1]), r"backbone_args is \[1\], but must be a mapping"),
    "an argument that is none": Row(
        model(backbone_args={"legs": 4}), r"cannot be created with .*correct the arguments"
    ),
    "an argument that has no name": Row(model(backbone_args={1: 2}), r"backbone_args is \{1: 2\}, but must be"),
    "a tag that is none": Row(model(backbone="test_resnet.a1"), r"resnet.a1' cannot be created .*correct the name"),
    "a backbone that names no folder": Row(model(backbone="local-dir:"), r"'local-dir:' is no folder; name it local"),
    "weights that name no folder": Row(lambda _: weights("local-dir:"), r"'local-dir:' is no folder; name it local"),
    "a path of 5,000 letters": Row(lambda _: weights("x" * 5000), r"cannot read weights from x+\.\.\.x+: there is no"),
    "a folder of 5,000 letters": Row(
        lambda _: create_backbone("local-dir:" + "x" * 5000), r"x\.\.\.x+ is not a weights"
    ),
    "an architecture of 5,000 letters": Row(
        lambda root: create_backbone(f"local-dir:{folder(root, architecture='x' * 5000)}"),
        r"unknown backbone 'x+\.\.\.x+'",
    ),
    "a path with a zero": Row(lambda _: weights("a\0b"), r"there is no such file"),
    "a pipe": Row(lambda root: (os.mkfifo(root / "a.ckpt"), weights(root / "a.ckpt")), r"only \.safetensors files"),
    "a device": Row(
        lambda root: ((root / "a.safetensors").symlink_to("/dev/zero"), weights(root / "a.safetensors")),
        r"only \.safetensors files",
    ),
    # config.json
    "a deep configuration": Row(with_text("[" * 100_000), r"is not a weights folder .*RecursionError"),
    "a configuration that is a list": Row(with_text("[1]"), r"is not a weights folder"),
    "a configuration of a long number": Row(with_text('{"architecture": ' + "1" * 5000), r"is not a weights folder"),
    "a configuration that is a pipe": Row(in_place_of("config.json", os.mkfifo), r"config\.json is no file of text"),
    "a configuration that is a device": Row(
        in_place_of("config.json", lambda path: path.symlink_to("/dev/zero")), r"config\.json is no file of text"
    ),
    "tensors that are a pipe": Row(in_place_of("model.safetensors", os.mkfifo), r"only \.safetensors files"),
    "a number for an architecture": Row(configured(architecture=3), r"the architecture in config\.json is no name"),
    "a text for a description": Row(configured(pretrained_cfg="x"), r"pretrained_cfg is 'x', but must be a mapping"),
    "a list for an entry": Row(configured(msacl=[1]), r"msacl is '\[1\]', but must be a mapping"),
    "a list for a folder's arguments": Row(configured(model_args=[1]), r"model_args is '\[1\]', but must be a mapping"),
    "an argument of a wrong kind": Row(configured(model_args={"output_stride": "x"}), r"cannot be created with"),
    "another architecture": Row(configured(architecture="resnet18"), r"are of architecture 'resnet18', not of"),
    **{
        f"{name} {value!r}": Row(configured(pretrained_cfg={name: value}), rf"{name} is .*, but must be three numbers")
        for name, values in {
            "std": ([0, 0, 0], [0.5, 0.5], [0.5, 0.5, 0]),
            "mean": ([math.nan] * 3, 5, "abc"),
            "input_size": (5, [64], ["3", "64", "64"]),
        }.items()
        for value in values  # type: ignore[attr-defined]
    },
    **{
        f"an entry with {entry!r}": Row(described(**entry), r"entry msacl has layers .* and feature_std .* mend it")
        for entry in (
            {"feature_std": "0.1"},
            {"feature_std": 0},
            {"feature_std": -0.1},
            {"feature_std": math.nan},
            {"feature_std": True},
            {"layers": "layer2"},
            {"layers": [1]},
        )
    },
    "an entry with a standard deviation of 0": Row(described(std=[0, 0, 0]), r"std is \[0, 0, 0\], but must be three"),
    # Tensors
    "integer keys": Row(checkpoint({"state_dict": {1: torch.zeros(1)}}), r"conv1\.0\.weight is missing \(90 tensors"),
    "a list for a checkpoint": Row(checkpoint([1]), r"conv1\.0\.weight is missing"),
    "a text for a state": Row(checkpoint({"state_dict": "x"}), r"conv1\.0\.weight is missing"),
    "weights of NaN": Row(
        changed(lambda tensor: tensor * math.nan if tensor.is_floating_point() else tensor),
        r"75 tensors hold NaN or infinite values, conv1\.0\.weight first",
    ),
    "whole numbers": Row(changed(lambda tensor: tensor.int()), r"75 tensors are no plain numbers .*\(int32\)"),
    "complex numbers": Row(changed(lambda tensor: tensor.to(torch.complex64)), r"\(complex64\) first"),
    "sparse tensors": Row(changed(lambda tensor: tensor.to_sparse()), r"90 tensors are no plain numbers"),
    "tensors without content": Row(changed(lambda tensor: tensor.to("meta")), r"90 tensors are no plain numbers"),
    "another shape": Row(
        changed(lambda tensor: tensor[None]), r"conv1\.0\.weight has shape \(1, .*90 of another shape"
    ),
    "a long header": Row(
        lambda root: ((root / "a.safetensors").write_bytes(b"\xff" * 8), weights(root / "a.safetensors")),
        r"cannot read weights from .*header too large",
    ),
    "other tensors": Row(
        lambda root: (save_file({"a": torch.zeros(1)}, root / "a.safetensors"), weights(root / "a.safetensors")),
        r"do not fit the backbone ResNet: conv1\.0\.weight is missing",
    ),
    # A checkpoint to go on from
    "half a checkpoint": Row(goes_on_from(lambda path: path.write_bytes(b"PK\x03\x04half")), r"is no checkpoint: name"),
    "a checkpoint that is a pipe": Row(goes_on_from(os.mkfifo), r"model\.ckpt is no file: name"),
    "a checkpoint that is not there": Row(goes_on_from(lambda path: None), r"cannot be read \(No such file"),
    "a checkpoint of tensors alone": Row(
        goes_on_from(lambda path: torch.save({"a": torch.zeros(1)}, path)), r"is no checkpoint of Lightning"
    ),
    # Settings of Msacl
    "a text for layers": Row(
        model(layers="layer2"), r"layers is 'layer2', but must be a list of layers, which are act1"
    ),
    "a layer that is none": Row(
        model(layers=["layer9"]), r"layer 'layer9' does not exist .* its layers are act1, layer1"
    ),
    "a layer by a wrong number": Row(model(layers=[99]), r"layer 99 does not exist"),
    "a layer a million times": Row(model(layers=["layer2"] * 10**6), r"layers names a layer twice, layer2, .* more"),
    **{
        f"a detector of {value!r}": Row(model(detector=value), r"detector is .*, but must be true or false")
        for value in ("no", 0, None)
    },
    "a layer by a truth value": Row(model(layers=[True]), r"layer True does not exist"),
    **{
        f"an image_size of {size!r}": Row(
            model(image_size=size), r"image_size is .*, but must be a number of pixels from 1"
        )
        for size in (0, -1, "64", 64.0, True, 10**9)
    },
    "an image smaller than a lesion": Row(model(image_size=24), r"smaller than a lesion"),
    "a size that the backbone does not take": Row(
        model(backbone="test_vit", image_size=72), r"cannot take images of 72 x 72 pixels"
    ),
    **{
        f"a mean of {mean!r}": Row(model(mean=mean), r"mean is .*, but must be three numbers")
        for mean in ("abc", [0.5, 0.5], ["a", "b", "c"], [math.inf] * 3, 0.5)
    },
    **{
        f"a std of {std!r}": Row(model(std=std), r"std is .*, but must be three numbers above 0")
        for std in ([0.0, 0.5, 0.5], [-1, 0.5, 0.5], [math.nan] * 3, [1e-300] * 3)
    },
    "a normalisation of one's own": Row(
        model(pre_processor=normalising(Resize((64, 64)), Normalize([0.5], [0.5]))), r"leave Normalize out"
    ),
    "a normalisation within another": Row(
        model(pre_processor=normalising(Compose([Normalize([0.5], [0.5])]))), r"leave Normalize out"
    ),
    "all stages frozen": Row(
        model(recipe=make_recipe(frozen_stride=64)), r"nothing would be trained: with freeze.stride 64"
    ),
    "the layers frozen": Row(
        model(recipe=make_recipe(**dict.fromkeys(TERMS[:-1], 0.0), frozen_stride=16)), r"nothing would be trained"
    ),
    "no term": Row(model(recipe=make_recipe(**dict.fromkeys(TERMS, 0.0))), r"nothing would be trained"),
    "a number for weights_dir": Row(model(weights_dir=3), r"weights_dir is 3, but must be the path of a folder"),
    "a weights_dir with a zero": Row(model(weights_dir="a\0b"), r"weights_dir is 'a\\x00b', which is no path"),
    "a weights_dir of 5,000 letters": Row(model(weights_dir="x" * 5000), r"weights_dir has a name of 5000 letters"),
    "saving to a folder of 5,000 letters": Row(
        lambda _: save_backbone(backbone().model, "x" * 5000, backbone().provenance), r"has a name of 5000 letters"
    ),
    "weights below a file": Row(not_writable, r"weights cannot be saved to .* name a folder that can be written"),
    # Settings of Igd
    **{
        f"Igd with {name} of {value!r}": Row(
            lambda _, name=name, value=value: Igd("test_resnet", **{"layers": ["layer3"], name: value}),
            rf"^(Igd: )?{name} is .*, but must be ",
        )
        for name, values in {
            "dim": (0, 10**9, "no", 1.5, True),
            "width": (0, 10**9, "no"),
            "patches": (10**9, "no"),
            "update_every": ("no",),
            "evaluations": ("no", -1),
            "patch_size": ("no", 10**9),
            "patch_stride": ("no",),
            "learning_rate": ("no", math.nan, math.inf, 0.0),
            "seed": ("no", 2**64),
            "image_size": (10**9, "64", [64], [64, 64, 64], [64, 0]),
            "pre_trained": ("no", 0),
            "frozen": ("no",),
            "flip": ("no",),
            "layers": (range(10**7), ["layer3"] * 10**6, 3),
        }.items()
        for value in values
    },
    # Settings of the callback
    **{
        f"checkpoint_minutes of {value!r}": Row(
            lambda _, value=value: MsaclPretraining(checkpoint_minutes=value), r"checkpoint_minutes is .*, but must be"
        )
        for value in ("5", math.nan, math.inf, -1)
    },
    "a root with a zero": Row(lambda _: MsaclPretraining(root="a\0b"), r"root is 'a\\x00b', which is no path"),
    "a root of 5,000 letters": Row(lambda _: MsaclPretraining(root="x" * 5000), r"root has a name of 5000 letters"),
    "a number for root": Row(lambda _: MsaclPretraining(root=3), r"root is 3, but must be the path"),  # type: ignore[arg-type]
    "a number for the callback's weights": Row(
        lambda _: MsaclPretraining(weights=3), r"weights is 3, but must be timm"
    ),  # type: ignore[arg-type]
    "a text for a recipe": Row(lambda _: MsaclPretraining(recipe="paper"), r"recipe is 'paper', but must be a Recipe"),  # type: ignore[arg-type]
    # The recipe
    **{
        f"recipe.{place} of {value!r}": Row(
            recipe(
                **(({place.partition(".")[0]: {place.partition(".")[2]: value}}) if "." in place else {place: value})
            ),
            rf"^recipe\.{place} is .*, but must be ",
        )
        for place, value in (
            *(("loss.dense", value) for value in (-1.0, None, math.inf, math.nan, "1")),
            ("loss.alpha", 0.5),
            ("loss.temperature", 0.0),
            ("loss.projection", 10**9),
            ("loss.positives", "both"),
            ("loss.dense_bank", 0),
            *(("whitening.saved_std", value) for value in (0.0, math.inf)),
            ("whitening.std", math.inf),
            ("accumulate", 0),
            *(("batch_size", value) for value in (1, 4.5)),
            ("classes", 1),
            *(("seed", value) for value in (2**70, -1, "3", None)),
            *(("max_steps", value) for value in ("3", True, -1)),
            ("realign", "no"),
            ("choice.held_out", 0.7),
            ("optimizer.warmup", 2.0),
            ("optimizer.learning_rate", 0.0),
            ("optimizer.name", "adam"),
            ("lesions.foreground_threshold", math.nan),
            *(("lesions.families", value) for value in ("haze", None)),
            *(("view.scale", value) for value in ([1.0, 0.5], "ab", ["a", "b"], [math.nan, 1], None, [0.1])),
            ("view.ratio", [0.5, math.inf]),
            ("loss", 3),
        )
    },
    "a number for a family": Row(recipe(lesions={"families": [3]}), r"families has 3, but must have names of haze"),
    "an unknown family": Row(model(recipe=Recipe.of({"lesions": {"families": ["hazee"]}})), r"families is \['hazee'\]"),
    "no family": Row(model(recipe=Recipe.of({"lesions": {"families": []}})), r"families is \[\], but must list"),
    "an unknown argument of a family": Row(
        recipe(lesions={"families": [{"name": "haze", "strength": 1}]}),
        r"haze: .* unexpected keyword .*; see the arguments",
    ),
    "a text for the families of a mixture": Row(lambda _: LesionMixture("haze"), r"families is haze, but must list"),
    "a number of lesions below 0": Row(lambda _: MedMix(counts=(-1,)), r"counts is \[-1\], but it must name"),
    # Images from Python
    "no images": Row(images(torch.zeros(0, 3, 64, 64)), r"shape \(0, 3, 64, 64\), but must have .* at least one image"),
    "one image without its dimension": Row(
        images(torch.rand(3, 64, 64)), r"images are a tensor of shape \(3, 64, 64\)"
    ),
    "images with four channels": Row(images(torch.rand(4, 4, 64, 64)), r"of shape \(2, 4, 64, 64\), not \(N, 3"),
    **{
        f"images of {kind}": Row(images((RANDOM > 0.5).to(kind)), r"training images are of .*, but must be float32")
        for kind in (torch.bool, torch.uint8, torch.complex64)
    },
    "an iterator": Row(images(iter([RANDOM])), r"images are a list_iterator, which ends, but must be a loader"),
    "a held-out iterator": Row(images(RANDOM, iter([RANDOM])), r"images are a list_iterator, which ends"),
    "a loader without a batch": Row(images([]), r"images are a loader of nothing"),
    "batches of two sizes": Row(
        images([RANDOM[:2], RANDOM[2:, :, :32, :32]]), r"have 32 x 32 and 64 x 64 pixels; bring them to one size"
    ),
    "a loader of numbers": Row(images([1, 2]), r"a loader yields batches of int, but the pre-training needs tensors"),
    "nothing for images": Row(images(None), r"images are None, but must be a tensor"),
    "images of 0 to 255": Row(images(RANDOM * 255), r"values from .* but lesions are made on \[0, 1\]"),
    "images of NaN": Row(images(RANDOM * math.nan), r"values from nan to nan"),
    "held-out images of another size": Row(
        images(RANDOM, RANDOM[..., :32, :32]), r"training images have 64 x 64 pixels and held-out ones 32 x 32"
    ),
    "no held-out images": Row(images(RANDOM, RANDOM[:0]), r"shape \(0, 3, 64, 64\)"),
    "images of 8 pixels": Row(images(RANDOM[..., :8, :8]), r"images are 8 x 8 pixels, smaller than a lesion needs"),
    # Data
    "an unknown phantom": Row(lambda root: Phantom("knee", root), r"Phantom's kind is 'knee': choose one of"),
    "a text for a phantom's size": Row(lambda root: Phantom(root=root, image_size="64"), r"image_size is '64': set it"),  # type: ignore[arg-type]
    "a part above 1": Row(split(val_split_ratio=2), r"val_split_ratio is 2: set it from 0 to 1"),
    "a text for a part": Row(split(val_split_ratio="half"), r"val_split_ratio is 'half': set it from 0 to 1"),
    "an unknown split": Row(split(val_split_mode="medmx"), r"val_split_mode is medmx: set it to medmix"),
    "a seed of the sheet": Row(
        lambda root: write_lesion_sheet(root, root / "a.png", seed=2**70), r"the seed of the sheet"
    ),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that runs would leave a folder, and torchvision's cache is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_is_told_in_one_sentence(name: str, tmp_path: Path) -> None:
    check_sentence(lambda: ROWS[name].do(tmp_path), ROWS[name].words)
    assert not (tmp_path / "pwned").exists(), "code was run"
