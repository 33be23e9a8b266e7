"""MsaclPretraining: hand-over, reuse, and what it leaves alone."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.models import Cflow, Ganomaly, Padim, Patchcore, Stfpm
from anomalib.models.components import TimmFeatureExtractor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn

from anomalib_msacl import InputError, MsaclPretraining, Recipe
from anomalib_msacl.backbone import Provenance, create_backbone, save_backbone
from anomalib_msacl.callback import _Split
from anomalib_msacl.checkpoints import read_checkpoint, restored
from anomalib_msacl.export import antialiased_exports
from anomalib_msacl.pretraining import Questions, Score
from anomalib_msacl.pretraining.lightning_model import PretrainingModule
from anomalib_msacl.recipe import ChoiceRecipe, WhiteningRecipe
from anomalib_msacl.transfer import find_backbone
from tests.conftest import make_recipe, phantom

Make = Callable[..., Any]
LAYERS = ["layer2", "layer3"]


@pytest.fixture
def callback(tmp_path: Path, tiny_recipe: Make, initial: Path) -> Make:
    def build(**changes: Any) -> MsaclPretraining:
        defaults = {"weights": str(initial), "recipe": tiny_recipe(), "root": tmp_path / "msacl"}
        return MsaclPretraining(**{**defaults, **changes})

    return build


@pytest.fixture(scope="session")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Initial weights that differ from those of any model built in a test."""
    torch.manual_seed(17)
    model, made = create_backbone("test_resnet", "random")
    return save_backbone(model, tmp_path_factory.mktemp("initial") / "weights", half(made))


def half(provenance: Provenance) -> Provenance:
    """The same with a normalisation of .5."""
    return replace(provenance, mean=(0.5,) * 3, std=(0.5,) * 3)


def network(model: Any) -> nn.Module:
    """The one network that holds the backbone of a model."""
    (found,) = find_backbone(model).networks.values()
    return found


def tensors(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network(model).state_dict().items()}


def fit(model: Any, callback: MsaclPretraining, engine: Make, root: Path, **options: Any) -> Any:
    made = engine(callbacks=[callback], max_epochs=1)
    made.fit(model, datamodule=phantom(root, seed=0), **options)
    return made


def test_the_model_gets_the_saved_weights_bit_by_bit_and_they_are_new(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, *[0.5] * 10])  # the untouched backbone is the best
    monkeypatch.setattr(Questions, "score", lambda *_: Score(next(scores), 0.5))
    kept = make_patchcore()
    first = callback()
    fit(kept, first, make_engine, phantom_root)
    saved = timm.create_model(f"local-dir:{first.directory}", pretrained=True).state_dict()
    untouched = create_backbone("test_resnet", first.weights)[0].state_dict()
    handed = tensors(kept)
    assert all(torch.equal(handed[name], saved[name]) for name in handed)
    assert all(torch.equal(handed[name], untouched[name]) for name in handed)

    trained = make_patchcore()
    fit(trained, callback(recipe=make_recipe(max_steps=4, batch_size=4, evaluations=0)), make_engine, phantom_root)
    changed = tensors(trained)
    assert any(not torch.equal(changed[name], untouched[name]) for name in changed)
    images = torch.rand(2, 3, 64, 64)
    before, after = (network(model)(images)[-1] for model in (kept, trained))
    assert not torch.allclose(before, after)


