"""The page of ``demo`` says what ``screen`` says, and whatever cannot be read is told on the page."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_msacl.cli import main
from anomalib_msacl.demo.examiner import Examiner
from anomalib_msacl.demo.page import build_page, shown
from anomalib_msacl.demo.phantom_model import fit_phantom_model
from anomalib_msacl.errors import InputError
from tests.medical_files import tissue, write_dicom
from tests.unit.screening.conftest import TEST, Trained


@pytest.fixture(scope="module")
def examiner(trained: Trained) -> Examiner:
    return Examiner(trained.export)


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_scores_and_labels_are_those_of_screen(trained: Trained, kind: str, tmp_path: Path) -> None:
    model, files = getattr(trained, kind), [trained.root / f"new/{index}" for index in range(TEST)]
    main(["screen", str(model), *map(str, files), "--out", str(tmp_path), "--maps", "none"])
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    own = Examiner(model)
    for path in files:
        row, answer = rows[str(path)], own.examine(path)
        assert answer.scored.score == pytest.approx(float(row["score"]), abs=1e-6)
        assert answer.text.startswith(f"## {row['label'].capitalize()}\n")
        assert f"Score **{answer.scored.score:.3f}**, threshold **0.5**" in answer.text
        assert f"threshold {float(row['threshold']):.4g})" in answer.text or answer.scored.raw is None
        assert own.version == row["version"]


def test_the_map_lies_where_the_square_is(trained: Trained, examiner: Examiner) -> None:
    answer = examiner.examine(trained.root / "new/1")
    assert answer.scored.abnormal
    assert answer.image.size == (40, 48)
    assert answer.heat_map is not None
    marked = np.asarray(answer.scored.map)
    inside = marked[10:30, 10:30].mean()
    assert inside > marked.mean()


def test_a_frame_is_named_by_its_number(examiner: Examiner, tmp_path: Path) -> None:
    frames = np.stack([tissue(seed, (48, 40)) for seed in (100, 101)])
    path = write_dicom(tmp_path / "two.dcm", frames, PatientID="X", WindowCenter=1200, WindowWidth=600)
    first, second = (examiner.examine(path, index) for index in (0, 1))
    assert first.scored.score != second.scored.score
    with pytest.raises(InputError, match=r"two\.dcm has no slice or frame 2: set a number from 0 to 1"):
        examiner.examine(path, 2)


def test_another_window_than_that_of_the_training_is_told(examiner: Examiner, tmp_path: Path) -> None:
    study = {"PatientID": "X", "WindowCenter": 1200}
    same = write_dicom(tmp_path / "same.dcm", tissue(100, (48, 40)), **study, WindowWidth=600)
    other = write_dicom(tmp_path / "other.dcm", tissue(100, (48, 40)), **study, WindowWidth=2000)
    known, told, again = (examiner.examine(path) for path in (same, other, same))
    assert told.scored.score == pytest.approx(known.scored.score, abs=1e-5)
    words = "Read by the window of the training images (1200 / 600"
    assert [words in answer.text for answer in (known, told, again)] == [False, True, False]


def test_what_cannot_be_read_is_told_on_the_page(examiner: Examiner, tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(b"no image")
    text, image, heat_map = shown(examiner, str(path), 0)
    assert text.startswith("**Cannot be scored:** image.dcm is no DICOM file")
    assert "\n" not in text
    assert (image, heat_map) == (None, None)
    assert shown(examiner, None, 0) == ("", None, None)


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main(["demo"])
    assert 'error: the page needs gradio: run pip install "anomalib-msacl[demo]"' in capsys.readouterr().err


def test_the_page_passes_the_dropped_file_on(trained: Trained, examiner: Examiner) -> None:
    pytest.importorskip("gradio", reason="needs the extra demo")
    path = trained.root / "new/1"
    page = build_page(examiner, [path])
    answers: list[Callable[..., object]] = [each.fn for each in page.fns.values() if each.fn.__name__ == "answer"]
    assert len(answers) == 2  # of the file and of the frame
    text, image, _ = answers[0](str(path), None)
    expected = examiner.examine(path)
    assert text == expected.text
    assert image.tobytes() == expected.image.tobytes()
    buttons = [each["props"].get("buttons") for each in page.config["components"] if each["type"] == "image"]
    assert buttons == [["fullscreen", "download"]] * 2  # the third one, share, would upload images


def test_the_model_of_the_phantoms_stands_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    fitted = fit_phantom_model(tmp_path, images=32, side=64)
    torch.set_rng_state(before)
    own = Examiner(fitted.checkpoint)
    assert "held-out normal images" in own.threshold
    assert [path.parent.name for path in fitted.examples] == ["good", "lesion"] * 3
    scores = {own.examine(path).scored.score for path in fitted.examples}
    assert len(scores) == len(fitted.examples)
