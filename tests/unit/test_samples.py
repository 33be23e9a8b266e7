"""Columns of sample tables: declared once, read by helpers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest

from anomalib_msacl.data import CheckedFolder, held_out
from anomalib_msacl.data import samples as samples_module
from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.data.held_out import hold_out
from anomalib_msacl.data.samples import (
    Column,
    content_of,
    inspected_files,
    names_of_content,
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


def test_only_files_of_one_size_and_middle_are_read_to_find_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [b"a", b"bb", b"ccc", b"bb", b"dd", b"x" + bytes(5000), b"y" + bytes(5000)]
    paths = [tmp_path / str(index) for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    one, other = (pd.DataFrame({"image_path": list(map(str, part))}) for part in (paths[:2], paths[2:]))
    read: list[str] = []
    monkeypatch.setattr(samples_module, "read_bytes", lambda path: read.append(path) or Path(path).read_bytes())
    first, second = names_of_content(one, other)
    assert read == [str(paths[row]) for row in (1, 3, 5, 6)]
    names = [*first, *second]
    assert [names.index(name) for name in names] == [0, 1, 2, 1, 4, 5, 6]  # as the contents themselves
    with pytest.raises(UnreadableError, match="is a folder"):
        names_of_content(pd.DataFrame({"image_path": [str(tmp_path)]}))


def test_held_out_images_are_those_that_whole_files_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(30):
        content = index - index % 3 // 2  # each third is a copy
        (tmp_path / f"{index:02d}.png").write_bytes(bytes([content]) * (1 + content % 7))
    data = CheckedFolder("mine", tmp_path, test_split_mode="none", val_split_mode="none")
    data.setup()
    found = [hold_out(data.train_data, 0.3, seed) for seed in range(5)]
    assert any(len(train) + len(held.images) < 30 for train, held in found)  # copies are left out
    monkeypatch.setattr(held_out, "names_of_content", lambda *tables: [content_of(table) for table in tables])
    for seed, (train, held) in enumerate(found):
        expected_train, expected = hold_out(data.train_data, 0.3, seed)
        assert train.samples.equals(expected_train.samples)
        assert held.images.samples.equals(expected.images.samples)
        assert (held.units, held.number, held.unit) == (expected.units, expected.number, expected.unit)


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
