"""Folders with copies of patients' images do not outlive their process, even where it is killed."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from anomalib_msacl.data import MedMixDataset
from anomalib_msacl.data.scratch import ScratchFolder
from tests.conftest import phantom

LONG_AGO = 1.6e9


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(place: Path, name: str) -> Path:
    """Make what a process that was killed long ago has left."""
    folder = place / name
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "patient.png").touch()
    os.utime(folder, (LONG_AGO, LONG_AGO))
    return folder


def test_a_folder_goes_with_its_last_object(place: Path) -> None:
    folder = ScratchFolder("a")
    (folder.path / "file").touch()
    assert len(list(place.iterdir())) == 1
    del folder
    gc.collect()
    assert not list(place.iterdir())


def test_folders_of_killed_processes_are_removed_and_others_are_not(place: Path) -> None:
    """A folder in use is one whose lock is held, and a link is nobody's."""
    killed, used, other = left(place, "anomalib-msacl-1"), left(place, "anomalib-msacl-2"), left(place, "others-3")
    (place / "anomalib-msacl-link").symlink_to(other)
    with FileLock(used / "in-use"):
        os.utime(used, (LONG_AGO, LONG_AGO))
        folder = ScratchFolder("new")
        assert not killed.exists()
        assert (used / "files" / "patient.png").is_file()
    assert (other / "files" / "patient.png").is_file()
    assert folder.path.is_dir()


def test_half_a_set_of_lesions_that_was_left_in_a_cache_is_removed(phantom_root: Path, tmp_path: Path) -> None:
    data = phantom(phantom_root, seed=0)
    data.setup()
    made = MedMixDataset(data.train_data.subsample(range(3)), cache=tmp_path)
    half = tmp_path / f".{made.folder.name}-half"
    made.folder.rename(half)
    (half / "complete").unlink()
    again = MedMixDataset(data.train_data.subsample(range(3)), cache=tmp_path)
    assert not half.exists()
    assert (again.folder / "complete").is_file()
