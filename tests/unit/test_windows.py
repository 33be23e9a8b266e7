"""One scale for all files: what the training images do not tell is shown as they are, or refused, and never guessed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.pixels
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from anomalib_msacl import InputError
from anomalib_msacl.data import ImageReader, MedicalFolder
from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.medical.dicom import read_dicom
from anomalib_msacl.medical.intensity import Intensity, Sample
from anomalib_msacl.medical.reading import Reading
from anomalib_msacl.medical.window import Window
from anomalib_msacl.screening.files import FileReader
from tests.medical_files import tissue, write_dicom, write_nifti

COMMON = {"WindowCenter": 1200, "WindowWidth": 600}
OTHER = {"WindowCenter": 900, "WindowWidth": 1500}


def table(entries: np.ndarray) -> list[Dataset]:
    """Return a VOI LUT of 10 bits for stored values from 0 on."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), 0, 10], entries.astype(np.uint16).tobytes()
    return [item]


ROOTS = {"VOILUTSequence": table(np.sqrt(np.linspace(0, 1, 4096)) * 1023)}


def fitted(*paths: Path, intensity: Any = "auto") -> ImageReader:
    reader = ImageReader.of(intensity)
    reader.fit([reader.inspect(str(path)) for path in paths])
    return reader


@pytest.mark.parametrize(
    ("intensity", "asked"), [("dicom", 1), ({"window": [900, 1500]}, 0), ({"percentile": [0, 99]}, 0)]
)
def test_what_a_file_asks_to_be_displayed_is_computed_where_the_rule_shows_it(tmp_path, monkeypatch, intensity, asked):
    calls, apply = [], pydicom.pixels.apply_voi_lut
    monkeypatch.setattr(pydicom.pixels, "apply_voi_lut", lambda *given: calls.append(given[0].shape) or apply(*given))
    path = write_dicom(tmp_path / "a.dcm", tissue(0), **COMMON)
    reader = ImageReader.of(intensity)
    contents = reader.inspect(str(path))
    assert calls.count((64, 64)) == asked
    reader.fit([contents])
    reader.read_array(path)
    assert calls.count((64, 64)) == 2 * asked


def test_a_table_that_cannot_be_applied_matters_only_where_it_is_shown(tmp_path):
    short = table(np.zeros(4096))
    short[0].LUTData = b"\0\0"
    path = write_dicom(tmp_path / "a.dcm", tissue(0), VOILUTSequence=short)
    assert "has a window or table that cannot be applied" in ImageReader.of("dicom").inspect(str(path)).problem
    reader = ImageReader.of({"window": [900, 1500]})
    assert not reader.inspect(str(path)).problem
    assert np.allclose(reader.read_array(path)[0], (tissue(0) - 900.0) / 600, atol=1e-6)


def folder(root: Path, **changes: Any) -> MedicalFolder:
    """Set up the images of ``good`` for the training, and those of ``new`` for the test."""
    given: dict[str, Any] = {"normal_test_dir": "new", "val_split_mode": "none", "seed": 0}
    found = MedicalFolder("mine", root, "good", **(given | changes))
    found.setup()
    return found


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_training(root: Path, **tags: Any) -> None:
    for index in range(3):
        write_dicom(root / f"good/{index}.dcm", tissue(index), **tags)


# The common window


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("tags", [{}, OTHER, ROOTS], ids=["none", "another", "table"])
@pytest.mark.parametrize("how", [{}, {"photometric": "MONOCHROME1", "PixelPaddingValue": 0}], ids=["plain", "inverse"])
def test_auto_shows_every_dicom_file_by_the_window_of_the_training(tmp_path, function, tags, how):
    common = COMMON | {"VOILUTFunction": function}
    pixels = tissue(5, low=500, high=1900)
    pixels[:8] = 0
    how = how | {"RescaleSlope": 1.5, "RescaleIntercept": -600}
    reader = fitted(write_dicom(tmp_path / "training", tissue(0), **common))
    same = write_dicom(tmp_path / "same", pixels, **common, **how)
    odd = write_dicom(tmp_path / "odd", pixels, **tags, **how)
    expected = read_dicom(same, 0).shown
    assert np.array_equal(reader.read_array(same)[0], expected)
    assert np.allclose(reader.read_array(odd)[0], expected, atol=1e-6)
    assert np.abs(read_dicom(odd, 0).shown - expected).max() > 0.2  # what the file itself asks for


