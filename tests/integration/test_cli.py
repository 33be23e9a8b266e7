"""The command line of anomalib on the configurations of the package, with real files."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from PIL import Image

from anomalib_msacl import InputError, Msacl
from anomalib_msacl.__main__ import config_path, main
from anomalib_msacl.data import Phantom
from anomalib_msacl.weights import create_backbone, save_backbone

RECIPE = {"max_steps": 2, "batch_size": 4, "evaluations": 1, "evaluation_images": 4, "centre_images": 4}
SMALL = [
    item for name, value in RECIPE.items() for item in (f"--trainer.callbacks.init_args.recipe.{name}", str(value))
]
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
PHANTOM = ["--data.init_args.image_size", "64", "--data.init_args.train_images", "12"]
PHANTOM += ["--data.init_args.test_images", "8"]


def anomalib(command: str, config: str, *options: str) -> AnomalibCLI:
    """Run a command of anomalib in this process: the import alone takes ten seconds."""
    torch.manual_seed(0)
    return AnomalibCLI([command, "--config", str(config_path(config)), *TRAINER, *options])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go below the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of a person's own, in folders."""
    Phantom("brain", tmp_path / "phantom", image_size=64, train_images=10, test_images=8).prepare_data()
    root = tmp_path / "mine"
    shutil.copytree(next((tmp_path / "phantom").iterdir()), root)
    return root


@pytest.mark.parametrize("config", ["msacl_patchcore", "msacl_padim"])
def test_a_detector_is_trained_on_pretrained_features(config: str, place: Path) -> None:
    cli = anomalib("train", config, *PHANTOM, *SMALL)
    assert {"image_AUROC", "pixel_AUROC"} <= cli.engine.trainer.callback_metrics.keys()
    (run,) = place.glob("results/*/phantom_fundus/v0")
    assert (run / "weights" / "lightning" / "model.ckpt").is_file()
    assert len(list((run / "images").rglob("*.png"))) == 4  # half of the test images set the threshold
    (saved,) = (path.parent for path in place.glob("results/msacl/*/model.safetensors"))
    card = (saved / "README.md").read_text()
    assert "phantom_fundus, " in card
    assert '"max_steps": 2' in card


def test_the_folder_config_takes_a_root_and_masks(folder: Path) -> None:
    data = ["--data.init_args.root", str(folder), "--data.init_args.mask_dir", "ground_truth/lesion"]
    cli = anomalib("train", "msacl_patchcore_folder", *data, *SMALL)
    assert Path(cli.datamodule.root) == folder
    assert "pixel_AUROC" in cli.engine.trainer.callback_metrics


def test_pretraining_alone_resumes_tests_and_predicts(place: Path) -> None:
    steps = ["--model.init_args.recipe.max_steps", "2", "--model.init_args.recipe.evaluations", "1"]
    cli = anomalib("fit", "msacl_pretrain", *PHANTOM, *steps, "--default_root_dir", "first")
    checkpoint = cli.engine.trainer.checkpoint_callback.best_model_path
    assert Path(checkpoint).is_file()
    (weights,) = place.glob("first/**/model.safetensors")
    again = ["--trainer.max_steps", "3", "--model.init_args.recipe.evaluations", "1", "--ckpt_path", checkpoint]
    resumed = anomalib("fit", "msacl_pretrain", *PHANTOM, *again)
    assert resumed.engine.trainer.global_step == 3
    use = ["--model.init_args.weights", str(weights.parent), "--ckpt_path", checkpoint]
    tested = anomalib("test", "msacl_pretrain", *PHANTOM, *use)
    assert 0 <= float(tested.engine.trainer.callback_metrics["image_AUROC"]) <= 1
    images = next(place.glob("datasets/phantom/*/test/lesion"))
    model = ["--model", "anomalib_msacl.Msacl", "--model.backbone", "tf_efficientnet_lite0"]
    model += ["--model.weights", "offline", "--model.image_size", "128", "--model.layers", "[blocks.2,blocks.4]"]
    AnomalibCLI(["predict", *model, *TRAINER, "--data", str(images), "--ckpt_path", checkpoint])
    assert len(list(place.glob("results/Msacl/**/images/**/*.png"))) >= 4


