"""The thresholds of Igd are those of the weights that are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from anomalib_msacl import Igd, NormalsThreshold
from anomalib_msacl.backbone.tensors import StateDict, copy_of, same
from anomalib_msacl.compat import undecided
from anomalib_msacl.thresholds.scoring import held_out_scores
from tests.unit.detectors.test_igd import StopBehindTheModel, data_of, make_igd, script

Make = Callable[..., Any]


class Watch(Callback):
    """Keeps what each validation has set."""

    def __init__(self) -> None:
        self.found: list[StateDict] = []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        del trainer
        self.found.append(copy_of(module.post_processor))


@pytest.fixture
def each_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_msacl.detectors.igd.training._epochs", lambda _: 1)


@pytest.mark.usefixtures("each_is_due")
@pytest.mark.parametrize("kept", [1, 2])
def test_stopped_behind_a_validation_the_thresholds_are_those_of_the_stage_that_is_kept(
    kept: int, monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make
) -> None:
    script(monkeypatch, [0.9, 0.5] if kept == 1 else [0.1, 0.5])
    model, watch = make_igd(patch_size=0, evaluations=1), Watch()
    engine = make_engine(max_epochs=8, callbacks=[watch, StopBehindTheModel()])
    engine.fit(model, datamodule=data_of(phantom_root))
    assert model.training_run.choice.kept == f"epoch {kept}"
    assert not same(watch.found[0], watch.found[1])
    for found in (model, Igd.load_from_checkpoint(str(engine.best_model_path))):
        assert same(copy_of(found.post_processor), watch.found[kept - 1])


@pytest.mark.usefixtures("each_is_due")
def test_a_run_that_goes_on_knows_the_thresholds_of_the_stages_before(
    monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make, tmp_path: Path
) -> None:
    class Keep(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "first.ckpt")

    script(monkeypatch, [0.9, 0.5])
    watch = Watch()
    engine = make_engine(max_epochs=1, callbacks=[watch, Keep()])
    engine.fit(make_igd(patch_size=0, evaluations=1), datamodule=data_of(phantom_root))
    model, stop = make_igd(patch_size=0, evaluations=1), StopBehindTheModel()
    stop.wait_count, stop.strict = 1, False  # Lightning ends the first epoch once more, without a loss
    engine = make_engine(max_epochs=8, callbacks=[stop])
    engine.fit(model, datamodule=data_of(phantom_root), ckpt_path=tmp_path / "first.ckpt")
    assert list(model.training_run.choice.scores) == ["epoch 1", "epoch 2"]
    assert model.training_run.choice.kept == "epoch 1"
    assert same(copy_of(model.post_processor), watch.found[0])


@pytest.mark.usefixtures("each_is_due")
def test_a_stage_that_was_never_validated_has_no_thresholds_and_says_so(
    monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    script(monkeypatch, [0.9, 0.5])
    model = make_igd(patch_size=0, evaluations=1)
    engine = make_engine(max_epochs=8, callbacks=[StopBehindTheModel()], check_val_every_n_epoch=2)
    with caplog.at_level(logging.WARNING):
        engine.fit(model, datamodule=data_of(phantom_root))
    assert model.training_run.choice.kept == "epoch 1"
    assert undecided(model)
    assert "Igd: no validation came after epoch 1, which is kept, so that the scores have no threshold" in caplog.text


@pytest.mark.usefixtures("each_is_due")
def test_thresholds_from_normal_images_are_those_of_the_stage_that_is_kept(
    monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make
) -> None:
    script(monkeypatch, [0.9, 0.5])
    model, normals, data = make_igd(patch_size=0, evaluations=1), NormalsThreshold(0.5), data_of(phantom_root)
    engine = make_engine(max_epochs=8, callbacks=[normals, StopBehindTheModel()])
    engine.fit(model, datamodule=data)
    assert model.training_run.choice.kept == "epoch 1"
    expected = held_out_scores(engine.trainer, model, data, normals._held_out)
    assert normals.calibration == expected
    loaded = Igd.load_from_checkpoint(str(engine.best_model_path))
    for found in (model, loaded):
        threshold = float(found.post_processor._image_threshold)
        assert min(abs(threshold - score) for score in expected["image"]) < 1e-6
        assert torch.equal(found.post_processor._image_threshold, model.post_processor._image_threshold)
