"""Which images a report tests: those of the run where its split has a seed, and else the same for both backbones."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalib_msacl.cli import main
from anomalib_msacl.data import CheckedFolder, MedicalFolder, Phantom
from anomalib_msacl.data.splits import draws_anew
from anomalib_msacl.medical.reader import ImageReader
from anomalib_msacl.report import findings
from anomalib_msacl.report.sections import results
from tests.unit.test_comparison import config  # noqa: F401  # a fixture

FOLDERS = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/lesion"}
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def run(
    config: Path,  # noqa: F811
    root: Path,
    data: dict[str, Any],
    datamodule: str = "anomalib.data.Folder",
    **trainer: Any,
) -> Path:
    """Train as the command does, and return the folder of the run."""
    content = yaml.safe_load(config.read_text())
    arguments = {"name": "s", "root": str(root), **FOLDERS, "num_workers": 0, **data}
    content["data"] = {"class_path": datamodule, "init_args": arguments}
    scores = {"class_path": "anomalib_msacl.ScoresCsv", "init_args": {"file": "tested.csv"}}
    content["trainer"] |= QUIET | trainer | {"callbacks": [*content["trainer"]["callbacks"], scores]}
    config.write_text(yaml.safe_dump(content))
    main(["train", "--config", str(config)])
    return next(Path("results").glob("Padim/s/v0"))


def scored_by_the_run() -> set[str]:
    with Path("tested.csv").open() as file:
        return {row["file"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("seed", [None, 1])
def test_both_backbones_are_tested_on_the_same_images(
    seed: int | None,
    phantom_root: Path,
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (root,) = phantom_root.iterdir()
    with caplog.at_level(logging.WARNING):
        folder = run(config, root, {"seed": seed})
    assert ("The split of s has no seed" in caplog.text) == (seed is None)
    found = findings.gather(folder)
    assert found.after is not None
    assert found.before is not None
    assert list(found.before.paths) == list(found.after.paths)
    said = any("has no seed, so it was drawn anew" in text for text in results(found).texts)
    assert said == (seed is None)
    if seed is not None:
        assert set(found.after.paths) == scored_by_the_run()
        return
    seeds = iter([1, 2])  # images of two splits are not set side by side
    monkeypatch.setattr(findings, "_fix_split", lambda data: setattr(data, "seed", next(seeds)))
    found = findings.gather(folder)
    assert found.after is not None
    assert found.before is None
    assert any("gave other test images" in text for text in results(found).texts)


def test_a_run_without_validation_has_a_before(
    phantom_root: Path,
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (root,) = phantom_root.iterdir()
    folder = run(config, root, {"val_split_mode": "none", "seed": 0}, limit_val_batches=0)
    found = findings.gather(folder)
    assert found.missing == {}
    assert found.before is not None
    assert found.before.called is None
    assert set(found.before.paths) == scored_by_the_run()


def test_a_report_looks_into_each_medical_file_once(
    phantom_root: Path,
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (root,) = phantom_root.iterdir()
    place = "anomalib_msacl.data.MedicalFolder"
    data = {"val_split_mode": "none", "seed": 0, "patient_pattern": r"^(.*)\d\.png$"}
    folder = run(config, root, data, place, limit_val_batches=0)
    seen, inspect = [], ImageReader.inspect
    monkeypatch.setattr(ImageReader, "inspect", lambda self, path: seen.append(path) or inspect(self, path))
    found = findings.gather(folder)
    assert found.missing == {}
    assert found.before is not None
    assert len(seen) == len(set(seen)) == 32
    assert found.after is not None
    whose = [Path(path).relative_to(root).as_posix()[:-5] for path in found.after.paths]
    assert found.after.groups == found.before.groups == whose
    assert "images of one patient are drawn together" in " ".join(results(found).texts)


def test_a_split_without_a_seed_is_known(tmp_path: Path) -> None:
    """A datamodule draws test images anew if it takes them from those of the threshold or of the training."""
    given: dict[str, Any] = {"name": "s", "root": tmp_path, **FOLDERS}
    assert draws_anew(CheckedFolder(**given))
    assert not draws_anew(CheckedFolder(**given, seed=0))
    assert not draws_anew(CheckedFolder(**given, val_split_mode="from_train"))
    assert not draws_anew(MedicalFolder(**given))  # medmix takes training images
    assert draws_anew(MedicalFolder(**given, val_split_mode="from_test"))
    given["normal_test_dir"] = None
    assert draws_anew(MedicalFolder(**given))
    assert not draws_anew(MedicalFolder(**given, test_split_mode="none"))
    assert not draws_anew(Phantom(root=tmp_path))
