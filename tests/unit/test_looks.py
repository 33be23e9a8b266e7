"""Images that an earlier run has found good are not read again, and all others are."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalib_msacl.data import looks
from anomalib_msacl.data.inspection import Inspection, inspect_image
from anomalib_msacl.data.looks import look_at_images
from tests.telling import LIMIT


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        draw(path, index)
    return [str(path) for path in paths]


def draw(path: Path, seed: int, size: tuple[int, int] = (20, 30)) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, in any order."""
    found: list[str] = []

    def look(path: str) -> Inspection:
        found.append(path)
        return inspect_image(path)

    monkeypatch.setattr(looks, "inspect_image", look)
    return found


def test_a_second_look_reads_what_is_new_or_has_changed(images: list[str], read: list[str], tmp_path: Path) -> None:
    seen = tmp_path / "kept" / "seen.json"
    first = look_at_images(images, 2, seen)
    assert first == {path: inspect_image(path) for path in images}
    assert sorted(read) == images
    read.clear()
    assert look_at_images(images[::-1], 2, seen) == first
    assert list(look_at_images(images[::-1], 2, seen)) == images[::-1]
    assert read == []
    draw(Path(images[1]), seed=9)
    os.utime(images[2])
    draw(tmp_path / "new.png", seed=10)
    more = [*images, str(tmp_path / "new.png")]
    second = look_at_images(more, 2, seen)
    assert sorted(read) == [images[1], images[2], more[-1]]
    assert second == {path: inspect_image(path) for path in more}
    assert second[images[1]] != first[images[1]]
    assert [path.name for path in seen.parent.iterdir()] == [seen.name]


def test_broken_files_are_read_each_time(images: list[str], read: list[str], tmp_path: Path) -> None:
    Path(images[0]).write_bytes(b"no image")
    paths = [*images, str(tmp_path / "missing.png")]
    for _ in range(2):
        found = look_at_images(paths, 2, tmp_path / "seen.json")
        assert found[images[0]].problem == "is not an image"
        assert found[paths[-1]].problem
    assert read.count(images[0]) == read.count(paths[-1]) == 2
    assert read.count(images[1]) == 1


def test_what_was_kept_of_files_that_are_gone_goes_too(images: list[str], tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    look_at_images(images, 2, seen)
    for path in images[:2]:
        Path(path).unlink()
    draw(tmp_path / "new.png", seed=10)
    look_at_images([images[1], str(tmp_path / "new.png")], 2, seen)  # the others are of another set
    assert sorted(json.loads(seen.read_bytes())["images"]) == [*images[2:], str(tmp_path / "new.png")]


def test_sets_share_a_file(images: list[str], read: list[str], tmp_path: Path) -> None:
    for part in (images[:2], images[2:], images):
        look_at_images(part, 2, tmp_path / "seen.json")
    assert sorted(read) == images


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b"[]", b'{"format": 99, "images": {}}', b'{"format": 1, "images": {"a": 3}}'],
    ids=["empty", "deep", "list", "other format", "no findings"],
)
def test_a_file_that_cannot_be_read_is_made_again(
    images: list[str], read: list[str], tmp_path: Path, content: bytes
) -> None:
    seen = tmp_path / "seen.json"
    seen.write_bytes(content)
    look_at_images(images, 2, seen)
    read.clear()
    look_at_images(images, 2, seen)
    assert read == []


@pytest.mark.parametrize(
    "finding", [[], None, ["a"] * 6, ["a", [1, "x"], "", 8, 1, False], ["a", [9, 9], "bad", 8, 1, False]]
)
def test_findings_that_make_no_sense_do_not_count(
    images: list[str], read: list[str], tmp_path: Path, finding: Any
) -> None:
    seen = tmp_path / "seen.json"
    look_at_images(images, 2, seen)
    content = json.loads(seen.read_bytes())
    content["images"][images[0]][1] = finding
    seen.write_text(json.dumps(content))
    read.clear()
    assert look_at_images(images, 2, seen)[images[0]] == inspect_image(images[0])
    assert read == [images[0]]


def test_a_place_that_cannot_be_written_is_no_obstacle(images: list[str], read: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        look_at_images(images, 2, tmp_path / "file" / "seen.json")
    look_at_images(images, 2, None)
    assert len(read) == 3 * len(images)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_one_pixel_makes_an_image_that_is_not_of_one_value(tmp_path: Path, mode: str) -> None:
    for changed in (False, True):
        image = Image.new(mode, (31, 17))
        if changed:
            image.putpixel((5, 6), 255 if mode != "RGB" else (0, 0, 255))
        image.save(tmp_path / "image.png")
        assert inspect_image(str(tmp_path / "image.png")).constant is not changed


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read_for_what_was_kept(kind: str, images: list[str], tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    os.mkfifo(seen) if kind == "pipe" else seen.symlink_to("/dev/zero")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(look_at_images(images, 1, seen)), daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert found == [{path: inspect_image(path) for path in images}]
