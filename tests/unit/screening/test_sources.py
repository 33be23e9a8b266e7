"""What is screened of a folder: all images, also those behind links, and nothing that ``screen`` writes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_msacl.cli import main
from anomalib_msacl.screening.output import written_paths
from anomalib_msacl.screening.sources import find_sources
from tests.unit.screening.conftest import SIZE, Trained


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("below", ["", "out"])
def test_maps_below_the_images_are_not_screened(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "deeper/b.png", 1)
    arguments = ["screen", str(trained.export), str(tmp_path), "--out", str(tmp_path / below), "--maps", "all"]
    main(arguments)
    assert len(list(tmp_path.rglob("maps/**/*.png"))) == 2
    told = capsys.readouterr().out.splitlines()[0]
    whole = (tmp_path / below / "scores.csv").read_bytes()
    main([*arguments, "--resume"])
    assert (tmp_path / below / "scores.csv").read_bytes() == whole
    assert [Path(row["file"]).name for row in csv.DictReader(whole.decode().splitlines())] == ["a.png", "b.png"]
    assert capsys.readouterr().out.splitlines()[0] == told  # table and lock are not counted as other files


def test_what_is_written_is_left_out_behind_a_link_too(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    image(tmp_path / "images/out/maps/a.png")
    image(tmp_path / "images/maps/b.png")  # not of this output
    (tmp_path / "link").symlink_to(tmp_path / "images")
    found, others = find_sources([tmp_path / "link"], written_paths(tmp_path / "images/out"))
    assert [source.name for source in found] == ["a.png", "maps/b.png"]
    assert others == 0


def test_images_in_linked_folders_are_screened_once(tmp_path: Path) -> None:
    for name in ("set/a.png", "set/z/b.png", "elsewhere/c.png", "elsewhere/d/e.png"):
        image(tmp_path / name)
    (tmp_path / "elsewhere/notes.txt").write_text("other")
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/again").symlink_to(tmp_path / "elsewhere/d")
    (tmp_path / "set/0").symlink_to(tmp_path / "set/z")  # its real name is kept
    (tmp_path / "set/z/up").symlink_to(tmp_path / "set")  # in circles
    (tmp_path / "elsewhere/d/up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/self").symlink_to(tmp_path / "set/self")
    found, others = find_sources([tmp_path / "set", tmp_path / "elsewhere"])
    assert [source.name for source in found] == ["a.png", "z/b.png", "again/e.png", "linked/c.png"]
    assert others == 2  # the notes, and the link to itself


def test_a_hidden_folder_that_is_named_is_taken_beside_the_folder_that_it_is_in(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    hidden = image(tmp_path / ".hidden/b.png").parent
    assert find_sources([tmp_path])[1] == 1
    found, others = find_sources([tmp_path, hidden])
    assert [source.name for source in found] == ["a.png", "b.png"]
    assert others == 0
