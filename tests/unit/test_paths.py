"""``~`` in the paths of a configuration, which no shell has seen, and names of files that are no text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from anomalib_msacl import Igd, MsaclPretraining, ScoresCsv
from anomalib_msacl.backbone import create_backbone, save_backbone
from anomalib_msacl.backbone.card import CardFacts
from anomalib_msacl.cli import _with_paths, main
from anomalib_msacl.comparison import Trial, write_scores
from anomalib_msacl.comparison.outcome import outcome_of
from anomalib_msacl.data import CheckedFolder, HyperKvasir, MedicalFolder, MedMixDataset, Phantom
from anomalib_msacl.paths import at_home, with_home
from anomalib_msacl.report import page


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another one to work in: nothing shall be found or left there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def write(folder: Path, mask: bool = False) -> None:
    folder.mkdir(parents=True)
    for index in range(4):
        pixels = np.random.default_rng([index, len(folder.name)]).integers(0, 255, (40, 40), np.uint8)
        pixels = np.where(pixels > 250, 255, 0).astype(np.uint8) if mask else pixels
        Image.fromarray(pixels).save(folder / f"{index}.png")


def test_only_a_beginning_is_replaced_and_other_arguments_stay_the_objects_they_are(home: Path) -> None:
    assert {at_home("~/x"), with_home("~/x"), with_home(Path("~/x"))} == {home / "x"}
    assert with_home(["~/x", "y/~"]) == [home / "x", "y/~"]
    for given in (None, "a/~/b", Path("x")):
        assert with_home(given) is given
    assert str(with_home("~no-such-user/x.png")) == "~no-such-user/x.png"


@pytest.mark.parametrize("below", ["", "~/set/"])
@pytest.mark.parametrize("kind", [CheckedFolder, MedicalFolder])
def test_folders_are_found(kind: Callable[..., Any], below: str, home: Path) -> None:
    for name in ("good", "bad", "masks"):
        write(home / "set" / name, mask=name == "masks")
    folders = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "masks"}
    folders = {name: f"{below}{folder}" for name, folder in folders.items()}
    data = kind("mine", root="~/set", **folders, val_split_mode="none")
    data.setup()
    assert set(data.test_data.samples["image_path"]) >= {str(home / f"set/bad/{index}.png") for index in range(4)}
    assert data.test_data.samples.attrs["task"] == "segmentation"


def test_other_places_are_found(home: Path) -> None:
    assert HyperKvasir("~/sets").folder == home / "sets"
    assert Path(str(Phantom(root="~/phantom").root)).parent == home / "phantom"
    assert MsaclPretraining(root="~/weights").root == home / "weights"
    assert ScoresCsv("~/scores.csv").file == home / "scores.csv"


def test_lesions_of_a_validation_are_kept_there(home: Path) -> None:
    write(home / "good")
    data = CheckedFolder("mine", "~/good", val_split_mode="none", test_split_mode="none")
    data.setup()
    dataset = MedMixDataset(data.train_data, cache="~/cache")
    assert dataset.folder.parent == home / "cache"


def test_weights_are_read_and_saved_there(home: Path, make_msacl: Callable[..., Any]) -> None:
    built = create_backbone("test_resnet", "random")
    save_backbone(built.model, home / "backbone", built.provenance)
    for name, weights in (("test_resnet", "~/backbone"), ("local-dir:~/backbone", None)):
        assert create_backbone(name, weights).provenance.architecture == "test_resnet"
    options: dict[str, Any] = {"layers": ["layer3"], "image_size": 64, "dim": 8, "width": 2, "patch_size": 0}
    assert Igd("local-dir:~/backbone", **options).architecture == "test_resnet"
    assert make_msacl(weights="~/backbone", weights_dir="~/out").weights_dir == home / "out"


@pytest.mark.parametrize("words", [["~/set", "--out=~/sheet.png"], ["~/set", "--out", "~/sheet.png"]])
def test_commands_find_what_a_shell_has_left_as_it_is(words: list[str], home: Path) -> None:
    write(home / "set")
    main(["lesions", *words])
    assert (home / "sheet.png").is_file()


def test_configurations_of_anomalibs_own_commands_are_found(home: Path) -> None:
    (home / "mine.yaml").touch()
    assert _with_paths(["train", "--config=~/mine.yaml"]) == ["train", f"--config={home / 'mine.yaml'}"]
    assert _with_paths(["train", "--config=~/other.yaml"]) == ["train", "--config=~/other.yaml"]


def test_names_that_are_no_utf8_end_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As unpacked archives of other systems have them; ``screen`` takes them as well."""
    name = os.fsdecode(b"Pr\xfcfling.png")
    batch: Any = SimpleNamespace(image=[0], image_path=[name])
    batch.pred_score, batch.gt_label = torch.tensor([0.5]), torch.tensor([1])
    batch.pred_label = batch.anomaly_map = batch.gt_mask = None
    callback, trainer = ScoresCsv(tmp_path / "scores.csv"), cast("Any", SimpleNamespace(global_rank=0))
    callback.on_predict_start(trainer, nn.Identity())
    callback.on_predict_batch_end(trainer, nn.Identity(), batch)
    callback.on_predict_end(trainer, nn.Identity())
    write_scores([Trial("Padim", 0, outcome_of(batch), None, CardFacts({}))], tmp_path / "compared.csv")
    for table in ("scores.csv", "compared.csv"):
        assert b"Pr\xfcfling.png" in (tmp_path / table).read_bytes()
    monkeypatch.setattr(page, "gather", lambda *_: None)
    monkeypatch.setattr(page, "render", lambda _: name)
    assert page.write_report(tmp_path).read_text(encoding="utf-8") == "Pr?fling.png"