def test_the_normalisation_and_size_are_the_models(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    seen: list[Any] = []
    made = callback(recipe=make_recipe(max_steps=0))
    original = made._task
    made._task = lambda *arguments: seen.append(original(*arguments)) or seen[-1]
    fit(make_patchcore(), made, make_engine, phantom_root)
    assert seen[0].provenance.mean == (0.5, 0.5, 0.5)
    assert seen[0].provenance.input_size == (64, 64)
    assert seen[0].encoder.layers == LAYERS


def test_layers_in_another_order_are_the_same_layers(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    """timm gives the maps in the order of the network, and PatchCore fits with either."""
    models = [make_patchcore(layers=layers) for layers in (LAYERS, LAYERS[::-1])]
    callbacks = [callback(recipe=make_recipe(max_steps=0)) for _ in models]
    for model, made in zip(models, callbacks, strict=True):
        fit(model, made, make_engine, phantom_root)
    assert callbacks[0].directory == callbacks[1].directory
    first, second = (tensors(model) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_run_reuses_the_weights_and_says_so(
    callback: Make,
    make_patchcore: Make,
    make_engine: Make,
    phantom_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    models, callbacks = [make_patchcore(), make_patchcore()], [callback(), callback()]
    fit(models[0], callbacks[0], make_engine, phantom_root)
    monkeypatch.setattr(PretrainingModule, "training_step", lambda *_: pytest.fail("trained again"))
    caplog.set_level(logging.INFO)
    fit(models[1], callbacks[1], make_engine, phantom_root)
    assert callbacks[0].directory == callbacks[1].directory
    assert "reusing" in caplog.text
    first, second = (tensors(model) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_key_follows_recipe_images_and_initial_weights(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, tmp_path: Path, initial: Path
) -> None:
    keys = set()
    other = phantom(tmp_path / "other", seed=1)
    other.prepare_data()
    none = make_recipe(max_steps=0)
    for made, data in (
        (callback(recipe=none), phantom(phantom_root)),
        (callback(recipe=make_recipe(max_steps=0, dense=0.5)), phantom(phantom_root)),
        (callback(recipe=none, weights="random"), phantom(phantom_root)),
        (callback(recipe=none), other),
    ):
        make_engine(callbacks=[made]).fit(make_patchcore(), datamodule=data)
        keys.add(made.directory)
    assert len(keys) == 4


def test_the_key_follows_the_precision(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    folders = set()
    for precision in ("32-true", "bf16-mixed"):
        made = callback(recipe=make_recipe(max_steps=0))
        engine = make_engine(callbacks=[made], max_epochs=1, precision=precision)
        engine.fit(make_patchcore(), datamodule=phantom(phantom_root, seed=0))
        folders.add(made.directory)
    assert len(folders) == 2


def test_a_normalisation_that_is_not_seen_is_refused(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    old = torchvision.transforms  # its Compose and Normalize are other classes, which anomalib cannot call either
    transform = old.Compose([old.Resize((64, 64), antialias=True), old.Normalize([0.4] * 3, [0.2] * 3)])
    with pytest.raises(InputError, match=r"values from -2.* a Normalize of torchvision.transforms.v2"):
        fit(make_patchcore(pre_processor=PreProcessor(transform=transform)), callback(), make_engine, phantom_root)


def test_copies_of_held_out_images_are_not_trained_with(phantom_root: Path) -> None:
    data = phantom(phantom_root, seed=0)
    data.setup()
    paths = list(data.train_data.samples.image_path)
    digests = {path: str(index // 2) for index, path in enumerate(paths)}  # every image twice
    images = _Split(data, make_recipe(held_out=0.2), digests)
    held_out, trained = (
        {digests[paths[index]] for index in part.indices} for part in (images.held_out, images.training)
    )
    assert len(images.held_out) == 4
    assert not held_out & trained
    assert held_out | trained == set(digests.values())


def test_slices_of_one_file_are_not_copies_of_each_other(phantom_root: Path) -> None:
    data = phantom(phantom_root, seed=0)
    data.setup()
    samples = data.train_data.samples
    samples["pixels"] = [str(index) for index in range(len(samples))]
    volume = samples["image_path"][0]
    samples["image_path"] = volume
    images = _Split(data, make_recipe(held_out=0.2), {volume: "one digest"})
    assert (len(images.held_out), len(images.training)) == (4, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_looking_at_the_training_images_takes_no_batch_from_the_training(
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    callback: Make,
    make_patchcore: Make,
    make_engine: Make,
    phantom_root: Path,
) -> None:
    batches: list[tuple[int, Tensor]] = []
    step = PretrainingModule.training_step

    def watch(self: PretrainingModule, batch: Any, batch_idx: int) -> Tensor:
        batches.append((self.trainer.current_epoch, batch.image.as_subclass(Tensor)))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PretrainingModule, "training_step", watch)
    recipe = make_recipe(max_steps=4, batch_size=4, accumulate=1, evaluations=1, evaluation_images=4, centre_images=128)
    engine = make_engine(callbacks=[callback(recipe=recipe)], max_epochs=1)
    engine.fit(make_patchcore(), datamodule=phantom(phantom_root, num_workers=workers, seed=0))
    assert [epoch for epoch, _ in batches] == [0] * 4
    images = torch.cat([images for _, images in batches])
    assert len(torch.unique(images.flatten(1), dim=0)) == 16


def test_no_more_images_are_held_out_than_the_choice_looks_at(phantom_root: Path) -> None:
    data = phantom(phantom_root, seed=0)
    data.setup()
    digests = {path: path for path in data.train_data.samples.image_path}
    images = _Split(data, make_recipe(held_out=0.5, evaluation_images=3), digests)
    assert (len(images.held_out), len(images.training)) == (3, 17)


def test_a_datamodule_without_validation_images_is_refused_before_the_pre_training(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    made = callback()
    with pytest.raises(InputError, match=r"no validation images.*set its val_split_mode"):
        make_engine(callbacks=[made], max_epochs=1).fit(
            make_patchcore(), datamodule=phantom(phantom_root, val_split_mode="none", seed=0)
        )
    assert made.directory is None


def test_one_callback_serves_one_model_after_the_other(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    made, models = callback(recipe=make_recipe(max_steps=0)), [make_patchcore(), make_patchcore()]
    for model in models:
        fit(model, made, make_engine, phantom_root)
    first, second = (tensors(model) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_second_fit_that_makes_no_step_leaves_the_backbone_to_what_was_learned_on_it(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, recipe = make_patchcore(), make_recipe(max_steps=0)
    engine = fit(model, callback(weights="random", recipe=recipe), make_engine, phantom_root)
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    engine.fit(model, datamodule=phantom(phantom_root))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(model).items())
    assert "make a new engine and a new model" in caplog.text


def test_whitening_alone_is_a_recipe(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PretrainingModule, "training_step", lambda *_: pytest.fail("a step was made"))
    model = make_patchcore(backbone="test_efficientnet", layers=["blocks.1", "blocks.2"])
    recipe = Recipe(whitening=WhiteningRecipe(std=0.2, alone=True), choice=ChoiceRecipe(evaluations=0))
    made = callback(weights="random", recipe=recipe)
    fit(model, made, make_engine, phantom_root)
    assert create_backbone("test_efficientnet", str(made.directory)).provenance.feature_std == 0.2
    data = phantom(phantom_root)
    data.setup()
    images = torch.stack([item.image for item in data.train_data])
    with torch.no_grad():
        maps = network(model).eval()((torch.nn.functional.interpolate(images, (64, 64)) - 0.5) / 0.5)
    assert float(maps[-1].movedim(1, 0).flatten(1).std(dim=1).square().mean().sqrt()) == pytest.approx(0.2, rel=0.1)


def test_no_steps_hand_the_initial_weights_over(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, initial: Path
) -> None:
    model = make_patchcore()
    fit(model, callback(recipe=make_recipe(max_steps=0)), make_engine, phantom_root)
    expected = create_backbone("test_resnet", str(initial))[0].state_dict()
    handed = tensors(model)
    assert all(torch.equal(handed[name], expected[name]) for name in handed)


def test_random_numbers_of_the_run_are_not_touched(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    states = []
    for _ in range(2):  # the first run pre-trains, the second reuses: the detector must draw the same numbers
        model, recorder = make_patchcore(), Callback()
        recorder.on_train_start = lambda *_: states.append(
            (torch.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: NPY002
        )
        seed_everything(5, verbose=False)
        make_engine(callbacks=[callback(), recorder]).fit(model, datamodule=phantom(phantom_root, seed=0))
    (torch_first, numpy_first, python_first), (torch_second, numpy_second, python_second) = states
    assert torch.equal(torch_first, torch_second)
    assert (numpy_first == numpy_second).all()
    assert python_first == python_second


def test_resuming_the_detector_pre_trains_nothing(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    first = make_patchcore()
    engine = fit(first, callback(recipe=make_recipe(max_steps=0)), make_engine, phantom_root)
    second = make_patchcore()
    again = callback(root=tmp_path / "unused")
    trainer = Trainer(callbacks=[again], max_epochs=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.fit(second, datamodule=phantom(phantom_root), ckpt_path=engine.best_model_path, weights_only=False)
    assert not (tmp_path / "unused").exists()
    one, two = tensors(first), tensors(second)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_brings_its_tiles_back(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    """anomalib keeps them in a callback, without which the same weights score other things."""
    tiles = TilerConfigurationCallback(enable=True, tile_size=32, stride=32)
    model = make_patchcore()
    engine = make_engine(callbacks=[tiles, callback(recipe=make_recipe(max_steps=0))], max_epochs=1)
    engine.fit(model, datamodule=phantom(phantom_root, seed=0))
    path = Path(engine.best_model_path)
    image = torch.rand(1, 3, 64, 64)
    expected = model.eval().model(image).anomaly_map
    with antialiased_exports():
        exported = Patchcore.load_from_checkpoint(path)
    for loaded in (restored(Patchcore, path, read_checkpoint(path, [Patchcore]), "--model"), exported):
        assert torch.equal(loaded.eval().model(image).anomaly_map, expected)
        loaded.model.tiler = None
        assert not torch.equal(loaded.model(image).anomaly_map, expected)


def test_padim_and_a_transformer_work_too(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    processor = make_patchcore().pre_processor
    padim = Padim("test_resnet", LAYERS, pre_trained=False, n_features=20, pre_processor=processor, visualizer=False)
    fit(padim, callback(), make_engine, phantom_root)
    vit = make_patchcore(backbone="test_vit", layers=["blocks.2", "blocks.4"])
    before = tensors(vit)
    recipe = make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4)
    fit(vit, callback(weights="random", recipe=recipe), make_engine, phantom_root)
    assert any(not torch.equal(before[name], tensor) for name, tensor in tensors(vit).items())


def test_whitened_maps_suit_what_the_model_does_with_them(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    """A memory bank or Gaussian gets a deviation of .1, what learns a network 1, or what the user says."""
    processor = make_patchcore().pre_processor
    arguments: dict[str, Any] = {"backbone": "test_efficientnet", "layers": ["blocks.1", "blocks.2"]}
    flow = {**arguments, "pre_trained": False, "coupling_blocks": 1, "pre_processor": processor, "visualizer": False}
    settings: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "evaluations": 0, "centre_images": 4}
    start, made = create_backbone("test_efficientnet", "random")
    weights = str(save_backbone(start, tmp_path / "start", half(made)))
    images = torch.rand(4, 3, 64, 64)
    found = []
    for model, recipe in (
        (make_patchcore(**arguments), make_recipe(**settings)),
        (Cflow(**flow), make_recipe(**settings)),
        (Cflow(**flow), make_recipe(**settings, deviation=0.3)),
    ):
        fit(model, callback(weights=weights, recipe=recipe), make_engine, phantom_root)
        with torch.no_grad():
            found.append(network(model).eval()(images)[-1])
    torch.testing.assert_close(found[1], 10 * found[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[2], 3 * found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_weights_that_were_pre_trained_once_suit_every_model(
    backbone: str, callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    """Whitened weights say so: what learns a network on them gets a unit deviation, and banks the small one again."""
    layers = {"test_efficientnet": ["blocks.1", "blocks.2"], "test_resnet": ["layer2", "layer3"]}[backbone]
    arguments: dict[str, Any] = {"backbone": backbone, "layers": layers}
    processor = make_patchcore().pre_processor
    flow = {**arguments, "pre_trained": False, "coupling_blocks": 1, "pre_processor": processor, "visualizer": False}
    recipe = make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4)
    images, found, weights, deviations = torch.rand(4, 3, 64, 64), [], "random", []
    for kind in (make_patchcore, make_patchcore, Cflow, make_patchcore):
        model = kind(**(flow if kind is Cflow else arguments))
        made = callback(weights=weights, recipe=recipe)
        fit(model, made, make_engine, phantom_root)
        weights, recipe = str(made.directory), make_recipe(max_steps=0)
        deviations.append(create_backbone(backbone, weights)[1].feature_std)
        with torch.no_grad():
            found.append(network(model).eval()(images))
    assert deviations == [0.1, 0.1, 1, 0.1]
    for first, same, unit, back in zip(*found, strict=True):
        assert torch.equal(first, same)
        torch.testing.assert_close(unit, 10 * first, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(back, first, rtol=1e-3, atol=1e-4)


def test_the_maps_of_a_transformer_get_the_scale_that_suits_the_model(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    """PatchCore and PaDiM get a deviation of .1 of the layers together, which changes nothing else."""
    options: dict[str, Any] = {"backbone": "test_vit", "layers": ["blocks.2", "blocks.4"]}
    settings: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "evaluations": 0, "centre_images": 4}
    data = phantom(phantom_root)
    data.setup()
    pictures = torch.cat([batch.image.as_subclass(Tensor) for batch in data.train_dataloader()])
    images, found = 2 * pictures - 1, {}  # as the normalisation of the tests brings them to the network
    for name, recipe in {
        "scaled": make_recipe(**settings),
        "as it is": make_recipe(**settings, whitening=0.0),
        "unit": make_recipe(**settings, deviation=1.0),
    }.items():
        torch.manual_seed(0)
        model = make_patchcore(**options)
        made = callback(weights="random", recipe=recipe)
        fit(model, made, make_engine, phantom_root)
        folder = create_backbone("test_vit", str(made.directory))
        assert folder.provenance.feature_std == {"scaled": 0.1, "as it is": None, "unit": 1}[name]
        with torch.no_grad():
            found[name] = torch.stack(list(model.model.feature_extractor.eval()(images).values()))
    spread = {name: float(maps.transpose(0, 2).flatten(1).var(dim=1).mean().sqrt()) for name, maps in found.items()}
    assert spread["scaled"] == pytest.approx(0.1, rel=0.1)  # two steps have moved it a little
    torch.testing.assert_close(found["unit"], 10 * found["scaled"], rtol=1e-3, atol=1e-4)
    factor = spread["scaled"] / spread["as it is"]
    torch.testing.assert_close(found["scaled"], factor * found["as it is"], rtol=1e-3, atol=1e-4)


def test_maps_that_were_never_whitened_keep_their_scale_on_the_way_through_other_models(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    """A folder goes on telling the layers that it was made for, not those of the last model that took it."""
    images, found, weights = torch.rand(4, 3, 64, 64), [], "random"
    recipe = make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4)
    processor = make_patchcore().pre_processor
    for layers, kind in (
        (["blocks.1", "blocks.2"], make_patchcore),
        (["blocks.2", "blocks.3"], Cflow),
        (["blocks.2", "blocks.3"], make_patchcore),
    ):
        options: dict[str, Any] = {"backbone": "test_efficientnet", "layers": layers}
        if kind is Cflow:
            options |= {"pre_trained": False, "pre_processor": processor, "visualizer": False}
        made = callback(weights=weights, recipe=recipe)
        fit(kind(**options), made, make_engine, phantom_root)
        weights, recipe = str(made.directory), make_recipe(max_steps=0)
        backbone, origin = create_backbone("test_efficientnet", weights)
        assert origin.layers == ("blocks.1", "blocks.2")
        with torch.no_grad():
            found.append(backbone.eval().forward_intermediates(images, intermediates_only=True))
    for index, (first, unit, back) in enumerate(zip(*found, strict=True)):
        torch.testing.assert_close(back, first, rtol=1e-3, atol=1e-4)
        if index > 2:
            torch.testing.assert_close(unit, first, rtol=1e-3, atol=1e-4)


class Darker(nn.Module):
    """An augmentation whose repr does not show its settings."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor, *masks: Tensor) -> Any:
        return (image * self.factor, *masks) if masks else image * self.factor


def test_weights_of_another_augmentation_are_not_reused(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    folders = []
    for factor in (1.0, 0.5, 0.5):
        made = callback(recipe=make_recipe(max_steps=0))
        data = phantom(phantom_root, seed=0)
        data.train_augmentations = Darker(factor)
        make_engine(callbacks=[made]).fit(make_patchcore(), datamodule=data)
        folders.append(made.directory)
    assert folders[0] != folders[1] == folders[2]


def test_the_same_tensors_with_another_story_are_not_reused(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    """A file does not tell that its maps are whitened; the folder that it lies in does."""
    arguments: dict[str, Any] = {"backbone": "test_efficientnet", "layers": ["blocks.1", "blocks.2"]}
    once = callback(weights="random", recipe=make_recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4))
    fit(make_patchcore(**arguments), once, make_engine, phantom_root)
    recipe, deviations = make_recipe(max_steps=0, deviation=1.0), []
    for weights in (once.directory / "model.safetensors", once.directory):
        made = callback(weights=str(weights), recipe=recipe)
        fit(make_patchcore(**arguments), made, make_engine, phantom_root)
        deviations.append(create_backbone("test_efficientnet", str(made.directory))[1].feature_std)
    assert deviations == [None, 1]


def test_an_untouched_backbone_keeps_its_scale(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, *[0.5] * 10])
    monkeypatch.setattr(Questions, "score", lambda *_: Score(next(scores), 0.5))
    model = make_patchcore(backbone="test_efficientnet", layers=["blocks.1", "blocks.2"])
    recipe = make_recipe(max_steps=2, batch_size=4, evaluations=1, deviation=1.0)
    made = callback(weights="random", recipe=recipe)
    seen: list[Any] = []
    original = made._task
    made._task = lambda *arguments: seen.append(original(*arguments)) or seen[-1]
    fit(model, made, make_engine, phantom_root)
    assert "the untouched backbone is kept" in (made.directory / "README.md").read_text()
    kept, handed = seen[0].encoder.backbone.state_dict(), tensors(model)
    assert all(torch.equal(handed[name], kept[name]) for name in handed)


def test_teachers_are_found_and_students_are_not() -> None:
    stfpm = Stfpm.__new__(Stfpm)
    nn.Module.__init__(stfpm)
    made = {"teacher": False, "student": True}

    for name, grad in made.items():
        extractor = TimmFeatureExtractor("test_resnet", LAYERS, pre_trained=False, requires_grad=grad)
        setattr(stfpm, f"{name}_model", extractor)
    assert list(find_backbone(stfpm).networks) == ["teacher_model.feature_extractor"]


def test_models_without_a_pretrained_backbone_are_refused(
    callback: Make, make_engine: Make, phantom_root: Path
) -> None:
    with pytest.raises(InputError, match=r"Ganomaly has no pre-trained image backbone .* use a model such as"):
        fit(Ganomaly(visualizer=False), callback(), make_engine, phantom_root)


def test_a_model_without_weights_needs_some_from_the_callback(
    make_patchcore: Make, make_engine: Make, phantom_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"built with pre_trained: false and the callback has no weights"):
        fit(make_patchcore(), MsaclPretraining(root=tmp_path), make_engine, phantom_root)


def test_msacl_itself_does_not_take_the_callback(
    callback: Make, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    with pytest.raises(InputError, match="Msacl pre-trains itself"):
        fit(make_msacl(), callback(), make_engine, phantom_root)


def test_data_that_is_not_a_datamodule_is_refused(callback: Make, make_patchcore: Make, phantom_root: Path) -> None:
    data = phantom(phantom_root)
    data.setup()
    trainer = Trainer(callbacks=[callback()], max_epochs=1, logger=False, accelerator="cpu")
    with pytest.raises(InputError, match="needs a model and a datamodule of anomalib"):
        trainer.fit(make_patchcore(), train_dataloaders=data.train_dataloader())


def test_a_layer_that_anomalib_dropped_is_refused(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path
) -> None:
    with pytest.raises(
        InputError, match=r"layer 'layer7' does not exist in the backbone 'test_resnet'; its layers are"
    ):
        fit(make_patchcore(layers=["layer2", "layer7"]), callback(), make_engine, phantom_root)


def test_the_default_weights_are_those_of_the_model(
    make_patchcore: Make, make_engine: Make, phantom_root: Path, initial: Path, tmp_path: Path
) -> None:
    model = make_patchcore(backbone=f"local-dir:{initial}", pre_trained=True)
    before = tensors(model)
    fit(model, MsaclPretraining(recipe=make_recipe(max_steps=0), root=tmp_path / "m"), make_engine, phantom_root)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(model).items())


def test_what_lightning_saved_for_slurm_is_not_resumed_from(
    callback: Make, make_patchcore: Make, make_engine: Make, phantom_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    recipe = make_recipe(max_steps=1, batch_size=4, evaluations=0, centre_images=4)
    made = callback(recipe=recipe)
    make_engine(callbacks=[made], max_epochs=1).fit(make_patchcore(), datamodule=phantom(phantom_root, seed=0))
    logs, weights = made.root / "logs" / made.directory.name, made.directory / "model.safetensors"
    left, before = logs / "hpc_ckpt_1.ckpt", weights.read_bytes()
    left.write_bytes(b"of another job")
    shutil.rmtree(made.directory)  # as if it had been killed before it saved
    again = callback(recipe=recipe)
    make_engine(callbacks=[again], max_epochs=1).fit(make_patchcore(), datamodule=phantom(phantom_root, seed=0))
    assert again.directory == made.directory
    assert weights.read_bytes() == before
    assert not left.exists()
