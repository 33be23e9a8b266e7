"""Heat maps in DICOM: what stands in the pixels, what they refer to, and what a validator says of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage, generate_uid

from anomalib_msacl.errors import InputError
from anomalib_msacl.screening.capture import NOT_FOR_DIAGNOSIS, overlay, placed, with_legend
from anomalib_msacl.screening.dicom_output import write_heat_map
from tests.medical_files import change_dicom, tissue, write_dicom

SAID = {"score": 0.75, "threshold": 0.5, "abnormal": True, "version": "1.2"}
REAL = {  # the file, its frame, and its class
    "693_UNCI.dcm": (None, "CT Image Storage"),
    "RG1_UNCI.dcm": (None, "Computed Radiography Image Storage"),
    "emri_small.dcm": (3, "Enhanced MR Image Storage"),
    "color3d_jpeg_baseline.dcm": (5, "Ultrasound Multi-frame Image Storage"),
}


def write_source(path: Path, pixels: np.ndarray | None = None, **tags: Any) -> Path:
    """Write a small CT that can be referred to."""
    complete = {
        "SOPClassUID": CTImageStorage,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 7,
        "InstanceNumber": 11,
        "PatientName": "Müller",
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientSex": "M",
        "StudyDate": "20250102",
        "WindowCenter": 1200,
        "WindowWidth": 400,
        "PixelSpacing": [0.5, 0.7],
    }
    return write_dicom(path, tissue(0, (48, 40)) if pixels is None else pixels, **(complete | tags))


def hill(size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """A map of one hill."""
    y, x = np.indices(size) / max(size)
    return np.exp(-((y - 0.3) ** 2 + (x - 0.5) ** 2) * 20).astype(np.float32)


def written(source: Path, target: Path, heat_map: np.ndarray, frame: int | None = None, **said: Any) -> Any:
    """Write a map and read it back."""
    write_heat_map(source, frame, heat_map, target, **(SAID | said))
    return pydicom.dcmread(target)


@pytest.fixture(scope="module")
def real_files() -> Path:
    store = pytest.importorskip("data_store", reason="needs pydicom-data")
    return Path(store.__file__).parent / "data"


def test_pixels_follow_the_formula_on_what_the_window_shows(tmp_path: Path) -> None:
    source, heat_map = write_source(tmp_path / "source.dcm"), hill()
    found = written(source, tmp_path / "map.dcm", heat_map).pixel_array
    values = pydicom.dcmread(source).pixel_array
    for y in range(48):
        for x in range(40):
            # DICOM PS3.3, C.11.2.1.2.1, to an output range of 0 to 1
            grey = min(max((values[y, x] - (1200 - 0.5)) / (400 - 1) + 0.5, 0), 1)
            value = float(heat_map[y, x])
            weight = 0.6 * value
            expected = [255 * ((1 - weight) * grey + weight * colour) for colour in (1, value, 0)]
            assert found[y, x] == pytest.approx(expected, abs=0.51)


def test_a_map_of_zeros_leaves_colours_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 300, 3)).astype(np.uint8)
    source = write_source(tmp_path / "source.dcm", pixels, photometric="RGB", bits=8)
    found = written(source, tmp_path / "map.dcm", np.zeros((20, 300)))
    assert np.array_equal(found.pixel_array[:20, :300], pixels)


def test_an_image_without_a_window_is_shown_from_its_darkest_to_its_brightest_value(tmp_path: Path) -> None:
    values = np.array([[-2.0, 0.0], [1.0, 2.0]], dtype=np.float32)
    source = write_source(tmp_path / "source.dcm", tissue(0, (2, 2)), WindowCenter=None, WindowWidth=None)
    dataset = pydicom.dcmread(source)
    del dataset.PixelData
    dataset.FloatPixelData, dataset.BitsAllocated = values.tobytes(), 32
    dataset.save_as(source)
    found = written(source, tmp_path / "map.dcm", np.zeros((2, 2))).pixel_array[:2, :2, 0]
    assert found.tolist() == [[0, 128], [191, 255]]


def test_a_smaller_map_is_stretched_over_the_image(tmp_path: Path) -> None:
    source, coarse = write_source(tmp_path / "source.dcm"), hill((24, 20))
    found = written(source, tmp_path / "map.dcm", coarse).pixel_array[:48, :40]
    fine = written(source, tmp_path / "fine.dcm", hill()).pixel_array[:48, :40]
    plain = written(source, tmp_path / "plain.dcm", np.zeros((48, 40))).pixel_array[:48, :40]
    # halfway between its pixels a stretched hill is a little lower
    assert np.abs(found.astype(int) - fine).max() < 0.15 * np.abs(plain.astype(int) - fine).max()
    assert placed(np.full((3, 5), 0.25), (7, 9)).tolist() == np.full((7, 9), 0.25).tolist()


@pytest.mark.parametrize(("file", "frame", "kind"), [(file, *rest) for file, rest in REAL.items()])
def test_real_files_are_referred_to(real_files: Path, tmp_path: Path, file: str, frame: int | None, kind: str) -> None:
    source = pydicom.dcmread(real_files / file)
    found = written(real_files / file, tmp_path / file, hill(), frame)
    (item,) = found.SourceImageSequence
    assert source.SOPClassUID.name == kind
    assert item.ReferencedSOPClassUID == source.SOPClassUID
    assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert item.get("ReferencedFrameNumber") == (None if frame is None else frame + 1)
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "AccessionNumber"):
        assert (found.get(name) or "") == (source.get(name) or "")
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.SOPInstanceUID != source.SOPInstanceUID
    picture = found.pixel_array
    assert (found.Rows, found.Columns) == picture.shape[:2]
    assert found.get("LossyImageCompression") == source.get("LossyImageCompression")
    assert picture.shape[0] > source.Rows
    assert picture.shape[1] >= source.Columns


def test_a_frame_of_several_is_the_one_asked_for(real_files: Path, tmp_path: Path) -> None:
    source, nothing = real_files / "color3d_jpeg_baseline.dcm", np.zeros((480, 640))
    frames = pydicom.dcmread(source)
    found = [written(source, tmp_path / f"{frame}.dcm", nothing, frame) for frame in (0, 50)]
    for frame, dataset in zip((0, 50), found, strict=True):
        shown = pydicom.pixels.pixel_array(frames, index=frame)
        assert np.array_equal(dataset.pixel_array[:480, :640], shown)
    assert found[0].SeriesInstanceUID == found[1].SeriesInstanceUID
    assert [dataset.InstanceNumber for dataset in found] == [1, 51]


@pytest.mark.filterwarnings("error")
def test_names_numbers_and_distances_come_from_the_source(tmp_path: Path) -> None:
    found = written(write_source(tmp_path / "source.dcm"), tmp_path / "map.dcm", hill())
    assert str(found.PatientName) == "Müller"  # a warning of highdicom would print it
    assert (found.SeriesNumber, found.InstanceNumber) == (9007, 11)
    assert found.PixelSpacing == [0.5, 0.7]
    assert found.SoftwareVersions == "1.2"


def test_maps_of_a_series_share_a_new_series_and_the_same_map_its_uid(tmp_path: Path) -> None:
    first, second = (write_source(tmp_path / f"{name}.dcm") for name in "ab")
    maps = [written(source, tmp_path / "map.dcm", hill()) for source in (first, second, first)]
    other = written(write_source(tmp_path / "c.dcm", SeriesInstanceUID="1.2.3.5"), tmp_path / "map.dcm", hill())
    changed = written(first, tmp_path / "map.dcm", hill(), score=0.6)
    assert len({dataset.SeriesInstanceUID for dataset in maps}) == 1
    assert other.SeriesInstanceUID != maps[0].SeriesInstanceUID
    assert maps[0].SOPInstanceUID == maps[2].SOPInstanceUID
    assert len({dataset.SOPInstanceUID for dataset in (*maps[:2], other, changed)}) == 4


def test_it_says_in_tags_and_pixels_that_it_is_not_for_diagnosis(tmp_path: Path) -> None:
    found = written(write_source(tmp_path / "source.dcm"), tmp_path / "map.dcm", hill())
    for name in ("SeriesDescription", "DerivationDescription", "ImageComments"):
        assert NOT_FOR_DIAGNOSIS in found[name].value
    assert found.ContentQualification == "RESEARCH"
    assert found.ImageType[:2] == ["DERIVED", "SECONDARY"]
    lines = [NOT_FOR_DIAGNOSIS, "anomaly score 0.75, threshold 0.5: abnormal", "anomalib-msacl 1.2"]
    picture = found.pixel_array
    assert np.array_equal(picture, with_legend(picture[:48, :40], lines))
    without = with_legend(picture[:48, :40], ["", *lines[1:]])
    assert np.abs(picture.astype(int) - without).max() > 200


@pytest.mark.parametrize("width", [30, 512, 2001])
def test_the_text_fits_below_the_picture(width: int) -> None:
    picture = np.full((10, width, 3), 255, dtype=np.uint8)
    found = with_legend(picture, ["anomaly score -12345.678, threshold 12345.678: abnormal"])
    assert np.array_equal(found[:10, :width], picture)
    assert found[10:, -1].max() == 0
    assert found[-1].max() == 0


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy, of the package dicom3tools")
@pytest.mark.parametrize("file", REAL)
def test_a_validator_finds_no_error(real_files: Path, tmp_path: Path, file: str) -> None:
    written(real_files / file, tmp_path / file, hill(), REAL[file][0])
    command = ["dciodvfy", "-new", str(tmp_path / file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    report = (run.stdout + run.stderr).splitlines()
    assert "SCImage" in report
    assert [line for line in report if line.startswith("Error")] == []


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_source_that_cannot_be_referred_to_is_told(tmp_path: Path, name: str) -> None:
    source = change_dicom(write_source(tmp_path / "source.dcm"), **{name: None})
    with pytest.raises(InputError, match=rf"source\.dcm has no {name}.*complete the file"):
        write_heat_map(source, None, hill(), tmp_path / "map.dcm", **SAID)
    assert not (tmp_path / "map.dcm").exists()


def test_a_source_of_few_attributes_is_enough(tmp_path: Path) -> None:
    source = write_dicom(tmp_path / "source.dcm", tissue(0), StudyInstanceUID=generate_uid())
    found = written(source, tmp_path / "map.dcm", hill())
    assert (found.PatientID, found.PatientName, found.StudyDate) == ("P1", "", "")


@pytest.mark.parametrize(
    ("frame", "message"),
    [(None, "has 3 frames; say which"), (3, "has no frame 3; its frames are 0 to 2"), (-1, "has no frame -1")],
)
def test_a_frame_that_is_not_there_is_told(tmp_path: Path, frame: int | None, message: str) -> None:
    frames = np.stack([tissue(seed) for seed in range(3)])
    kind = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    source = write_source(tmp_path / "source.dcm", frames, SOPClassUID=kind)
    with pytest.raises(InputError, match=message):
        write_heat_map(source, frame, hill(), tmp_path / "map.dcm", **SAID)


def test_files_that_are_no_images_in_dicom_are_told(tmp_path: Path) -> None:
    picture, report = tmp_path / "image.png", write_source(tmp_path / "report.dcm")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    change_dicom(report, PixelData=None)
    for source, message in ((picture, "is no DICOM file"), (report, "no pixel data"), (tmp_path / "gone", "gone")):
        with pytest.raises(InputError, match=message):
            write_heat_map(source, None, hill(), tmp_path / "map.dcm", **SAID)


def test_values_that_dicom_forbids_are_told(tmp_path: Path) -> None:
    source = change_dicom(write_source(tmp_path / "source.dcm"), PatientSex="MALE")
    with pytest.raises(InputError, match=r"DICOM forbids .*MALE.*correct it"):
        write_heat_map(source, None, hill(), tmp_path / "map.dcm", **SAID)


@pytest.mark.parametrize(
    "values", [np.full((4, 4), np.nan), np.full((4, 4), 1.01), np.zeros((1, 4, 4)), np.zeros((0, 4))]
)
def test_a_map_that_is_none_is_told(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"the heat map of .*source\.dcm has"):
        write_heat_map(write_source(tmp_path / "source.dcm"), None, values, tmp_path / "map.dcm", **SAID)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source.dcm")
    with pytest.raises(InputError, match=r"cannot write .*name another folder"):
        write_heat_map(source, None, hill(), source / "map.dcm", **SAID)
    full = Path("/dev/full")
    if full.exists():  # a link to a disk that is always full
        (tmp_path / "map.dcm.part").symlink_to(full)
        with pytest.raises(InputError, match=r"cannot write .*map\.dcm \(No space left on device\)"):
            write_heat_map(source, None, hill(), tmp_path / "map.dcm", **SAID)
        assert not list(tmp_path.glob("map*"))


def test_overlays_grow_with_the_map() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, 3)).astype(np.float32)
    weak, strong = (overlay(image, np.full((8, 8), value, dtype=np.float32)) for value in (0.2, 0.9))
    assert (np.abs(strong - 255 * image).sum(axis=-1) > np.abs(weak - 255 * image).sum(axis=-1)).mean() > 0.9


def test_it_needs_neither_torch_nor_anomalib(tmp_path: Path) -> None:
    source, target = write_source(tmp_path / "source.dcm"), tmp_path / "map.dcm"
    script = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'lightning', 'anomalib'): sys.modules[name] = None\n"
        "from pathlib import Path\nimport numpy as np\n"
        "from anomalib_msacl.screening.dicom_output import write_heat_map\n"
        f"write_heat_map(Path({str(source)!r}), None, np.zeros((4, 4)), Path({str(target)!r}), score=0.1, "
        "threshold=0.5, abnormal=False, version='1')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
    assert pydicom.dcmread(target).StudyInstanceUID == "1.2.3"
