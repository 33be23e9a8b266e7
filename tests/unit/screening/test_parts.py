"""Parts of the screening: the order and the number of what is on its way, heat maps, and what the page says."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalib_msacl.medical.reading import Reading
from anomalib_msacl.screening.bundle import Bundle, Calibration, Limits
from anomalib_msacl.screening.files import FileReader
from anomalib_msacl.screening.heat_map import draw_heat_map
from anomalib_msacl.screening.output import Output
from anomalib_msacl.screening.runner import Screening, in_order
from anomalib_msacl.screening.scorer import Scored
from anomalib_msacl.screening.sources import Source
from anomalib_msacl.screening.summary import Summary
from anomalib_msacl.screening.table import Row

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("workers", [1, 3])
def test_work_comes_back_in_order_and_few_are_on_their_way(workers: int) -> None:
    taken, returned, most = 0, 0, 0
    lock = threading.Lock()

    def given() -> Iterator[int]:
        nonlocal taken, most
        for each in range(40):
            with lock:
                taken += 1
                most = max(most, taken - returned)
            yield each

    def work(each: int) -> int:
        time.sleep(0.004 if each % 3 else 0)
        return each * each

    found = []
    for value in in_order(work, given(), workers):
        with lock:
            returned += 1
        found.append(value)
    assert found == [each * each for each in range(40)]
    assert most <= 2 * workers


def test_the_first_error_ends_the_work() -> None:
    begun: list[int] = []

    def work(each: int) -> int:
        begun.append(each)
        if each == 2:
            raise KeyError(each)
        return each

    with pytest.raises(KeyError):
        list(in_order(work, range(1000), 2))
    assert len(begun) < 10


def test_where_nothing_is_marked_the_image_is_seen_and_what_is_marked_is_surrounded() -> None:
    image = np.random.default_rng(0).random((3, 300, 260)).astype(np.float32)
    plane = np.zeros((30, 26), np.float32)
    plane[10:20, 5:15] = 1
    plain = np.asarray(draw_heat_map(image, np.zeros_like(plane), ["a"]))[:300, :260]
    marked = np.asarray(draw_heat_map(image, plane, ["a"]))[:300, :260]
    assert np.array_equal(plain, (image.transpose(1, 2, 0) * 255).round())
    far = np.ones((300, 260), bool)
    far[90:210, 40:160] = False
    assert np.array_equal(marked[far], plain[far])
    edge = (marked == (0, 255, 255)).all(axis=-1)
    assert edge[:, 100].sum() == edge[150].sum() == 2  # above and below, left and right
    assert not edge[far].any()


@dataclass(frozen=True)
class Blind:
    """A model that gives no numbers."""

    bundle: Any = None

    def score(self, image: np.ndarray) -> Scored:
        return Scored(math.nan, math.nan, False, None)


def test_an_image_whose_score_is_no_number_is_not_called_normal(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)).save(path)
    limits = Limits(1.0, 0.0, 2.0)
    bundle = Bundle("a.B", "", "", "0", {}, (), (), limits, limits)
    screening = Screening(Blind(bundle), FileReader(None), Output(tmp_path / "out"), "all")
    (row,) = screening.rows(Source(path, "a.png"))
    assert row.error == "has a score that is no number (NaN)"
    assert not row.label


def test_a_picture_has_a_bounded_size_with_room_for_text_and_scale() -> None:
    small = draw_heat_map(np.zeros((3, 20, 10), np.float32), np.zeros((4, 4), np.float32), [])
    large = draw_heat_map(np.zeros((3, 1000, 3000), np.float32), np.zeros((4, 4), np.float32), ["a", "b"])
    assert (small.width, small.height) == (128 + 70, 256 + 4)
    assert (large.width, large.height) == (1024 + 70, 341 + 4 + 32)


def rows(scores: list[float], patient: str = "") -> list[Row]:
    return [Row(str(k), patient=patient, raw_score=str(value), label="normal") for k, value in enumerate(scores)]


def warnings_of(found: list[Row], calibration: Calibration | None, pattern: str | None = None) -> list[str]:
    summary = Summary(calibration, pattern)
    for row in found:
        summary.add(row)
    return summary.warnings()


def test_a_shift_is_told_with_its_direction() -> None:
    draw = np.random.default_rng(0)
    calibration = Calibration(tuple(sorted(draw.normal(size=80))))
    assert "mostly higher" in warnings_of(rows(list(draw.normal(2, size=50))), calibration)[0]
    assert "mostly lower" in warnings_of(rows(list(draw.normal(-2, size=50))), calibration)[0]
    assert not warnings_of(rows(list(draw.normal(size=50))), calibration)
    assert not warnings_of(rows(list(draw.normal(2, size=50))), None)
    assert not warnings_of(rows(list(draw.normal(2, size=50))), replace(calibration, level=0))


def slices(scores: np.ndarray, patients: int = 0) -> list[Row]:
    """Rows of files with as many images as there are columns, of so many patients."""
    return [
        Row(f"{file}.nii", str(k), f"P{file % patients}" if patients else "", str(value), label="normal")
        for file, values in enumerate(scores)
        for k, value in enumerate(values)
    ]


def test_scores_are_compared_by_what_the_threshold_counts() -> None:
    draw = np.random.default_rng(0)
    known, new = draw.normal(size=(80, 6)), draw.normal(size=(40, 6))
    by_file, by_image = (tuple(sorted(scores)) for scores in (known.max(axis=1), known[:, 0]))
    assert not warnings_of(slices(new), Calibration(by_file, "file"))
    assert not warnings_of(slices(new, 5), Calibration(by_file, "file"))  # whoever the patients are
    assert not warnings_of(slices(new, 5), Calibration(by_image, "image"))
    assert "these 240 images are not like" in warnings_of(slices(new), Calibration(by_file, "image"))[0]
    assert "these 40 files are not like" in warnings_of(slices(new), Calibration(by_image, "file"))[0]
    assert "these 40 files are not like" in warnings_of(slices(new + 2), Calibration(by_file, "file"))[0]
    by_patient = tuple(known.reshape(40, 12).max(axis=1))
    assert not warnings_of(slices(new, 20), Calibration(by_patient, "patient"))
    assert "these 20 patients are not like" in warnings_of(slices(new + 2, 20), Calibration(by_patient, "patient"))[0]
    one = rows(list(draw.normal(3, size=50)), patient="P")
    assert not warnings_of(one, Calibration(by_patient, "patient"))  # one patient says little


def test_scores_of_patients_are_not_compared_where_one_is_not_known() -> None:
    draw = np.random.default_rng(0)
    calibration = Calibration(tuple(draw.normal(size=80)), "patient")
    known, unknown = slices(draw.normal(5, size=(30, 2)), 30), rows([5.0, 6.0])
    failed = Row("broken.nii", error="is not an image")  # whose patient nobody asked for
    assert len(warnings_of([*known, failed], calibration)) == 1
    (told,) = warnings_of([*known, *unknown], calibration)
    assert told.startswith("warning: nothing names the patient of 2 of 32 files, 0 for example")
    assert "scores are not compared with those that the threshold comes from" in told


PATTERN = r"^[^/]+/[^/]+/([^/]+)"


def test_a_pattern_that_finds_no_patient_is_told_once(tmp_path: Path) -> None:
    reader = FileReader(Reading(patient_pattern=PATTERN))
    found = []
    for index, name in enumerate(["train/good/P1/a.png", "train/good/P1/b.png", "P2/a.png", "a.png"]):
        patient = reader.patient(Source(tmp_path / name, name))
        assert patient == ("P1" if index < 2 else "")
        found += [Row(name, str(k), patient, str(9.0), label="normal") for k in range(2)]
    scores = tuple(np.random.default_rng(0).normal(size=80))
    (told,) = warnings_of(found, Calibration(scores, "patient"), PATTERN)
    assert f"patient_pattern '{PATTERN}' finds no patient in the paths of 2 of 4 files, P2/a.png for example" in told
    assert "scores are not compared with those that the threshold comes from: name the folder" in told
    (told,) = warnings_of(found, None, PATTERN)
    assert "so that their patient stays empty: name the folder" in told
    assert not warnings_of(found[:4], None, PATTERN)


def test_the_page_names_all_that_the_extra_asks_for() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name for name in extras["screen"] if not name.startswith("anomalib-msacl")} | set(extras["medical"])
    page = (ROOT / "docs/screening.md").read_text()
    command = page.split("pip install --no-deps anomalib-msacl\npip install ")[1].split("```")[0]
    assert set(re.findall(r'[^\s"\\]+', command)) == wanted
