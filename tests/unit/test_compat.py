"""Names that anomalib, Lightning, timm and torch keep private or may move: each test says what breaks without one."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import timm.models.vision_transformer as timm_vit
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.models.components import AnomalibModule
from anomalib.models.components.base.export_mixin import ExportMixin
from anomalib.models.components.feature_extractors import timm as extractors
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torchvision.transforms.v2 import Compose, Normalize, RandomHorizontalFlip, Resize

from anomalib_msacl.compat import (
    BatchNorm,
    DataHooks,
    allow_unused_parameters,
    before_saving,
    exporting_with,
    is_attached,
    is_stopping,
    isolated_random,
    one_results_folder,
    position_embeddings_without_antialiasing,
    saves_as_before,
    set_max_steps,
    use_test_augmentations,
    with_callback,
    without_antialiasing,
)
from tests.conftest import phantom


def test_batch_norm_is_the_base_of_all_dimensions() -> None:
    """Without it, frozen statistics would move, and whitening would not find the scales that it folds."""
    assert all(isinstance(norm(2), BatchNorm) for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    assert not isinstance(nn.LayerNorm(2), BatchNorm)


def test_random_numbers_are_restored_after_an_error_too() -> None:
    """Lightning's own context manager ends where the error was raised."""

    def fail() -> None:
        torch.rand(1)
        raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), isolated_random():
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_transformers_resample_their_position_embeddings_through_the_name_that_is_replaced() -> None:
    """Otherwise features would differ before and after anomalib has built an extractor of its own."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", dynamic_img_size=True, num_classes=0).eval()
    images = torch.rand(1, 3, 96, 96)
    before = timm_vit.resample_abs_pos_embed
    with torch.no_grad():
        usual = model(images)
        with position_embeddings_without_antialiasing():
            plain = model(images)
        assert timm_vit.resample_abs_pos_embed is before
        timm_vit.resample_abs_pos_embed = inspect.unwrap(before)
        extractors._disable_pos_embed_antialiasing()
        anomalibs = model(images)
        timm_vit.resample_abs_pos_embed = before
    assert torch.equal(plain, anomalibs)
    assert torch.allclose(usual, plain, atol=0.1)


def test_ddp_takes_its_options_from_where_they_are_set() -> None:
    """Otherwise DDP would stop where the stages behind the layers, or a term, get no gradient."""
    strategy = DDPStrategy()
    allow_unused_parameters(strategy)
    assert strategy._ddp_kwargs == DDPStrategy(find_unused_parameters=True)._ddp_kwargs
    assert "self._ddp_kwargs" in inspect.getsource(DDPStrategy._setup_model)


def test_the_processes_of_a_run_have_one_results_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise ``latest`` would be a folder without the weights, which the first process saves."""

    def folder(rank: int) -> Path:
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        engine = Engine(default_root_dir=tmp_path)
        names: Any = SimpleNamespace(name="Model", category=None)
        engine._setup_workspace(names, datamodule=names, versioned_dir=True)
        return Path(engine._cache.args["default_root_dir"])

    with one_results_folder():
        others = folder(1)  # may come first, where all processes are started at once
        first = folder(0)
        assert others.resolve() == first
        assert folder(0) == others.resolve() != first  # the next run
    assert folder(1).name == "v2"  # anomalib itself: if this fails, it has been mended there


def test_an_engine_takes_a_callback_before_and_after_it_has_its_trainer(make_patchcore: Any, make_engine: Any) -> None:
    engine, callback = make_engine(), Callback()
    for _ in range(2):
        with with_callback(engine, callback):
            engine._setup_trainer(make_patchcore())
            assert engine.trainer.callbacks.count(callback) == 1
        assert callback not in [*engine.trainer.callbacks, *engine._cache.args["callbacks"]]


def test_a_trainer_takes_its_steps_from_where_they_are_set() -> None:
    """Otherwise the recipe could not say how many steps Msacl makes."""
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    set_max_steps(trainer, 7)
    assert trainer.max_steps == 7


def test_a_module_knows_whether_it_has_a_trainer() -> None:
    """Otherwise a resumed run and a loaded checkpoint could not be told apart."""
    module = LightningModule()
    assert not is_attached(module)
    module.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert is_attached(module)


