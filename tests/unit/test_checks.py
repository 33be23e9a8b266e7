"""Bad input is named in one sentence, by the data checks and on the command line."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import Folder
from jsonargparse import ArgumentParser
from PIL import Image
from torchvision.transforms.v2 import Compose, RandomHorizontalFlip

from anomalib_msacl import MedMix
from anomalib_msacl.data import CheckedFolder, check_datamodule
from anomalib_msacl.errors import InputError


def write_images(folder: Path, count: int, seed: int, side: int = 40, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}{suffix}")


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "good", 5, 1)
    write_images(tmp_path / "bad", 4, 2, suffix=".jpg")
    write_images(tmp_path / "held_out", 4, 3)
    write_images(tmp_path / "masks", 4, 4)
    return tmp_path


def make(root: Path, kind: type[Folder] = CheckedFolder, **changes) -> Folder:
    folders = {"normal_dir": "good", "abnormal_dir": "bad", "normal_test_dir": "held_out", "seed": 0}
    return kind(name="mine", root=root, **(folders | changes))


def ready(root: Path, **changes) -> Folder:
    datamodule = make(root, **changes)
    datamodule.setup()
    return datamodule


def message_of(function, *arguments, **keywords) -> str:
    """Give the message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# check_datamodule


def test_good_data_gives_the_digests_of_the_training_images(root):
    expected = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "good").iterdir()}
    assert check_datamodule(ready(root)) == expected


def test_missing_subsets_and_columns_are_passed_over(root):
    datamodule = ready(root, val_split_mode="none")
    assert not hasattr(datamodule, "val_data")
    for data in (datamodule.train_data, datamodule.test_data):
        data.samples = data.samples.drop(columns=["label_index", "mask_path"])
    assert len(check_datamodule(datamodule)) == 5
    del datamodule.test_data
    assert len(check_datamodule(datamodule)) == 5


def test_no_training_images(root):
    assert "no training images" in message_of(check_datamodule, make(root))
    datamodule = ready(root)
    datamodule.train_data.samples = datamodule.train_data.samples.iloc[:0]
    assert "no training images" in message_of(check_datamodule, datamodule)


def test_one_single_image(root):
    for path in sorted((root / "good").iterdir())[1:]:
        path.unlink()
    assert "only 1 of the 4" in message_of(check_datamodule, ready(root))
    assert len(check_datamodule(ready(root), minimum_train_images=1)) == 1


def test_image_labelled_abnormal_in_training(root):
    datamodule = ready(root)
    datamodule.train_data.samples.loc[2, "label_index"] = 1
    message = message_of(check_datamodule, datamodule)
    assert "labelled abnormal" in message
    assert "002.png" in message
    assert "001.png" not in message


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def make_text(path: Path) -> None:
    path.write_text("this is no picture")


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [truncate, make_text, make_empty])
@pytest.mark.parametrize("name", ["good/001.png", "bad/003.jpg", "held_out/000.png"])
def test_files_that_cannot_be_decoded(root, spoil, name):
    spoil(root / name)
    message = message_of(check_datamodule, ready(root))
    assert "1 images cannot be used" in message
    assert str(root / name) in message
    assert message.count(str(root)) == 1


def test_file_that_vanished(root):
    datamodule = ready(root)
    (root / "good/001.png").unlink()
    assert "001.png cannot be opened: No such file" in message_of(check_datamodule, datamodule)


def test_many_bad_files_are_counted_after_the_fifth(root):
    write_images(root / "good", 8, 5)
    for path in (root / "good").iterdir():
        truncate(path)
    message = message_of(check_datamodule, ready(root))
    assert message.count(".png") == 5
    assert "and 3 more" in message


def test_small_image(root):
    write_images(root / "good", 1, 6, side=16)
    message = message_of(check_datamodule, ready(root))
    assert "000.png (16 pixels)" in message
    assert "at least 24 pixels" in message
    assert len(check_datamodule(ready(root), minimum_side=16)) == 5


@pytest.mark.parametrize("val_split_mode", ["from_test", "none"])
def test_abnormal_image_among_the_training_images(root, val_split_mode):
    for index in range(4):  # whichever of the two subsets the original falls into
        shutil.copy(root / f"bad/00{index}.jpg", root / f"good/copy_{index}.jpg")
    message = message_of(check_datamodule, ready(root, val_split_mode=val_split_mode))
    assert all(f"good/copy_{index}.jpg (same as {root}/bad/00{index}.jpg)" in message for index in range(4))


def test_normal_image_in_both_sets_is_accepted(root):
    shutil.copy(root / "good/000.png", root / "held_out/copy.png")
    assert len(check_datamodule(ready(root))) == 5


# CheckedFolder


def test_folder_reads_what_anomalibs_folder_reads(root):
    theirs = make(root, Folder, mask_dir="masks")
    theirs.setup()
    ours = ready(root, mask_dir="masks")
    for subset in ("train_data", "val_data", "test_data"):
        assert getattr(ours, subset).samples.equals(getattr(theirs, subset).samples)
    assert ours.num_workers == 0