def test_a_window_of_width_1_is_a_step(tmp_path):
    step = {"WindowCenter": 1200.5, "WindowWidth": 1}
    reader = fitted(write_dicom(tmp_path / "training", tissue(0), **step))
    odd = write_dicom(tmp_path / "odd", tissue(1))
    assert np.array_equal(reader.read_array(odd)[0], tissue(1) > 1200)


@pytest.mark.parametrize(
    "spelt",
    [
        {"WindowCenter": "1200.0", "WindowWidth": "6.0e2"},
        {"WindowCenter": ["1200", "40"], "WindowWidth": ["600.00", "400"]},  # the first is what is shown
    ],
)
def test_a_window_is_the_same_however_its_numbers_are_written(tmp_path, spelt):
    paths = [write_dicom(tmp_path / str(index), tissue(index), **tags) for index, tags in enumerate([COMMON, spelt])]
    reader = fitted(*paths)
    assert reader.intensity.common_window == "1200 / 600 LINEAR"
    for path in paths:
        assert np.array_equal(reader.read_array(path)[0], read_dicom(path, 0).shown)


@pytest.mark.parametrize("name", ["1200.0 / 600.0 LINEAR", "[1200, 40.0] / [600.0, 400] LINEAR"])
def test_windows_of_earlier_checkpoints_are_known(tmp_path, name):
    assert Window.named(name) == Window(1200, 600)
    image = read_dicom(write_dicom(tmp_path / "a", tissue(0), **COMMON), 0)
    rule = Intensity(common_window=name)
    assert np.array_equal(rule.apply(image), image.shown)
    assert not rule.replaces_window(Sample.of(image))


@pytest.mark.parametrize("name", ["", "all of 8 bits", "LUT 0123456789ab", "wide / open LINEAR"])
def test_other_names_are_no_windows(name):
    assert Window.named(name) is None


def test_windows_that_are_replaced_are_told_once(tmp_path, caplog):
    write_training(tmp_path, **COMMON)
    for name, tags in (("same", COMMON), ("other", OTHER), ("none", {})):
        write_dicom(tmp_path / f"new/{name}.dcm", tissue(len(name) * 7), **tags)
    with caplog.at_level(logging.WARNING):
        data = folder(tmp_path)
    (told,) = [record.getMessage() for record in caplog.records if "window" in record.getMessage()]
    assert told.startswith("2 DICOM files of mine have another window than the training images, or none")
    assert "(1200 / 600 LINEAR)" in told
    assert "none.dcm" in told
    assert "other.dcm" in told
    assert "same.dcm" not in told
    reader = FileReader(data.reading)
    for name in ("same", "same", "other", "none"):
        reader.pixels(tmp_path / f"new/{name}.dcm", None)
    assert reader.note().startswith("note: 2 DICOM images have another window than the training images, or none")


def refusal(root: Path, path: Path, **changes: Any) -> str:
    """Check that a file among the test images is refused before the training, and by ``screen`` in the same words.

    Returns:
        The words.
    """
    (root / "new").rename(root / "later")
    data = folder(root, normal_test_dir=None, test_split_mode="none", **changes)
    with pytest.raises(UnreadableError) as caught:
        FileReader(data.reading).pixels(root / "later" / path.name, None)
    (root / "later").rename(root / "new")
    with pytest.raises(InputError) as refused:
        folder(root, **changes)
    assert str(refused.value) == f"1 files cannot be used: {path} {caught.value}; replace or remove them"
    return str(caught.value)


