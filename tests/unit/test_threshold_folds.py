"""Thresholds from training images: each is scored by a fit that has not seen it, and the model is not touched."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from anomalib.data.utils import LabelName
from lightning.pytorch import seed_everything

from anomalib_msacl import InputError, Msacl, MsaclPretraining, NormalsThreshold
from anomalib_msacl.data.held_out import Fold, split_into_folds
from anomalib_msacl.thresholds import conformal_rank
from tests.conftest import TINY, make_recipe, phantom


def train_data(root: Any, **columns: Any) -> Any:
    """Return training images with further columns in their table."""
    data = phantom(root, val_split_mode="none")
    data.setup("fit")
    for name, values in columns.items():
        data.train_data.samples[name] = values
    return data.train_data


def paths(dataset: Any) -> list[str]:
    return dataset.samples["image_path"].tolist()


def both_sides(fold: Fold) -> tuple[set[str], set[str]]:
    return set(paths(fold.train)), set(paths(fold.held_out.images))


@pytest.mark.parametrize("number", [2, 3, 20, 50])
def test_each_image_is_in_one_fold(phantom_root, number):
    images = train_data(phantom_root)
    folds = split_into_folds(images, number, seed=0)
    assert len(folds) == min(number, len(images))
    sizes = [fold.held_out.number for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(path for fold in folds for path in paths(fold.held_out.images)) == sorted(paths(images))
    for fold in folds:
        train, held_out = both_sides(fold)
        assert train.isdisjoint(held_out)
        assert train | held_out == set(paths(images))
    assert number != 3 or paths(split_into_folds(images, 3, seed=1)[0].train) != paths(folds[0].train)


def test_patients_stay_together_and_the_ill_are_not_scored(phantom_root):
    patients = [f"P{index // 4}" for index in range(20)]
    labels = [int(LabelName.ABNORMAL) if index == 5 else int(LabelName.NORMAL) for index in range(20)]
    images = train_data(phantom_root, patient=patients, label_index=labels)
    of = dict(zip(paths(images), patients, strict=True))
    folds = split_into_folds(images, 2, seed=0)
    for fold in folds:
        train, held_out = both_sides(fold)
        assert {of[path] for path in train}.isdisjoint({of[path] for path in held_out})
        assert fold.held_out.unit == "patient"
        assert fold.held_out.number == len({of[path] for path in held_out}) == 2
        units = dict(zip([of[path] for path in paths(fold.held_out.images)], fold.held_out.units, strict=True))
        assert sorted(units.values()) == [0, 1]
    assert sum(len(fold.held_out.images) for fold in folds) == 16  # P1 has a lesion


def test_images_of_a_file_are_in_one_fold_and_none_of_an_ill_one(phantom_root):
    files = [path for path in paths(train_data(phantom_root))[:5] for _ in range(4)]
    labels = [int(LabelName.ABNORMAL) if index == 5 else int(LabelName.NORMAL) for index in range(20)]
    pixels = [str(index) for index in range(20)]
    folds = split_into_folds(train_data(phantom_root, image_path=files, label_index=labels, pixels=pixels), 2, seed=0)
    for fold in folds:
        train, held_out = both_sides(fold)
        assert train.isdisjoint(held_out)
        assert files[5] in train  # which has a lesion
        assert fold.held_out.unit == "file"
        assert fold.held_out.number == len(held_out) == 2
        assert len(fold.held_out.images) == 8
        assert len(set(zip(paths(fold.held_out.images), fold.held_out.units, strict=True))) == 2


def test_copies_of_an_image_are_in_one_fold(phantom_root):
    images = train_data(phantom_root, pixels=[str(index // 2) for index in range(20)])
    for fold in split_into_folds(images, 5, seed=0):
        assert len(fold.held_out.images) == 2 * fold.held_out.number == 4
        assert set(fold.train.samples["pixels"]).isdisjoint(fold.held_out.images.samples["pixels"])


def test_scores_are_those_of_fits_without_the_fold(phantom_root, make_patchcore, make_engine, caplog):
    data, model = phantom(phantom_root, val_split_mode="none", seed=0), make_patchcore(coreset_sampling_ratio=1.0)
    blank = deepcopy(model)
    callback = NormalsThreshold(specificity=0.9, folds=4)
    engine = make_engine(callbacks=[callback])
    with caplog.at_level(logging.INFO, "anomalib_msacl.thresholds"):
        engine.train(model, datamodule=data)
    scores = []
    for fold in split_into_folds(data.train_data, 4, seed=0):
        transform = blank.pre_processor.transform
        train, held_out = (
            transform(torch.stack([item.image for item in side])) for side in (fold.train, fold.held_out.images)
        )
        twin = deepcopy(blank.model)
        twin.train()(train)
        twin.subsample_embedding(1.0)
        scores += twin.eval()(held_out).pred_score.tolist()
    assert callback.calibration["image"] == pytest.approx(sorted(scores), rel=1e-4)
    rank = conformal_rank(20, 0.1)
    assert float(model.post_processor.image_threshold) == pytest.approx(sorted(scores)[rank - 1], rel=1e-4)
    assert len(data.train_data) == 20
    assert f"rank {rank} of 20 normal training images, scored by 4 fits that had not seen them" in caplog.text
    assert "which is no guarantee" in caplog.text
    saved = torch.load(engine.trainer.checkpoint_callback.best_model_path, weights_only=False)
    assert saved["state_dict"]["post_processor._image_threshold"] == model.post_processor.image_threshold


def test_copies_of_msacl_do_not_see_their_fold_and_leave_no_files(
    phantom_root, make_msacl, make_engine, tiny_recipe, tmp_path, monkeypatch
):
    """``Msacl`` replaces the loader of its datamodule, and saves its backbone."""
    seen: list[set[str]] = []
    saved: list[Any] = []
    finish = Msacl.on_train_end

    def look(model: Msacl) -> None:
        finish(model)
        dataset: Any = model.trainer.train_dataloader.dataset
        seen.append(set(paths(dataset)))
        saved.append(sorted(tmp_path.rglob("model.safetensors")))

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Msacl, "on_train_end", look)
    data = phantom(phantom_root, val_split_mode="none", seed=0)
    model = make_msacl(tiny_recipe(max_steps=1))
    make_engine(callbacks=[NormalsThreshold(specificity=0.8, folds=2)]).fit(model, datamodule=data)
    folds = split_into_folds(data.train_data, 2, seed=0)
    assert seen == [*(set(paths(fold.train)) for fold in folds), set(paths(data.train_data))]
    assert saved == [[], [], [tmp_path / "weights" / "model.safetensors"]]
    assert not list((tmp_path / "here").iterdir())


def test_the_fit_itself_is_not_changed(phantom_root, make_patchcore, make_engine):
    banks, drawn = [], []
    for options in ({"folds": 3}, {"folds": 2}, None):
        model = make_patchcore(coreset_sampling_ratio=0.5)
        seed_everything(3)
        callbacks = [NormalsThreshold(specificity=0.8, **options)] if options else []
        make_engine(callbacks=callbacks).fit(
            model, datamodule=phantom(phantom_root, val_split_mode="from_test", seed=0)
        )
        banks.append(model.model.memory_bank)
        drawn.append(torch.rand(1))
    assert torch.equal(banks[0], banks[2])
    assert torch.equal(banks[0], banks[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("order", [1, -1])
def test_copies_have_the_weights_that_were_handed_over(phantom_root, make_patchcore, make_engine, tmp_path, order):
    recipe = make_recipe(**{**TINY, "max_steps": 1, "evaluations": 1})
    pretraining = MsaclPretraining(weights="random", recipe=recipe, root=tmp_path)
    callback, model = NormalsThreshold(specificity=0.8, folds=2), make_patchcore(coreset_sampling_ratio=1.0)
    engine = make_engine(callbacks=[pretraining, callback][::order])
    engine.fit(model, datamodule=phantom(phantom_root, val_split_mode="none"))
    # A memory of all images is as near as one of half of them, or nearer: the features must be the same.
    data = phantom(phantom_root, val_split_mode="none")
    data.setup("fit")
    images = model.pre_processor.transform(torch.stack([item.image for item in data.train_data]))
    own = model.model.eval()(images).pred_score
    assert own.max() < callback.calibration["image"][0] + 1e-3
    scale = model.model.memory_bank.norm(dim=1).mean()
    assert callback.calibration["image"][-1] < scale


def test_what_folds_cannot_do_is_refused(phantom_root, make_patchcore, make_engine):
    for options in ({"folds": 1}, {"folds": 5, "confidence": 0.9}):
        with pytest.raises(InputError, match="set folds to 2 or more, and confidence to null"):
            NormalsThreshold(**options)
    engine = make_engine(callbacks=[NormalsThreshold(specificity=0.99, folds=5)])
    with pytest.raises(InputError, match=r"there are 20 normal training .* 0.99 needs 99: add normal images"):
        engine.fit(make_patchcore(), datamodule=phantom(phantom_root, val_split_mode="none"))
    engine = make_engine(callbacks=[NormalsThreshold(specificity=0.8, folds=2)])
    model = make_patchcore()
    model.lock = _Uncopied()
    with pytest.raises(InputError, match=r"Patchcore cannot be copied .* \(RuntimeError: not me\): set folds to null"):
        engine.fit(model, datamodule=phantom(phantom_root, val_split_mode="none"))
    assert math.isnan(float(model.post_processor.image_threshold))


class _Uncopied:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("not me")
