"""The MedMix validation split: exact, repeatable, tidy, and used by detectors."""

from __future__ import annotations

import gc
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.metrics import AUROC, Evaluator
from anomalib.models import Fastflow
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import InputError, MedMix
from anomalib_msacl.data import MedicalFolder, MedMixDataset, MedMixValidation, check_datamodule
from anomalib_msacl.data.splits import split_by_patient
from tests.conftest import phantom
from tests.medical_files import tissue, write_dicom


@pytest.fixture
def data(phantom_root):
    datamodule = phantom(phantom_root, val_split_mode="none")
    datamodule.setup()
    return datamodule


def test_lesions_are_exactly_where_the_mask_is(data):
    dataset = MedMixDataset(data.train_data, seed=1)
    labels = [int(item.gt_label) for item in dataset]
    assert sum(labels) == 10
    assert len(labels) == 20
    for row, item in zip(dataset.samples.itertuples(), dataset, strict=True):
        original = read_image(data.train_data.samples["image_path"][row.source_index], as_tensor=True)
        changed = ~torch.isclose(item.image, original, rtol=0, atol=1e-6).all(dim=0)
        assert item.image.dtype == torch.float32
        assert bool(item.gt_mask.any()) == bool(item.gt_label)
        assert not changed[item.gt_mask == 0].any()
        if item.gt_label:
            assert changed.sum() > 0.5 * item.gt_mask.sum()


def test_the_seed_decides_everything(data):
    def content(seed):
        dataset = MedMixDataset(data.train_data, seed=seed)
        return torch.stack([item.image for item in dataset]), dataset.samples["label_index"].tolist()

    images, labels = content(3)
    again, labels_again = content(3)
    assert torch.equal(images, again)
    assert labels == labels_again
    assert not torch.equal(images, content(4)[0])


def test_each_image_is_decoded_once_for_the_lesions(data, monkeypatch):
    read, kind = [], type(data.train_data)
    original = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda dataset, index: read.append(index) or original(dataset, index))
    dataset = MedMixDataset(data.train_data)
    lesions = dataset.samples["source_index"][dataset.samples["label_index"] == 1]
    assert len(read) == len(set(read)) == len(lesions) + 1  # the first one, too, has a donor
    assert set(lesions) < set(read)


def test_temporary_files_go_with_the_last_copy(data):
    dataset = MedMixDataset(data.train_data)
    folder = dataset.folder
    part = dataset.subsample([0, 1, 2])
    pickle.loads(pickle.dumps(dataset))
    del dataset
    gc.collect()
    assert len(list(folder.rglob("*.png"))) == 20
    del part
    gc.collect()
    assert not folder.exists()


def test_a_cache_is_used_again_and_tells_settings_apart(data, tmp_path, monkeypatch):
    first = MedMixDataset(data.train_data, seed=1, cache=tmp_path)
    MedMixDataset(data.train_data, MedMix(radius=(0.1, 0.1)), seed=1, cache=tmp_path)
    MedMixDataset(data.train_data, seed=2, cache=tmp_path)
    assert len(list(tmp_path.glob("medmix-*"))) == 3
    monkeypatch.setattr(MedMix, "synthesize", lambda *_: pytest.fail("drawn again"))
    again = MedMixDataset(data.train_data, seed=1, cache=tmp_path)
    assert again.folder == first.folder
    assert again.samples.equals(first.samples)


def test_settings_that_cannot_work_are_refused(data, tmp_path):
    for options in ({"share": 0.0}, {"share": 1.0}, {"medmix": MedMix(counts=[0])}):
        with pytest.raises(InputError, match="a MedMix validation set needs"):
            MedMixDataset(data.train_data, **options)
    with pytest.raises(InputError, match="at least 2 normal images"):
        MedMixDataset(data.train_data.subsample([0]))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write MedMix images"):
        MedMixDataset(data.train_data, cache=tmp_path / "file")


def test_large_images_are_reduced(tmp_path):
    for index in range(2):
        Image.fromarray(tissue(index, (1100, 1300), 0, 255).astype(np.uint8)).save(tmp_path / f"{index}.png")
    folder = Folder(name="large", root=tmp_path, normal_dir=".", test_split_mode="none", val_split_mode="none")
    folder.setup()
    sizes = {item.image.shape for item in MedMixDataset(folder.train_data)}
    assert sizes == {(3, 1100, 1300), (3, 1024, 1210)}