@pytest.mark.parametrize(("tags", "bits"), [(ROOTS, 12), ({}, 8)], ids=["table", "8 bits"])
def test_what_cannot_take_the_place_of_another_window_is_refused(tmp_path, tags, bits):
    for index in range(3):
        pixels = tissue(index) if bits == 12 else (tissue(index) // 8).astype(np.uint8)
        write_dicom(tmp_path / f"good/{index}.dcm", pixels, bits=bits, **tags)
    write_dicom(tmp_path / "new/same.dcm", pixels[::-1], bits=bits, **tags)
    folder(tmp_path)
    (tmp_path / "new/same.dcm").unlink()
    path = write_dicom(tmp_path / "new/other.dcm", tissue(7), **OTHER)
    refusal(tmp_path, path)
    told = "has another window than the DICOM files of the training" if tags else "has no 8 bits, as all DICOM files"
    with pytest.raises(UnreadableError, match=told):
        fitted(*(tmp_path / "good").iterdir()).read(path)


@pytest.mark.parametrize(
    "tags", [{}, {"WindowCenter": 128, "WindowWidth": 256}, {"WindowCenter": 90, "WindowWidth": 9}]
)
def test_eight_bits_without_a_window_are_shown_from_0_to_255_whatever_others_name(tmp_path, tags):
    for index in range(3):
        write_dicom(tmp_path / f"good/{index}.dcm", (tissue(index) // 8).astype(np.uint8), bits=8)
    pixels = (tissue(7) // 8).astype(np.uint8)
    path = write_dicom(tmp_path / "new/other.dcm", pixels, bits=8, **tags)
    folder(tmp_path)
    shown = fitted(*sorted((tmp_path / "good").iterdir())).read(path)[0]
    np.testing.assert_allclose(np.asarray(shown), pixels / 255, atol=1e-6)


def test_windows_of_earlier_checkpoints_are_those_of_now(tmp_path):
    write_training(tmp_path, **COMMON)
    now = Reading(fitted(*sorted((tmp_path / "good").iterdir())))
    for name in ("1200.0 / 600.0 LINEAR", "[1200, 40] / [600, 400] LINEAR"):
        old = now.as_dict()
        old["reader"]["intensity"]["common_window"] = name
        assert Reading.from_dict(old) == now


def test_values_beyond_the_window_of_the_training_are_told(tmp_path, caplog):
    write_training(tmp_path, **COMMON)
    path = write_dicom(tmp_path / "new/a.dcm", tissue(5, low=2000, high=3000), WindowCenter=2500, WindowWidth=1000)
    with caplog.at_level(logging.WARNING):
        data = folder(tmp_path)
    assert "1 images of mine have no values inside the window" in caplog.text
    with pytest.raises(UnreadableError, match="has no values inside the window of the training"):
        FileReader(data.reading).pixels(path, None)


# The window of each file


def test_a_file_without_a_window_is_refused_where_each_goes_by_its_own(tmp_path):
    write_training(tmp_path, **COMMON)
    write_dicom(tmp_path / "good/table.dcm", tissue(5), **ROOTS)
    write_dicom(tmp_path / "good/plain.dcm", (tissue(6) // 8).astype(np.uint8), bits=8)  # shown as they are
    path = write_dicom(tmp_path / "new/none.dcm", tissue(7))
    refusal(tmp_path, path, intensity="dicom")
    with pytest.raises(UnreadableError, match="has no window of its own: set another intensity than dicom"):
        ImageReader.of("dicom").read(path)


UNUSABLE = [
    ({"WindowCenter": 40, "WindowWidth": 0}, "centre 40, width 0, LINEAR"),
    ({"WindowCenter": 0.5, "WindowWidth": 0.8}, "centre 0.5, width 0.8, LINEAR"),
    ({"WindowCenter": 40, "WindowWidth": -2, "VOILUTFunction": "SIGMOID"}, "centre 40, width -2, SIGMOID"),
    ({"WindowCenter": 40, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"}, "centre 40, width 0, LINEAR_EXACT"),
    ({"WindowCenter": 40, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "centre 40, width 9, CUBIC"),
    ({"WindowCenter": [0.5, 40], "WindowWidth": [0.8, 400]}, "centre 0.5, width 0.8, LINEAR"),
]


@pytest.mark.parametrize(("tags", "named"), UNUSABLE)
def test_a_window_that_means_nothing_counts_as_none(tmp_path, tags, named):
    plain = write_dicom(tmp_path / "plain.dcm", tissue(1))
    path = write_dicom(tmp_path / "a.dcm", tissue(1), **tags)
    for intensity in ("auto", {"window": [900, 1500]}, {"percentile": [1, 99]}):
        assert np.array_equal(
            fitted(path, intensity=intensity).read_array(path), fitted(plain, intensity=intensity).read_array(plain)
        )
    common = write_dicom(tmp_path / "common.dcm", tissue(2), **COMMON)
    assert np.array_equal(fitted(common).read_array(path), fitted(common).read_array(plain))
    with pytest.raises(UnreadableError, match=rf"a window that cannot be used \({named}\): set another intensity than"):
        ImageReader.of("dicom").read(path)
    write_training(tmp_path, **COMMON)
    assert f"cannot be used ({named}): set another intensity than dicom" in refusal(
        tmp_path, write_dicom(tmp_path / "new/a.dcm", tissue(1), **tags), intensity="dicom"
    )


def test_a_window_that_is_no_number_counts_as_none(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", tissue(1), WindowCenter=40, WindowWidth=123456)
    path.write_bytes(path.read_bytes().replace(b"123456", b"narrow"))
    assert fitted(path).read_array(path).max() == 1
    with pytest.raises(UnreadableError, match="centre 40, width nan, LINEAR"):
        ImageReader.of("dicom").read(path)


@pytest.mark.parametrize("function", ["", None, "linear"])
def test_a_window_without_a_function_is_linear(tmp_path, function):
    usual = write_dicom(tmp_path / "a.dcm", tissue(1), **COMMON)
    path = write_dicom(tmp_path / "b.dcm", tissue(1), **COMMON, VOILUTFunction=function)
    assert np.array_equal(
        fitted(path, intensity="dicom").read_array(path), fitted(usual, intensity="dicom").read_array(usual)
    )
    assert fitted(usual, path).intensity.common_window == fitted(usual).intensity.common_window != ""


def test_the_attributes_of_a_file_stay_as_they_are_whatever_a_frame_names(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.stack([tissue(1), tissue(2)]), WindowCenter=40, WindowWidth=0)
    for frame in (0, 1, 0):
        with pytest.raises(UnreadableError, match="centre 40, width 0"):
            ImageReader.of("dicom").read(path, frame)


def test_tables_of_another_first_value_are_others(tmp_path):
    entries = np.linspace(0, 1023, 2000)
    paths = []
    for first in (0, 500):
        item = table(entries)
        item[0].LUTDescriptor = [2000, first, 10]
        paths.append(write_dicom(tmp_path / f"{first}.dcm", tissue(1), VOILUTSequence=item))
    assert fitted(paths[0]).intensity.common_window != ""
    assert fitted(*paths).intensity.common_window == ""


# Depth


def test_deep_images_are_refused_where_the_training_images_have_8_bits(tmp_path):
    for index in range(3):
        save(tmp_path / f"good/{index}.png", (tissue(index) // 8).astype(np.uint8))
    refusal(tmp_path, save(tmp_path / "new/deep.png", tissue(7)))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_values_of_8_bits_are_read_alike_however_they_are_stored(tmp_path, kind):
    for index in range(3):
        save(tmp_path / f"good/{index}.png", (tissue(index) // 8).astype(kind))
    values = tissue(7) // 8
    paths = [save(tmp_path / f"new/{other.__name__}.png", values.astype(other)) for other in (np.uint8, np.uint16)]
    data = folder(tmp_path)
    for path in paths:
        assert np.allclose(data.reader.read_array(path)[0], values / 255, atol=1e-6)
        assert np.array_equal(FileReader(data.reading).pixels(path, None), data.reader.read_array(path))


def test_images_of_more_bits_than_the_training_images_are_refused(tmp_path):
    for index in range(3):
        save(tmp_path / f"good/{index}.png", tissue(index))  # of 12 bits
    deeper = tissue(7) * 16
    deeper[: deeper.shape[0] * 3 // 4] = 0  # the background says nothing
    told = refusal(tmp_path, save(tmp_path / "new/a.png", deeper))
    assert told == f"has values up to {deeper.max()}, and the training images had 12 bits"


def test_a_bright_lesion_beyond_the_depth_of_the_training_is_white(tmp_path):
    for index in range(3):
        save(tmp_path / f"good/{index}.png", tissue(index))
    bright = tissue(7)
    bright[10:25, 10:25] = 60000
    path = save(tmp_path / "new/a.png", bright)
    data = folder(tmp_path)
    read = data.reader.read_array(path)[0]
    assert (read[10:25, 10:25] == 1).all()
    assert np.allclose(read[30:], bright[30:] / 4095, atol=1e-6)
    assert np.array_equal(FileReader(data.reading).pixels(path, None), data.reader.read_array(path))


@pytest.mark.parametrize("name", ["a.dcm", "a.nii"])
def test_kinds_that_the_training_images_do_not_have_are_refused(tmp_path, name):
    for index in range(3):
        save(tmp_path / f"good/{index}.png", tissue(index))
    path = tmp_path / "new" / name
    if name == "a.dcm":
        write_dicom(path, tissue(7), **OTHER)
    else:
        write_nifti(path, tissue(7)[..., None].astype(np.float32))
    refusal(tmp_path, path)