def test_a_checkpoint_can_wait_for_what_is_to_be_done_before(tmp_path: Path) -> None:
    """Otherwise the checkpoint of a training that was stopped would not have what is made at its end."""
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module, seen = LightningModule(), []
    trainer.strategy.connect(module)

    def act() -> None:
        seen.append(torch.is_grad_enabled() and not torch.is_inference_mode_enabled())
        module.register_buffer("made", torch.ones(1))

    before_saving(trainer, act)
    before_saving(trainer, act)  # a second fit
    with torch.inference_mode():
        trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert seen == [True]
    assert "made" in torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    saves_as_before(trainer)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert seen == [True]


def test_a_trainer_says_whether_it_was_told_to_stop() -> None:
    """Otherwise a training that is stopped before its least number of steps would end without them."""
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", min_steps=1)
    assert not is_stopping(trainer)
    trainer.should_stop = True
    assert not is_stopping(trainer)
    trainer.fit_loop.epoch_loop.min_steps = 0
    assert is_stopping(trainer)


def test_anomalibs_datamodule_calls_the_methods_that_are_given_public_names() -> None:
    """Otherwise our datamodules would be read, or split, in anomalib's way."""
    for name in ("_setup", "_create_test_split", "_create_val_split"):
        assert callable(getattr(AnomalibDataModule, name))
        assert name in inspect.getsource(AnomalibDataModule.setup)
    assert issubclass(DataHooks, AnomalibDataModule)


def test_a_dataset_can_be_prepared_as_test_images_are(phantom_root: Path) -> None:
    """Otherwise held-out images would be scored in another way than those of a test."""
    data = phantom(phantom_root, test_augmentations=RandomHorizontalFlip(0.0))
    data.setup()
    use_test_augmentations(data, data.train_data, None)
    assert data.train_data.augmentations is data.test_augmentations
    use_test_augmentations(data, data.train_data, Compose([Resize((24, 24)), Normalize([0.5] * 3, [0.5] * 3)]))
    assert data.train_data[0].image.shape == (3, 24, 24)


def test_anomalib_exports_through_the_methods_and_the_transform_that_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise exports would lose their antialiasing again, and score otherwise than the tested model."""
    seen: list[object] = []

    def export(model: Any, **_: Any) -> str:
        seen.append(model.pre_processor.export_transform)
        return "model.onnx"

    monkeypatch.setattr(ExportMixin, "to_onnx", export)

    class Model(ExportMixin, nn.Module):
        pre_processor = PreProcessor(Resize(8))

    other, model, told = Resize(9), Model(), []
    transforms = {Model.pre_processor.transform: other}
    with exporting_with(transforms.__getitem__, lambda *_: None, lambda *written: told.append(written)):
        model.to_onnx()
    assert seen == [other]
    assert told == [(model, Path("model.onnx"))]
    assert "self.to_onnx(" in inspect.getsource(ExportMixin.to_openvino)
    assert all(f"model.{name}(" in inspect.getsource(Engine.export) for name in ("to_torch", "to_onnx", "to_openvino"))
    assert "self.export_transform(batch)" in inspect.getsource(PreProcessor.forward)


def test_anomalib_tells_a_model_of_its_checkpoint_through_the_hook_that_is_replaced(tmp_path: Path) -> None:
    """Otherwise the bundle of an export would not know how images were read, nor what the threshold comes from."""
    trained = Patchcore("test_resnet", ["layer2"], pre_trained=False, visualizer=False)
    trainer = Trainer(barebones=True, accelerator="cpu", devices=1)
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    told: list[tuple[Any, Any]] = []
    original = AnomalibModule.on_load_checkpoint
    with exporting_with(lambda transform: transform, lambda *loaded: told.append(loaded), lambda *_: None):
        model = Patchcore.load_from_checkpoint(tmp_path / "model.ckpt")
    assert [(one, checkpoint["hyper_parameters"]["backbone"]) for one, checkpoint in told] == [(model, "test_resnet")]
    assert AnomalibModule.on_load_checkpoint is original


def test_anomalib_switches_antialiasing_off() -> None:
    """If it no longer does, ``anomalib export`` will do, and anomalib_msacl/export.py can go."""
    given = Compose([Resize(8, antialias=True)])
    assert not without_antialiasing(given).transforms[0].antialias
    assert given.transforms[0].antialias
