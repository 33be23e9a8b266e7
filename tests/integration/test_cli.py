"""The command line of anomalib on the configurations of the package, with real files."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from anomalib.cli.cli import AnomalibCLI
from PIL import Image
from safetensors.torch import load_file

from anomalib_msacl import Igd, InputError
from anomalib_msacl.backbone import create_backbone, save_backbone
from anomalib_msacl.cli import config_path
from anomalib_msacl.data import MedMixDataset, Phantom
from anomalib_msacl.errors import one_line_errors
from anomalib_msacl.pretraining.lightning_model import PretrainingModule
from tests.medical_files import LOSSLESS, JPEGBaseline8Bit, change_dicom, tissue, write_dicom

RECIPE = {"max_steps": 2, "batch_size": 4, "accumulate": 1, "choice.evaluations": 1}
RECIPE |= {"choice.images": 4, "loss.centre_images": 4}
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


def at_size(size: int) -> list[str]:
    """Options that make the images of a configuration small."""
    step = "torchvision.transforms.v2.Resize"
    transforms = [{"class_path": step, "init_args": {"size": [size, size], "antialias": True}}]
    transforms += [{"class_path": "torchvision.transforms.v2.Normalize", "init_args": {"mean": [0.5], "std": [0.5]}}]
    place = "--model.init_args.pre_processor.init_args.transform.init_args.transforms"
    return [place, json.dumps(transforms)]


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
    cli = anomalib("train", "msacl_patchcore_folder", *data, *SMALL, *at_size(64))
    assert Path(cli.datamodule.root) == folder
    assert "pixel_AUROC" in cli.engine.trainer.callback_metrics


def test_pretraining_alone_resumes_tests_and_predicts(place: Path) -> None:
    small = [item for name, value in RECIPE.items() for item in (f"--model.init_args.recipe.{name}", str(value))]
    cli = anomalib("fit", "msacl_pretrain", *PHANTOM, *small, "--default_root_dir", "first")
    checkpoint = cli.engine.trainer.checkpoint_callback.best_model_path
    assert Path(checkpoint).is_file()
    (weights,) = place.glob("first/**/model.safetensors")
    again = ["--trainer.max_steps", "3", "--ckpt_path", checkpoint]
    resumed = anomalib("fit", "msacl_pretrain", *PHANTOM, *small, *again)
    assert resumed.engine.trainer.global_step == 3
    use = ["--model.init_args.weights", str(weights.parent), "--ckpt_path", checkpoint]
    tested = anomalib("test", "msacl_pretrain", *PHANTOM, *use)
    assert 0 <= float(tested.engine.trainer.callback_metrics["image_AUROC"]) <= 1
    images = next(place.glob("datasets/phantom/*/test/lesion"))
    model = ["--model", "anomalib_msacl.Msacl", "--model.backbone", "tf_efficientnet_lite0"]
    model += ["--model.weights", "offline", "--model.image_size", "128", "--model.layers", "[blocks.2,blocks.4]"]
    AnomalibCLI(["predict", *model, *TRAINER, "--data", str(images), "--ckpt_path", checkpoint])
    assert len(list(place.glob("results/Msacl/**/images/**/*.png"))) >= 4


FIGURES = {"image_AUROC", "image_Sensitivity", "image_Specificity", "image_Accuracy"}
FIGURES |= {"image_SensitivityAt95Specificity", "pixel_IoU", "pixel_Dice", "pixel_AUPRO"}
# Ways in which a hospital's archive may have stored the same kind of picture.
STORED: list[dict[str, Any]] = [{}, {"photometric": "MONOCHROME1"}, *({"syntax": syntax} for syntax in LOSSLESS)]
STORED += [{"RescaleSlope": 2, "RescaleIntercept": -1024}, {"VOILUTFunction": "SIGMOID"}, {"PatientName": "X^Y"}]


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    """A folder of DICOM files, one patient each, with masks."""
    root = tmp_path / "dicom"
    window = {"WindowCenter": 1200, "WindowWidth": 800}
    for part, number, first in (("train/good", 16, 0), ("test/good", 8, 100), ("test/lesion", 8, 200)):
        for index in range(number):
            pixels, stored = tissue(first + index), STORED[index % len(STORED)]
            if part == "test/lesion":
                pixels[20:34, 30:40] = 2000
                mask = Image.fromarray((pixels == 2000).astype(np.uint8) * 255)
                (root / "ground_truth/lesion").mkdir(parents=True, exist_ok=True)
                mask.save(root / f"ground_truth/lesion/{index}.png")
            write_dicom(root / part / f"{index}.dcm", pixels, **{**window, **stored}, PatientID=f"{part} {index}")
    return root


def test_dicom_files_from_pretraining_to_figures(dicom: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = (tissue(7) // 8).astype(np.uint8)
    options = ["--data.init_args.root", str(dicom), "--data.init_args.mask_dir", "ground_truth/lesion", *SMALL]
    options += at_size(64)
    options += ["--model.init_args.evaluator.init_args.resamples", "20"]
    bad = [write_dicom(dicom / f"train/good/bad{index}.dcm", tissue(50 + index)) for index in range(3)]
    bad[0].write_bytes(b"no DICOM file at all")
    change_dicom(bad[1], PixelData=None)
    change_dicom(bad[2], PixelData=b"1" * 5000)
    with monkeypatch.context() as patch:
        patch.setattr(PretrainingModule, "training_step", lambda *_: pytest.fail("training has begun"))
        with pytest.raises(InputError, match="3 files cannot be used") as caught:
            anomalib("train", "msacl_padim_dicom", *options)
    for name, words in (("bad0", "is no DICOM file"), ("bad1", "no pixel data"), ("bad2", "has 5000 bytes")):
        assert re.search(f"{name}.dcm [^;]*({words})", str(caught.value))
    for path in bad:
        path.unlink()
    write_dicom(dicom / "train/good/lossy.dcm", small, JPEGBaseline8Bit, bits=8, PatientID="lossy")
    cli = anomalib("train", "msacl_padim_dicom", *options)
    logged = cli.engine.trainer.callback_metrics
    assert set(logged) == FIGURES | {f"{name}_{end}" for name in FIGURES for end in ("low", "high")}
    assert len(list(place.glob("results/Padim/my_dicom/v1/images/test/*/*.dcm.png"))) == 16
    assert not set(cli.datamodule.train_data.samples["patient"]) & set(cli.datamodule.val_data.samples["patient"])


def hyper_kvasir(folder: Path, root: Path) -> list[str]:
    """Lay out images as in the download of Hyper-Kvasir, and return the options that use them."""
    shutil.copytree(folder / "train/good", root / "labeled-images/lower-gi-tract/anatomical-landmarks/cecum")
    for name in ("ileum", "bbps-2-3"):
        (root / f"labeled-images/lower-gi-tract/{name}").mkdir()
        first = sorted((folder / "test/good").iterdir())[len(name) % 2]
        shutil.copy(first, root / f"labeled-images/lower-gi-tract/{name}/{name}.png")
    shutil.copytree(folder / "test/lesion", root / "segmented-images/images")
    shutil.copytree(folder / "ground_truth/lesion", root / "segmented-images/masks")
    options = ["--data.init_args.root", str(root), "--data.init_args.train_normal", "9"]
    return [*options, "--data.init_args.test_normal", "3", "--model.init_args.evaluator.init_args.resamples", "0"]


def test_hyper_kvasir_from_its_folders(folder: Path, place: Path) -> None:
    data = hyper_kvasir(folder, place / "kvasir")
    cli = anomalib("train", "msacl_patchcore_hyperkvasir", *data, *SMALL, *at_size(64))
    assert set(cli.engine.trainer.callback_metrics) == FIGURES


def check_the_recipe_of_the_paper(place: Path) -> None:
    """Check that what was trained holds nothing of our own."""
    (card,) = place.glob("results/msacl/resnet18-*/README.md")
    recipe = json.loads(card.read_text().split("```json")[1].split("```")[0])
    assert (recipe["average"], recipe["accumulate"], recipe["classes"]) == (1, 1, 4)
    assert (recipe["whitening"]["std"], recipe["choice"]["evaluations"], recipe["freeze"]["stride"]) == (0, 0, 0)
    assert recipe["lesions"]["families"] == ["medmix"]
    terms = {"centring": 1, "contrastive": 1, "augmentation": 1, "position": 1, "dense": 0}
    assert {name: recipe["loss"][name] for name in terms} == terms
    assert recipe["optimizer"]["name"] == "sgd"
    (log,) = place.glob("results/msacl/logs/resnet18-*/metrics.csv")
    header = log.read_text().splitlines()[0].split(",")
    assert {name for name in header if name.startswith("train_")} == {
        *("train_centring", "train_contrastive", "train_augmentation", "train_position", "train_loss")
    }


def test_the_comparison_of_the_paper_runs_on_one_pre_training(folder: Path, place: Path) -> None:
    """PaDiM, then IGD on the same weights, with the metrics of the paper."""
    data = hyper_kvasir(folder, place / "kvasir")
    callback = "--trainer.callbacks.init_args"
    initial, made = create_backbone("resnet18", "random")
    save_backbone(initial, place / "initial", made)
    small = [f"{callback}.recipe.max_steps", "3", f"{callback}.recipe.batch_size", "4"]
    small += [f"{callback}.weights", str(place / "initial")]
    cli = anomalib("train", "msacl_paper", *data, *small, *at_size(64))
    assert set(cli.engine.trainer.callback_metrics) == FIGURES
    check_the_recipe_of_the_paper(place)
    (weights,) = place.glob("results/msacl/resnet18-*/model.safetensors")
    written = weights.stat().st_mtime_ns
    own = {"model.init_args.width": 2, "model.init_args.patches": 2, "model.init_args.evaluations": 1}
    own |= {"trainer.max_epochs": 1, "trainer.check_val_every_n_epoch": 1}
    settings = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    overlay = ["--config", str(config_path("msacl_paper_igd"))]
    cli = anomalib("train", "msacl_paper", *overlay, *data, *small, *settings, *at_size(64))
    assert isinstance(cli.model, Igd)
    assert set(cli.engine.trainer.callback_metrics) >= FIGURES
    assert list(place.glob("results/msacl/resnet18-*/model.safetensors")) == [weights]
    assert weights.stat().st_mtime_ns == written
    network = cli.model.model.feature_extractor.feature_extractor.state_dict()
    saved = load_file(weights)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.items())


def test_igd_from_its_configuration(place: Path) -> None:
    options = ["--model.init_args.width", "2", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    cli = anomalib("train", "msacl_igd", *PHANTOM, *SMALL, *options)
    assert cli.model.training_run.choice.kept == "epoch 1"
    assert {"image_AUROC", "pixel_AUROC"} <= set(cli.engine.trainer.callback_metrics)


def test_bmad_with_medmix_in_place_of_its_validation_set(
    folder: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = place / "BMAD" / "Brain"
    shutil.copytree(folder / "train/good", root / "train/good")
    for split in ("test", "valid"):
        shutil.copytree(folder / "test/good", root / split / "good/img")
        shutil.copytree(folder / "test/lesion", root / split / "Ungood/img")
        shutil.copytree(folder / "ground_truth/lesion", root / split / "Ungood/label")
    data = ["--data.init_args.root", str(root.parent), "--trainer.callbacks.init_args.recipe.batch_size", "4"]
    options = ["--model.init_args.evaluator.init_args.resamples", "0"]
    with caplog.at_level(logging.INFO, "anomalib_msacl.data"):
        cli = anomalib("train", "msacl_patchcore_bmad", *data, *options, *SMALL, *at_size(64))
    assert "held-out normal images have MedMix lesions" in caplog.text
    assert not math.isnan(float(cli.model.post_processor.image_threshold))
    assert set(cli.engine.trainer.callback_metrics) >= FIGURES


def test_own_normal_images_alone(folder: Path) -> None:
    normal = [f"--data.init_args.{name}={value}" for name, value in (("abnormal_dir", "null"), ("root", folder))]
    options = ["--data.init_args.val_split_mode=medmix", *SMALL, *at_size(64)]
    cli = anomalib("train", "msacl_patchcore_folder", *normal, *options)
    assert isinstance(cli.datamodule.val_data, MedMixDataset)
    assert set(cli.datamodule.test_data.samples.label_index) == {0}
    assert not math.isnan(float(cli.model.post_processor.image_threshold))


def spoil(folder: Path, how: str) -> None:
    """Damage a folder of images in one way."""
    train = sorted((folder / "train" / "good").iterdir())
    lesion = sorted((folder / "test" / "lesion").iterdir())
    damages: dict[str, Callable[[], Any]] = {
        "corrupt": lambda: train[3].write_bytes(train[3].read_bytes()[:200]),
        "abnormal": lambda: shutil.copy(lesion[0], folder / "train" / "good" / "copy.png"),
        "tiny": lambda: [Image.new("RGB", (16, 16)).save(path) for path in train],
    }
    damages[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("corrupt", r"003\.png"),
        ("abnormal", r"copy\.png"),
        ("tiny", r"16 .*24|24 .*16"),
    ],
)
def test_bad_images_are_told_in_one_sentence_before_any_training(
    how: str, message: str, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainingModule, "training_step", lambda *_: pytest.fail("training has begun"))
    spoil(folder, how)
    with pytest.raises(InputError, match=message) as caught:
        anomalib("train", "msacl_patchcore_folder", "--data.init_args.root", str(folder), *SMALL)
    assert "\n" not in str(caught.value)
    assert not any((place / "results" / "msacl").glob("[!.]*"))


CALLBACK = "--trainer.callbacks.init_args"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.init_args.layers", "[blocks.2,blocks.9]"],
            r"layer 'blocks.9' does not exist .* layers are blocks.0",
        ),
        ([f"{CALLBACK}.weights", "timm"], r"cannot get the weights of 'tf_efficientnet_lite0' from the hub"),
        ([f"{CALLBACK}.recipe.loss.dense", "-1"], r"recipe.loss.dense is -1.0, but must be a number of 0 at least"),
    ],
    ids=["layer", "hub", "recipe"],
)
def test_bad_settings_are_told_in_one_sentence_before_any_training(
    options: list[str],
    message: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(PretrainingModule, "training_step", lambda *_: pytest.fail("training has begun"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    with pytest.raises(SystemExit) as caught, one_line_errors():
        anomalib("train", "msacl_patchcore", *PHANTOM, *SMALL, *options)
    assert caught.value.code == 1
    assert re.search(f"^anomalib-msacl: error: .*{message}", capsys.readouterr().err, flags=re.MULTILINE)
    assert not any((place / "results" / "msacl").glob("[!.]*"))


def test_every_configuration_has_a_test() -> None:
    tested: set[Any] = {"msacl_patchcore", "msacl_padim", "msacl_patchcore_folder", "msacl_pretrain"}
    tested |= {"msacl_padim_dicom", "msacl_patchcore_hyperkvasir", "msacl_patchcore_bmad", "msacl_paper"}
    tested |= {"msacl_igd", "msacl_paper_igd"}
    tested |= {"msacl_data_folder", "msacl_data_dicom"}  # in tests/unit/test_cli.py
    assert {path.stem for path in config_path("msacl_padim").parent.glob("*.yaml")} == tested
