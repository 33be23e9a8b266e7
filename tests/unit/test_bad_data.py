"""Bad data is told in one sentence before anything is trained.

One row for each case: what is done to a good data set, and the sentence that is expected, an error unless the row says
"warning". To add a case, write a function of the root folder and a row.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from anomalib.data import Folder
from PIL import Image

from anomalib_msacl.data import CheckedFolder, MedicalFolder, check_datamodule
from tests.medical_files import LOSSLESS, change_dicom, tissue, write_dicom, write_nifti
from tests.telling import check_sentence, told

SIZE = (48, 40)


def pixels(seed: int) -> np.ndarray:
    return tissue(seed, SIZE, 0, 255).astype(np.uint8)


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def lesion(background: int = 0, inside: int = 255) -> np.ndarray:
    mask = np.full(SIZE, background, np.uint8)
    mask[5:15, 8:20] = inside
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six training images, three normal and three abnormal test images with masks."""
    for index in range(6):
        write(tmp_path / f"good/{index}.png", pixels(index))
    for index in range(3):
        write(tmp_path / f"held_out/{index}.png", pixels(20 + index))
        write(tmp_path / f"bad/{index}.png", pixels(40 + index))
        write(tmp_path / f"masks/{index}.png", lesion())
    return tmp_path


def folder(root: Path, kind: type[Folder] = CheckedFolder, **changes: Any) -> Folder:
    given: dict[str, Any] = {"normal_dir": "good", "abnormal_dir": "bad", "normal_test_dir": "held_out"}
    given |= {"mask_dir": "masks", "seed": 0, "val_split_mode": "none", "num_workers": 0}
    return kind(name="mine", root=root, **(given | changes))


def medical(root: Path, **changes: Any) -> Folder:
    return folder(root, MedicalFolder, **changes)


def plain(root: Path, **changes: Any) -> Folder:
    """anomalib's own folder, which lists whatever has the name of an image."""
    return folder(root, Folder, **changes)


def only_training(root: Path, **changes: Any) -> Folder:
    """A medical folder of training images alone."""
    changes |= {"abnormal_dir": None, "normal_test_dir": None, "mask_dir": None, "test_split_mode": "none"}
    return medical(root, **changes)


def listed(root: Path) -> Folder:
    return MedicalFolder("mine", root, data_json="data.json", image_dir="good", val_split_mode="none")


def windowed(low: float, high: float) -> Callable[[Path], Folder]:
    return lambda root: only_training(root, intensity={"window": [low, high]})


# What is done to the data


def link_to_a_device(root: Path) -> None:
    (root / "good/zero.png").symlink_to("/dev/zero")


def link_to_itself(root: Path) -> None:
    (root / "good/loop.png").symlink_to(root / "good/loop.png")


