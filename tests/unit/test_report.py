"""Pictures for users."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from PIL import Image, ImageChops
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image

from anomalib_msacl import InputError
from anomalib_msacl.cli import config_path, main
from anomalib_msacl.lesions import LesionMixture
from anomalib_msacl.recipe import LesionRecipe
from anomalib_msacl.report import findings, lesion_sheet
from anomalib_msacl.report.run import Run
from anomalib_msacl.report.sheet import write_lesion_sheet
from tests.medical_files import tissue, write_dicom, write_nifti


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One grey image, and a file that is none."""
    folder = tmp_path / "normal"
    folder.mkdir()
    save_image(torch.full((3, 64, 64), 0.5), folder / "a.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_sheet_shows_originals_lesions_and_outlines(folder: Path) -> None:
    sheet = lesion_sheet(folder, size=64, columns=3)
    assert sheet.size[0] == 22 + 3 * 66
    assert sheet.size[1] > 2 + 3 * 66 + 15  # a line of text at least
    pixels = pil_to_tensor(sheet).float() / 255
    original, changed, outlined = (pixels[:, 2 + 66 * row : 66 + 66 * row, 22:86] for row in range(3))
    assert torch.equal(original, torch.full_like(original, 128 / 255))
    assert (changed - original).abs().amax() > 0.05
    coloured = (outlined.amax(dim=0) - outlined.amin(dim=0)) > 0.3
    assert coloured.any()
    assert not ((changed.amax(dim=0) - changed.amin(dim=0)) > 0.3).any()


def test_a_seed_gives_a_sheet(folder: Path) -> None:
    sheets = [lesion_sheet(folder, size=64, seed=seed).tobytes() for seed in (0, 0, 1)]
    assert sheets[0] == sheets[1] != sheets[2]


def test_lesions_can_be_chosen(folder: Path) -> None:
    sheets = [lesion_sheet(folder, LesionMixture([name]), 64).tobytes() for name in ("haze", "cutpaste")]
    assert sheets[0] != sheets[1]


def test_the_root_of_a_set_and_dicom_files_serve_too(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    folder.rename(root / "train" / "good")
    assert lesion_sheet(root, size=64).size[1] > 0
    scans = tmp_path / "scans"
    scans.mkdir()
    for index in range(3):
        write_dicom(scans / f"{index}.dcm", tissue(index), WindowCenter=1200, WindowWidth=800)
    pixels = pil_to_tensor(lesion_sheet(scans, size=64, columns=3)).float()
    assert pixels[:, 2:66, 22:86].std() > 1


def test_columns_are_spread_over_files_and_over_the_slices_of_a_few(tmp_path: Path) -> None:
    """The grey value of each slice is its number, so that the sheet tells which it shows; the first three are blank."""
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (40, 40, 1))
    volume = (np.arange(12) + noise).astype(np.float32)
    volume[..., :3] = 0

    def shown(folder: Path, columns: int) -> list[float]:
        pixels = pil_to_tensor(lesion_sheet(folder, size=64, columns=columns)).float() / 255
        pixels = 2.6 + pixels * (11.4 - 2.6)  # the values of the slices that are not blank
        return [round(float(pixels[:, 2:66, 22 + 66 * column : 86 + 66 * column].mean())) for column in range(columns)]

    one, more = tmp_path / "one", tmp_path / "more"
    write_nifti(one / "a.nii.gz", volume)
    assert shown(one, 3) == [4, 7, 10]
    assert shown(one, 1) == [7]
    for name in "abc":
        write_nifti(more / f"{name}.nii.gz", volume)
    assert shown(more, 3) == [7, 7, 7]
    assert shown(more, 4) == [5, 9, 7, 7]
    assert shown(more, 2) == [7, 7]


@pytest.mark.parametrize(("name", "message"), [("missing", "is no folder"), ("empty", "has no images")])
def test_a_folder_without_images_is_told(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name} {message}"):
        lesion_sheet(tmp_path / name)


def test_a_broken_image_is_told(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"no image at all")
    with pytest.raises(InputError, match=r"b\.png is not an image; replace or remove it"):
        lesion_sheet(folder)


def test_the_command_writes_the_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "sheet.png"
    main(["lesions", str(folder), "--out", str(target), "--size", "64"])
    assert capsys.readouterr().out.strip() == str(target)
    assert target.is_file()
    with pytest.raises(SystemExit):
        main(["lesions", str(folder), "--out", str(tmp_path / "no" / "sheet.png")])
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["msacl_patchcore_folder", "msacl_pretrain"])  # recipe of the callback, of `Msacl`
def test_the_command_draws_the_lesions_of_a_configuration(name: str, folder: Path, tmp_path: Path) -> None:
    content = config_path(name).read_text(encoding="utf-8")
    config = tmp_path / "mine.yaml"
    config.write_text(re.sub(r"( +)max_steps: 40", r"\g<0>\n\1lesions: {families: [cutpaste]}", content))
    arms: dict[str, list[str]] = {
        "default": [],
        "package": ["--config", name],
        "mine": ["--config", str(config)],
    }
    found = {}
    for key, options in arms.items():
        target = tmp_path / "sheet.png"
        main(["lesions", str(folder), "--out", str(target), "--size", "64", *options])
        found[key] = target.read_bytes()
    assert found["default"] == found["package"]
    expected = lesion_sheet(folder, LesionRecipe(families=("cutpaste",)).mixture(), 64)
    assert ImageChops.difference(Image.open(io.BytesIO(found["mine"])), expected).getbbox() is None
    assert found["mine"] != found["default"]


def test_a_configuration_without_a_recipe_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("model: {class_path: anomalib.models.Padim}\n")
    with pytest.raises(InputError, match=r"other\.yaml has neither MsaclPretraining nor Msacl; name a configuration"):
        write_lesion_sheet(folder, tmp_path / "sheet.png", config=tmp_path / "other.yaml")


def test_a_run_on_tiles_is_scored_on_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = {"class_path": "anomalib.callbacks.TilerConfigurationCallback", "init_args": {"enable": True}}
    (tmp_path / "config.yaml").write_text(
        json.dumps({"model": {"class_path": "Padim"}, "trainer": {"callbacks": [tiles]}})
    )
    (tmp_path / "weights/lightning").mkdir(parents=True)
    (tmp_path / "weights/lightning/model.ckpt").touch()
    seen: list[Any] = []

    @contextmanager
    def engine(**options: Any) -> Iterator[None]:
        seen.extend(options["callbacks"])
        yield

    monkeypatch.setattr(findings, "quiet_engine", engine)
    monkeypatch.setattr(findings, "predict", lambda *_: None)
    findings._after(findings.Findings(Run.open(tmp_path)), cast("Any", None), cast("Any", object()))
    assert [type(each) for each in seen] == [TilerConfigurationCallback]