def spoil(folder: Path, how: str) -> None:
    """Damage a folder of images in one way."""
    train = sorted((folder / "train" / "good").iterdir())
    lesion = sorted((folder / "test" / "lesion").iterdir())
    damages: dict[str, Callable[[], Any]] = {
        "missing": lambda: shutil.rmtree(folder),
        "empty": lambda: [path.unlink() for path in train],
        "corrupt": lambda: train[3].write_bytes(train[3].read_bytes()[:200]),
        "corrupt test": lambda: lesion[0].write_bytes(b"no picture"),
        "abnormal": lambda: shutil.copy(lesion[0], folder / "train" / "good" / "copy.png"),
        "single": lambda: [path.unlink() for path in train[1:]],
        "tiny": lambda: [Image.new("RGB", (16, 16)).save(path) for path in train],
    }
    damages[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"the root folder '.*mine' of the dataset 'my_images' is missing: set root"),
        ("empty", r"train/good.* has no image|no image.*train/good"),
        ("corrupt", r"003\.png"),
        ("corrupt test", r"000\.png"),
        ("abnormal", r"copy\.png"),
        ("single", r"1 .*training image"),
        ("tiny", r"16 .*24|24 .*16"),
    ],
)
def test_bad_images_are_told_in_one_sentence_before_any_training(
    how: str, message: str, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Msacl, "training_step", lambda *_: pytest.fail("training has begun"))
    spoil(folder, how)
    with pytest.raises(InputError, match=message) as caught:
        anomalib("train", "msacl_patchcore_folder", "--data.init_args.root", str(folder), *SMALL)
    assert "\n" not in str(caught.value)
    assert not (place / "results" / "msacl").exists()


CALLBACK = "--trainer.callbacks.init_args"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.backbone", "resnt18"], r"unknown backbone 'resnt18'"),
        (
            ["--model.init_args.layers", "[blocks.2,blocks.9]"],
            r"layer 'blocks.9' does not exist .* layers are blocks.0",
        ),
        ([f"{CALLBACK}.weights", "OTHER"], r"are of architecture 'test_resnet', not of the backbone"),
        ([f"{CALLBACK}.weights", "nowhere"], r"cannot read weights from nowhere"),
        ([f"{CALLBACK}.weights", "timm"], r"cannot get the weights of 'tf_efficientnet_lite0' from the hub"),
        ([f"{CALLBACK}.recipe.dense", "-1"], r"recipe.dense is -1.0, but must be 0 at least"),
    ],
    ids=["backbone", "layer", "architecture", "path", "hub", "recipe"],
)
def test_bad_settings_are_told_in_one_sentence_before_any_training(
    options: list[str], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Msacl, "training_step", lambda *_: pytest.fail("training has begun"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    other = create_backbone("test_resnet", "random")[0]
    save_backbone(other, "test_resnet", place / "OTHER", "", {"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(Exception) as caught:  # noqa: PT011
        anomalib("train", "msacl_patchcore", *PHANTOM, *SMALL, *options)
    assert re.search(message, InputError.message_behind(caught.value))
    assert not (place / "results" / "msacl").exists()


def test_the_configurations_are_found(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib_msacl", "msacl_padim"])
    main()
    assert Path(capsys.readouterr().out.strip()).is_file()
    monkeypatch.setattr(sys, "argv", ["anomalib_msacl"])
    main()
    assert len(capsys.readouterr().out.splitlines()) == 4
    monkeypatch.setattr(sys, "argv", ["anomalib_msacl", "nothing"])
    with pytest.raises(SystemExit):
        main()
    assert "there are msacl_padim" in capsys.readouterr().err


def test_every_configuration_has_a_test() -> None:
    tested: set[Any] = {"msacl_patchcore", "msacl_padim", "msacl_patchcore_folder", "msacl_pretrain"}
    assert {path.stem for path in config_path("msacl_padim").parent.glob("*.yaml")} == tested
