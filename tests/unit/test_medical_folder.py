"""MedicalFolder: what it reads, how it splits, and what it says about bad input."""

from __future__ import annotations

import builtins
import io
import itertools
import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from anomalib.data import Folder
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_msacl import InputError
from anomalib_msacl.data import MedicalFolder, MedMixDataset, Slices, check_datamodule
from tests.medical_files import change_dicom, tissue, write_dicom, write_nifti

WINDOW = {"WindowCenter": 1200, "WindowWidth": 600}


def write_png(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((tissue(seed, size) // 8).astype(np.uint8)).save(path)
    return path


def write_mask(path: Path, size: tuple[int, int] = (48, 40), lesion: bool = True) -> Path:
    mask = np.zeros(size, np.uint8)
    mask[5:15, 8:20] = 255 * lesion
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    for index in range(8):
        write_png(tmp_path / f"good/p{index // 2}/{index}.png", index)
    for index in range(4):
        write_png(tmp_path / f"held_out/q{index}/{index}.png", 20 + index)
        write_png(tmp_path / f"bad/r{index // 2}/{index}.png", 40 + index)
        write_mask(tmp_path / f"masks/r{index // 2}/{index}.png")
    return tmp_path


def make(root: Path, **changes) -> MedicalFolder:
    given = {"normal_dir": "good", "abnormal_dir": "bad", "normal_test_dir": "held_out", "mask_dir": "masks", "seed": 0}
    return MedicalFolder("mine", root, **(given | changes))


def ready(root: Path, **changes) -> MedicalFolder:
    folder = make(root, **changes)
    folder.setup()
    return folder


def message_of(root: Path, **changes) -> str:
    with pytest.raises(InputError) as caught:
        ready(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What it reads


def test_pictures_of_eight_bits_are_those_of_anomalibs_folder(root):
    ours = ready(root, val_split_mode="none")
    theirs = Folder("mine", "good", root, "bad", "held_out", "masks", val_split_mode="none", seed=0)
    theirs.setup()
    assert isinstance(ours, Folder)
    for subset in ("train_data", "test_data"):
        one, two = ({item.image_path: item for item in getattr(data, subset)} for data in (ours, theirs))
        assert one.keys() == two.keys()
        for path, item in one.items():
            torch.testing.assert_close(item.image, two[path].image, rtol=0, atol=2e-7)
            assert torch.equal(item.gt_mask, two[path].gt_mask)
            assert item.gt_label == two[path].gt_label


def test_check_datamodule_takes_over_what_is_known(root):
    plain, other = (check_datamodule(ready(root, intensity=rule)) for rule in ("auto", {"window": [0, 200]}))
    assert plain.keys() == other.keys()
    assert not set(plain.values()) & set(other.values())  # weights made with another window must not be reused


def test_files_of_all_kinds_stand_side_by_side(tmp_path):
    for index in range(4):
        write_dicom(tmp_path / f"good/1.2.840.{index}", tissue(index), **WINDOW)  # a name without an extension
    Image.fromarray(tissue(5)).save(tmp_path / "good/deep.png")
    write_dicom(tmp_path / "good/frames.dcm", np.stack([tissue(6), tissue(7), tissue(8)]), **WINDOW)
    write_nifti(
        tmp_path / "good/volume.nii.gz", np.stack([tissue(9 + k) for k in range(5)], axis=-1).astype(np.float32)
    )
    (tmp_path / "good/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    folder = ready(
        tmp_path, abnormal_dir=None, normal_test_dir=None, mask_dir=None, slices=Slices(start=1), val_split_mode="none"
    )
    names = sorted([*folder.train_data.samples["name"], *folder.test_data.samples["name"]])
    expected = [f"good/1.2.840.{index}" for index in range(4)] + ["good/deep.png"]
    expected += [f"good/frames.dcm_{frame:04d}" for frame in (1, 2)]
    expected += [f"good/volume.nii.gz_{frame:04d}" for frame in range(1, 5)]
    assert names == expected
    for item in folder.train_data:
        assert item.image.shape == (3, 64, 64)
        assert 0 <= item.image.min() < item.image.max() <= 1


def test_files_without_an_ending_are_opened_once_more_than_others(tmp_path, monkeypatch):
    """For the first bytes, which say that they are DICOM; all steps of a setup share what was read."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # several threads may leave the header of a file among the last ones
    opened = []
    for module, original in ((builtins, builtins.open), (io, io.open)):

        def watched(file, *given, original=original, **options):
            opened.append(str(file))
            return original(file, *given, **options)

        monkeypatch.setattr(module, "open", watched)
    times = {}
    for ending in ("", ".dcm"):
        root = tmp_path / f"all{ending}"
        paths = [root / f"good/{index}{ending}" for index in range(20)]
        for index, path in enumerate(paths):
            write_dicom(path, tissue(index))
        opened.clear()
        options = {"patient_tag": "PatientID", "val_split_mode": "none", "test_split_mode": "none"}
        MedicalFolder("mine", root, "good", **options).setup()
        times[ending] = {opened.count(str(path)) for path in paths}
    assert times[""] == {number + 1 for number in times[".dcm"]}


def test_slices_with_and_without_a_lesion(tmp_path):
    for index in range(3):
        volume = np.stack([tissue(10 * index + k) for k in range(6)], axis=-1).astype(np.int16)
        write_nifti(tmp_path / f"{'bad' if index == 2 else 'good'}/{index}.nii.gz", volume)
    mask = np.zeros((64, 64, 6), np.uint8)
    mask[10:20, 30:50, 2:4] = 1
    write_nifti(tmp_path / "masks/2_seg.nii.gz", mask)
    folder = ready(tmp_path, normal_test_dir=None, test_split_mode="none", val_split_mode="none")
    test = folder.test_data
    assert test.samples.sort_values("frame")["label_index"].tolist() == [0, 0, 1, 1, 0, 0]
    lesion = next(item for item in test if item.gt_label)
    assert torch.equal(lesion.gt_mask, torch.from_numpy(np.rot90(mask[..., 2]).copy()))
    assert Path(lesion.image_path).suffix == ".png"  # what anomalib's visualiser opens
    assert np.allclose(np.asarray(Image.open(lesion.image_path)), lesion.image.permute(1, 2, 0) * 255, atol=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_drawn_when_somebody_looks_at_them(tmp_path, workers):
    for index in range(4):
        write_dicom(tmp_path / f"good/{index}.dcm", tissue(index), **WINDOW)
        write_dicom(tmp_path / f"bad/{index}.dcm", tissue(10 + index), **WINDOW)
    options = {"normal_test_dir": None, "mask_dir": None, "test_split_mode": "none", "val_split_mode": "none"}
    folder = ready(tmp_path, **options, eval_batch_size=2, num_workers=workers)

    def pictures() -> list[Path]:
        return [path for path in folder.test_data.previews.path.rglob("*") if path.is_file()]

    first, second = folder.test_dataloader()
    assert first.image_path == [str(tmp_path / f"bad/{index}.dcm") for index in range(2)]
    assert not pictures()
    shown = [item.image_path for item in first]
    assert sorted(map(str, pictures())) == sorted(shown)
    read = [folder.test_data[index] for index in range(4)]
    assert len(pictures()) == 2
    assert [item.image_path for item in read] == shown + [item.image_path for item in second]
    for path, item in zip(map(Path, shown), read, strict=False):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(to_pil_image(item.image)))
    assert len(pictures()) == 4


def test_without_any_abnormal_image(root):
    folder = ready(root, abnormal_dir=None, normal_test_dir=None, mask_dir=None, test_split_ratio=0.25)
    sizes = [len(getattr(folder, f"{name}_data")) for name in ("train", "val", "test")]
    assert sizes == [4, 2, 2]
    assert isinstance(folder.val_data, MedMixDataset)
    assert folder.test_data.samples["label_index"].tolist() == [0] * len(folder.test_data)


def test_the_layout_of_medianomaly(root):
    shutil.move(root / "good", root / "images")
    names = sorted(path.relative_to(root / "images").as_posix() for path in (root / "images").rglob("*.png"))
    lists = {"train": {"0": names[:4]}, "test": {"0": names[4:6], "1": names[6:]}}
    (root / "data.json").write_text(json.dumps(lists))
    folder = MedicalFolder("mine", root, data_json="data.json", val_split_mode="none", seed=0)
    folder.setup()
    assert [name.removeprefix("images/") for name in folder.train_data.samples["name"]] == names[:4]
    assert folder.test_data.samples["label_index"].tolist() == [0, 0, 1, 1]

    lists["test"]["1"] = ["../held_out/q0/0.png"]
    (root / "data.json").write_text(json.dumps(lists))
    folder.setup()
    assert folder.test_data.samples["name"].tolist()[0] == "held_out/q0/0.png"
    lists["test"]["1"] = ["../../elsewhere.png"]
    (root / "data.json").write_text(json.dumps(lists))
    (root.parent / "elsewhere.png").touch()
    for data, words in (
        (lists, "lies outside the root"),
        ({**lists, "test": {"1": ["nothing.png"]}}, "1 files that are missing"),
        ({"train": {"0": names, "1": ["x"]}}, "remove train.1"),
        ({"train": {"0": [names[0]] * 2}}, "listed more than once"),
        ({"training": []}, "lists of names in train.0"),
    ):
        (root / "data.json").write_text(json.dumps(data))
        with pytest.raises(InputError, match=words):
            MedicalFolder("mine", root, data_json="data.json").setup()


def test_listed_images_have_the_masks_of_their_place(root):
    lists = {"train": {"0": ["good/p0/0.png", "good/p0/1.png"]}, "test": {"1": ["bad/r0/0.png", "bad/r1/0.png"]}}
    (root / "data.json").write_text(json.dumps(lists))
    write_png(root / "bad/r1/0.png", 77)
    for place in ("r0", "r1"):
        write_mask(root / f"truth/bad/{place}/0_seg.png")
    options = {"image_dir": ".", "mask_dir": "truth", "test_split_mode": "none", "val_split_mode": "none"}
    data = MedicalFolder("mine", root, data_json="data.json", **options)
    data.setup()
    pairs = data.test_data.samples[["image_path", "mask_path"]].to_numpy().tolist()
    assert pairs == [[str(root / f"bad/{p}/0.png"), str(root / f"truth/bad/{p}/0_seg.png")] for p in ("r0", "r1")]


def test_images_of_several_folders_never_share_a_mask(root):
    folders = {"abnormal_dir": ["bad/r0", "bad/r1"], "normal_test_dir": None, "val_split_mode": "none"}
    write_png(root / "bad/r1/0.png", 77)
    write_mask(root / "masks/r1/0.png")
    for index in range(4):
        write_mask(root / f"truth/{index}.png")
    said = message_of(root, **folders, mask_dir="truth")
    assert re.search(r"1 masks would .* several images each, .*truth/0.png \(.*r0/0.png and .*r1/0.png\); name a", said)
    assert "name a mask folder for each abnormal_dir" in said
    pairs = ready(root, **folders, mask_dir=["masks/r0", "masks/r1"]).test_data.samples
    pairs = pairs[pairs["label_index"] == 1]
    assert (pairs["mask_path"] == pairs["image_path"].str.replace("/bad/", "/masks/")).all()
    write_png(root / "bad/r0/0_mask.png", 78)  # whose own mask, and that of 0.png, the same file could be
    (root / "masks/r0/0.png").rename(root / "masks/r0/0_mask.png")
    assert "1 masks would belong" in message_of(root, **folders, mask_dir=["masks/r0", "masks/r1"])


def test_images_without_masks_may_have_one_name(root):
    write_png(root / "good/p0/0.bmp", 77)
    write_png(root / "held_out/q0/0.bmp", 78)
    assert len(ready(root, val_split_mode="none").train_data) == 9
    write_png(root / "bad/r0/0.bmp", 79)
    assert ready(root, mask_dir=None).test_data.samples["label_index"].sum() == 5


def test_settings_that_exclude_each_other(root):
    for changes, words in (
        ({"data_json": "data.json"}, "either normal_dir"),
        ({"val_split_mode": "synthetic"}, "val_split_mode is synthetic: set it to medmix"),
        ({"test_split_mode": "synthetic"}, "reads 8-bit images only"),
        ({"duplicates": "maybe"}, "duplicates is maybe"),
        ({"patient_pattern": "(", "patient_tag": None}, "no regular expression"),
        ({"patient_pattern": "a", "patient_tag": "PatientID"}, "choose one"),
        ({"intensity": "best"}, "intensity is best"),
    ):
        with pytest.raises(InputError, match=words):
            make(root, **changes)
    with pytest.raises(InputError, match="axis to 0, 1 or 2"):
        Slices(axis=3)


# Patients and duplicates


@pytest.mark.parametrize("mode", ["medmix", "from_train"])
def test_patients_by_pattern_are_kept_together(root, mode):
    folder = ready(root, patient_pattern=r"/(p\d|q\d|r\d)/", val_split_mode=mode, val_split_ratio=0.5)
    train, val = (set(data.samples["patient"]) for data in (folder.train_data, folder.val_data))
    assert not train & val
    assert train | val == {"p0", "p1", "p2", "p3"}
    assert len(folder.train_data) == len(folder.val_data) == 4


def test_patients_by_tag(tmp_path):
    for index in range(6):
        write_dicom(tmp_path / f"good/{index}.dcm", tissue(index), PatientID=f"P{index // 2}", **WINDOW)
    options = {"abnormal_dir": None, "normal_test_dir": None, "mask_dir": None, "patient_tag": "PatientID"}
    folder = ready(tmp_path, test_split_ratio=0.34, val_split_mode="none", **options)
    assert len(folder.test_data) == 2
    assert not set(folder.train_data.samples["patient"]) & set(folder.test_data.samples["patient"])
    change_dicom(tmp_path / "good/3.dcm", PatientID=None)
    assert "patient_tag PatientID names no patient for good/3.dcm: change it" in message_of(tmp_path, **options)


def test_nobody_is_called_a_patient_without_a_rule(root):
    folder = ready(root)
    assert "patient" not in folder.train_data.samples
    assert "patient" not in folder.test_data.samples


def test_a_list_names_all_patients_or_none(root):
    class Listed(MedicalFolder):
        def list_files(self):
            return [
                replace(file, patient="P" if file.path.stem == "3" and "good" in file.path.parts else "")
                for file in super().list_files()
            ]

    with pytest.raises(InputError, match=r"the list of files names no patient for .*good/p0/0\.png.*: change it"):
        Listed("mine", root, "good", normal_test_dir="held_out").setup()


def test_slices_of_a_file_stay_together_without_patients(tmp_path):
    for index in range(6):
        volume = np.stack([tissue(3 * index + k, (48, 40)) for k in range(3)], axis=-1).astype(np.float32)
        write_nifti(tmp_path / f"good/{index}.nii.gz", volume)
    options = {"abnormal_dir": None, "normal_test_dir": None, "mask_dir": None}
    folder = ready(tmp_path, val_split_mode="from_train", val_split_ratio=0.5, **options)
    parts = [data.samples["image_path"] for data in (folder.train_data, folder.val_data, folder.test_data)]
    assert [len(part) for part in parts] == [3 * part.nunique() for part in parts]
    assert sum(part.nunique() for part in parts) == len(set().union(*parts)) == 6


def test_a_patient_on_both_sides(root):
    message = message_of(root, patient_pattern=r"[pqr](\d)/")
    assert "4 patients are among both the training and the test images, 0, 1, 2, 3" in message
    assert "names no patient for bad/r0/0.png" in message_of(root, patient_pattern="p[0-9]|q[0-9]")


def test_duplicates_are_found_by_their_pixels(root, caplog):
    Image.open(root / "good/p0/0.png").save(root / "held_out/copy.bmp")  # other bytes, the same picture
    assert "1 test images are training images pixel for pixel, held_out/copy.bmp (same as good/p0/0.png)" in message_of(
        root
    )
    with caplog.at_level(logging.WARNING):
        ready(root, duplicates="list")
    assert "held_out/copy.bmp" in caplog.text
    caplog.clear()
    ready(root, duplicates="ignore")
    assert not caplog.text


def test_copies_are_never_on_two_sides_of_a_split(tmp_path):
    for index in range(8):
        write_png(tmp_path / f"good/p{index}/{index}.png", index)
        Image.open(tmp_path / f"good/p{index}/{index}.png").save(tmp_path / f"good/p{index}/copy.bmp")
    Image.open(tmp_path / "good/p0/0.png").save(tmp_path / "good/p1/other.png")  # two patients with one image
    options = {"abnormal_dir": None, "normal_test_dir": None, "mask_dir": None, "test_split_ratio": 0.3}
    for seed, pattern in itertools.product(range(2), (None, r"/(p\d)/")):
        folder = ready(tmp_path, val_split_mode="from_train", seed=seed, patient_pattern=pattern, **options)
        parts = [set(data.samples["pixels"]) for data in (folder.train_data, folder.val_data, folder.test_data)]
        assert all(parts)
        assert sum(map(len, parts)) == len(set().union(*parts)) == 8


def test_copies_leave_enough_images_for_a_validation_with_lesions(root):
    for index in range(8):
        Image.open(root / "good/p0/0.png").save(root / f"good/p0/copy{index}.bmp")
    folder = ready(root, val_split_mode="medmix", val_split_ratio=0.1)
    assert folder.val_data.samples["pixels"].nunique() > 1


def test_differing_windows_are_warned_about(tmp_path, caplog):
    for index in range(4):
        write_dicom(tmp_path / f"good/{index}", tissue(index), WindowCenter=1200, WindowWidth=400 + 100 * index)
    with caplog.at_level(logging.WARNING):
        ready(tmp_path, abnormal_dir=None, normal_test_dir=None, mask_dir=None, intensity="dicom")
    assert "4 different DICOM windows" in caplog.text


# Bad input: all offending files in one sentence


def test_all_files_that_cannot_be_read_are_listed(root, caplog):
    for index in range(7):
        path = next((root / "good").rglob(f"{index}.png"))
        path.write_bytes(path.read_bytes()[:300])
    (root / "bad/r0/0.png").write_text("no picture")
    message = message_of(root)
    assert message.startswith("8 files cannot be used: ")
    assert message.count(".png") == 5
    assert "and 3 more" in message
    assert caplog.text.count("good/") == 7


def add_colours(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "good/colours.png")


def blacken(root: Path) -> None:
    for index in (0, 1):
        Image.new("L", (40, 48)).save(root / f"good/p0/{index}.png")


DAMAGES = {
    "2 images are of one value throughout, as black ones are": blacken,
    "a.nii holds NaN or infinite": lambda root: write_nifti(
        root / "good/a.nii", np.full((9, 9, 4), np.nan, np.float32)
    ),
    "1 images are coloured among grey ones": add_colours,
    r"1 masks are of another size .*0.png \(20 x 24, image 40 x 48\)": lambda root: write_mask(
        root / "masks/r0/0.png", (24, 20)
    ),
    "1 masks of abnormal images are empty": lambda root: write_mask(root / "masks/r1/2.png", lesion=False),
    "1 masks cannot be used: .*2.png is not an image": lambda root: (root / "masks/r1/2.png").write_text("no picture"),
    r"1 abnormal images have no mask, or more than one, .*2.png \(0 masks\)": lambda root: (
        root / "masks/r1/2.png"
    ).unlink(),
    r"2.png \(2 masks\)": lambda root: write_mask(root / "masks/r1/2_mask.png"),
    "two files of a folder have one name, .*0.bmp and 0.png|0.png and 0.bmp": lambda root: write_png(
        root / "bad/r0/0.bmp", 77
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_bad_input_is_named(root, message):
    DAMAGES[message](root)
    with pytest.raises(InputError, match=message):
        ready(root)


def test_folders_that_are_missing_empty_or_outside(root):
    assert "normal_dir 'typo' is missing below" in message_of(root, normal_dir="typo")
    (root / "empty").mkdir()
    assert "abnormal_dir 'empty' below" in message_of(root, abnormal_dir="empty")
    assert "lies outside the root" in message_of(
        root / "good", normal_dir="p0", abnormal_dir="../bad", mask_dir=None, normal_test_dir=None
    )
    assert "the root folder" in message_of(root / "nowhere")
    assert "one for each, or one for all" in message_of(root, mask_dir=["masks/r0", "masks/r1"])


def test_colours_among_grey_images_can_be_accepted_as_grey(root):
    add_colours(root)
    assert len(ready(root, grey=True, val_split_mode="none").train_data) == 9


def test_mixed_sizes_need_a_resize(root, make_patchcore, make_engine):
    write_png(root / "good/p0/large.png", 99, (80, 70))
    engine = make_engine()
    engine.fit(make_patchcore(), datamodule=make(root))
    with pytest.raises(InputError, match=r"images have 2 different sizes, most of them 40 x 48 but not .*large.png"):
        engine.fit(make_patchcore(pre_processor=False), datamodule=make(root))


# Masks of volumes

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.array([[0.68, 0.12, 0.1, -90.3], [-0.1, 0.69, -0.2, -110.2], [-0.13, 0.11, 2.9, 41.7], [0, 0, 0, 1]])


def with_volume(root: Path, mask: np.ndarray, of_image: np.ndarray, of_mask: np.ndarray) -> MedicalFolder:
    """A datamodule of two normal volumes and an abnormal one of 6 slices, with a mask."""
    for index in range(3):
        volume = np.stack([tissue(10 * index + k, (24, 20)) for k in range(6)], axis=-1).astype(np.int16)
        write_nifti(root / f"{'bad' if index == 2 else 'good'}/{index}.nii.gz", volume, of_image)
    write_nifti(root / "masks/2.nii.gz", mask, of_mask)
    return make(root, normal_test_dir=None, test_split_mode="none", val_split_mode="none")


def lesion_in(slices: slice, number: int = 6) -> np.ndarray:
    mask = np.zeros((24, 20, number), np.uint8)
    mask[3:9, 4:14, slices] = 1
    return mask


@pytest.mark.parametrize("name", ["the same", "rounded", "stored in another order"])
def test_masks_with_the_header_of_their_volume_fit(tmp_path, name):
    affine, mask = OBLIQUE, lesion_in(slice(0, 2))
    if name == "rounded":
        affine = OBLIQUE + np.random.default_rng(0).uniform(-1, 1, (4, 4)) * np.array([[1e-4], [1e-4], [1e-4], [0]])
    if name == "stored in another order":
        turned = np.array([[2, -1], [0, 1], [1, -1]])
        affine = OBLIQUE @ nibabel.orientations.inv_ornt_aff(turned, mask.shape)
        mask = nibabel.orientations.apply_orientation(mask, turned)
    folder = with_volume(tmp_path, mask, OBLIQUE, affine)
    folder.setup()
    assert folder.test_data.samples.sort_values("frame")["label_index"].tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("mask", "of_image", "of_mask", "message"),
    [
        (
            lesion_in(slice(2)),
            LPS,
            np.eye(4),
            r"lies up to \S+ mm from its image 2.nii.gz by .*: save the mask with the",
        ),
        (lesion_in(slice(2)), np.diag([1.0, 1.0, -1.0, 1.0]), np.eye(4), "lies up to 5 mm from"),
        (lesion_in(slice(2)), np.eye(4), np.eye(4) + 0.5 * np.eye(4, k=3), "lies up to 0.5 mm from"),
        (lesion_in(slice(3, 5), 9), np.eye(4), np.eye(4), "has 24 x 20 x 9 voxels and its image 2.nii.gz 24 x 20 x 6"),
        (lesion_in(slice(2), 4), np.eye(4), np.eye(4), "has 24 x 20 x 4 voxels"),
    ],
)
def test_masks_of_other_voxels_than_those_of_their_volume_are_refused(tmp_path, mask, of_image, of_mask, message):
    with pytest.raises(InputError, match=f"2.nii.gz {message}"):
        with_volume(tmp_path, mask, of_image, of_mask).setup()


@pytest.mark.parametrize(("frames", "of_mask"), [(5, 1), (5, 3), (1, 5)])
def test_masks_of_another_number_of_frames_are_refused(tmp_path, frames, of_mask):
    for index in range(2):
        write_dicom(tmp_path / f"good/{index}.dcm", tissue(index))
    pixels = np.stack([tissue(index) for index in range(5)])
    mask = np.zeros((5, 64, 64), np.uint8)
    mask[:, 5:15, 5:15] = 255
    write_dicom(tmp_path / "bad/0.dcm", pixels if frames > 1 else pixels[0])
    write_dicom(tmp_path / "masks/0.dcm", mask[:of_mask] if of_mask > 1 else mask[0], bits=8)
    said = message_of(tmp_path, normal_test_dir=None, test_split_mode="none")
    assert (
        f"masks/0.dcm has {of_mask} slices or frames and its image 0.dcm {frames}: give the mask one for each" in said
    )
    if of_mask == 1:  # a picture is of one slice, too
        (tmp_path / "masks/0.dcm").unlink()
        Image.fromarray(mask[0]).save(tmp_path / "masks/0.png")
        assert "0.png has 1 slices or frames" in message_of(tmp_path, normal_test_dir=None, test_split_mode="none")


# What the log says of the intensity


def write_window(root: Path) -> None:
    for index in range(4):
        write_dicom(root / f"good/{index}.dcm", tissue(index), **WINDOW)


def write_ct(root: Path) -> None:
    for index in range(4):
        write_dicom(root / f"good/{index}.dcm", tissue(index), WindowCenter=1200, WindowWidth=400 + index)


def write_deep(root: Path) -> None:
    (root / "good").mkdir()
    for index in range(4):
        Image.fromarray(tissue(index)).save(root / f"good/{index}.png")


def write_grey(root: Path) -> None:
    for index in range(4):
        write_png(root / f"good/{index}.png", index)


def write_colours(root: Path) -> None:
    for index in range(4):
        (root / "good").mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"good/{index}.png")


def write_both(root: Path) -> None:
    write_window(root)
    write_nifti(root / "good/a.nii", np.stack([tissue(k) for k in range(9, 12)], axis=-1).astype(np.float32))


@pytest.mark.parametrize(
    ("write", "intensity", "told"),
    [
        (write_window, "auto", r"auto: DICOM files by their common window \(1200.* / 600.* LINEAR\)$"),
        (write_ct, "auto", r"auto: values from 90\d(\.\d+)? to 1[45]\d\d(\.\d+)?$"),
        (write_deep, "auto", r"auto: integers of 12 bits as 0 to 4095$"),
        (write_grey, "auto", r"auto: integers of 8 bits as 0 to 255$"),
        (write_colours, "auto", r"auto: colours by the highest value of their type$"),
        (write_both, "auto", r"auto: DICOM files by .* LINEAR\); other files from \S+ to \S+$"),
        (write_ct, "dicom", r"dicom: each DICOM file by its own window$"),
        (write_ct, {"window": [1000, 1400]}, r"window \[1000.0, 1400.0\]: values from 1000 to 1400$"),
        (write_ct, {"percentile": [1, 99]}, r"percentile \[1.0, 99.0\]: values from 9\d\d\S* to 1[45]\d\d\S*$"),
    ],
)
def test_the_log_says_what_the_intensity_rule_has_come_to(tmp_path, caplog, write, intensity, told):
    write(tmp_path)
    with caplog.at_level(logging.INFO):
        MedicalFolder(
            "mine", tmp_path, "good", intensity=intensity, test_split_mode="none", val_split_mode="none"
        ).setup()
    lines = [record.getMessage() for record in caplog.records]
    line = next(line for line in lines if line.startswith("Intensity of mine: "))
    assert re.match(told, line.removeprefix("Intensity of mine: ")), line
