"""Igd as a model of anomalib: fit, estimate, choose, resume, test, predict, export."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image
from torch import Tensor, nn

from anomalib_msacl import Igd, InputError, MsaclPretraining
from anomalib_msacl.backbone import create_backbone, save_backbone
from anomalib_msacl.backbone.sources import timm_name
from anomalib_msacl.backbone.tensors import same
from anomalib_msacl.data.checks import image_paths
from anomalib_msacl.data.looks import seen_by_runs
from anomalib_msacl.detectors.igd.networks import Critic, Decoder
from anomalib_msacl.detectors.igd.training import IgdTraining
from anomalib_msacl.export import antialiased_exports
from anomalib_msacl.pretraining import Score
from anomalib_msacl.transfer import find_backbone
from tests.conftest import phantom

Make = Callable[..., Any]
TINY: dict[str, Any] = {"backbone": "test_resnet", "layers": ["layer3"], "pre_trained": False, "image_size": 64}
TINY |= {"dim": 8, "width": 2, "patches": 2, "update_every": 2, "evaluations": 2, "visualizer": False}


def make_igd(**changes: Any) -> Igd:
    return Igd(**{**TINY, **changes})


def data_of(root: Path, **changes: Any) -> Any:
    return phantom(root, **{"val_split_mode": "medmix", "val_split_ratio": 0.3, "seed": 0, **changes})


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Fitted:
    """A fitted model, its engine, and what was seen on the way."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.model, self.before = make_igd(), state(make_igd().model)
        options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
        self.engine = Engine(default_root_dir=folder, max_epochs=4, enable_model_summary=False, **options)
        self.data = data_of(root)
        self.engine.fit(self.model, datamodule=self.data)
        self.checkpoint = Path(str(self.engine.best_model_path))


