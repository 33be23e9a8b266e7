"""Columns of sample tables: declared once, read by helpers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from anomalib_msacl.data.samples import (
    Column,
    content_of,
    inspected_files,
    names_patients,
    patients_of,
    unit_of,
    units_of,
)
from tests.unit.test_structure import PACKAGE


def table(tmp_path: Path, **columns: list[object]) -> pd.DataFrame:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index // 2]))  # the first two are copies
    return pd.DataFrame({"image_path": [str(path) for path in paths], **columns})


def test_content_is_that_of_the_pixels_where_it_is_known(tmp_path: Path) -> None:
    assert content_of(table(tmp_path, pixels=["a", "b", "a"])) == ["a", "b", "a"]


def test_content_is_that_of_the_files_elsewhere(tmp_path: Path) -> None:
    samples = table(tmp_path)
    expected = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in samples["image_path"]]
    assert content_of(samples) == expected
    assert expected[0] == expected[1] != expected[2]
    assert content_of(samples, {samples["image_path"][1]: "known"}) == [expected[0], "known", expected[2]]


def test_patients_are_files_where_they_are_not_known(tmp_path: Path) -> None:
    samples = table(tmp_path)
    assert not names_patients(samples)
    assert patients_of(samples).tolist() == samples["image_path"].tolist()
    samples = table(tmp_path, patient=[1, 1, 2])
    assert names_patients(samples)
    assert patients_of(samples).tolist() == ["1", "1", "2"]


def test_what_counts_once_is_a_patient_a_file_or_an_image(tmp_path: Path) -> None:
    samples = table(tmp_path)
    first, copy, other = units_of(samples)
    assert unit_of(samples) == "image"
    assert first == copy != other
    volumes = pd.DataFrame({"image_path": list("aabbcc"), "pixels": list("121213")})
    units = units_of(volumes)
    assert unit_of(volumes) == "file"
    assert units[0] == units[1] == units[2] == units[3]  # the second volume is a copy of the first
    assert units[4] == units[5] != units[0]
    volumes["patient"] = list("PPQQQQ")
    assert unit_of(volumes) == "patient"
    assert units_of(volumes) == list("PPQQQQ")


def test_files_that_nobody_has_looked_into_are_left_out(tmp_path: Path) -> None:
    assert inspected_files(table(tmp_path)) == {}
    samples = table(tmp_path, sha256=["a", None, "c"], side=[40, None, 50])
    paths = samples["image_path"]
    assert inspected_files(samples) == {paths[0]: ("a", 40), paths[2]: ("c", 50)}


def test_the_names_are_written_down_once() -> None:
    names = {value for key, value in vars(Column).items() if key.isupper()} - {"name", "patient", "frame", "side"}
    for path in (PACKAGE / "data", PACKAGE / "medical", PACKAGE / "phantom"):
        for file in path.rglob("*.py"):
            if file.name != "samples.py":
                assert not [name for name in names if f'"{name}"' in file.read_text()], file
