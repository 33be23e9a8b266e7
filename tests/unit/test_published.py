"""The published sets on tiny trees of their layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from anomalib.data import AnomalibDataModule
from PIL import Image

from anomalib_msacl import InputError
from anomalib_msacl.data import LAG, CovidX, HyperKvasir, LiuColonoscopy, MedMixDataset
from anomalib_msacl.medical.inset import without_inset
from tests.medical_files import tissue


def write(path: Path, seed: int, colour: bool = True, mask: bool = False) -> None:
    pixels = (tissue(seed, (48, 60), 0, 255)).astype(np.uint8)
    if colour:
        pixels = np.stack([pixels // 2 + 100, pixels // 4 + 30, pixels // 4 + 20], axis=-1)
    if mask:
        pixels[:] = 0
        pixels[10:30, 10:30] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=60 if mask else 95)


def counts(data: AnomalibDataModule) -> list[int]:
    """Number of training images, normal and abnormal test images."""
    labels = data.test_data.samples["label_index"]
    return [len(data.train_data), int((labels == 0).sum()), int((labels == 1).sum())]


@pytest.fixture
def kvasir(tmp_path):
    lower = tmp_path / "labeled-images/lower-gi-tract"
    places = ("anatomical-landmarks/cecum", "anatomical-landmarks/ileum", "quality-of-mucosal-views/bbps-2-3")
    for index in range(12):
        write(lower / places[index % 3] / f"{index}.jpg", index)
    write(lower / "pathological-findings/polyps/99.jpg", 99)
    for index in range(3):
        write(tmp_path / f"segmented-images/images/s{index}.jpg", 50 + index)
        write(tmp_path / f"segmented-images/masks/s{index}.jpg", 0, mask=True)
    return tmp_path


def test_hyper_kvasir(kvasir):
    data = HyperKvasir(kvasir, train_normal=7, test_normal=4, val_split_ratio=0.3)
    data.setup()
    assert counts(data) == [5, 4, 3]
    assert isinstance(data.val_data, MedMixDataset)
    polyp = next(item for item in data.test_data if item.gt_label)
    assert int(polyp.gt_mask.sum()) == 400  # the grey fringe that JPEG leaves round a mask does not count
    with pytest.raises(InputError, match="12 normal images are fewer than 1600 for training and 500"):
        HyperKvasir(kvasir).setup()
    (kvasir / "segmented-images/masks/s1.jpg").unlink()
    with pytest.raises(InputError, match=r"no mask in segmented-images/masks for .*s1.jpg"):
        HyperKvasir(kvasir, train_normal=7, test_normal=4).setup()


def test_hyper_kvasir_pairs_masks_by_their_place(kvasir):
    """Two sites of one layout, say, with files of one name."""
    for index, site in enumerate(("a", "b")):
        write(kvasir / f"segmented-images/images/{site}/s0.jpg", 60 + index)
        write(kvasir / f"segmented-images/masks/{site}/s0.jpg", 0, mask=True)
    data = HyperKvasir(kvasir, train_normal=7, test_normal=4)
    pairs = [(file.path, file.mask) for file in data.list_files() if file.mask]
    assert len(pairs) == 5
    assert all(str(mask) == str(image).replace("-images/images", "-images/masks") for image, mask in pairs)
    write(kvasir / "segmented-images/images/b/s0.png", 70)
    with pytest.raises(InputError, match=r"b/s0\.jpg and s0\.png have one name, by which images and masks pair up"):
        data.list_files()


def test_the_seed_decides_the_split(kvasir):
    def names(seed):
        data = HyperKvasir(kvasir, train_normal=6, test_normal=4, seed=seed, val_split_mode="none")
        data.setup()
        return data.train_data.samples["name"].tolist()

    assert names(1) == names(1)
    assert names(1) != names(2)


def test_the_inset_box_is_blacked_out_and_nothing_else():
    rng = np.random.default_rng(0)
    image = np.stack([rng.uniform(0.5, 0.9, (200, 240)), *rng.uniform(0.1, 0.4, (2, 200, 240))]).astype(np.float32)
    assert without_inset(image) is image
    boxed = image.copy()
    boxed[:, 130:190, 5:70] = np.array([0.1, 0.3, 0.35], np.float32)[:, None, None]
    boxed[:, 150:160, 20:50] = 0.9  # the drawing of the instrument
    hidden = without_inset(boxed)
    assert (hidden[:, 130:190, 5:70] == 0).all()
    outside = np.ones((200, 240), bool)
    outside[130:190, 5:70] = False
    assert (hidden[:, outside] == image[:, outside]).all()


def test_lag(tmp_path):
    for index in range(12):
        write(tmp_path / f"non_glaucoma/image/{index}.jpg", index)
        write(tmp_path / f"suspicious_glaucoma/image/{index}.jpg", 20 + index)
        write(tmp_path / f"suspicious_glaucoma/attention_map/{index}.jpg", 60 + index)
    data = LAG(tmp_path, train_normal=6, test_normal=3, test_abnormal=3, val_split_mode="from_test")
    data.setup()
    assert len(data.test_data) + len(data.val_data) == 6
    assert not any(path for path in data.test_data.samples["mask_path"])
    data = LAG(tmp_path, train_normal=6, test_normal=3, test_abnormal=None, val_split_mode="none")
    data.setup()
    assert counts(data) == [6, 3, 12]


def test_covidx(tmp_path):
    rows = {"train": [], "test": []}
    for index in range(12):
        split, kind = ("train", "test")[index >= 8], ("negative", "positive")[index % 4 == 3]
        write(tmp_path / split / f"{index}.png", index, colour=index % 2 == 0)
        rows[split].append(f"{index // 2} {index}.png {kind} {('cohen', 'rsna')[index % 2]}")
    for split, lines in rows.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    data = CovidX(tmp_path, val_split_ratio=0.34)
    data.setup()
    assert counts(data) == [4, 3, 1]
    assert set(data.test_data.samples["patient"]) == {"cohen:4", "rsna:4", "cohen:5", "rsna:5"}
    (tmp_path / "test/9.png").unlink()
    with pytest.raises(InputError, match=r"1 listed images are missing, .*9.png"):
        CovidX(tmp_path).setup()
    (tmp_path / "train.txt").write_text("0 0.png negative\n1 1.png")
    with pytest.raises(InputError, match=r"line 2 of .*train.txt is '1 1.png'"):
        CovidX(tmp_path).setup()


def test_liu(tmp_path):
    for index in range(6):
        write(tmp_path / f"train/normal/{index}.png", index)
    for index in range(2):
        write(tmp_path / f"test/normal/{index}.png", 20 + index)
        write(tmp_path / f"test/abnormal/{index}.png", 30 + index)
    data = LiuColonoscopy(tmp_path, val_split_ratio=0.34)
    data.setup()
    assert counts(data) == [4, 2, 2]


@pytest.mark.parametrize("kind", [HyperKvasir, LAG, CovidX, LiuColonoscopy])
def test_without_files_it_says_where_they_are_and_how_they_must_lie(kind, tmp_path):
    with pytest.raises(InputError) as caught:
        kind(tmp_path / "nothing").setup()
    message = str(caught.value)
    assert kind.origin in message
    assert kind.layout in message
    assert str(tmp_path / "nothing") in message