def close_folder(root: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (root / "good/closed").mkdir(mode=0)


def float_with_nan(root: Path) -> None:
    values = pixels(0).astype(np.float32)
    values[3, 4] = np.nan
    write(root / "good/float.tif", values)


def several_images(root: Path, name: str) -> None:
    images = [Image.fromarray(pixels(seed)) for seed in (60, 61, 62)]
    images[0].save(root / name, save_all=True, append_images=images[1:])


def blacken(root: Path, number: int) -> None:
    for path in sorted((root / "good").iterdir())[:number]:
        write(path, np.zeros(SIZE, np.uint8))


def listed_names(content: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "data.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return change


def dicom(**tags: Any) -> Callable[[Path], None]:
    """Replace the training images by six DICOM files; the tags are those of the last one."""

    def change(root: Path) -> None:
        shutil.rmtree(root / "good")
        window = {"WindowCenter": 1200, "WindowWidth": 600}
        for index in range(6):
            write_dicom(root / f"good/{index}.dcm", tissue(index, SIZE), tags.pop("syntax", LOSSLESS[0]), **window)
        change_dicom(root / "good/5.dcm", **tags)

    return change


def native_dicom(**tags: Any) -> Callable[[Path], None]:
    """A file of pixels that are not compressed, with tags that are wrong."""
    return lambda root: change_dicom(write_dicom(root / "good/odd.dcm", tissue(0, SIZE)), **tags)  # type: ignore[return-value]


def dark_dicom(root: Path) -> None:
    shutil.rmtree(root / "good")
    for index in range(6):
        write_dicom(root / f"good/{index}.dcm", tissue(index, SIZE), WindowCenter=60000, WindowWidth=10)


def lying_nifti(name: str, shape: tuple[int, int, int]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        import nibabel

        path = write_nifti(root / "good" / name, np.random.default_rng(0).random((20, 30, 6)).astype(np.float32))
        opened = nibabel.openers.Opener(path)
        content = bytearray(opened.read())
        content[42:48] = np.array(shape, "<i2").tobytes()  # dim[1:4] of the header
        with nibabel.openers.Opener(path, "wb") as file:
            file.write(bytes(content))

    return change


class Case(NamedTuple):
    """What is done, what it makes of the folder, and what is said."""

    change: Callable[[Path], Any]
    make: Callable[[Path], Folder]
    words: str
    kind: str = "error"


CASES = {
    "a pipe": Case(lambda root: os.mkfifo(root / "good/a.jpg"), folder, r"a\.jpg \(a named pipe\): remove"),
    "a pipe, medical": Case(lambda root: os.mkfifo(root / "good/a.jpg"), medical, r"a\.jpg \(a named pipe\): remove"),
    "a pipe, anomalib's folder": Case(lambda root: os.mkfifo(root / "good/a.jpg"), plain, r"a\.jpg is a named pipe"),
    "a pipe without extension": Case(
        lambda root: (os.mkfifo(root / "good/a"), (root / "bad/0.png").write_text("no image")),
        medical,
        r"1 files cannot be used: .*bad/0\.png is not an image",
    ),
    "a device": Case(link_to_a_device, folder, r"zero\.png \(a device\): remove"),
    "a device, medical": Case(link_to_a_device, medical, r"zero\.png \(a device\): remove"),
    "a device, anomalib's folder": Case(link_to_a_device, plain, r"zero\.png is a device"),
    "a dangling link": Case(
        lambda root: (root / "bad/link.png").symlink_to(root / "gone.png"), folder, r"link\.png \(a link to nothing"
    ),
    "a dangling link, medical": Case(
        lambda root: (root / "bad/link.png").symlink_to(root / "gone.png"), medical, r"link\.png \(a link to nothing"
    ),
    "a looping link": Case(link_to_itself, folder, r"loop\.png \(a link to nothing, or to itself\)"),
    "a looping link, medical": Case(link_to_itself, medical, r"loop\.png \(a link to nothing, or to itself\)"),
    "a closed folder": Case(close_folder, folder, r"closed' cannot be listed .Permission"),
    "NaN": Case(float_with_nan, folder, r"float\.tif holds NaN or infinite values"),
    "NaN, medical": Case(float_with_nan, medical, r"float\.tif holds NaN or infinite values"),
    "TIFF pages": Case(
        lambda root: several_images(root, "good/pages.tif"),
        folder,
        r"1 files hold several images, .*pages\.tif",
        "warning",
    ),
    "GIF frames": Case(
        lambda root: several_images(root, "good/frames.gif"),
        lambda root: folder(root, extensions=(".png", ".gif")),
        r"of which anomalib reads the first: .*frames\.gif",
        "warning",
    ),
    "TIFF pages, medical": Case(
        lambda root: several_images(root, "good/pages.tif"), medical, r"pages\.tif holds several pages \(3\)"
    ),
    "WebP frames, medical": Case(
        lambda root: several_images(root, "good/frames.webp"), medical, r"frames\.webp holds several frames \(3\)"
    ),
    "background of 1": Case(
        lambda root: write(root / "masks/1.png", lesion(1, 2)), folder, r"masks/1\.png: .* set their background to 0"
    ),
    "background of 1, medical": Case(
        lambda root: write(root / "masks/1.png", lesion(1, 2)), medical, r"masks/1\.png: .* set their background to 0"
    ),
    "a mask of the whole image": Case(
        lambda root: write(root / "masks/1.png", lesion(9, 9)),
        folder,
        r"all of their image a lesion: .*1\.png",
        "warning",
    ),
    "a corrupt mask": Case(
        lambda root: (root / "masks/1.png").write_text("no image"),
        folder,
        r"1 masks cannot be used: .*masks/1\.png is not an image",
    ),
    "an empty mask": Case(
        lambda root: write(root / "masks/1.png", lesion(0, 0)),
        folder,
        r"1 masks of abnormal images are empty, .*1\.png",
    ),
    "a mask of another shape": Case(
        lambda root: write(root / "masks/1.png", lesion()[:20]), folder, r"1\.png \(40 x 20, image 40 x 48\)"
    ),
    "a mask of another name": Case(
        lambda root: (root / "masks/1.png").rename(root / "masks/3.png"),
        folder,
        r"do not pair up .*2\.png with 1\.png.*: give each abnormal image exactly one mask",
    ),
    "test images that are training images": Case(
        lambda root: shutil.copy(root / "good/0.png", root / "held_out/copy.png"),
        folder,
        r"1 test images are training images byte for byte.*copy\.png \(same as .*good/0\.png\)",
        "warning",
    ),
    "all images black": Case(
        lambda root: blacken(root, 6), folder, r"all 6 training images are of one value throughout"
    ),
    "one image black": Case(lambda root: blacken(root, 1), folder, r"1 images are of one value .*0\.png", "warning"),
    "a window above all values": Case(
        lambda root: None, windowed(300, 400), r"leaves all training images of 'mine' of one value .* give a window"
    ),
    "a window below all values": Case(lambda root: None, windowed(-20, -10), r"leaves all training images"),
    "a window above some values": Case(
        lambda root: write(root / "good/dark.png", pixels(50) // 4),
        windowed(90, 200),
        r"1 images of mine have no values inside the window .*dark\.png",
        "warning",
    ),
    "a DICOM window above all values": Case(dark_dicom, only_training, r"leaves all training images"),
    "a list of numbers": Case(
        listed_names({"train": {"0": [1, 2]}}), listed, r"data\.json \(1, 2 in a list is no text in quotes\)"
    ),
    "a text for a list": Case(listed_names({"train": {"0": "0.png"}}), listed, r"'0\.png' is no list"),
    "a list of lists": Case(listed_names({"train": {"0": [["0.png"]]}}), listed, r"is no text in quotes"),
    "a list instead of splits": Case(listed_names(["0.png"]), listed, r"cannot read .*data\.json"),
    "a deep list": Case(listed_names("[" * 100_000), listed, r"cannot read .*data\.json .*recursion"),
    "a long name": Case(listed_names({"train": {"0": ["x" * 5000]}}), listed, r"lists 1 files that are missing"),
    "a list that is a pipe": Case(lambda root: os.mkfifo(root / "data.json"), listed, r"is a named pipe"),
    "a text as window": Case(
        lambda root: None, lambda root: medical(root, intensity={"window": ["a", "b"]}), r"intensity is .*'a', 'b'"
    ),
    "very many DICOM frames": Case(
        native_dicom(NumberOfFrames=999_999_999), medical, r"odd\.dcm has \d+ bytes, too few for the 999999999 frames"
    ),
    "very many compressed DICOM frames": Case(
        dicom(NumberOfFrames=999_999_999), only_training, r"5\.dcm has \d+ bytes, too few for the 999999999 frames"
    ),
    "a large DICOM image": Case(
        native_dicom(Rows=65535, Columns=65535), medical, r"odd\.dcm has 3840 bytes of pixel data where its header asks"
    ),
    "a large compressed DICOM image": Case(
        dicom(Rows=65535, Columns=65535), only_training, r"5\.dcm has 65535 x 65535 pixels, more than are read"
    ),
    "a NIfTI header that lies": Case(
        lying_nifti("a.nii", (2000, 2000, 2000)), only_training, r"a\.nii is shorter than its header says"
    ),
    "a compressed NIfTI header that lies": Case(
        lying_nifti("a.nii.gz", (2000, 2000, 2000)), only_training, r"a\.nii\.gz is shorter than its header says"
    ),
    "a batch of no images": Case(
        lambda root: None,
        lambda root: folder(root, train_batch_size=0),
        r"train_batch_size of .* is 0: set it to 1 or more",
    ),
    "fewer workers than none": Case(
        lambda root: None, lambda root: folder(root, num_workers=-1), r"num_workers of .* is -1: set it to 0 or more"
    ),
    "an unknown val_split_mode": Case(
        lambda root: None,
        lambda root: folder(root, val_split_mode="medmx"),
        r"val_split_mode is medmx: set it to medmix",
    ),
}


def check(make: Callable[[Path], Folder], root: Path) -> None:
    datamodule = make(root)
    datamodule.setup()
    check_datamodule(datamodule)


@pytest.mark.parametrize("name", CASES)
def test_bad_data_is_told_in_one_sentence(root: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[name]
    case.change(root)
    with caplog.at_level(logging.WARNING):
        if case.kind == "warning":
            assert not told(lambda: check(case.make, root))
            assert re.search(case.words, caplog.text), caplog.text
        else:
            check_sentence(lambda: check(case.make, root), case.words)


def test_good_data_is_accepted_without_a_word(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(folder, root)
        check(medical, root)
    assert not [record for record in caplog.records if record.name.startswith("anomalib_msacl")]
