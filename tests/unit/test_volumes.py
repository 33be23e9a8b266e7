"""Slices of NIfTI volumes: which voxels they show, and what it takes to read them."""

from __future__ import annotations

import gzip
import itertools
import logging
import pickle
import shutil
import threading
import tracemalloc
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff

from anomalib_msacl import InputError
from anomalib_msacl.data import MedicalFolder, Slices
from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.medical import unpacked
from anomalib_msacl.medical.nifti import nifti_slices, read_nifti
from anomalib_msacl.medical.unpacked import in_memory
from tests.medical_files import write_nifti

SHAPE = (12, 10, 7)
ORDERS = ["".join(axes) for axes in itertools.permutations(("L", "P", "S"))] + ["RAS", "RPI", "IAL"]
KINDS = {"int16": ("<i2", None), "scaled": ("<i2", 0.37), "float32": ("<f4", None), "big endian": (">u2", None)}


def save(path: Path, order: str = "RAS", kind: str = "int16", seed: int = 0) -> Path:
    """Save noise that is stored in an order of axes; the values of its voxels are those of RAS order."""
    number, scale = KINDS[kind]
    volume = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(np.float64) * (scale or 1)
    turn = axcodes2ornt(order)
    stored = apply_orientation(volume, nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), turn))
    affine = inv_ornt_aff(nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), turn), SHAPE)
    header = nibabel.Nifti1Header(endianness=number[0])
    header.set_data_dtype(np.dtype(number))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(stored if scale else stored.astype(number), affine, header), path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_slices_are_those_of_nibabels_canonical_volume(tmp_path, order, kind, ending):
    path = save(tmp_path / f"volume{ending}", order, kind)
    image = nibabel.load(path)
    assert "".join(nibabel.aff2axcodes(image.affine)) == order
    volume = nibabel.as_closest_canonical(image).get_fdata()
    assert volume.shape == SHAPE
    for axis in range(3):
        assert nifti_slices(path, Slices(axis)) == list(range(SHAPE[axis]))
        for index in range(SHAPE[axis]):
            found = read_nifti(path, index, Slices(axis)).values
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, np.rot90(volume.take(index, axis)), rtol=1e-6)


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_does_not_cost_the_memory_of_its_volume(tmp_path, axis):
    """NumPy's ``take`` copied all of a volume for every slice, which took a hundred times as long."""
    volume = np.random.default_rng(0).integers(0, 900, (64, 64, 64)).astype(np.int16)
    path = write_nifti(tmp_path / "volume.nii", volume, np.eye(4))
    read_nifti(path, 0, Slices(axis))  # what is imported and kept the first time
    tracemalloc.start()
    read_nifti(path, 30, Slices(axis))
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < volume.nbytes / 4


def test_an_image_that_was_changed_leaves_the_volume_as_it_was(tmp_path):
    path = save(tmp_path / "volume.nii", kind="float32")
    first = read_nifti(path, 2, Slices()).values
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(read_nifti(path, 2, Slices()).values, expected)


def test_volumes_of_colours_and_of_no_orientation_are_told(tmp_path):
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "colours.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), tmp_path / "complex.nii")
    flat = nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), None)
    flat.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nibabel.save(flat, tmp_path / "flat.nii")
    for name in ("colours.nii", "complex.nii"):
        with pytest.raises(UnreadableError, match="holds colours or complex numbers: save one number for each voxel"):
            nifti_slices(tmp_path / name, Slices())
    with pytest.raises(UnreadableError, match="has an affine that leaves out an axis"):
        nifti_slices(tmp_path / "flat.nii", Slices())


# Training asks for slices in any order


@pytest.fixture(autouse=True)
def _on_a_disk(tmp_path, monkeypatch):
    """Wherever the folder for temporary files of this machine lies."""
    mounts = tmp_path.with_name(f"{tmp_path.name}-mounts")
    mounts.write_text("/dev/sda / ext4 rw 0 0\n")
    monkeypatch.setattr(unpacked, "_MOUNTS", mounts)


