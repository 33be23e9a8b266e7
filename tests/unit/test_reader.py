"""The reader against other libraries, the formulas of the DICOM standard, and itself on one picture stored twice."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom.data
import pytest
import tifffile
import torch
from anomalib.data.utils import read_image
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit

from anomalib_msacl import InputError
from anomalib_msacl.data import ImageReader, Slices
from anomalib_msacl.data.depth import deep_files
from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.medical.dicom import read_dicom
from anomalib_msacl.medical.image import RawImage
from anomalib_msacl.medical.intensity import Intensity, Sample
from anomalib_msacl.medical.raster import read_raster
from tests.medical_files import LOSSLESS, change_dicom, tissue, write_dicom, write_nifti


def read(path: Path, intensity: object = "auto", frame: int = 0, **options) -> torch.Tensor:
    """Read an image with a rule that was fixed by this very image."""
    reader = ImageReader.of(intensity, **options)
    contents = reader.inspect(str(path))
    assert not contents.problem
    reader.fit([contents])
    return reader.read(path, frame).as_subclass(torch.Tensor)


def grey(path: Path, *arguments, **options) -> np.ndarray:
    """Read an image whose channels must be equal."""
    image = read(path, *arguments, **options)
    assert image.dtype == torch.float32
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    return image[0].numpy()


def theirs(path: Path) -> torch.Tensor:
    """Read an image as anomalib does."""
    return read_image(path, as_tensor=True).as_subclass(torch.Tensor)


# Pictures


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "RGBA", "1"])
def test_eight_bits_are_read_as_anomalib_reads_them(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).convert(mode).save(path)
    torch.testing.assert_close(read(path), theirs(path), rtol=0, atol=2e-7)


def test_jpeg_is_read_as_anomalib_reads_it(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    torch.testing.assert_close(read(tmp_path / "a.jpg"), theirs(tmp_path / "a.jpg"), rtol=0, atol=2e-7)


def save_deep(path: Path, pixels: np.ndarray) -> None:
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(pixels))
    elif path.suffix == ".jp2":
        path.write_bytes(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="jp2"))
    elif "planes" in path.name:
        tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    else:
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", compression="zlib")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2"])
def test_all_sixteen_bits_of_grey_pictures_are_read(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    save_deep(tmp_path / name, pixels)
    assert np.array_equal(grey(tmp_path / name), pixels / np.float32(65535))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "planes.tif"])
def test_all_sixteen_bits_of_coloured_pictures_are_read(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
    save_deep(tmp_path / name, pixels)
    assert np.array_equal(read(tmp_path / name).permute(1, 2, 0).numpy(), pixels / np.float32(65535))


def netpbm(pixels: np.ndarray, highest: int, plain: bool, comment: bytes = b"# of a scanner\n") -> bytes:
    kind = (5 if pixels.ndim == 2 else 6) - 3 * plain
    header = f"P{kind}\n".encode() + comment + f"{pixels.shape[1]} {pixels.shape[0]}\n{highest}\n".encode()
    return header + (" ".join(map(str, pixels.ravel())).encode() if plain else pixels.astype(">u2").tobytes())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("highest", [1023, 4095, 65535])
def test_deep_pgm_and_ppm_are_read_as_the_same_picture_in_png(tmp_path, highest, plain):
    pixels = tissue(0, (30, 20), low=0, high=highest)
    (tmp_path / "a.pgm").write_bytes(netpbm(pixels, highest, plain))
    save_deep(tmp_path / "a.png", pixels)
    assert np.array_equal(grey(tmp_path / "a.pgm"), grey(tmp_path / "a.png"))
    assert np.array_equal(read_raster(tmp_path / "a.pgm").values, pixels)
    colours = np.stack([pixels, pixels // 2, pixels // 3], axis=-1)
    (tmp_path / "a.ppm").write_bytes(netpbm(colours, highest, plain))
    assert np.allclose(read(tmp_path / "a.ppm").permute(1, 2, 0), colours / highest, atol=1e-6)
    assert deep_files([str(tmp_path / "a.pgm"), str(tmp_path / "a.ppm")])[1:]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (netpbm(np.ones((9, 8), int), 4095, plain=False)[:-5], "is cut off: it has 69 of the 72 values"),
        (netpbm(np.ones((9, 8), int), 4095, plain=True)[:-5], "is cut off: it has 69 of the 72 values"),
        (
            netpbm(np.full((9, 8), 5000), 4095, plain=False),
            "has values from 5000 to 5000, and its header allows 0 to 4095",
        ),
        (netpbm(np.full((9, 8), -1), 4095, plain=True), "has values from -1"),
        (b"P5 4000000000 4000000000 4095\n1234", "has|is|cannot"),
        (b"P2 3 3 4095\n1 2 3 four 5 6 7 8 9", "is broken"),
        (b"P5 3", "is not an image|is broken"),
    ],
)
def test_broken_deep_pgm_files_are_told(tmp_path, content, problem):
    (tmp_path / "a.pgm").write_bytes(content)
    found = ImageReader.of().inspect(str(tmp_path / "a.pgm")).problem
    assert re.match(problem, found), found
    assert len(found) < 200


def test_twelve_bits_in_sixteen_fill_the_range(tmp_path):
    pixels = tissue(0, low=0, high=3500)
    save_deep(tmp_path / "a.png", pixels)
    assert np.allclose(grey(tmp_path / "a.png"), pixels / 4095, atol=1e-6)
    assert (theirs(tmp_path / "a.png") == 1).float().mean() > 0.8  # what anomalib sees


def test_low_values_are_bright_where_the_file_says_so(tmp_path):
    pixels = tissue(0, low=0, high=4095)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert np.allclose(grey(tmp_path / "a.tif"), 1 - pixels / 4095, atol=1e-6)


def test_colours_can_be_turned_into_grey(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.allclose(
        grey(tmp_path / "a.png", grey=True), np.asarray(Image.fromarray(pixels).convert("L")) / 255, atol=0.01
    )


# Rules


def test_a_rule_is_the_same_for_all_images(tmp_path):
    bright, dark = tissue(0, low=0, high=4000), tissue(0, low=0, high=1000)
    for name, pixels in (("bright", bright), ("dark", dark)):
        save_deep(tmp_path / f"{name}.png", pixels)
    paths = [tmp_path / "bright.png", tmp_path / "dark.png"]
    for rule in ("auto", {"percentile": [0, 100]}, {"window": [0, 4000]}):
        reader = ImageReader.of(rule)
        reader.fit(reader.inspect(str(path)) for path in paths)
        highest = [float(reader.read(path).max()) for path in paths]
        assert highest[1] == pytest.approx(highest[0] / 4, abs=0.01)


def test_percentiles_are_those_of_the_training_images(tmp_path):
    pixels = tissue(0)
    save_deep(tmp_path / "a.png", pixels)
    low, high = np.percentile(pixels, [10, 90])
    expected = ((pixels - low) / (high - low)).clip(0, 1)
    assert np.allclose(grey(tmp_path / "a.png", {"percentile": [10, 90]}), expected, atol=0.02)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "size", [(1999, 300), (1999, 2000), (999, 400), (3999, 150), (499, 1000), (199, 500), (665, 99)]
)
def test_percentiles_are_those_of_all_columns(size, padded):
    height, width = size
    columns = np.sin(np.linspace(0, 3 * np.pi, width)) * 500 + np.linspace(0, 300, width)
    values = np.tile(columns.astype(np.float32), (height, 1))
    padding = np.pad(np.zeros(size, bool), [(0, 0), (7, 4)], constant_values=True) if padded else None
    image = RawImage(np.pad(values, [(0, 0), (7, 4)]) if padded else values, "dicom", padding=padding)
    sample = Sample.of(image)
    assert 1500 <= len(sample.levels) <= 2001
    for percentile in (0.1, 25, 50, 75, 99.9):
        assert np.percentile(sample.levels, percentile) == pytest.approx(np.percentile(values, percentile), abs=50)
    assert sample.middle == pytest.approx(np.median(image.values), abs=60)


@pytest.mark.parametrize("others", [False, True])
def test_samples_of_whole_numbers_take_two_bytes_each_and_give_the_same_percentiles(others):
    random = np.random.default_rng(0)
    pictures = [random.integers(-1024, 3000, (100, 100)).astype(np.float32) for _ in range(5)]
    if others:  # too large, not whole
        pictures += [pictures[0] * 100, pictures[1] + 0.25]
    samples = [Sample.of(RawImage(picture, "nifti")) for picture in pictures]
    levels = [picture.ravel()[::6] for picture in pictures]
    assert [sample.levels.nbytes for sample in samples] == [2 * len(levels[0])] * 5 + [4 * len(levels[0])] * 2 * others
    for sample, expected in zip(samples, levels, strict=True):
        assert np.array_equal(sample.levels, expected)
    for limits in ((0.1, 99.9), (0, 100), (33, 77.7)):
        rule = Intensity.of({"percentile": limits}).fitted(samples)
        assert rule.window == tuple(map(float, np.percentile(np.concatenate(levels), limits)))
    broken = Sample.of(RawImage(np.where(pictures[0] > 0, pictures[0], np.nan).astype(np.float32), "nifti"))
    assert np.isnan(broken.levels).any()


@pytest.mark.parametrize("size", [28, 64, 128, 224, 256, 320, 512, 1024, 2048])
def test_samples_of_usual_sizes_are_those_of_earlier_versions(size):
    values = np.arange(size * size, dtype=np.float32).reshape(size, size)
    levels = Sample.of(RawImage(values, "raster")).levels
    assert np.array_equal(levels, values.ravel()[:: size * size // 2000 + 1])
    assert levels.base is None  # which would be the whole image, of each image of a data set


@pytest.mark.parametrize(
    "given", ["best", {"window": [5, 5]}, {"window": [1]}, {"percentile": [-1, 50]}, {"x": [0, 1]}, {}]
)
def test_unknown_rules_are_refused(given):
    with pytest.raises(InputError, match="intensity is"):
        ImageReader.of(given)


# DICOM


def linear_window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, to [0, 1]."""
    result = ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    return np.where(values <= centre - 0.5 - (width - 1) / 2, 0, result)


