"""Msacl as a model of anomalib: fit, choose, save, resume, test, predict."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from anomalib.callbacks import ModelCheckpoint
from anomalib.data import ImageBatch, PredictDataset
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric
from torchvision.transforms.v2 import Normalize

from anomalib_msacl import InputError, Msacl, NormalsThreshold
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.data import looks
from anomalib_msacl.data.inspection import Inspection, inspect_image
from anomalib_msacl.pretraining import Pretraining, Questions, Score
from anomalib_msacl.pretraining.images import undisturbed
from anomalib_msacl.pretraining.losses import MultiCentring
from anomalib_msacl.recipe import ChoiceRecipe
from anomalib_msacl.screening.torch_scorer import TorchScorer
from tests.conftest import TINY, make_recipe, phantom

Make = Callable[..., Any]


def train(msacl: Msacl, engine: Engine, root: Path, **options: Any) -> None:
    data = phantom(root, val_split_mode="from_train", val_split_ratio=0.2, seed=0)
    engine.fit(msacl, datamodule=data, **options)


def state(msacl: Msacl) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in msacl.encoder.backbone.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[dict[str, torch.Tensor]]:
    """Let the probe return these scores, and keep the backbone that it was shown at each."""
    shown: list[dict[str, torch.Tensor]] = []

    def score(_: Questions, encoder: Any, device: torch.device) -> Score:
        shown.append({name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()})
        return Score(values[len(shown) - 1], 0.5)

    monkeypatch.setattr(Questions, "score", score)
    return shown


@pytest.mark.parametrize(("scores", "winner"), [([0.9, 0.8, 0.7], 0), ([0.5, 0.9, 0.7], 1), ([0.5, 0.6, 0.7], 2)])
def test_the_best_step_is_kept_and_saved(
    scores: list[float],
    winner: int,
    monkeypatch: pytest.MonkeyPatch,
    make_msacl: Make,
    make_engine: Make,
    phantom_root: Path,
    tmp_path: Path,
) -> None:
    shown = script(monkeypatch, scores)
    msacl = make_msacl()
    train(msacl, make_engine(max_steps=4), phantom_root)
    assert len(shown) == 3
    assert not equal(shown[0], shown[1])
    assert equal(state(msacl), shown[winner])
    assert msacl.run.choice.kept == ["untouched", "step 2", "step 4"][winner]
    saved = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True)
    assert equal(saved.state_dict(), shown[winner])
    verdict = ["the untouched backbone is kept", "step 2 is kept", "the last candidate, step 4, is kept"][winner]
    assert verdict in (tmp_path / "weights" / "README.md").read_text()


@pytest.mark.parametrize(("lead", "winner"), [(0.1, "step 4"), (0.9, "untouched")])
def test_the_last_step_is_kept_unless_another_is_clearly_better(
    lead: float,
    winner: str,
    monkeypatch: pytest.MonkeyPatch,
    make_msacl: Make,
    make_engine: Make,
    phantom_root: Path,
) -> None:
    """The untouched backbone leads by more, or less, than two standard errors of the difference."""
    monkeypatch.setattr("anomalib_msacl.pretraining.choice.standard_error", lambda *_: 0.25)
    shown = script(monkeypatch, [lead, 0.0, 0.0])
    msacl = make_msacl()
    train(msacl, make_engine(max_steps=4), phantom_root)
    assert equal(state(msacl), shown[{"untouched": 0, "step 4": 2}[winner]])
    assert msacl.run.choice.kept == winner


@pytest.mark.parametrize(("scores", "winner"), [([0.9, 0.8, 0.7], 0), ([0.5, 0.9, 0.7], 1), ([0.5, 0.6, 0.7], 2)])
def test_untouched_whitened_and_averaged_weights_are_candidates(
    scores: list[float],
    winner: int,
    monkeypatch: pytest.MonkeyPatch,
    make_msacl: Make,
    make_engine: Make,
    phantom_root: Path,
) -> None:
    shown = script(monkeypatch, scores)
    settings = {"max_steps": 1, "batch_size": 4, "evaluations": 1, "evaluation_images": 4, "centre_images": 4}
    recipe = make_recipe(**settings, average=0.25, realign=False)
    msacl = make_msacl(recipe, backbone="tf_efficientnet_lite0", detector=False)
    untouched, trained = state(msacl), {}
    average = Pretraining._average
    monkeypatch.setattr(Pretraining, "_average", lambda self: trained.update(state(msacl)) or average(self))
    train(msacl, make_engine(max_steps=1), phantom_root)
    names = ["untouched", "whitened", "step 1"]
    assert list(msacl.run.choice.scores) == names
    assert msacl.run.choice.kept == names[winner]
    assert equal(shown[0], untouched)
    assert not equal(shown[1], untouched)
    assert equal(state(msacl), shown[winner])
    name = next(name for name in trained if not torch.equal(trained[name], shown[1][name]))
    torch.testing.assert_close(shown[2][name], torch.lerp(shown[1][name], trained[name], 0.25))


@pytest.mark.parametrize(("changes", "realigned"), [({}, True), ({"realign": False}, False), ({"dense": 0.0}, False)])
def test_stages_behind_the_layers_come_back_to_their_weights(
    changes: dict[str, Any], realigned: bool, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    recipe = make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4, learning_rate=1e-2, **changes)
    msacl = make_msacl(recipe, backbone="tf_efficientnet_lite0", detector=False)
    before = state(msacl)
    train(msacl, make_engine(max_steps=2), phantom_root)
    deep = [name for name in before if name.startswith(("blocks.5", "blocks.6")) and "num_batches" not in name]
    kept = {name for name in deep if torch.equal(before[name], state(msacl)[name])}
    entry = {"blocks.5.0.conv_pw.weight", "blocks.5.0.bn1.running_mean"}
    assert (kept == set(deep) - entry) is realigned
    assert not torch.equal(before["blocks.4.1.conv_pw.weight"], state(msacl)["blocks.4.1.conv_pw.weight"])


def test_the_checkpoint_holds_the_chosen_weights_and_needs_no_files(
    monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    shown = script(monkeypatch, [0.5, 0.9, 0.7])
    msacl, engine = make_msacl(), make_engine(max_steps=4)
    train(msacl, engine, phantom_root)
    loaded = Msacl.load_from_checkpoint(engine.best_model_path)
    assert equal(state(loaded), shown[1])
    assert loaded.recipe == msacl.recipe
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.eval()(images).pred_score, msacl.eval()(images).pred_score)
    older = torch.load(engine.best_model_path, weights_only=True)
    older["state_dict"] = {n: value for n, value in older["state_dict"].items() if "whole_images" not in n}
    torch.save(older, tmp_path / "older.ckpt")
    with pytest.raises(InputError, match=r"made by version 0\.2\.0 or older"):
        Msacl.load_from_checkpoint(tmp_path / "older.ckpt")


def test_a_checkpoint_given_as_weights_tells_what_they_were_made_for(
    make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4)
    options = {"backbone": "test_efficientnet", "mean": (0.4,) * 3, "std": (0.3,) * 3, "weights_dir": tmp_path / "new"}
    msacl, engine = make_msacl(recipe, detector=False, **options), make_engine(max_steps=2)
    train(msacl, engine, phantom_root)
    model, of_checkpoint = create_backbone("test_efficientnet", engine.best_model_path)
    other, of_folder = create_backbone("test_efficientnet", str(tmp_path / "new"))
    assert equal(model.state_dict(), other.state_dict())
    assert of_checkpoint.feature_std == 0.1
    assert of_checkpoint.input_size == (64, 64)
    assert replace(of_checkpoint, description="") == replace(of_folder, description="")


def test_mixed_precision_trains_towards_the_same_weights(
    make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    trained = []
    for precision in ("32-true", "bf16-mixed"):
        msacl = make_msacl(make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4, average=1.0))
        before = state(msacl)
        train(msacl, make_engine(max_steps=2, precision=precision), phantom_root)
        trained.append({name: tensor - before[name] for name, tensor in state(msacl).items() if "layer3" in name})
    exact, mixed = (torch.cat([tensor.float().flatten() for tensor in moved.values()]) for moved in trained)
    assert torch.nn.functional.cosine_similarity(exact, mixed, dim=0) > 0.9


def test_a_loader_under_way_is_not_disturbed() -> None:
    data = TensorDataset(torch.arange(6))
    loader = DataLoader(data, batch_size=2, num_workers=1, persistent_workers=True)
    under_way = iter(loader)
    seen = [next(under_way)]
    assert torch.equal(torch.cat([batch for (batch,) in undisturbed(loader)]), torch.arange(6))
    seen += list(under_way)
    assert torch.equal(torch.cat([batch for (batch,) in seen]), torch.arange(6))


def test_images_that_were_normalised_already_are_refused(
    make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    data = phantom(phantom_root, train_augmentations=Normalize([0.5] * 3, [0.2] * 3))
    with pytest.raises(InputError, match=r"values from -2.* but lesions are made on \[0, 1\]"):
        make_engine(max_steps=4).fit(make_msacl(), datamodule=data)


@pytest.mark.parametrize(("mode", "told"), [("same_as_test", True), ("from_train", False), ("from_test", False)])
def test_test_images_that_would_choose_the_weights_are_told(
    mode: str, told: bool, make_msacl: Make, make_engine: Make, phantom_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = phantom(phantom_root, val_split_mode=mode, seed=0)
    with caplog.at_level(logging.WARNING):
        make_engine(max_steps=1).fit(make_msacl(), datamodule=data)
    assert ("validation and test share images" in caplog.text) is told


def test_a_datamodule_without_validation_images_is_refused(
    make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    data = phantom(phantom_root, val_split_mode="none", seed=0)
    with pytest.raises(InputError, match=r"no validation images.*set its val_split_mode"):
        make_engine(max_steps=1).fit(make_msacl(), datamodule=data)


def test_too_few_held_out_images_are_told(make_msacl: Make, make_engine: Make, phantom_root: Path) -> None:
    msacl = make_msacl(make_recipe(max_steps=1, batch_size=4, evaluations=1, centre_images=4, evaluation_images=4))
    train(msacl, make_engine(max_steps=1), phantom_root)
    assert "fewer than 5 cannot tell which is better" in msacl.run.choice.verdict()


def test_frozen_stages_and_batch_norm_statistics_stay(make_msacl: Make, make_engine: Make, phantom_root: Path) -> None:
    msacl = make_msacl(make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4, whitening=0))
    before = state(msacl)
    train(msacl, make_engine(max_steps=2), phantom_root)
    changed = {name for name, tensor in state(msacl).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(("layer2", "layer3", "layer4")) for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)


def test_a_resumed_run_keeps_the_weights_that_its_verdict_names(
    monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    """Step 2 leads by noise, so step 4 is kept; in the longer run nothing comes near it, so it must be step 4 again."""
    errors = iter([1.0, 0.0])
    monkeypatch.setattr("anomalib_msacl.pretraining.choice.standard_error", lambda *_: next(errors))
    shown = script(monkeypatch, [0.5, 0.8, 0.7, 0.3, 0.2])
    first, engine = make_msacl(), make_engine(max_steps=4)
    train(first, engine, phantom_root)
    assert first.run.choice.kept == "step 4"
    second = make_msacl(replace(first.recipe, max_steps=8))
    train(second, make_engine(max_steps=8), phantom_root, ckpt_path=engine.best_model_path)
    assert second.run.choice.kept == "step 4"
    assert equal(state(second), shown[2])


def test_a_run_resumed_without_a_choice_keeps_its_last_step(
    monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    script(monkeypatch, [0.9, 0.5, 0.5])
    first, engine = make_msacl(), make_engine(max_steps=4)
    train(first, engine, phantom_root)
    second = make_msacl(replace(first.recipe, max_steps=6, choice=ChoiceRecipe(evaluations=0)))
    train(second, make_engine(max_steps=6), phantom_root, ckpt_path=engine.best_model_path)
    assert second.run.choice.kept is None
    assert "nothing was compared" in second.run.choice.verdict()


@pytest.mark.parametrize(("epochs", "told"), [(2, True), (3, False), (-1, False)])
def test_epochs_that_end_before_the_steps_of_the_recipe_are_told(
    epochs: int, told: bool, make_msacl: Make, make_engine: Make, phantom_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four batches make an epoch."""
    msacl = make_msacl(make_recipe(**{**TINY, "max_steps": 9, "evaluations": 0}))
    with caplog.at_level(logging.WARNING):
        train(msacl, make_engine(max_epochs=epochs), phantom_root)
    assert msacl.run.steps == (8 if told else 9)
    warning = "the training ends after 8 of the recipe's 9 steps, because trainer.max_epochs is 2; set it to -1"
    assert (warning in caplog.text) is told