def folder(root: Path) -> MedicalFolder:
    for index in range(6):
        save(root / f"train/{index}.nii.gz", seed=index)
    data = MedicalFolder("mine", root, normal_dir="train", val_split_mode="none", test_split_mode="none")
    data.setup()
    return data


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the compressed files that are opened, each time."""
    names: list[str] = []
    for module, name in ((gzip, "open"), (nibabel, "load")):
        original = getattr(module, name)

        def watched(path, *given, original=original):
            if Path(path).suffix == ".gz":
                names.append(Path(path).name)
            return original(path, *given)

        monkeypatch.setattr(module, name, watched)
    return names


def test_training_unpacks_each_volume_once_whatever_the_order(tmp_path, opened):
    data = folder(tmp_path)
    expected = {
        (path, frame): data.reader.read(path, frame)
        for path, frame in zip(data.train_data.samples.image_path, data.train_data.samples.frame, strict=True)
    }
    opened.clear()
    dataset = pickle.loads(pickle.dumps(data.train_data))  # as a process that loads data has it
    for index in torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist():
        item = dataset[index]
        assert item.image_path == item.file
        assert torch.equal(item.image, expected.pop((item.file, item.frame)))
    assert not expected
    assert sorted(opened) == [f"{index}.nii.gz" for index in range(6)]
    copies = data.train_data.volumes.folder.path
    assert len(list(copies.iterdir())) == 6
    del data
    assert not copies.exists()


def test_without_room_slices_are_read_from_the_compressed_files(tmp_path, monkeypatch, caplog):
    data = folder(tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30))
    with caplog.at_level(logging.WARNING):
        items = [data.train_data[index] for index in (3, 40, 8)]
    assert caplog.text.count("slices are read from compressed files, which takes longer; set TMPDIR to a folder") == 1
    for item in items:
        assert torch.equal(item.image, data.reader.read(item.file, item.frame))
    assert not list(data.train_data.volumes.folder.path.iterdir())


@pytest.mark.parametrize("end", [b"behind", b"\xff\xff\xff\xff"])
def test_a_broken_volume_stays_as_it_is_and_the_others_are_unpacked(tmp_path, opened, caplog, end):
    """Its slices are whole: something stands behind them, which the unpacking asks for once, or takes for a length."""
    data = folder(tmp_path)
    with (tmp_path / "train/2.nii.gz").open("ab") as file:
        file.write(end)
    opened.clear()
    with caplog.at_level(logging.WARNING):
        items = [data.train_data[index] for index in range(len(data.train_data))]
    for item in items:
        assert torch.equal(item.image, data.reader.read(item.file, item.frame))
    assert len(list(data.train_data.volumes.folder.path.iterdir())) == 5
    assert caplog.text.count("2.nii.gz cannot be unpacked (") == caplog.text.count("cannot be unpacked") == 1


def test_a_volume_for_which_there_is_no_room_does_not_keep_smaller_ones_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "_length", lambda path: 2**40 if path.endswith("0.nii.gz") else 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(2**31))
    data = folder(tmp_path)
    for index in range(len(data.train_data)):
        data.train_data[index]
    assert len(list(data.train_data.volumes.folder.path.iterdir())) == 5


def test_nothing_is_unpacked_into_memory(tmp_path, monkeypatch, caplog):
    data = folder(tmp_path)
    unpacked._MOUNTS.write_text(
        f"/dev/sda / ext4 rw 0 0\ntmpfs {data.train_data.volumes.folder.path.parent} tmpfs 0 0\n"
    )
    with caplog.at_level(logging.WARNING):
        item = data.train_data[3]
    assert torch.equal(item.image, data.reader.read(item.file, item.frame))
    assert "(which lies in memory), so slices are read from compressed files" in caplog.text
    assert not list(data.train_data.volumes.folder.path.iterdir())


def test_the_nearest_mount_says_whether_a_folder_lies_in_memory(tmp_path):
    lines = [
        "/dev/sda / ext4 rw 0 0",
        "tmpfs /tmp tmpfs rw 0 0",
        r"/dev/sdb /tmp/a\040disk xfs rw 0 0",
        "a /b ext4 0 0",
    ]
    unpacked._MOUNTS.write_text("\n".join([*lines, "ramfs /b ramfs 0 0"]))
    folders = {"/tmp/x": True, "/tmp": True, "/tmp/a disk/x": False, "/tmpx": False, "/home": False, "/b/c": True}
    assert {name: in_memory(Path(name)) for name in folders} == folders
    unpacked._MOUNTS.unlink()
    assert not in_memory(tmp_path)


def test_a_volume_that_breaks_after_the_check_is_named(tmp_path):
    data = folder(tmp_path)
    path = Path(data.train_data.samples.image_path[0])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"0\.nii\.gz, or its mask, is"):
        data.train_data[0]


def test_threads_that_read_a_volume_each_unpack_it_once(tmp_path, monkeypatch):
    """As a screening does, whose workers would push each other's volumes out of a common memory."""
    paths = [save(tmp_path / f"{index}.nii.gz", seed=index) for index in range(12)]
    loaded, load = [], nibabel.load
    monkeypatch.setattr(nibabel, "load", lambda path: loaded.append(path) or load(path))
    turn = threading.Barrier(len(paths))

    def read(path: Path) -> None:
        for index in range(SHAPE[2]):
            turn.wait()
            read_nifti(path, index, Slices())

    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(read, paths))
    assert sorted(loaded) == sorted(paths)


@pytest.mark.parametrize("loads", [False, True])
def test_processes_that_load_test_images_use_copies(tmp_path, monkeypatch, loads):
    """Each of them gets slices of every volume."""
    for index in range(2):
        save(tmp_path / f"good/{index}.nii.gz", seed=index)
        save(tmp_path / f"bad/{index}.nii.gz", seed=5 + index)
        mask = np.zeros(SHAPE, np.uint8)
        mask[2:5, 2:5, 1:3] = 1
        write_nifti(tmp_path / f"masks/{index}.nii.gz", mask, nibabel.load(tmp_path / f"bad/{index}.nii.gz").affine)
    folders = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": "masks"}
    data = MedicalFolder("mine", tmp_path, **folders, val_split_mode="none", test_split_mode="none")
    data.setup()
    expected = [(item.image, item.gt_mask) for item in data.test_data]
    assert sum(int(mask.any()) for _, mask in expected) == 4
    if loads:
        monkeypatch.setattr("anomalib_msacl.medical.dataset.get_worker_info", lambda: 1)
    for item, (image, mask) in zip(data.test_data, expected, strict=True):
        assert torch.equal(item.image, image)
        assert torch.equal(item.gt_mask, mask)
    assert len(list(data.test_data.volumes.folder.path.iterdir())) == (4 if loads else 0)
