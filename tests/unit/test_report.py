"""Pictures for users."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image

from anomalib_msacl import InputError
from anomalib_msacl.report import lesion_sheet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One grey picture, and a file that is none."""
    folder = tmp_path / "normal"
    folder.mkdir()
    save_image(torch.full((3, 64, 64), 0.5), folder / "a.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_sheet_shows_changed_images_and_passes_over_other_files(folder: Path) -> None:
    sheet = lesion_sheet([folder, folder], size=64, columns=3)
    assert (sheet.mode, sheet.size) == ("RGB", (2 + 3 * 66, 2 + 4 * 66))
    first, second, *_ = (pil_to_tensor(sheet)[:, 2:].float() / 255).split(66, dim=1)
    assert (first[:, :64] - 0.5).abs().amax() > 0.05
    green = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    assert (second == green).all(dim=0).any()
    assert not (first == green).all(dim=0).any()


def test_a_seed_gives_a_sheet(folder: Path) -> None:
    sheets = [lesion_sheet([folder], size=64, seed=seed).tobytes() for seed in (0, 0, 1)]
    assert sheets[0] == sheets[1] != sheets[2]


def test_families_can_be_chosen(folder: Path) -> None:
    sheets = [lesion_sheet([folder], size=64, families=names).tobytes() for names in (["haze"], ["cutpaste"])]
    assert sheets[0] != sheets[1]


@pytest.mark.parametrize(("name", "message"), [("missing", "is no folder"), ("empty", "has no pictures")])
def test_a_folder_without_pictures_is_told(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name} {message}"):
        lesion_sheet([tmp_path / name])