def test_patients_are_kept_together(data):
    samples = data.train_data.samples
    samples["patient"] = [f"P{index // 4}" for index in range(len(samples))]
    for ratio in (0.2, 0.5):
        first, second = split_by_patient(data.train_data, ratio, 0)
        assert not set(first.samples["patient"]) & set(second.samples["patient"])
        assert len(second) == round(ratio * 5) * 4
    assert split_by_patient(data.train_data, 0.5, 1)[1].samples.equals(
        split_by_patient(data.train_data, 0.5, 1)[1].samples
    )


def test_the_threshold_of_a_detector_comes_from_normal_images_alone(phantom_root, make_patchcore, make_engine):
    seen, trained = [], set()

    class Watch(MedMixValidation):
        def on_train_start(self, trainer, pl_module) -> None:
            trained.update(trainer.train_dataloader.dataset.samples["image_path"])

        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *arguments) -> None:
            seen.extend(zip(batch.image_path, batch.gt_label.tolist(), strict=True))

    model, data = make_patchcore(), phantom(phantom_root, val_split_mode="none", num_workers=1)
    engine = make_engine(callbacks=[Watch(ratio=0.4, seed=0)])
    engine.train(model, datamodule=data)
    assert len(trained) == 12
    assert len(data.train_data) == 20  # given back
    assert len(seen) == 8
    assert sum(label for _, label in seen) == 4
    assert not {path for path, _ in seen} & set(data.test_data.samples["image_path"])
    assert not {path for path, _ in seen} & trained
    post = model.post_processor
    values = (post.image_threshold, post.pixel_threshold, post.image_min, post.image_max)
    assert not any(math.isnan(value) for value in values)
    assert len(data.test_data) == 12


def test_a_checkpoint_can_be_chosen_on_it(phantom_root, make_engine, tmp_path):
    transform = Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    model = Fastflow(
        backbone="resnet18",
        pre_trained=False,
        flow_steps=1,
        pre_processor=PreProcessor(transform=transform),
        evaluator=Evaluator(val_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="val_")]),
        visualizer=False,
    )
    best = ModelCheckpoint(tmp_path, monitor="val_AUROC", mode="max")
    engine = make_engine(callbacks=[MedMixValidation(ratio=0.4), best], max_epochs=2)
    engine.fit(model, datamodule=phantom(phantom_root, val_split_mode="none"))
    assert Path(best.best_model_path).is_file()
    assert 0 <= float(best.best_model_score) <= 1


@pytest.mark.parametrize("mode", ["from_test", "from_train", "synthetic"])
def test_a_split_that_was_made_already_is_not_thrown_away(phantom_root, make_patchcore, make_engine, mode):
    engine = make_engine(callbacks=[MedMixValidation()])
    with pytest.raises(InputError, match=f"val_split_mode {mode}.* set val_split_mode to none"):
        engine.fit(make_patchcore(), datamodule=phantom(phantom_root, val_split_mode=mode))


def test_wrong_ratios_are_refused(phantom_root, make_patchcore, make_engine):
    engine = make_engine(callbacks=[MedMixValidation(ratio=1.5)])
    with pytest.raises(InputError, match=r"is 1\.5: set it between 0 and 1"):
        engine.fit(make_patchcore(), datamodule=phantom(phantom_root, val_split_mode="none"))


def test_a_folder_of_sixteen_bits_is_warned_about(tmp_path, caplog):
    for index in range(6):
        Image.fromarray(tissue(index, low=0, high=4095)).save(tmp_path / f"{index}.png")
    folder = Folder(name="deep", root=tmp_path, normal_dir=".", test_split_mode="none", val_split_mode="none")
    folder.setup()
    with caplog.at_level(logging.WARNING):
        check_datamodule(folder)
    assert "6 images have more than 8 bits" in caplog.text
    assert f"{tmp_path}/0.png" in caplog.text
    assert "MedicalFolder" in caplog.text


def test_medical_files_are_read_by_their_own_reader(tmp_path, caplog):
    for index in range(8):
        write_dicom(tmp_path / "good" / str(index), tissue(index), WindowCenter=1200, WindowWidth=600)
    folder = MedicalFolder("mine", tmp_path, "good", val_split_ratio=0.5, seed=0, test_split_mode="none")
    folder.setup()
    assert isinstance(folder.val_data, MedMixDataset)
    for row, item in zip(folder.val_data.samples.itertuples(), folder.val_data, strict=True):
        original = folder.reader.read(folder.val_data.source.samples["image_path"][row.source_index])
        outside = item.gt_mask == 0
        torch.testing.assert_close(item.image[:, outside], original[:, outside], rtol=0, atol=1 / 65535)
    with caplog.at_level(logging.WARNING):
        check_datamodule(folder)
    assert "bits" not in caplog.text
