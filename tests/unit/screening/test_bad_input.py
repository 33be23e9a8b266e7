"""Bad input of ``screen`` is told in one sentence: what ends the run, and what ends one file only.

One row for each case: what is done, and the sentence that is expected. To add a case, write a function of a folder
and a row.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from anomalib_msacl.cli import main
from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.medical.reading import Reading
from anomalib_msacl.screening.files import FileReader
from anomalib_msacl.screening.output import Output
from anomalib_msacl.screening.scorer import find_model
from anomalib_msacl.screening.sources import Source, find_sources
from anomalib_msacl.screening.table import OutputError
from tests.medical_files import LOSSLESS, change_dicom, tissue, write_dicom, write_nifti
from tests.unit.screening.conftest import SIZE, Trained

SIDE = 20_000


def large_png(folder: Path) -> None:
    """An image of 20,000 x 20,000 pixels in 50 kB."""
    packed = zlib.compress(bytes(SIDE * (SIDE // 8 + 1)), 1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    (folder / "a").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def medium_png(folder: Path) -> None:
    """One that Pillow opens without a word."""
    Image.new("1", (9000, 9000)).save(folder / "a", "png")


def dicom(**tags: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        syntax = tags.pop("syntax", None)
        window = {"WindowCenter": 1200, "WindowWidth": 600}
        change_dicom(write_dicom(folder / "a", tissue(0, SIZE), *([syntax] if syntax else []), **window), **tags)

    return change


def nifti(shape: tuple[int, int, int], name: str = "a.nii") -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = write_nifti(folder / name, np.random.default_rng(0).random((20, 30, 6)).astype(np.float32))
        content = bytearray(nibabel.openers.Opener(path).read())
        content[42:48] = np.array(shape, "<i2").tobytes()  # dim[1:4] of the header
        with nibabel.openers.Opener(path, "wb") as file:
            file.write(bytes(content))

    return change


def long_gzip(folder: Path) -> None:
    """A volume of zeros that is more than what is read, and packs well."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1024, 1024, 300))
    with nibabel.openers.Opener(folder / "a.nii.gz", "wb", compresslevel=1) as file:
        header.write_to(file)
        for _ in range(301):
            file.write(bytes(2**20))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "20,000 x 20,000 pixels": (large_png, r"has more pixels than the 67108864 that are screened: crop or resample"),
    "9,000 x 9,000 pixels": (medium_png, r"has 9000 x 9000 pixels, more than the 67108864 that are screened"),
    "a DICOM header of 20,000 x 20,000 pixels": (
        dicom(Rows=SIDE, Columns=SIDE, syntax=LOSSLESS[0]),
        r"has 20000 x 20000 pixels, more than the 67108864 that are screened",
    ),
    "a DICOM header of more pixels than there are": (
        dicom(Rows=8000, Columns=8000),
        r"has 3840 bytes of pixel data where its header asks for 128000000",
    ),
    "a DICOM header of very many frames": (
        dicom(NumberOfFrames=999_999_999),
        r"has \d+ bytes, too few for the 999999999 frames of its header",
    ),
    "a NIfTI header of more voxels than there are": (nifti((2000, 2000, 2000)), r"is shorter than its header says"),
    "a packed NIfTI header of more voxels than there are": (
        nifti((500, 500, 9), "a.nii.gz"),
        r"(is shorter than its header says|is broken: Expected 9000000 bytes)",
    ),
    "a NIfTI volume of zeros": (long_gzip, r"has 1024 x 1024 x 300 voxels, more than the 268435456 that are screened"),
    "an all-black image": (
        lambda folder: Image.new("RGB", (40, 40)).save(folder / "a", "png"),
        r"is of one value throughout, as black images are",
    ),
    "a folder's name": (lambda folder: os.mkfifo(folder / "a"), r"is a named pipe"),
    "an empty file": (lambda folder: (folder / "a").touch(), r"is not an image"),
    "more than 8 bits": (
        lambda folder: Image.fromarray(tissue(0, SIZE)).save(folder / "a", "png"),
        r"has more than 8 bits, and the training images had none",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_told_in_one_sentence(trained: Trained, tmp_path: Path, name: str) -> None:
    change, words = FILES[name]
    change(tmp_path)
    (path,) = tmp_path.iterdir()
    reader = FileReader(trained.data.reading)
    with pytest.raises(UnreadableError, match=words) as caught:
        [reader.pixels(path, frame) for frame in reader.frames(path)]
    assert "\n" not in str(caught.value)


def test_a_model_that_knows_eight_bits_refuses_others(tmp_path: Path) -> None:
    reader = FileReader(None)
    write_dicom(tmp_path / "a.dcm", tissue(0, SIZE), WindowCenter=1200, WindowWidth=600)
    Image.fromarray(tissue(0, SIZE)).save(tmp_path / "deep.png")
    Image.fromarray((tissue(0, SIZE) // 8).astype(np.uint8)).save(tmp_path / "plain.png")
    for name in ("a.dcm", "deep.png"):
        with pytest.raises(UnreadableError, match="is no image of 8 bits, which are all that the training read"):
            reader.pixels(tmp_path / name, None)
    assert np.array_equal(reader.pixels(tmp_path / "plain.png", None)[0] * 255, tissue(0, SIZE) // 8)


def test_slices_are_those_that_the_training_chose(tmp_path: Path) -> None:
    volume = np.stack([np.full(SIZE, 3.0), *(tissue(k, SIZE) for k in range(4))], axis=-1).astype(np.float32)
    path = write_nifti(tmp_path / "a.nii", volume)
    known = Reading().as_dict()
    known["reader"]["slices"]["step"] = 2
    known["reader"]["intensity"] |= {"rule": "window", "window": [900, 1500]}
    assert FileReader(Reading.from_dict(known)).frames(path) == [2, 4]  # the first is of one value


def device(out: Path, _: Trained) -> None:
    """A table on a full disk."""
    out.mkdir()
    (out / "scores.csv").symlink_to("/dev/full")


def busy(out: Path, _: Trained) -> Any:
    """Another screening has the folder."""
    lock = Output(out).locked()
    lock.__enter__()
    return lock


def other_model(out: Path, trained: Trained) -> None:
    main(["screen", str(trained.export), str(trained.root / "new/0"), "--out", str(out), "--maps", "none"])
    with (out / "scores.csv").open() as file:
        rows = list(csv.reader(file))
    rows[1][8] = "anomalib-msacl 0, Padim 123"
    with (out / "scores.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def other_threshold(out: Path, trained: Trained) -> None:
    """A screening by the same network with another threshold."""
    shutil.copytree(trained.export, out.with_name("other"))
    file = next(out.with_name("other").rglob("*.bundle.json"))
    bundle = json.loads(file.read_text())
    bundle["image"]["threshold"] += 0.001
    file.write_text(json.dumps(bundle))
    main(["screen", str(out.with_name("other")), str(trained.root / "new/0"), "--out", str(out), "--maps", "none"])


def other_columns(out: Path, _: Trained) -> None:
    out.mkdir()
    (out / "scores.csv").write_text("file,score\na,1\n")


RUNS: dict[str, tuple[Callable[[Path, Trained], Any], list[str], str]] = {
    "a full disk": (device, [], r"scores\.csv cannot be written .No space left on device.: make room"),
    "two screenings": (busy, [], r"another screening is writing to .*: wait"),
    "an earlier table": (other_model, [], r"scores\.csv is there already: go on with that screening by --resume"),
    "another model": (
        other_model,
        ["--resume"],
        r"was made by anomalib-msacl 0, Padim 123, but this is anomalib-msacl",
    ),
    "another threshold": (other_threshold, ["--resume"], r"was made by .*: go on with the same model and program"),
    "another table": (other_columns, ["--resume"], r"scores\.csv has other columns than file, frame"),
    "a file for a folder": (lambda out, _: out.write_text(""), [], r"out cannot be written .File exists"),
    "no workers": (lambda out, _: None, ["--workers", "0"], r"workers is 0: set it to 1 or more"),
    "a class for an export": (lambda out, _: None, ["--model_class", "Padim"], r"model_class is for checkpoints"),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_ends_a_run_is_told_in_one_sentence(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "a full disk" and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    prepare, options, words = RUNS[name]
    kept = prepare(tmp_path / "out", trained)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["screen", str(trained.export), str(trained.root / "new/0"), "--out", str(tmp_path / "out"), *options])
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(words, told), told
    del kept


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a checkpoint that is none": (lambda path: path.write_text("no"), r"model\.ckpt is no checkpoint"),
    "a text": (lambda path: path.write_text("hello world"), r"model\.ckpt is no checkpoint"),
    "a cut off checkpoint": (
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        r"model\.ckpt (is no checkpoint|cannot be read)",
    ),
    "no checkpoint": (lambda path: path.unlink(), r"model\.ckpt is missing: name a checkpoint"),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_unreadable_checkpoint_is_told_in_one_sentence(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, words = MODELS[name]
    model = tmp_path / "model.ckpt"
    model.write_bytes(trained.checkpoint.read_bytes())
    change(model)
    with pytest.raises(SystemExit):
        main(["screen", str(model), str(trained.root / "new"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(words, told), told


def test_models_and_images_are_found_or_what_is_missing_is_told(trained: Trained, tmp_path: Path) -> None:
    assert find_model(trained.export) == next(trained.export.rglob("model.xml"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.xml").touch()
    with pytest.raises(ValueError, match=r"has 2 exported models, which are a\.xml, b\.xml: name model\.xml"):
        find_model(tmp_path)
    with pytest.raises(ValueError, match="has no images: name files"):
        find_sources([tmp_path])
    with pytest.raises(ValueError, match="gone is missing: name files"):
        find_sources([tmp_path / "gone"])
    (path, *_), others = find_sources([trained.root / "new", trained.root / "new/0", tmp_path])
    assert path == Source(trained.root / "new/0", "0")
    assert others == 2
    inside = find_sources([trained.root], leave_out=[trained.root / "new"])[0]
    assert not [source for source in inside if source.path.parent.name == "new"]


def test_a_file_that_cannot_be_written_to_its_end_has_no_name(tmp_path: Path) -> None:
    output = Output(tmp_path)

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot be written .No space left"):
        output.save(tmp_path / "maps/a.png", fail)
    assert not (tmp_path / "maps/a.png").exists()