@pytest.fixture(scope="module")
def fitted(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return Fitted(phantom_root, tmp_path_factory.mktemp("igd"))


def test_what_shall_be_trained_moves_and_nothing_else(fitted: Fitted) -> None:
    after = state(fitted.model.model)
    moved = {name for name, tensor in fitted.before.items() if not torch.equal(tensor, after[name])}
    still = fitted.before.keys() - moved
    left = {name for name in still if "normalisation." not in name and not name.startswith("feature_extractor.")}
    assert left <= {"whole.classifier.sigma", "patch.classifier.sigma"}  # at their floor of 1
    assert not [name for name in moved if name.startswith("feature_extractor.")]
    for part in ("whole", "patch"):
        for name in ("project.weight", "decode.linear.weight", "critic.linear.weight", "classifier.centre"):
            assert f"{part}.{name}" in moved
    # The decoder's BatchNorm learns its statistics through all epochs, validations and estimates.
    batches = 4 * -(-len(fitted.data.train_data) // 4)
    assert after["whole.decode.image.0.num_batches_tracked"] == 2 * batches  # images and interpolations


def test_the_encoder_is_trained_where_it_is_not_frozen(phantom_root: Path, make_engine: Make) -> None:
    model = make_igd(frozen=False, evaluations=0, patch_size=0)
    before = state(model.model.feature_extractor)
    make_engine(max_steps=3).fit(model, datamodule=data_of(phantom_root))
    assert not same(before, state(model.model.feature_extractor))
    assert model.training_run.choice.scores == {}


def test_the_learning_rate_falls_to_nothing_with_power_nine_tenths(phantom_root: Path, make_engine: Make) -> None:
    rates: list[list[float]] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            rates.append([one.param_groups[0]["lr"] for one in module.optimizers()])

    model = make_igd(patch_size=0, learning_rate=0.01, evaluations=0)
    make_engine(max_epochs=2, callbacks=[Watch()]).fit(model, datamodule=data_of(phantom_root))
    expected = [0.01 * (1 - step / len(rates)) ** 0.9 for step in range(len(rates))]
    assert len(rates) == 8
    for optimiser in range(2):
        assert [rate[optimiser] for rate in rates] == pytest.approx(expected)
    assert [one.param_groups[0]["lr"] for one in model.optimizers()] == pytest.approx([0, 0])


def test_centre_and_deviation_are_estimated_before_training_and_every_few_epochs(
    monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make
) -> None:
    seen: list[tuple[int, int]] = []
    estimate = IgdTraining._estimate

    def watched(run: IgdTraining, module: Igd) -> None:
        assert run.model.training
        estimate(run, module)
        assert run.model.training
        assert run.model.whole.decode.training
        seen.append((module.current_epoch, module.global_step))

    monkeypatch.setattr(IgdTraining, "_estimate", watched)
    model = make_igd(patch_size=0, update_every=3, evaluations=0)
    make_engine(max_epochs=5, limit_train_batches=1).fit(model, datamodule=data_of(phantom_root))
    assert seen == [(0, 0), (3, 6)]


@pytest.mark.parametrize("seed", [-1, 20_261_128_143_000, 2**63 - 1])
def test_every_seed_that_is_taken_can_be_trained_with(seed: int, phantom_root: Path, make_engine: Make) -> None:
    model = make_igd(patch_size=0, evaluations=1, seed=seed)
    make_engine(max_epochs=1, limit_train_batches=1).fit(model, datamodule=data_of(phantom_root))
    assert model.training_run.choice.kept == "epoch 1"


def test_a_run_is_told_by_its_seed_and_goes_on_bit_by_bit_after_a_stop(
    fitted: Fitted, phantom_root: Path, tmp_path: Path, make_engine: Make
) -> None:
    """The second run is stopped after two epochs, by a checkpoint of then, and resumed."""

    class Keep(Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    torch.manual_seed(7)  # the state of the global numbers does not matter
    straight = make_igd()
    make_engine(max_epochs=4, callbacks=[Keep()]).fit(straight, datamodule=data_of(phantom_root))
    assert same(state(straight.model), state(fitted.model.model))
    torch.manual_seed(8)
    resumed = make_igd(seed=0)
    make_engine(max_epochs=4).fit(resumed, datamodule=data_of(phantom_root), ckpt_path=tmp_path / "half.ckpt")
    assert same(state(straight.model), state(resumed.model))
    scores = [
        {name: score.image_auroc for name, score in one.training_run.choice.scores.items()}
        for one in (straight, resumed)
    ]
    assert scores[0] == scores[1]
    assert list(scores[0]) == ["epoch 2", "epoch 4"]
    other = make_igd(seed=1)
    assert not same(state(straight.model), state(other.model))


def script(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[dict[str, Tensor]]:
    """Let the stages have these scores, and keep the weights that each had."""
    shown: list[dict[str, Tensor]] = []

    def score(_: Any, model: nn.Module, device: torch.device) -> Score:
        shown.append(state(model))
        return Score(values[len(shown) - 1], 0.5)

    monkeypatch.setattr("anomalib_msacl.detectors.igd.held_out.HeldOutImages.score", score)
    return shown


@pytest.mark.parametrize(("first", "kept"), [(0.9, "epoch 1"), (0.1, "epoch 2")])
def test_the_stage_that_tells_lesions_best_is_kept_and_saved(
    first: float, kept: str, monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make
) -> None:
    shown = script(monkeypatch, [first, 0.5])
    model, engine = make_igd(patch_size=0), make_engine(max_epochs=2)
    engine.fit(model, datamodule=data_of(phantom_root))
    assert not same(shown[0], shown[1])
    assert model.training_run.choice.kept == kept
    assert same(state(model.model), shown[int(kept[-1]) - 1])
    loaded = Igd.load_from_checkpoint(str(engine.best_model_path))
    assert same(state(loaded.model), shown[int(kept[-1]) - 1])


class StopBehindTheModel(EarlyStopping):
    """Stops after the second epoch, behind the last hook of the model before the checkpoint."""

    def __init__(self) -> None:
        super().__init__("loss", check_on_train_epoch_end=True)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        self.wait_count += 1
        return self.wait_count == 2, None


class StopWithinAnEpoch(Callback):
    """Stops in the second epoch, after a step of each optimiser."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("stop", [StopBehindTheModel, StopWithinAnEpoch])
@pytest.mark.parametrize(("first", "kept"), [(0.9, "epoch 1"), (0.1, "epoch 2")])
def test_stopped_early_the_checkpoint_has_the_stage_that_was_chosen(
    stop: Any, first: float, kept: str, monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make
) -> None:
    shown = script(monkeypatch, [first, 0.5])
    monkeypatch.setattr("anomalib_msacl.detectors.igd.training._epochs", lambda _: 1)  # each is due
    model, engine = make_igd(patch_size=0, evaluations=1), make_engine(max_epochs=8, callbacks=[stop()])
    engine.fit(model, datamodule=data_of(phantom_root))
    assert engine.trainer.current_epoch == 2
    assert model.training_run.choice.kept == kept
    loaded = Igd.load_from_checkpoint(str(engine.best_model_path))
    for found in (model, loaded):
        assert same(state(found.model), shown[int(kept[-1]) - 1])


def test_stopped_before_a_stage_was_due_the_present_one_is_compared_and_kept(
    phantom_root: Path, make_engine: Make
) -> None:
    model = make_igd(patch_size=0, evaluations=1)
    engine = make_engine(max_epochs=8, callbacks=[StopBehindTheModel()])
    engine.fit(model, datamodule=data_of(phantom_root))
    assert list(model.training_run.choice.scores) == ["epoch 2"]
    assert same(state(Igd.load_from_checkpoint(str(engine.best_model_path)).model), state(model.model))


def test_a_second_fit_does_not_choose_among_the_stages_of_the_first(
    monkeypatch: pytest.MonkeyPatch, phantom_root: Path, make_engine: Make
) -> None:
    shown = script(monkeypatch, [0.9, 0.9, 0.5])
    model = make_igd(patch_size=0)
    for epochs in (2, 1):
        make_engine(max_epochs=epochs).fit(model, datamodule=data_of(phantom_root))
    assert list(model.training_run.choice.scores) == ["epoch 1"]
    assert same(state(model.model), shown[2])


def test_the_next_run_finds_what_was_seen_in_the_images(fitted: Fitted) -> None:
    run = Path(fitted.engine.trainer.default_root_dir)
    kept = json.loads(seen_by_runs(run.with_name("v9")).read_bytes())["images"]
    assert set(image_paths(fitted.data, "train_data")) <= set(kept)


def test_no_image_of_the_test_set_takes_part_in_the_choice(fitted: Fitted) -> None:
    """Nor do lesions of a validation set: the questions are normal images and copies of them."""
    data = fitted.data
    normal = int((data.val_data.samples.label_index == 0).sum())
    questions = fitted.model.training_run.choice.questions
    assert len(questions.images) == 3 * normal
    assert questions.masks[:normal].sum() == 0
    assert questions.masks[normal:].flatten(1).any(dim=1).all()
    batch = next(iter(data.val_dataloader()))
    shown = batch.image[batch.gt_label == 0].as_subclass(Tensor)
    torch.testing.assert_close(questions.images[: len(shown)], shown)


def test_a_checkpoint_says_the_same_and_needs_no_weights_of_others(fitted: Fitted) -> None:
    loaded = Igd.load_from_checkpoint(fitted.checkpoint).eval()
    assert loaded.hparams["pre_trained"] is False
    assert same(state(fitted.model.model), state(loaded.model))
    tested = fitted.engine.test(loaded, datamodule=fitted.data, verbose=False)[0]
    assert tested == fitted.engine.test(fitted.model, datamodule=fitted.data, verbose=False)[0]
    predicted = fitted.engine.predict(fitted.model, datamodule=fitted.data, ckpt_path=fitted.checkpoint)
    scores = torch.cat([batch.pred_score.flatten() for batch in predicted])
    assert len(scores) == len(fitted.data.test_data)
    assert len(set(scores.tolist())) > len(scores) / 2


def test_a_checkpoint_needs_no_folder_of_the_backbone(
    phantom_root: Path, tmp_path: Path, make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = create_backbone("test_resnet", "random")
    save_backbone(built.model, tmp_path / "backbone", built.provenance)
    model = make_igd(backbone=f"local-dir:{tmp_path / 'backbone'}", pre_trained=True, patch_size=0, evaluations=0)
    data, engine = data_of(phantom_root), make_engine(max_epochs=1, limit_train_batches=1)
    engine.fit(model, datamodule=data)
    shutil.rmtree(tmp_path / "backbone")
    loaded = Igd.load_from_checkpoint(str(engine.best_model_path))
    assert loaded.hparams["backbone"] == "test_resnet"
    assert same(state(model.model), state(loaded.model))
    tested = engine.test(loaded, datamodule=data, verbose=False)
    assert tested == engine.test(model, datamodule=data, verbose=False)
    assert Path(engine.export(loaded, "torch", export_root=tmp_path / "export")).is_file()


def test_a_folder_that_sets_arguments_of_its_architecture_stays_named(tmp_path: Path) -> None:
    built = create_backbone("test_vit", "random", {"img_size": 64})
    save_backbone(built.model, tmp_path / "backbone", built.provenance)
    assert timm_name(f"local-dir:{tmp_path / 'backbone'}") == f"local-dir:{tmp_path / 'backbone'}"


def test_an_exported_model_carries_no_images(fitted: Fitted) -> None:
    assert fitted.model.training_run.choice.questions is not None
    found = pickle.loads(pickle.dumps(fitted.model.training_run))
    assert found.choice.questions is None
    assert found.choice.scores == {}
    assert same(state(fitted.model.model), state(found.model))


def test_exports_say_the_same(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # OpenVINO leaves a cache in the working folder
    images = torch.stack([item.image for item in fitted.data.test_data][:3]).as_subclass(Tensor)
    model = copy.deepcopy(fitted.model).eval()
    with torch.no_grad():
        expected = model(images)
    with antialiased_exports():
        onnx_file = model.to_onnx(tmp_path)
    network = openvino.convert_model(onnx_file)  # as to_openvino does
    answer = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images.numpy())
    for name in ("pred_score", "anomaly_map"):
        np.testing.assert_allclose(answer[name], getattr(expected, name).numpy(), atol=1e-3)
    assert expected.anomaly_map.std() > 0.01


def test_msacl_hands_its_weights_over(phantom_root: Path, tmp_path: Path, make_engine: Make, tiny_recipe: Make) -> None:
    callback = MsaclPretraining("random", tiny_recipe(evaluations=0), tmp_path / "msacl")
    model = make_igd(patch_size=0, evaluations=0)
    found = find_backbone(model)
    assert list(found.networks) == ["model.feature_extractor.feature_extractor"]
    make_engine(max_epochs=1, callbacks=[callback]).fit(model, datamodule=data_of(phantom_root))
    from safetensors.torch import load_file

    saved = {
        name.replace(".", "_"): tensor for name, tensor in load_file(callback.directory / "model.safetensors").items()
    }
    for name, tensor in model.model.feature_extractor.feature_extractor.state_dict().items():
        assert torch.equal(tensor, saved[name.replace(".", "_")]), name


def test_anomalib_knows_the_model_by_its_name() -> None:
    assert "igd" in {name.lower() for name in list_models()}
    assert isinstance(get_model("igd", **TINY), Igd)


def folder_of(root: Path, images: list[np.ndarray], batch: int) -> Folder:
    for index, pixels in enumerate(images):
        path = root / "train" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    options: dict[str, Any] = {"train_batch_size": batch, "eval_batch_size": batch, "num_workers": 0}
    return Folder(
        "few", normal_dir="train", root=root, val_split_mode="from_train", val_split_ratio=0.2, seed=0, **options
    )


def finite(model: Igd) -> bool:
    return all(tensor.isfinite().all() for tensor in model.model.state_dict().values() if tensor.is_floating_point())


def test_constant_images_make_no_nan_and_are_told(
    tmp_path: Path, make_engine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Grey ones of a few shades, of which every descriptor is nearly the same, one at a time."""
    data = folder_of(tmp_path, [np.full((64, 64, 3), 90 + index % 2, np.uint8) for index in range(10)], 1)
    model = make_igd(learning_rate=1e-2)
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "anomalib_msacl.detectors.igd.lightning_model.check_fit", lambda _: None
        )  # which would refuse them
        make_engine(max_epochs=2).fit(model, datamodule=data)
    assert finite(model)
    assert "descriptors of the part 'whole' have collapsed" in caplog.text
    scores = model.eval().model(torch.zeros(1, 3, 64, 64))
    assert scores.pred_score.isfinite().all()
    assert scores.anomaly_map.isfinite().all()


def test_ten_images_are_enough(tmp_path: Path, make_engine: Make) -> None:
    random = np.random.default_rng(0)
    data = folder_of(tmp_path, [random.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(10)], 16)
    model = make_igd()
    make_engine(max_epochs=3).fit(model, datamodule=data)
    assert finite(model)
    assert model.training_run.choice.kept is not None


def test_a_critic_that_says_the_same_of_all_is_told(
    phantom_root: Path, make_engine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def run(model: Igd) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            make_engine(max_epochs=2, limit_train_batches=1).fit(model, datamodule=data_of(phantom_root))
        return caplog.text

    options: dict[str, Any] = {"patch_size": 0, "update_every": 1, "evaluations": 0}
    model = make_igd(**options)
    nn.init.zeros_(model.model.whole.critic.linear.weight)
    model.model.whole.critic.linear.weight.requires_grad_(False)
    assert "critic of the part 'whole' has collapsed" in run(model)
    assert "collapsed" not in run(make_igd(**options))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_other_than_32_bits_are_refused_before_the_training(
    precision: str, phantom_root: Path, make_engine: Make
) -> None:
    message = f"Igd cannot run in {precision}; set trainer.precision to 32-true"
    with pytest.raises(InputError, match=message):
        make_engine(max_epochs=1, precision=precision).fit(make_igd(), datamodule=data_of(phantom_root))


def test_a_loss_that_is_not_finite_ends_the_training(phantom_root: Path, make_engine: Make) -> None:
    model = make_igd(patch_size=0)
    nn.init.constant_(model.model.whole.project.bias, float("nan"))
    with pytest.raises(InputError, match=r"the loss is not finite any more in epoch 0; set a smaller learning_rate"):
        make_engine(max_epochs=1).fit(model, datamodule=data_of(phantom_root))


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (48, 80), (100, 33)])
def test_decoder_and_critic_fit_any_size(size: tuple[int, int]) -> None:
    decoded = Decoder(8, size, 2)(torch.rand(2, 8))
    assert decoded.shape == (2, 3, *size)
    assert Critic(size, 2)(decoded).shape == (2,)


def test_layers_in_another_order_are_the_same_layers() -> None:
    models = [make_igd(layers=layers).eval() for layers in (["layer2", "layer3"], ["layer3", "layer2"])]
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(*(model.model.features(images) for model in models))


def test_patches_change_score_and_map_only_where_they_are(fitted: Fitted) -> None:
    """The same images one by one, and many at once, whose patches are examined in several chunks."""
    model, images = fitted.model.eval().model, torch.rand(40, 3, 64, 64)
    with torch.no_grad():
        together = model(images)
        alone = [model(images[index : index + 1]) for index in (0, 39)]
    for index, one in zip((0, 39), alone, strict=True):
        torch.testing.assert_close(one.pred_score[0], together.pred_score[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.anomaly_map[0], together.anomaly_map[index], atol=1e-4, rtol=1e-3)


def test_a_batch_of_validation_is_scored_as_it_is(fitted: Fitted) -> None:
    batch = ImageBatch(image=torch.rand(2, 3, 64, 64), gt_label=torch.tensor([0, 1]))
    expected = fitted.model.eval().model(batch.image)
    found = fitted.model.validation_step(batch, 0)
    assert torch.equal(found.pred_score, expected.pred_score)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, r"width is 0, but must be a whole number from 1 to 1024"),
        ({"learning_rate": -1.0}, r"learning_rate is -1.0, but must be a number above 0"),
        ({"image_size": 70}, r"patches of 32 pixels at a distance of 16 do not cover images of 70 x 70"),
        ({"patch_size": 96}, r"patch_size is 96; set it between 16 and the 64 pixels of the images"),
        ({"patch_stride": 40}, r"patches of 32 pixels at a distance of 40 do not cover"),
        ({"image_size": 8, "patch_size": 0}, r"images of 8 x 8 pixels are too small"),
        ({"layers": ["layer9"]}, r"layer 'layer9' does not exist in the backbone 'test_resnet'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_igd(**changes)