def test_folders_are_looked_at_in_setup_only(tmp_path):
    assert make(tmp_path / "nowhere").name == "mine"


def test_missing_root(tmp_path):
    message = message_of(ready, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "set root" in message


@pytest.mark.parametrize("argument", ["normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir"])
def test_missing_folder(root, argument):
    message = message_of(ready, root, **{argument: "goood/typo"})
    assert f"{argument} 'goood/typo' is missing" in message
    assert "bad, good, held_out, masks" in message


def test_missing_folder_where_there_are_none(root):
    assert "has no folders yet" in message_of(ready, root / "good")


def test_missing_folder_in_a_list_and_absolute(root):
    assert "'other'" in message_of(ready, root, normal_dir=["good", "other"])
    assert len(ready(root, normal_dir=[root / "good"]).train_data) == 5


def test_folder_without_images(root):
    (root / "empty").mkdir()
    (root / "empty/readme.txt").write_text("nothing here")
    message = message_of(ready, root, normal_test_dir="empty")
    assert "normal_test_dir 'empty'" in message
    assert ".png" in message
    assert "end in .bmp" in message_of(ready, root, extensions=(".BMP",))


def test_mask_count(root):
    (root / "masks/003.png").unlink()
    message = message_of(ready, root, mask_dir="masks")
    assert "'masks' has 3" in message
    assert "'bad' has 4" in message


def test_no_root_means_the_working_folder(root, monkeypatch):
    monkeypatch.chdir(root)
    assert len(ready(None).train_data) == 5


def test_command_line_takes_the_arguments_of_folder(root):
    parser = ArgumentParser()
    parser.add_subclass_arguments(Folder, "data")
    given = {"name": "mine", "root": root, "normal_dir": "good", "abnormal_dir": "bad", "test_split_ratio": 0.3}
    arguments = ["--data=anomalib_msacl.data.CheckedFolder"]
    arguments += [f"--data.init_args.{name}={value}" for name, value in given.items()]
    datamodule = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert isinstance(datamodule, CheckedFolder)
    assert datamodule.abnormal_dir == "bad"
    assert datamodule.test_split_ratio == 0.3
    with pytest.raises(SystemExit):
        parser.parse_args([*arguments, "--data.init_args.no_such_argument=1"])


def test_lesions_among_the_augmentations_are_refused(root: Path) -> None:
    check_datamodule(ready(root, train_augmentations=Compose([RandomHorizontalFlip()])))
    for transform in (MedMix(), Compose([RandomHorizontalFlip(), Compose([MedMix()])])):
        with pytest.raises(InputError, match="train_augmentations of the datamodule mine has MedMix"):
            check_datamodule(ready(root, train_augmentations=transform))


def test_several_folders_of_abnormal_images_keep_their_masks(root: Path) -> None:
    """As in MVTec AD: a folder for each kind of defect, with names that occur in each."""
    for kind in ("scratch", "bent"):
        shutil.copytree(root / "bad", root / "test" / kind)
        (root / "ground_truth" / kind).mkdir(parents=True)
        for image, mask in zip(sorted((root / "bad").iterdir()), sorted((root / "masks").iterdir()), strict=True):
            shutil.copy(mask, root / "ground_truth" / kind / f"{image.stem}_mask.png")
    folders = [[f"{part}/{kind}" for kind in ("scratch", "bent")] for part in ("test", "ground_truth")]
    samples = ready(root, abnormal_dir=folders[0], mask_dir=folders[1], val_split_mode="none").test_data.samples
    abnormal = samples[samples.label_index == 1]
    pairs = {(Path(image).parent.name, Path(image).stem) for image in abnormal.image_path}
    masks = {(Path(mask).parent.name, Path(mask).stem.removesuffix("_mask")) for mask in abnormal.mask_path}
    assert len(pairs) == len(abnormal) == 8
    assert masks == pairs
    for image, mask in zip(abnormal.image_path, abnormal.mask_path, strict=True):
        assert Path(mask).parent.name == Path(image).parent.name
        assert Path(mask).stem == f"{Path(image).stem}_mask"


def test_masks_of_a_folder_in_another_order_of_names_are_refused(root: Path) -> None:
    """anomalib pairs by the order of all paths: equal names, and the masks of another folder."""
    for kind, masks in (("scratch", "a"), ("bent", "b")):
        shutil.copytree(root / "bad", root / "test" / kind)
        shutil.copytree(root / "masks", root / "truth" / masks)
    message = message_of(ready, root, abnormal_dir=["test/scratch", "test/bent"], mask_dir=["truth/a", "truth/b"])
    assert re.search(r"\ba/000\.\w+ with bent/000\.\w+", message)
    assert "name the folders of mask_dir like those of abnormal_dir" in message
