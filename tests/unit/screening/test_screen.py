"""The command ``screen`` on real files: scores are those of ``Engine.predict``, and a killed run goes on."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from anomalib_msacl.cli import main
from anomalib_msacl.screening.table import COLUMNS
from tests.medical_files import change_dicom, tissue, write_dicom, write_nifti
from tests.unit.screening.conftest import SIZE, TEST, Trained


def screen(*arguments: str | Path) -> int:
    """Run the command and return its exit status."""
    try:
        main(["screen", *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def table(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_scores_and_labels_are_those_of_predict(
    trained: Trained, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained.checkpoint if kind == "checkpoint" else trained.export
    assert screen(model, trained.root / "new", "--out", tmp_path) == 0
    rows = table(tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert [Path(row["file"]).name for row in rows] == [str(index) for index in range(TEST)]
    assert [row["patient"] for row in rows] == [f"N{index // 2}" for index in range(TEST)]
    assert [float(row["score"]) for row in rows] == pytest.approx([score for score, _ in trained.predicted], abs=1e-3)
    assert [row["label"] == "abnormal" for row in rows] == [label for _, label in trained.predicted]
    for row in rows:
        assert (float(row["raw_score"]) > float(row["threshold"])) == (row["label"] == "abnormal")
        assert bool(row["map"]) == (row["label"] == "abnormal")
    last = capsys.readouterr().out.splitlines()[0]
    abnormal = sum(label for _, label in trained.predicted)
    assert last.startswith(f"6 images of 6 files: {abnormal} abnormal, {TEST - abnormal} normal, 0 errors")


def test_raw_scores_are_told_where_normalised_ones_are_cut_off(trained: Trained, tmp_path: Path) -> None:
    for index in range(4):
        blocks = np.random.default_rng(index).integers(0, 2, (6, 5)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(blocks * 255).save(tmp_path / f"{index}.png")
    for name in ("export", "checkpoint"):
        screen(getattr(trained, name), *tmp_path.glob("*.png"), "--out", tmp_path / name, "--maps", "none")
    exported, there = table(tmp_path / "export"), table(tmp_path / "checkpoint")
    raw = [[float(row["raw_score"]) for row in rows] for rows in (exported, there)]
    assert raw[0] == pytest.approx(raw[1], rel=2e-3)
    cut = [float(row["raw_score"]) for row in exported if row["score"] in {"0", "1"}]
    assert len(set(cut)) == len(cut) > 0


def test_files_that_cannot_be_read_have_a_row_and_the_rest_goes_on(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    good = pydicom.dcmread(trained.root / "new/0")
    good.save_as(folder / "deeper" / "1.2.840.77")  # no ending
    (folder / "broken.dcm").write_bytes((trained.root / "new/0").read_bytes()[:400])
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("left out")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    Image.new("L", (40, 48)).save(folder / "black.png")
    write_nifti(folder / "volume.nii.gz", np.stack([tissue(k, SIZE) for k in range(3)], axis=-1).astype(np.float32))
    frames = pydicom.dcmread(trained.root / "new/0")
    frames.NumberOfFrames, frames.PixelData = 2, frames.PixelData * 2
    frames.save_as(folder / "two_frames.dcm")
    assert screen(trained.export, folder, "--out", tmp_path / "out", "--maps", "none") == 1
    rows = {(Path(row["file"]).name, row["frame"]): row for row in table(tmp_path / "out")}
    told = {
        ("broken.dcm", ""): "has no pixel data",
        ("text.png", ""): "is not an image",
        ("gone.png", ""): "is a link to nothing",
        ("black.png", ""): "is of one value throughout",
        ("volume.nii.gz", "0"): "whose values no training image was like",
    }
    for key, words in told.items():
        assert words in rows[key]["error"]
        assert not rows[key]["score"]
    single, first, second = (
        rows[key] for key in (("1.2.840.77", ""), ("two_frames.dcm", "0"), ("two_frames.dcm", "1"))
    )
    assert single["raw_score"] == first["raw_score"] == second["raw_score"] != ""
    assert len(rows) == 3 + 4 + 3
    assert "7 errors, 1 other files in the folders were left out" in capsys.readouterr().out


def test_a_table_that_was_cut_off_anywhere_is_completed_to_the_same(trained: Trained, tmp_path: Path) -> None:
    arguments = [trained.export, trained.root / "new", "--maps", "none", "--out", tmp_path]
    assert screen(*arguments) == 0
    whole = (tmp_path / "scores.csv").read_bytes()
    draw = random.Random(0)
    for cut in (0, 5, whole.index(b"\n"), len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(3))):
        (tmp_path / "scores.csv").write_bytes(whole[:cut])
        assert screen(*arguments, "--resume") == 0
        assert (tmp_path / "scores.csv").read_bytes() == whole, cut


# Runs where neither torch nor anomalib can be imported, slowly enough to be killed.
WITHOUT = """
import importlib.abc, sys, time
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "anomalib", "lightning", "timm", "pandas"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from anomalib_msacl.screening.openvino_scorer import OpenVINOScorer
score = OpenVINOScorer.score
def slowly(self, image):
    time.sleep(0.3)
    return score(self, image)