def test_window_and_rescale_follow_the_standard(tmp_path):
    pixels = tissue(0)
    path = write_dicom(
        tmp_path / "a", pixels, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[1400, 40], WindowWidth=[800, 400]
    )
    assert np.allclose(grey(path, "dicom"), linear_window(pixels * 2.0 - 1024, 1400, 800), atol=1e-6)
    assert np.allclose(grey(path, {"window": [0, 1000]}), ((pixels * 2.0 - 1024) / 1000).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("rule", ["dicom", {"window": [900, 1500]}, {"percentile": [0, 100]}])
@pytest.mark.parametrize("how", [{"photometric": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}])
def test_inverse_files_are_turned_round(tmp_path, rule, how):
    pixels = tissue(0)
    window = {"WindowCenter": 1200, "WindowWidth": 601, "VOILUTFunction": "LINEAR_EXACT"}
    plain = grey(write_dicom(tmp_path / "a", pixels, **window), rule)
    turned = grey(write_dicom(tmp_path / "b", pixels, **window, **how), rule)
    assert np.allclose(turned, 1 - plain, atol=1e-3)


def lut(first: int, entries: np.ndarray, bits: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.astype(np.uint16).tobytes()
    item.ModalityLUTType = "US"
    return [item]


def test_tables_are_applied(tmp_path):
    pixels = tissue(0)
    entries = np.sqrt(np.linspace(0, 1, 4096)) * 1023
    path = write_dicom(tmp_path / "a", pixels, VOILUTSequence=lut(0, entries, 10))
    assert np.allclose(grey(path), entries.astype(int)[pixels] / 1023, atol=1e-6)
    path = write_dicom(tmp_path / "b", pixels, ModalityLUTSequence=lut(0, entries, 16))
    assert np.allclose(read_dicom(path, 0).values, entries.astype(int)[pixels])


def test_without_a_window_the_stored_range_is_shown(tmp_path):
    pixels = tissue(0)
    assert np.allclose(read_dicom(write_dicom(tmp_path / "a", pixels), 0).shown, pixels / 4095, atol=1e-6)


def test_auto_takes_the_window_only_where_all_files_have_the_same(tmp_path):
    pixels = tissue(0)
    paths = [
        write_dicom(tmp_path / str(width), pixels, WindowCenter=1200, WindowWidth=width) for width in (400, 400, 800)
    ]
    reader = ImageReader.of("auto")
    same, other = paths[:2], paths[1:]
    reader.fit(reader.inspect(str(path)) for path in same)
    assert np.allclose(reader.read(paths[0])[0], linear_window(pixels, 1200, 400), atol=1e-6)
    reader = ImageReader.of("auto")
    reader.fit(reader.inspect(str(path)) for path in other)
    assert torch.equal(reader.read(paths[1]), reader.read(paths[2]))


def test_padding_is_black_and_does_not_count(tmp_path):
    pixels = tissue(0)
    pixels[:8] = 0
    path = write_dicom(tmp_path / "a", pixels, photometric="MONOCHROME1", PixelPaddingValue=0)
    image = grey(path, {"percentile": [0, 100]})
    assert (image[:8] == 0).all()
    expected = (float(pixels[8:].max()) - pixels[8:]) / np.ptp(pixels[8:])
    assert np.allclose(image[8:], expected, atol=0.01)


def test_signed_values_are_read(tmp_path):
    pixels = tissue(0).astype(np.int16) - 1200
    path = write_dicom(tmp_path / "a", pixels, bits=16, RescaleSlope=1, RescaleIntercept=0)
    assert np.allclose(grey(path, {"window": [-300, 300]}), (pixels / 600 + 0.5).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("kind", ["grey", "frames", "colour"])
def test_lossless_transfer_syntaxes_give_the_same_image(tmp_path, syntax, kind):
    colours = np.stack([tissue(seed) // 8 for seed in range(3)], axis=-1).astype(np.uint8)
    pixels = {"grey": tissue(0), "frames": np.stack([tissue(0), tissue(1)]), "colour": colours}[kind]
    photometric = "RGB" if kind == "colour" else "MONOCHROME2"
    paths = [
        write_dicom(tmp_path / f"{name}.dcm", pixels, photometric=photometric, **options)
        for name, options in (("plain", {}), ("compressed", {"syntax": syntax}))
    ]
    for frame in range(2 if kind == "frames" else 1):
        assert torch.equal(read(paths[0], frame=frame), read(paths[1], frame=frame))


def test_lossy_jpeg_is_read_as_pillow_reads_it(tmp_path):
    pixels = (tissue(0) // 8).astype(np.uint8)
    path = write_dicom(tmp_path / "a", pixels, JPEGBaseline8Bit, bits=8)
    assert np.abs(grey(path) * 255 - pixels).max() < 6


def test_eight_bits_without_a_window_are_not_stretched(tmp_path):
    pixels = (tissue(0) // 8).astype(np.uint8)
    assert np.allclose(grey(write_dicom(tmp_path / "a", pixels, bits=8)), pixels / 255, atol=1e-6)


def test_ybr_becomes_rgb(tmp_path):
    pixels = np.stack([tissue(seed) // 8 for seed in range(3)], axis=-1).astype(np.uint8)
    ybr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    path = write_dicom(tmp_path / "a", ybr, photometric="YBR_FULL", bits=8)
    assert np.abs(read(path).permute(1, 2, 0).numpy() * 255 - pixels).max() <= 3.5


def test_palettes_become_rgb(tmp_path):
    pixels = (tissue(0) // 8).astype(np.uint8)
    tables = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
    tags = {}
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    path = write_dicom(tmp_path / "a", pixels, photometric="PALETTE COLOR", bits=8, **tags)
    assert np.allclose(read(path).numpy(), tables[:, pixels] / 65535, atol=1e-6)


def test_frames_of_an_enhanced_file_have_their_own_rescale_and_window(tmp_path):
    pixels = np.stack([tissue(0), tissue(0)])
    groups = []
    for slope, centre in ((1, 1200), (2, 2400)):
        rescale, window, group = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, 0, "US"
        window.WindowCenter, window.WindowWidth = centre, 400 * slope
        window.VOILUTFunction = "LINEAR_EXACT"
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
        groups.append(group)
    path = write_dicom(tmp_path / "a", pixels, PerFrameFunctionalGroupsSequence=groups)
    assert read_dicom(path, 1).values.max() == 2 * pixels.max()
    assert np.allclose(grey(path, "dicom", 0), grey(path, "dicom", 1), atol=2e-3)


@pytest.mark.parametrize(
    "other", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"]
)
def test_files_of_pydicom_agree(other):
    folder = Path(pydicom.data.__file__).parent / "test_files"
    one, two = (read(folder / name) for name in ("MR_small.dcm", f"MR_small_{other}.dcm"))
    assert torch.equal(one, two)


# NIfTI


def test_slices_are_cut_across_the_axis_of_the_patient(tmp_path):
    volume = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    path = write_nifti(tmp_path / "a.nii.gz", volume)
    for axis in range(3):
        expected = np.rot90(volume.take(7, axis))
        image = grey(path, {"window": [0, 1]}, 7, slices=Slices(axis=axis))
        assert np.allclose(image, expected, atol=1e-6)
    assert ImageReader.of(slices=Slices(2, 5, -5, 10)).inspect(str(path)).frames == (5, 15, 25)


def test_the_orientation_in_the_file_does_not_matter(tmp_path):
    volume = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    turned = np.ascontiguousarray(volume.transpose(2, 0, 1)[::-1])
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3], affine[2, 3] = -1, 1, 1, 1, 39
    one = read(write_nifti(tmp_path / "a.nii", volume), frame=12)
    two = read(write_nifti(tmp_path / "b.nii", turned, affine), frame=12)
    assert torch.equal(one, two)


def test_empty_slices_are_left_out(tmp_path):
    volume = np.random.default_rng(0).random((20, 30, 6)).astype(np.float32)
    volume[..., [0, 5]] = 0
    assert ImageReader.of().inspect(str(write_nifti(tmp_path / "a.nii", volume))).frames == (1, 2, 3, 4)


# What cannot be read


def cut(path: Path, end: int) -> Path:
    path.write_bytes(path.read_bytes()[:end])
    return path


def spoil(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[:-1500] + b"\xff" * 1400 + content[-100:])
    return path


def broken_files(folder: Path) -> dict[str, Path]:
    volume = np.random.default_rng(0).random((20, 30, 6)).astype(np.float32)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "cut.png")
    tifffile.imwrite(folder / "pages.tif", np.zeros((3, 40, 40), np.uint16), photometric="minisblack")
    (folder / "text.png").write_text("no picture")
    (folder / "text.dcm").write_text("no picture")
    unknown = write_dicom(folder / "unknown.dcm", tissue(0))
    unknown.write_bytes(unknown.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"))
    with_nan = volume.copy()
    with_nan[3, 4, 5] = np.nan
    return {
        "image file is truncated": cut(folder / "cut.png", 3000),
        "is not an image": folder / "text.png",
        "several pages": folder / "pages.tif",
        "is no DICOM file": folder / "text.dcm",
        "bytes of pixel data where its header asks for 8192": cut(write_dicom(folder / "cut.dcm", tissue(0)), 5000),
        "has no pixel data": change_dicom(write_dicom(folder / "none.dcm", tissue(0)), PixelData=None),
        "has 8000 bytes of pixel data": change_dicom(write_dicom(folder / "a.dcm", tissue(0)), PixelData=b"1" * 8000),
        "has 9000 bytes of pixel data": change_dicom(write_dicom(folder / "b.dcm", tissue(0)), PixelData=b"1" * 9000),
        "unknown transfer syntax": unknown,
        "cannot be decoded": spoil(write_dicom(folder / "jls.dcm", tissue(0), LOSSLESS[2])),
        "ends after its header": cut(write_dicom(folder / "rle.dcm", tissue(0), LOSSLESS[0]), 3000),
        "is no NIfTI file": cut(write_nifti(folder / "a.nii", volume), 200),
        "is broken": cut(write_nifti(folder / "b.nii.gz", volume), 2000),
        "has 4 axes": write_nifti(folder / "c.nii", np.stack([volume] * 2, axis=-1)),
        "NaN or infinite": write_nifti(folder / "d.nii", with_nan),
        "No such file": folder / "gone.png",
    }


def test_what_is_wrong_with_a_file_is_said_in_words(tmp_path):
    reader = ImageReader.of()
    for words, path in broken_files(tmp_path).items():
        problem = reader.inspect(str(path)).problem
        assert words in problem, (path.name, problem)
        assert "\n" not in problem
        if "NaN" not in words:
            with pytest.raises(UnreadableError):
                reader.read(path)


@pytest.mark.parametrize(("module", "name"), [("pydicom", "a.dcm"), ("nibabel", "a.nii")])
def test_a_missing_library_gives_the_command_that_installs_it(tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_bytes(b"\0" * 400)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'needs {module}: run pip install "anomalib-msacl\[medical\]"'):
        ImageReader.of().inspect(str(tmp_path / name))
