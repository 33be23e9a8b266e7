"""Properties of the rendered phantoms and of the datamodule around them."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils import LabelName
from PIL import Image

from anomalib_msacl.data import MedMixDataset, Phantom
from anomalib_msacl.errors import InputError
from anomalib_msacl.phantom.rendering import FORMAT_VERSION, SUBSETS, render

KINDS = ("fundus", "brain", "chest")
SIDE = 64


def make(root: Path, **settings) -> Phantom:
    small = {"image_size": SIDE, "train_images": 5, "test_images": 9, "train_batch_size": 4}
    return Phantom(root=root, **(small | settings))


def contents(phantom: Phantom) -> dict[str, bytes]:
    phantom.prepare_data()
    root = Path(phantom.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_bytes_and_another_seed_others(kind, tmp_path):
    first = contents(make(tmp_path / "a", kind=kind))
    assert first == contents(make(tmp_path / "b", kind=kind))
    other = contents(make(tmp_path / "a", kind=kind, seed=1))
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_images_do_not_depend_on_how_many_are_asked_for(tmp_path):
    few = contents(make(tmp_path, train_images=2, test_images=4))
    many = contents(make(tmp_path))
    assert len(few) == 2 + 4 + 2
    assert few.items() <= many.items()


def test_all_images_differ(tmp_path):
    images = [data for name, data in contents(make(tmp_path)).items() if not name.startswith("ground_truth")]
    assert len(set(images)) == len(images) == 5 + 9


def test_layout_and_file_format(tmp_path):
    phantom = make(tmp_path)
    names = contents(phantom)
    assert phantom.name == "phantom_fundus"
    assert sum(name.startswith("train/good/") for name in names) == 5
    assert sum(name.startswith("test/good/") for name in names) == 5
    lesions = {Path(name).name for name in names if name.startswith("test/lesion/")}
    assert lesions == {"000.png", "001.png", "002.png", "003.png"}
    assert lesions == {Path(name).name for name in names if name.startswith("ground_truth/lesion/")}
    root = Path(phantom.root)
    image = Image.open(root / "test/lesion/000.png")
    assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
    mask = Image.open(root / "ground_truth/lesion/000.png")
    assert mask.mode == "L"
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_change_the_image_inside_the_mask_only(kind):
    for index in range(25):
        with_lesions, mask = render(kind, SIDE, 3, "test/lesion", index, with_lesions=True)
        without, empty = render(kind, SIDE, 3, "test/lesion", index, with_lesions=False)
        changed = (with_lesions != without).any(axis=-1)
        assert not empty.any()
        assert mask.shape == (SIDE, SIDE)
        assert not (changed & (mask == 0)).any()
        # where a ring turns from bright to dark, some pixels of its mask may stay as they were
        assert changed[mask > 0].mean() > 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_are_visible_and_small(kind):
    for index in range(25):
        lesion, mask = render(kind, SIDE, 0, "test/lesion", index, with_lesions=True)
        normal, _ = render(kind, SIDE, 0, "test/lesion", index, with_lesions=False)
        difference = np.abs(lesion.astype(int) - normal.astype(int)).max(axis=-1)
        assert difference.max() > 10  # about three times the noise's standard deviation
        assert 0 < (mask > 0).mean() < 0.2


def test_second_use_renders_nothing(tmp_path):
    phantom = make(tmp_path)
    phantom.prepare_data()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    phantom.prepare_data()
    make(tmp_path).setup()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_interrupted_rendering_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop_at_the_third(*arguments, **keywords):
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return render(*arguments, **keywords)

    monkeypatch.setattr("anomalib_msacl.phantom.rendering.render", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_slower_of_two_processes_keeps_what_the_faster_one_made(tmp_path, monkeypatch):
    finished = []

    def let_the_other_finish(*arguments, **keywords):
        if not finished:
            finished.append(True)
            make(tmp_path).prepare_data()
        return render(*arguments, **keywords)

    monkeypatch.setattr("anomalib_msacl.phantom.rendering.render", let_the_other_finish)
    assert len(contents(make(tmp_path))) == 5 + 9 + 4
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "liver"}, ["liver", "fundus, brain, chest"]),
        ({"image_size": 32}, ["image_size", "32", "64"]),
        ({"train_images": 0}, ["train_images", "0", "1"]),
        ({"test_images": 3}, ["test_images", "3", "4"]),
        ({"seed": -1}, ["seed", "-1", "0"]),
    ],
)
def test_bad_settings_are_named_with_the_remedy(settings, words, tmp_path):
    with pytest.raises(InputError) as caught:
        make(tmp_path, **settings)
    assert all(word in str(caught.value) for word in words)


def test_root_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "file")) + ".*set root"):
        make(tmp_path / "file").prepare_data()


# Files that are not ours


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", ["train/good/000.png", "notes.txt", "fundus-0123/000.png", "fundus-0123456789.txt"])
def test_nothing_is_rendered_into_a_folder_of_others(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    before = files_in(tmp_path)
    for use in (Phantom.prepare_data, Phantom.setup):
        with pytest.raises(InputError) as caught:
            use(make(tmp_path))
        message = f"the root '{tmp_path}' of the phantom images holds files of others, {Path(name).parts[0]}: set root"
        assert str(caught.value).startswith(message)
    assert files_in(tmp_path) == before


def test_sets_of_other_settings_and_hidden_files_are_no_hindrance(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".fundus-0123456789-01234567").mkdir()  # what an interrupted run may leave
    make(tmp_path).prepare_data()
    make(tmp_path, kind="chest").prepare_data()
    rendered = files_in(tmp_path)
    (tmp_path / "notes.txt").touch()
    make(tmp_path, kind="chest").prepare_data()  # nothing has to be written
    assert files_in(tmp_path) == rendered | {tmp_path / "notes.txt"}


def test_the_images_of_earlier_versions_are_rendered_still():
    digest = hashlib.sha256()
    for kind in KINDS:
        for subset in SUBSETS:
            for index in range(3):
                for part in render(kind, SIDE, 3, subset, index, with_lesions=subset == "test/lesion"):
                    digest.update(part.tobytes())
    assert (FORMAT_VERSION, digest.hexdigest()) == (
        1,
        "53fcffb052dc8fdb3b3f3382f1724c0e9be0b05a37e5e3077a78b0da35433811",
    )


def test_lesions_by_medmix_can_be_the_validation_set(tmp_path):
    phantom = make(tmp_path, train_images=8, val_split_mode="medmix")
    phantom.setup()
    assert isinstance(phantom.val_data, MedMixDataset)
    assert len(phantom.train_data) == len(phantom.val_data) == 4
    assert len(phantom.test_data) == 9


def test_anomalib_reads_it(tmp_path):
    phantom = make(tmp_path, test_images=12)
    phantom.setup()
    assert set(phantom.train_data.samples.label_index) == {LabelName.NORMAL}
    for subset in (phantom.val_data, phantom.test_data):
        assert set(subset.samples.label_index) == {LabelName.NORMAL, LabelName.ABNORMAL}
    batch = next(iter(phantom.train_dataloader()))
    assert batch.image.shape == (4, 3, SIDE, SIDE)
    assert batch.image.dtype == torch.float32
    assert 0.0 <= batch.image.min() < 0.2 < batch.image.max() <= 1.0
    batch = next(iter(phantom.test_dataloader()))
    assert batch.gt_mask.shape == (6, SIDE, SIDE)
    assert torch.equal(batch.gt_mask.flatten(1).any(dim=1), batch.gt_label.bool())


def test_split_follows_the_seed(tmp_path):
    splits = []
    for _ in range(2):
        phantom = make(tmp_path, test_images=20)
        phantom.setup()
        splits.append(list(phantom.test_data.samples.image_path))
    assert splits[0] == splits[1]