OpenVINOScorer.score = slowly
from anomalib_msacl.cli import main
main(["screen", *sys.argv[1:]])
"""


def test_a_killed_run_without_torch_goes_on_and_loses_nothing(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(trained.export), str(trained.root / "new"), "--out", str(out), "--maps", "all", "--workers", "1"]
    command = [sys.executable, "-c", WITHOUT, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if (out / "scores.csv").exists() and (out / "scores.csv").read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told.decode()
    before = (out / "scores.csv").read_bytes()
    assert 3 <= before.count(b"\n") <= TEST  # the lock of the killed process is in nobody's way
    assert screen(*arguments, "--resume") == 0
    assert (out / "scores.csv").read_bytes().startswith(before)
    assert screen(*arguments[:2], "--out", tmp_path / "other", "--maps", "all", "--workers", "2") == 0
    assert (out / "scores.csv").read_bytes() == (tmp_path / "other/scores.csv").read_bytes()
    assert all((out / row["map"]).is_file() for row in table(out))
    assert not [path for path in (out / "maps").rglob(".part*") if not (path.parent / path.name[6:]).is_file()]


@pytest.mark.parametrize(("maps", "expected"), [("all", TEST), ("none", 0)])
def test_as_many_maps_as_were_asked_for(trained: Trained, tmp_path: Path, maps: str, expected: int) -> None:
    screen(trained.export, trained.root / "new", "--out", tmp_path, "--maps", maps)
    assert len(list(tmp_path.rglob("*.png"))) == expected
    assert sum(bool(row["map"]) for row in table(tmp_path)) == expected


def test_a_program_without_standard_error_screens_too(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert screen(trained.export, trained.root / "new", "--out", tmp_path, "--maps", "none") == 0
    assert len(table(tmp_path)) == TEST


def test_maps_in_dicom_refer_to_their_file(trained: Trained, tmp_path: Path) -> None:
    study = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "StudyID": "1"}
    study |= {"StudyDate": "", "StudyTime": "", "AccessionNumber": "", "PatientName": "", "PatientBirthDate": ""}
    study |= {"PatientSex": "", "ReferringPhysicianName": "", "SeriesNumber": 1, "InstanceNumber": 1, "Modality": "CT"}
    source = tmp_path / "a"
    source.write_bytes((trained.root / "new/1").read_bytes())
    change_dicom(source, **study)
    arguments = ["--out", tmp_path / "out", "--maps", "all", "--dicom"]
    assert screen(trained.export, source, trained.root / "new/2", *arguments) == 1
    with_study, without = table(tmp_path / "out")
    written = pydicom.dcmread(tmp_path / "out" / with_study["map"])
    original = pydicom.dcmread(source)
    assert written.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert f"score {float(with_study['score']):.4g}, " in written.ImageComments
    assert "no StudyInstanceUID" in without["error"]
    assert without["score"]


def test_a_shift_of_the_scores_is_told(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(12):
        noise = np.random.default_rng(index).integers(900, 1500, SIZE, dtype=np.uint16)
        write_dicom(tmp_path / f"noise/{index}", noise, PatientID=f"N{index}", WindowCenter=1200, WindowWidth=600)
        Image.fromarray((noise // 8).astype(np.uint8)).save(tmp_path / f"noise_{index}.png")
    # a threshold from patients with normal DICOM files
    assert screen(trained.export, tmp_path / "noise", "--out", tmp_path / "out", "--maps", "none") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "these 12 patients" in lines[1]
    assert "mostly higher" in lines[1]
    assert "more false positives than promised" in lines[1]
    screen(trained.export, trained.root / "good", "--out", tmp_path / "same", "--maps", "none")
    assert len(capsys.readouterr().out.splitlines()) == 1
    screen(trained.export, *tmp_path.glob("noise_*.png"), "--out", tmp_path / "nameless", "--maps", "none")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "nothing names the patient of 12 of 12 files" in lines[1]


def test_images_of_other_windows_are_read_by_that_of_the_training_and_counted(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"same": {}, "other": {"WindowCenter": 900, "WindowWidth": 1500}, "text": {"WindowCenter": "1200.0"}}
    changes["none"] = {"WindowCenter": None, "WindowWidth": None}
    for name, tags in changes.items():
        (tmp_path / name).write_bytes((trained.root / "new/1").read_bytes())
        change_dicom(tmp_path / name, **tags)
    assert screen(trained.export, *(tmp_path / name for name in changes), "--out", tmp_path / "out") == 0
    scores = [float(row["raw_score"]) for row in table(tmp_path / "out")]
    assert scores == pytest.approx([scores[0]] * len(changes), rel=1e-4)
    told = capsys.readouterr().out.splitlines()[1]
    assert told.startswith("note: 2 DICOM images have another window than the training images, or none")


def test_a_pattern_that_does_not_fit_the_folder_is_told(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.export, tmp_path / "export")
    bundle = next((tmp_path / "export").rglob("*.bundle.json"))
    content = json.loads(bundle.read_text())
    content["reading"] |= {"patient_pattern": "^new/(.)", "patient_tag": None}
    bundle.write_text(json.dumps(content))
    shutil.copytree(trained.root / "new", tmp_path / "images/new")
    warning = f"warning: patient_pattern '^new/(.)' finds no patient in the paths of {TEST} of {TEST}"
    for folder, patients, told in (("images", list("012345"), []), ("images/new", [""] * TEST, [warning])):
        screen(tmp_path / "export", tmp_path / folder, "--out", tmp_path / folder[-3:], "--maps", "none")
        assert [row["patient"] for row in table(tmp_path / folder[-3:])] == patients
        lines = capsys.readouterr().out.splitlines()  # scores of six images may look shifted by chance: another line
        assert [line[: len(warning)] for line in lines if "patient_pattern" in line] == told