@pytest.mark.parametrize("loaded", [False, True])
def test_a_second_fit_begins_where_the_first_has_ended(
    loaded: bool, monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    """All scores of the first fit are better than those of the second; they are of other images, and do not count."""
    shown = script(monkeypatch, [0.9, 0.9, 0.9, 0.5, 0.6])
    msacl, engine = make_msacl(make_recipe(**TINY, average=0.5, realign=False)), make_engine(max_steps=4)
    train(msacl, engine, phantom_root)
    first = state(msacl)
    if loaded:
        msacl = Msacl.load_from_checkpoint(engine.best_model_path)
    train(msacl, make_engine(max_steps=1), phantom_root)
    assert list(msacl.run.choice.scores) == ["untouched", "step 1"]
    assert equal(shown[3], first)
    assert msacl.run.choice.kept == "step 1"
    assert equal(state(msacl), shown[4])
    assert "image AUROC 0.500 -> 0.600" in msacl.run.choice.verdict()


def test_a_second_fit_fixes_centres_of_its_own_and_a_resumed_one_keeps_them(
    make_msacl: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []
    original = MultiCentring.fix

    def fix(self: MultiCentring, z: torch.Tensor, classes: torch.Tensor) -> None:
        starts.append(state(msacl))
        original(self, z, classes)

    monkeypatch.setattr(MultiCentring, "fix", fix)
    msacl, engine = make_msacl(make_recipe(**TINY, centring=1.0, average=1.0)), make_engine(max_steps=2)
    train(msacl, engine, phantom_root)
    ended = state(msacl)
    train(msacl, make_engine(max_steps=3), phantom_root, ckpt_path=engine.best_model_path)
    assert len(starts) == 1
    msacl = Msacl.load_from_checkpoint(engine.best_model_path)
    train(msacl, make_engine(max_steps=2), phantom_root)
    assert len(starts) == 2
    assert equal(starts[1], ended)
    assert not equal(starts[0], ended)


@pytest.mark.parametrize("replaced", [False, True])
def test_the_datamodule_is_left_as_it_was(
    replaced: bool, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    data = phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.2, seed=0)
    if replaced:
        data.train_dataloader = partial(type(data).train_dataloader, data)
    before = data.train_dataloader
    make_engine(max_steps=1).fit(make_msacl(), datamodule=data)
    assert data.train_dataloader == before
    assert ("train_dataloader" in vars(data)) is replaced


def test_the_datamodule_is_left_as_it_was_after_an_error(
    make_msacl: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Msacl, "training_step", fail)
    data = phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.2, seed=0)
    engine = make_engine(max_steps=1)
    with pytest.raises(ZeroDivisionError):
        engine.fit(make_msacl(), datamodule=data)
    assert "train_dataloader" not in vars(data)
    assert "save_checkpoint" not in vars(engine.trainer)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_of_so_many_batches_make_one_step(
    accumulate: int, monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    """Sixteen images make four batches: three go into the first step of the epoch, the last into the second."""
    msacl = make_msacl(make_recipe(max_steps=2, batch_size=4, accumulate=accumulate, evaluations=0, centre_images=4))
    steps, step = [], Msacl.training_step
    monkeypatch.setattr(Msacl, "training_step", lambda self, *a: steps.append(1) or step(self, *a))
    train(msacl, make_engine(max_steps=2), phantom_root)
    assert msacl.trainer.global_step == 2
    assert len(steps) == {1: 2, 3: 4}[accumulate]


def test_the_centres_come_from_the_untouched_encoder_and_stay(
    make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    msacl = make_msacl(make_recipe(max_steps=3, batch_size=4, evaluations=0, centre_images=16, whitening=0))
    seen = {}
    original = msacl.terms.centring.fix

    def fix(z: torch.Tensor, classes: torch.Tensor) -> None:
        seen["backbone"], seen["classes"] = state(msacl), classes
        original(z, classes)
        seen["centres"] = msacl.terms.centring.centres.clone()

    before = state(msacl)
    msacl.terms.centring.fix = fix
    engine = make_engine(max_steps=3)
    train(msacl, engine, phantom_root)
    assert equal(before, seen["backbone"])
    assert torch.equal(seen["classes"].bincount(), torch.full((4,), 16))
    assert torch.equal(msacl.terms.centring.centres, seen["centres"])
    loaded = Msacl.load_from_checkpoint(engine.best_model_path)
    assert torch.equal(loaded.terms.centring.centres, seen["centres"])
    assert loaded.terms.centring.ready


def test_the_same_seed_gives_the_same_weights_and_images_are_looked_at_once(
    make_msacl: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[dict[str, torch.Tensor]] = []
    looked_at: list[str] = []

    def look(path: str) -> Inspection:
        looked_at.append(path)
        return inspect_image(path)

    monkeypatch.setattr(looks, "inspect_image", look)
    for seed in (0, 0, 1):
        msacl = make_msacl(make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4, seed=seed))
        train(msacl, make_engine(max_steps=2), phantom_root)
        results.append(state(msacl))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])
    assert len(looked_at) == len(set(looked_at)) > 0


def test_resuming_goes_on_with_steps_centres_and_choice(
    monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    shown = script(monkeypatch, [0.9, 0.5, 0.6, 0.7, 0.8])
    first, engine = make_msacl(), make_engine(max_steps=4)
    train(first, engine, phantom_root)
    assert len(shown) == 3
    second = make_msacl(replace(first.recipe, max_steps=8))
    again = make_engine(max_steps=8)
    train(second, again, phantom_root, ckpt_path=engine.best_model_path)
    assert again.trainer.global_step == 8
    assert list(second.run.choice.scores) == ["untouched", "step 2", "step 4", "step 8"]
    assert torch.equal(first.terms.centring.centres, second.terms.centring.centres)
    assert second.run.choice.kept == "untouched"
    assert equal(state(second), shown[0])


def test_terms_rate_and_separation_are_logged(
    make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    msacl = make_msacl(make_recipe(max_steps=4, batch_size=4, evaluations=2, evaluation_images=8, position=0.0))
    logger = CSVLogger(tmp_path / "logs")
    train(msacl, make_engine(max_steps=4, logger=logger, log_every_n_steps=1), phantom_root)
    with next((tmp_path / "logs").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    named = {key for row in rows for key, value in row.items() if value}
    terms = {"train_centring", "train_contrastive", "train_augmentation", "train_dense"}
    assert terms | {"train_loss", "learning_rate", "class_separation", "held_out_image_auroc"} <= named
    assert {"val_image_AUROC", "val_pixel_AUROC"} <= named
    assert "train_position" not in named
    rates = [float(row["learning_rate"]) for row in rows if row.get("learning_rate")]
    assert rates[0] == pytest.approx(1e-4)
    assert rates == sorted(rates, reverse=True)


def test_validation_sees_each_normal_image_with_and_without_lesions(make_msacl: Make) -> None:
    msacl = make_msacl().eval()
    images = torch.rand(4, 3, 64, 64)
    msacl.model.fit_memory_bank(images, images, seed=0)
    labels = torch.tensor([0, 1, 0, 1])

    def validate() -> ImageBatch:
        masks = torch.zeros(4, 64, 64, dtype=torch.bool)
        batch = ImageBatch(image=images.clone(), gt_label=labels.clone(), gt_mask=masks, image_path=list("abcd"))
        return msacl.validation_step(batch, 7)

    batch = validate()
    assert batch.gt_label.tolist() == [False, False, True, True]
    assert torch.equal(batch.image[:2], images[[0, 2]])
    outside = ~batch.gt_mask[2:, None].expand(-1, 3, -1, -1)
    assert torch.equal(batch.image[2:][outside], images[[0, 2]][outside])
    assert not torch.equal(batch.image[2:], images[[0, 2]])
    assert torch.equal(validate().image, batch.image)


def test_metrics_of_a_validation_are_logged_only_where_there_is_a_detector(
    make_msacl: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without values, one of several processes would compute them once more and wait for the others for ever."""
    validations: list[bool] = []
    logged: list[tuple[str, bool]] = []
    log, msacl = LightningModule.log, make_msacl(make_recipe(max_steps=6, batch_size=4, accumulate=1, evaluations=0))

    def record(self: Any, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Metric):
            logged.append((name, self.model.memory_bank.fitted))
        log(self, name, value, *args, **kwargs)

    class Watch(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            validations.append(pl_module.model.memory_bank.fitted)

    monkeypatch.setattr(LightningModule, "log", record)
    train(msacl, make_engine(max_steps=6, callbacks=[Watch()]), phantom_root)
    assert validations == [False, True]
    assert logged == [("val_image_AUROC", True), ("val_pixel_AUROC", True)]


def test_a_batch_of_real_lesions_only_counts_for_nothing(make_msacl: Make) -> None:
    images = torch.rand(2, 3, 64, 64)
    batch = ImageBatch(image=images, gt_label=torch.ones(2, dtype=torch.long), gt_mask=torch.ones(2, 64, 64).long())
    msacl = make_msacl().eval()
    output = msacl.validation_step(batch, 0)
    assert output.pred_score is None
    msacl.post_processor.on_validation_batch_end(None, msacl, output)
    for metric in msacl.evaluator.val_metrics:
        metric.update(output)
        assert not metric.update_called


def test_test_and_predict_score_images(make_msacl: Make, make_engine: Make, phantom_root: Path) -> None:
    msacl, engine = make_msacl(), make_engine(max_steps=4)
    data = phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.2, seed=0)
    engine.fit(msacl, datamodule=data)
    metrics = engine.test(msacl, datamodule=data)[0]
    assert {"image_AUROC", "pixel_AUROC"} <= metrics.keys()
    folder = next(phantom_root.rglob("test/lesion"))
    (first, *_) = engine.predict(msacl, dataset=PredictDataset(folder), ckpt_path=engine.best_model_path)
    assert first.anomaly_map.shape[-2:] == (64, 64)
    assert 0 <= float(first.pred_score[0]) <= 1


def test_without_validation_images_the_last_step_is_kept_and_said(
    make_msacl: Make, make_engine: Make, phantom_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    msacl = make_msacl()
    engine = make_engine(max_steps=4, limit_val_batches=0)  # anomalib 2.7 fails without a validation set otherwise
    engine.fit(msacl, datamodule=phantom(phantom_root, val_split_mode="none"))
    assert "no held-out normal images" in caplog.text
    assert msacl.run.choice.kept is None


def test_anomalib_knows_the_model_by_name() -> None:
    assert "msacl" in list_models()
    assert isinstance(get_model("msacl", backbone="test_resnet", weights="random"), Msacl)


def test_sgd_trains_too(make_msacl: Make, make_engine: Make, phantom_root: Path) -> None:
    msacl = make_msacl(make_recipe(max_steps=2, batch_size=4, evaluations=0, optimizer="sgd", frozen_stride=0))
    before = state(msacl)
    train(msacl, make_engine(max_steps=2), phantom_root)
    assert not torch.equal(before["conv1.0.weight"], state(msacl)["conv1.0.weight"])


def test_the_saved_configuration_carries_normalisation_and_size(make_msacl: Make, tmp_path: Path) -> None:
    msacl = make_msacl(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    msacl.run.result().save(tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert config["input_size"] == [3, 64, 64]


def test_the_recipe_sets_the_steps_unless_the_trainer_does(
    make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    msacl, engine = make_msacl(make_recipe(max_steps=3, batch_size=4, evaluations=0, centre_images=4)), make_engine()
    train(msacl, engine, phantom_root)
    assert engine.trainer.global_step == 3
    assert "steps made: 3;" in (tmp_path / "weights" / "README.md").read_text()


class Stop(Callback):
    """Stops after two steps, as early stopping or a time limit would."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= 2


def test_stopped_early_the_best_step_is_saved_all_the_same(
    monkeypatch: pytest.MonkeyPatch, make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    shown = script(monkeypatch, [0.9, 0.5, 0.5])
    settings = {"max_steps": 40, "batch_size": 4, "evaluations": 2, "evaluation_images": 8, "whitening": 0}
    msacl = make_msacl(make_recipe(**settings, centre_images=4))
    train(msacl, make_engine(callbacks=[Stop()]), phantom_root)
    saved = timm.create_model(f"local-dir:{tmp_path / 'weights'}", pretrained=True).state_dict()
    assert len(shown) == 2
    assert equal(saved, shown[0])


class StopAtEpochEnd(EarlyStopping):
    """Stops after the first epoch, behind the last hook of the model before the checkpoint, as early stopping does."""

    def __init__(self, in_validation: bool) -> None:
        super().__init__("train_loss", check_on_train_epoch_end=not in_validation)

    def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str | None]:
        return True, None


STOPS: dict[str, tuple[Callable[[], list[Callback]], dict[str, Any]]] = {
    "within an epoch": (lambda: [Stop()], {}),
    "time": (list, {"max_time": {"microseconds": 1}}),
    "early stopping": (lambda: [StopAtEpochEnd(in_validation=False)], {}),
    "early stopping in a validation": (lambda: [StopAtEpochEnd(in_validation=True)], {"val_check_interval": 2}),
    "steps, and a checkpoint every few": (lambda: [ModelCheckpoint(every_n_train_steps=2)], {"max_steps": 2}),
}


@pytest.mark.parametrize("name", STOPS)
def test_stopped_in_any_way_the_checkpoint_is_the_model_that_was_fitted(
    name: str, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    make, options = STOPS[name]
    settings = {"max_steps": 40, "batch_size": 4, "accumulate": 1, "evaluation_images": 4, "centre_images": 4}
    msacl, engine = make_msacl(make_recipe(**settings)), make_engine(callbacks=make(), **options)
    train(msacl, engine, phantom_root)
    assert engine.trainer.global_step < 40
    assert "save_checkpoint" not in vars(engine.trainer)
    loaded = Msacl.load_from_checkpoint(str(engine.best_model_path)).eval()
    assert equal(state(loaded), state(msacl))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.model(images).pred_score, msacl.eval().model(images).pred_score)
    assert loaded.run.choice.kept == msacl.run.choice.kept is not None


def test_a_threshold_of_held_out_images_is_in_the_checkpoint_of_a_run_that_was_stopped(
    make_msacl: Make, make_engine: Make, phantom_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(max_steps=40, batch_size=4, accumulate=1, evaluations=0, centre_images=4)
    for callbacks, warned in (([NormalsThreshold(0.5, ratio=0.3)], False), ([], True)):
        caplog.clear()
        engine = make_engine(callbacks=[StopAtEpochEnd(in_validation=False), *callbacks])
        train(make_msacl(recipe), engine, phantom_root)
        loaded = Msacl.load_from_checkpoint(str(engine.best_model_path))
        assert bool(loaded.post_processor.image_threshold.isnan()) is warned
        assert ("stopped after its last validation" in caplog.text) is warned


def test_a_checkpoint_from_before_the_detector_scores_nothing_and_can_be_gone_on_with(
    make_msacl: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    recipe = make_recipe(max_steps=2, batch_size=4, accumulate=1, evaluations=0, centre_images=4)
    train(make_msacl(recipe), make_engine(callbacks=[Keep()]), phantom_root)
    data, engine = phantom(phantom_root), make_engine()
    for use in (engine.test, engine.predict):
        with pytest.raises(InputError, match="stopped before its detector was fitted, or never trained: go on with"):
            use(make_msacl(recipe), datamodule=data, ckpt_path=tmp_path / "early.ckpt")
    with pytest.raises(InputError, match="stopped before its detector was fitted"):
        TorchScorer(tmp_path / "early.ckpt", 1)
    with pytest.raises(InputError, match="stopped before its detector was fitted"):
        Msacl.load_from_checkpoint(tmp_path / "early.ckpt").to_onnx(tmp_path / "out")
    msacl = make_msacl(recipe)
    train(msacl, make_engine(), phantom_root, ckpt_path=tmp_path / "early.ckpt")
    assert msacl.model.memory_bank.fitted
    assert make_msacl(recipe, detector=False).eval()(torch.rand(2, 3, 64, 64)).pred_score.shape == (2,)


def test_a_folder_with_something_else_and_a_full_disk_are_refused_before_training_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_msacl: Make,
    make_engine: Make,
    phantom_root: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *_: pytest.fail("a traceback"))
    monkeypatch.setattr(Msacl, "training_step", lambda *_: pytest.fail("training has begun"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="holds something else") as refused:
        train(make_msacl(weights_dir=tmp_path / "full"), make_engine(), phantom_root)
    sys.excepthook(InputError, refused.value, None)  # as Python does at the end of a program
    assert capsys.readouterr().err.endswith(f"anomalib-msacl: error: {refused.value}\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99_000))
    with pytest.raises(InputError, match=r"they take \d\.\d MB and the disk has 0\.1 MB left"):
        train(make_msacl(weights_dir=tmp_path / "new"), make_engine(), phantom_root)


@pytest.mark.parametrize(
    ("options", "recipe", "message"),
    [
        ({"precision": "bf16-true"}, {}, "cannot run in bf16-true"),
        ({"precision": "64-true"}, {}, "cannot run in 64-true; set trainer.precision to 32-true"),
        ({}, {"max_steps": 0}, "nothing to train"),
    ],
)
def test_trainers_that_cannot_serve_are_refused(
    options: dict[str, Any],
    recipe: dict[str, Any],
    message: str,
    make_msacl: Make,
    make_engine: Make,
    phantom_root: Path,
) -> None:
    with pytest.raises(InputError, match=message):
        train(make_msacl(make_recipe(**recipe)), make_engine(**options), phantom_root)
