"""Thresholds from normal images: ranks against plain loops and simulation, and a callback that nothing gets past."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib import LearningType
from anomalib.callbacks.checkpoint import ModelCheckpoint
from anomalib.data import Folder, ImageBatch
from anomalib.models import Fastflow, Padim
from anomalib.post_processing import MEBinPostProcessor, PostProcessor
from anomalib.pre_processing import PreProcessor
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from scipy.stats import binom
from torchvision.transforms.v2 import Compose, Normalize, RandomHorizontalFlip, Resize

from anomalib_msacl import InputError, MsaclPretraining, NormalsThreshold
from anomalib_msacl.data import CheckedFolder, MedicalFolder, MedMixValidation
from anomalib_msacl.data.held_out import hold_out
from anomalib_msacl.thresholds import conformal_rank, images_needed, shift
from anomalib_msacl.thresholds.callback import PROMISE as PROMISES
from anomalib_msacl.thresholds.callback import SCORES, promise_record
from tests.conftest import TINY, make_recipe, phantom
from tests.medical_files import tissue, write_nifti

RATES = (0.01, 0.05, 0.1, 0.25, 0.5)
SEEN_LESIONS = {"from_test", "same_as_test", "synthetic", "medmix"}
PROMISE = {"specificity": 0.8, "ratio": 0.4}  # 8 of 20 images


# ---------------------------------------------------------------------------------------------------------- ranks


def rank_by_loop(n: int, percent: int) -> int | None:
    """Smallest k with k >= (n + 1)(1 - alpha), in whole numbers."""
    for k in range(1, n + 1):
        if 100 * k >= (n + 1) * (100 - percent):
            return k
    return None


def sure_rank_by_loop(n: int, alpha: float, confidence: float) -> int | None:
    """Smallest k for which at most k - 1 of n scores lie below the true quantile, with that probability."""
    below = 0.0
    for k in range(1, n + 1):
        below += math.comb(n, k - 1) * (1 - alpha) ** (k - 1) * alpha ** (n - k + 1)
        if below >= confidence:
            return k
    return None


@pytest.mark.parametrize("alpha", RATES)
@pytest.mark.parametrize("n", [1, 2, 9, 10, 19, 20, 39, 58, 59, 99, 100, 199, 200])
def test_ranks_are_those_of_plain_loops(n, alpha):
    assert expected_or_refused(n, alpha) == rank_by_loop(n, round(100 * alpha))
    assert expected_or_refused(n, 1 - (1 - alpha)) == rank_by_loop(n, round(100 * alpha))  # as a specificity gives it
    for confidence in (0.55, 0.9, 0.95):
        assert expected_or_refused(n, alpha, confidence) == sure_rank_by_loop(n, alpha, confidence)


def expected_or_refused(n, alpha, confidence=None):
    needed = images_needed(alpha, confidence)
    if n >= needed:
        return conformal_rank(n, alpha, confidence)
    with pytest.raises(InputError, match=f"{needed} are needed"):
        conformal_rank(n, alpha, confidence)
    return None


@pytest.mark.parametrize("confidence", [None, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("alpha", RATES)
def test_one_image_fewer_than_needed_is_too_few(alpha, confidence):
    needed = images_needed(alpha, confidence)
    assert conformal_rank(needed, alpha, confidence) == needed
    if needed > 1:
        with pytest.raises(InputError, match=f"{needed} are needed, so hold out more"):
            conformal_rank(needed - 1, alpha, confidence)


def test_known_numbers():
    assert images_needed(0.05, 0.95) == 59
    assert images_needed(0.05) == 19
    assert images_needed(0.01) == 99
    assert images_needed(0.01, 0.95) == 299
    assert images_needed(0.1, 0.9) == 22
    assert conformal_rank(59, 0.05, 0.95) == 59
    assert conformal_rank(9, 1 - 0.9) == 9
    assert conformal_rank(99, 1 - 0.9) == 90


@pytest.mark.parametrize("alpha", RATES)
@pytest.mark.parametrize("confidence", [0.6, 0.95])
def test_the_confidence_is_that_of_the_binomial_distribution(alpha, confidence):
    for n in (images_needed(alpha, confidence), 400, 1001):
        rank = conformal_rank(n, alpha, confidence)
        assert binom.cdf(rank - 1, n, 1 - alpha) >= confidence > binom.cdf(rank - 2, n, 1 - alpha)


@pytest.mark.parametrize("values", [(0.0,), (1.0,), (-0.1,), (1.5,), (0.1, 0.0), (0.1, 1.0), (1e-9,)])
def test_rates_out_of_range_are_refused(values):
    with pytest.raises(InputError, match="set it"):
        images_needed(*values)
    with pytest.raises(InputError, match="set it"):
        conformal_rank(100, *values)


def false_positives(rank: int, n: int, draws: int, levels: int | None = None) -> np.ndarray:
    """True rate of false positives of each draw of n scores; with levels, scores have so many distinct values."""
    scores = np.random.default_rng(0).random((draws, n))
    if levels:
        scores = np.floor(scores * levels) / levels
    threshold = np.sort(scores, axis=1)[:, rank - 1]
    if levels:
        return 1 - (threshold + 1 / levels)  # of values above that of the threshold
    return 1 - threshold


@pytest.mark.parametrize("levels", [None, 30])
@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (30, 0.05), (50, 0.1), (9, 0.25)])
def test_the_mean_rate_of_false_positives_is_within_the_promise(n, alpha, levels):
    rank = conformal_rank(n, alpha)
    rates = false_positives(rank, n, 20000, levels)
    error = 4 * rates.std() / math.sqrt(len(rates))
    assert rates.mean() <= alpha + error
    if levels is None:
        assert rates.mean() == pytest.approx(1 - rank / (n + 1), abs=error)  # no more careful than it must be
        assert rates.mean() > alpha - 1 / (n + 1)


@pytest.mark.parametrize("levels", [None, 30])
@pytest.mark.parametrize(("n", "alpha", "confidence"), [(59, 0.05, 0.95), (100, 0.05, 0.8), (40, 0.1, 0.9)])
def test_the_share_of_draws_that_hold_is_within_the_promise(n, alpha, confidence, levels):
    held = (false_positives(conformal_rank(n, alpha, confidence), n, 20000, levels) <= alpha + 1e-12).mean()
    assert held >= confidence - 4 * math.sqrt(confidence * (1 - confidence) / 20000)
    if levels is None:
        below = (false_positives(conformal_rank(n, alpha, confidence) - 1, n, 20000) <= alpha).mean()
        assert below < confidence


def test_an_image_is_called_abnormal_where_its_conformal_p_value_is_small():
    """The other way to say it: p = (1 + number of scores that are as high) / (n + 1), in a plain loop."""
    generator = np.random.default_rng(1)
    for n in (19, 25, 60):
        scores, new = generator.normal(size=n), generator.normal(size=200)
        for alpha in (0.05, 0.1, 0.25):
            threshold = np.sort(scores)[conformal_rank(n, alpha) - 1]
            for value in new:
                p_value = (1 + sum(score >= value for score in scores)) / (n + 1)
                assert (value > threshold) == (p_value <= alpha + 1e-12)


def test_an_independent_package_calls_the_same_images_abnormal():
    """Of nonconform, which needs Python 3.12; its detector is a table of scores."""
    nonconform = pytest.importorskip("nonconform")
    generator = np.random.default_rng(2)
    new = generator.normal(size=(300, 1))
    for n in (19, 40, 99):
        detector = nonconform.ConformalDetector(detector=_Itself(), strategy=nonconform.Split(n_calib=n), seed=0)
        detector.fit(generator.normal(size=(2 * n, 1)))
        scores = np.sort(np.ravel(detector.calibration_set))
        assert len(scores) == n
        p_values = np.asarray(detector.compute_p_values(new))
        for alpha in (0.05, 0.1, 0.25):
            threshold = scores[conformal_rank(n, alpha) - 1]
            assert np.array_equal(new[:, 0] > threshold, p_values <= alpha + 1e-12)


class _Itself:
    """A detector whose score of a row is its first value."""

    def fit(self, X, y=None):  # noqa: N803
        return self

    def decision_function(self, X):  # noqa: N803
        return np.asarray(X)[:, 0]

    def get_params(self, deep=True):
        return {}

    def set_params(self, **params):
        return self


def test_shift_sees_another_distribution_and_only_that():
    generator = np.random.default_rng(0)
    normal = generator.normal(size=100)
    same, higher, lower = (shift(normal, generator.normal(move, size=80)) for move in (0, 1, -1))
    assert same.p_value > 0.01
    assert higher.p_value < 1e-4
    assert higher.higher
    assert lower.p_value < 1e-4
    assert not lower.higher
    assert (higher.calibration, higher.incoming) == (100, 80)
    chance = [shift(generator.normal(size=40), generator.normal(size=40)).p_value for _ in range(500)]
    assert np.mean(np.array(chance) < 0.05) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 500)
    for wrong in ([], [float("nan")]):
        with pytest.raises(InputError, match="cannot be compared"):
            shift(normal, wrong)


# ------------------------------------------------------------------------------------------------- the callback


@pytest.fixture
def make_padim():
    def build(kind=Padim, **changes):
        torch.manual_seed(1)
        transform = Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
        defaults = {"backbone": "test_resnet", "layers": ["layer2", "layer3"], "pre_trained": False, "n_features": 20}
        defaults |= {"pre_processor": PreProcessor(transform=transform), "visualizer": False}
        return kind(**{**defaults, **changes})

    return build


def paths(dataset):
    return set(dataset.samples["image_path"])


class Watch(NormalsThreshold):
    """Remembers which images anybody looked at, and the raw scores of test images."""

    def __init__(self, **options):
        super().__init__(**options)
        self.trained, self.validated, self.tested = set(), set(), {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.trained |= set(batch.image_path)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated |= set(batch.image_path)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self.tested |= dict(zip(outputs.image_path, outputs.pred_score.flatten().tolist(), strict=True))


@pytest.mark.parametrize("mode", ["none", "from_test", "from_train", "same_as_test", "synthetic", "medmix"])
@pytest.mark.parametrize("kind", ["padim", "patchcore"])
def test_thresholds_come_from_images_that_nothing_else_has_seen(
    phantom_root, make_padim, make_patchcore, make_engine, mode, kind
):
    if kind == "patchcore" and mode in {"from_train", "synthetic"}:
        pytest.skip("as with padim")
    model = make_padim() if kind == "padim" else make_patchcore()
    data = phantom(phantom_root, val_split_mode=mode, val_split_ratio=0.3, seed=0)
    callback = Watch(**PROMISE)
    engine = make_engine(callbacks=[callback])
    engine.train(model, datamodule=data)
    held_out = callback._held_out
    chosen = paths(held_out.images)
    assert len(chosen) == held_out.number == len(callback.calibration["image"])
    assert len(chosen) == round(0.4 * (14 if mode in {"from_train", "synthetic", "medmix"} else 20))
    assert callback.trained | chosen <= paths(data.train_data)  # given back
    assert not chosen & (callback.trained | callback.validated | paths(data.test_data))
    rank = conformal_rank(len(chosen), 0.2)
    post = model.post_processor
    assert float(post.image_threshold) == callback.calibration["image"][rank - 1]
    assert float(post.pixel_threshold) == callback.calibration["pixel"][rank - 1]
    assert callback.calibration["image"] == sorted(callback.calibration["image"])
    checkpoint = torch.load(engine.trainer.checkpoint_callback.best_model_path, weights_only=False)
    for name, value in post.state_dict(prefix="post_processor.").items():
        assert torch.equal(checkpoint["state_dict"][name], value), name
    # Labels say what raw scores say, and the normalised score of the threshold is a half.
    predictions = engine.predict(model, datamodule=data)
    for batch in predictions:
        for path, label, score in zip(batch.image_path, batch.pred_label, batch.pred_score, strict=True):
            raw = callback.tested[path]
            assert bool(label) == (raw > float(post.image_threshold)) == (float(score) > 0.5)
            assert 0 < float(score) < 1 or mode in SEEN_LESIONS  # nothing is cut off where no lesion was seen
        assert torch.equal(batch.pred_mask.flatten(1).any(1), (batch.anomaly_map > 0.5).flatten(1).any(1))
    # The scores are those that `predict` gives to the same images.
    loader = torch.utils.data.DataLoader(held_out.images, batch_size=3, collate_fn=held_out.images.collate_fn)
    again = torch.cat([batch.pred_score.flatten() for batch in engine.predict(model, dataloaders=loader)])
    assert int((again > 0.5).sum()) == len(chosen) - rank  # ties apart, which these scores have none of
    assert not torch.isclose(again, torch.tensor(0.5)).sum() > 1
    masks = torch.cat([batch.pred_mask.flatten(1).any(1) for batch in engine.predict(model, dataloaders=loader)])
    assert int(masks.sum()) == len(chosen) - rank


def test_the_order_of_callbacks_does_not_matter(phantom_root, make_padim, make_engine, tmp_path):
    recipe = make_recipe(**{**TINY, "max_steps": 1, "evaluations": 1})
    found = []
    for order in (1, -1):
        data, model = phantom(phantom_root, val_split_mode="none"), make_padim()
        pretraining = MsaclPretraining(weights="random", recipe=recipe, root=tmp_path / str(order))
        callback = Watch(**PROMISE)
        callbacks = [pretraining, callback][::order]
        engine = make_engine(callbacks=callbacks)
        engine.fit(model, datamodule=data)
        found.append((paths(callback.held_out_images), callback.calibration, pretraining.directory.name))
        assert not callback.trained & found[-1][0]
    assert found[0] == found[1]


@pytest.mark.parametrize("order", [1, -1])
def test_medmix_validation_takes_other_images(phantom_root, make_padim, make_engine, order):
    data, callback = phantom(phantom_root, val_split_mode="none"), Watch(**PROMISE)
    engine = make_engine(callbacks=[callback, MedMixValidation(ratio=0.3)][::order])
    engine.fit(make_padim(), datamodule=data)
    chosen = paths(callback.held_out_images)
    assert not chosen & (callback.trained | callback.validated | paths(engine.trainer.val_dataloaders.dataset.source))
    assert not callback.validated & callback.trained
    assert callback.validated


def test_msacl_chooses_on_other_images(phantom_root, make_msacl, make_engine, tiny_recipe):
    model, callback = make_msacl(tiny_recipe(max_steps=1, evaluations=1)), Watch(**PROMISE)
    data = phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.3)
    engine = make_engine(callbacks=[callback])
    engine.train(model, datamodule=data)
    chosen = paths(callback.held_out_images)
    assert not chosen & (callback.trained | paths(data.val_data))
    rank = conformal_rank(len(chosen), 0.2)
    assert float(model.post_processor.image_threshold) == callback.calibration["image"][rank - 1]
    assert float(model.post_processor.pixel_threshold) == callback.calibration["pixel"][rank - 1]


def test_every_checkpoint_of_a_model_that_learns_has_its_own_threshold(phantom_root, make_engine, tmp_path):
    transform = Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    options = {"backbone": "resnet18", "pre_trained": False, "flow_steps": 1, "visualizer": False}
    model = Fastflow(pre_processor=PreProcessor(transform=transform), **options)
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_weights_only=True)
    callback = NormalsThreshold(**PROMISE)
    data = phantom(phantom_root, val_split_mode="from_train", train_augmentations=RandomHorizontalFlip())
    data.val_split_ratio = 0.2
    make_engine(callbacks=[callback, every], max_epochs=2).fit(model, datamodule=data)
    found = set()
    for file in sorted(tmp_path.glob("*.ckpt")):
        state = torch.load(file, weights_only=True)["state_dict"]
        found.add(float(state["post_processor._image_threshold"]))
        twin = Fastflow(pre_processor=PreProcessor(transform=transform), **options)
        twin.load_state_dict(state, strict=False)
        twin.eval()
        # Prepared as test images are: no flips.
        scores = [twin.model(transform(item.image[None])).pred_score for item in callback.held_out_images]
        rank = conformal_rank(len(scores), 0.2)
        expected = torch.cat(scores).flatten().sort().values[rank - 1]
        assert float(expected) == pytest.approx(float(state["post_processor._image_threshold"]), rel=1e-4)
    assert len(found) == 2


def test_the_training_does_not_depend_on_who_looks(phantom_root, make_padim, make_engine):
    states = []
    for specificity in (0.8, 0.6):
        torch.manual_seed(3)
        engine = make_engine(callbacks=[NormalsThreshold(specificity, ratio=0.4)])
        engine.fit(make_padim(), datamodule=phantom(phantom_root, val_split_mode="from_test", seed=0))
        states.append(torch.rand(1))
    assert torch.equal(*states)


def test_yaml_can_name_it():
    parser = ArgumentParser()
    parser.add_subclass_arguments(Callback, "callback")
    made = {"class_path": "anomalib_msacl.NormalsThreshold", "init_args": {"specificity": 0.9, "confidence": None}}
    callback = parser.instantiate_classes(parser.parse_object({"callback": made})).callback
    assert isinstance(callback, NormalsThreshold)
    assert callback.needed == 9


def test_too_few_images_are_refused_before_the_fit(phantom_root, make_padim, make_engine):
    engine = make_engine(callbacks=[NormalsThreshold()])
    with pytest.raises(
        InputError, match=r"4 of 20 normal images are held out, .*0.95 needs 19: set folds to 10 .*, add"
    ):
        engine.fit(make_padim(), datamodule=phantom(phantom_root, val_split_mode="none"))
    engine = make_engine(callbacks=[NormalsThreshold(specificity=0.9)])
    with pytest.raises(InputError, match=r"0.9 needs 9: raise ratio to 0.45 or more"):
        engine.fit(make_padim(), datamodule=phantom(phantom_root, val_split_mode="none"))
    engine = make_engine(callbacks=[NormalsThreshold(0.95, confidence=0.95)])
    with pytest.raises(InputError, match=r"confidence of 0.95 needs 59: .*or lower the specificity or the confidence"):
        engine.fit(make_padim(), datamodule=phantom(phantom_root, val_split_mode="none"))


def test_wrong_settings_are_refused(phantom_root, make_padim, make_engine, tmp_path):
    for options in ({"specificity": 1.0}, {"confidence": 0.0}, {"ratio": 1.0}, {"shift_level": 1.0}):
        with pytest.raises(InputError, match=f"NormalsThreshold: {next(iter(options))} is"):
            NormalsThreshold(**options)
    for post in (PostProcessor(image_sensitivity=0.6), PostProcessor(enable_normalization=False)):
        engine = make_engine(callbacks=[NormalsThreshold(**PROMISE)])
        with pytest.raises(InputError, match=r"the post-processor's .* set it to"):
            engine.fit(make_padim(post_processor=post), datamodule=phantom(phantom_root))
    engine = make_engine(callbacks=[NormalsThreshold(**PROMISE)])
    with pytest.raises(InputError, match="leave post_processor at its default"):
        engine.fit(make_padim(post_processor=MEBinPostProcessor()), datamodule=phantom(phantom_root))
    only = ModelCheckpoint(tmp_path, save_weights_only=True)
    engine = make_engine(callbacks=[NormalsThreshold(**PROMISE), only])
    with pytest.raises(InputError, match="set save_weights_only to false"):
        engine.fit(make_padim(), datamodule=phantom(phantom_root, val_split_mode="none"))


def test_patients_count_once_and_stay_together(phantom_root, make_padim, make_engine, caplog):
    data = phantom(phantom_root, val_split_mode="none")
    data.setup("fit")
    samples = data.train_data.samples
    samples["patient"] = [f"P{index // 2}" for index in range(len(samples))]
    train, held_out = hold_out(data.train_data, 0.4, 0)
    assert not set(train.samples["patient"]) & set(held_out.images.samples["patient"])
    assert held_out.number == 4
    assert held_out.units == [0, 0, 1, 1, 2, 2, 3, 3]
    data._is_setup = True
    callback = NormalsThreshold(specificity=0.8, ratio=0.4)
    with caplog.at_level(logging.INFO, "anomalib_msacl.thresholds"):
        make_engine(callbacks=[callback]).fit(make_padim(), datamodule=data)
    assert len(callback.calibration["image"]) == 4
    assert "8 normal images (4 patients) are held out" in caplog.text
    assert "rank 4 of 4 held-out normal patients, each with the largest of his images; on average" in caplog.text
    assert "at most 20 % of new normal patients" in caplog.text
    assert "nothing is promised about images of another origin" in caplog.text


def test_a_volume_counts_once_and_is_called_a_file(tmp_path, make_padim, make_engine, caplog):
    for index in range(10):
        volume = np.stack([tissue(2 * index + k, (48, 40)) for k in range(2)], axis=-1).astype(np.float32)
        write_nifti(tmp_path / f"good/{index}.nii.gz", volume)
    data = MedicalFolder("mine", tmp_path, "good", test_split_mode="none", val_split_mode="none", seed=0)
    callback = NormalsThreshold(**PROMISE)
    with caplog.at_level(logging.INFO, "anomalib_msacl.thresholds"):
        make_engine(callbacks=[callback]).fit(make_padim(), datamodule=data)
    assert len(callback.calibration["image"]) == callback._held_out.number == 4
    assert "8 normal images (4 files) are held out" in caplog.text
    assert "rank 4 of 4 held-out normal files, each with the largest of its images; on average" in caplog.text
    assert "at most 20 % of new normal files" in caplog.text
    assert "patient" not in caplog.text
    assert promise_record(callback)["unit"] == "file"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"unit": "file"}, "30 held-out normal files, each with the largest of its images"),
        ({"unit": "patient"}, "30 held-out normal patients, each with the largest of his images"),
        ({"unit": "image"}, "30 held-out normal images;"),
        ({"patients": True}, "30 held-out normal patients, each with the largest of his images"),  # of earlier versions
        ({"patients": False}, "30 held-out normal images;"),
        ({}, "30 held-out normal images;"),
    ],
)
def test_a_checkpoint_says_what_counts_once(record, words):
    callback = NormalsThreshold()
    scores = [float(value) for value in range(30)]
    callback.on_load_checkpoint(None, None, {SCORES: {"image": scores}, PROMISES: record})
    assert words in callback.promise()
    with pytest.raises(InputError, match="those of 'hospital', but this version knows only patient, file, image: use"):
        callback.on_load_checkpoint(None, None, {SCORES: {"image": scores}, PROMISES: {"unit": "hospital"}})


def compare(unit, scores, patients=None):
    """Let a callback test files of five images each, with a threshold from the largest scores of others."""
    callback = NormalsThreshold()
    draw = np.random.default_rng(0)
    callback.calibration = {"image": sorted(draw.normal(size=(60, 5)).max(axis=1).tolist())}
    callback.unit = unit
    names = [str(index // 5) for index in range(len(scores))]
    samples = pd.DataFrame({"image_path": names} | ({} if patients is None else {"patient": patients}))
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(test_data=SimpleNamespace(samples=samples)),
        test_dataloaders=torch.utils.data.DataLoader(names, batch_size=4),
    )
    callback.on_test_epoch_start(trainer, None)
    for number in range(len(scores) // 4):
        rows = slice(4 * number, 4 * number + 4)
        outputs = ImageBatch(
            image=torch.zeros(4, 3, 2, 2),
            image_path=names[rows],
            pred_score=torch.tensor(scores[rows]),
            gt_label=torch.zeros(4, dtype=torch.bool),
        )
        callback.on_test_batch_end(None, None, outputs, outputs, number)
    callback.on_test_epoch_end(None, None)


def test_test_images_are_compared_as_the_held_out_ones_count(caplog):
    scores = np.random.default_rng(1).normal(size=300).tolist()
    patients = [f"P{index // 5}" for index in range(300)]
    compare("file", scores)
    compare("file", scores, patients)
    compare("patient", scores, patients)
    assert not caplog.text
    compare("image", scores, patients)
    assert "the scores of 300 normal test images are not like those" in caplog.text
    compare("file", [score + 2 for score in scores])
    assert "the scores of 60 normal test files are not like those of the 60 held-out" in caplog.text


def test_without_patients_test_images_are_not_compared_with_them(caplog):
    compare("patient", np.random.default_rng(1).normal(5, size=300).tolist())
    (record,) = caplog.records
    assert "are not compared with those of the 60 held-out normal patients" in record.message


def test_copies_of_held_out_images_are_on_neither_side(phantom_root, tmp_path):
    for index, path in enumerate(sorted(next(phantom_root.iterdir()).glob("train/good/*.png"))[:10]):
        for copy in range(2 if index < 6 else 1):
            (tmp_path / f"{index}-{copy}.png").write_bytes(path.read_bytes())
    data = Folder(name="copies", root=tmp_path, normal_dir=".", test_split_mode="none", val_split_mode="none")
    data.setup("fit")
    train, held_out = hold_out(data.train_data, 0.5, 0)
    left, kept = ([Path(path).stem.split("-")[0] for path in sorted(paths(part))] for part in (train, held_out.images))
    assert len(kept) == 8
    assert held_out.number == len(set(kept)) < len(kept)  # a copy counts once
    assert not set(left) & set(kept)
    assert len(left) < 8


@pytest.mark.parametrize("validates", [False, True])
def test_every_fit_holds_out_the_same_images_and_gives_them_back(phantom_root, make_padim, make_engine, validates):
    """Callbacks of their own, as in a loop over detectors, and with one that makes a validation set of the others."""

    class Failing(Padim):
        def training_step(self, *_):
            raise ZeroDivisionError

    data = phantom(phantom_root, val_split_mode="none")
    chosen, trained = [], []
    for model in (make_padim(), Failing("test_resnet", ["layer2"], False, n_features=4), make_padim()):
        callback = NormalsThreshold(**PROMISE)
        others = [MedMixValidation(ratio=0.4)] if validates else []
        engine = make_engine(callbacks=[callback, *others])
        with pytest.raises(ZeroDivisionError) if isinstance(model, Failing) else nullcontext():
            engine.fit(model, datamodule=data)
        assert len(data.train_data) == 20
        assert not hasattr(data, "val_data")
        chosen.append(paths(callback.held_out_images))
        trained.append(len(engine.trainer.train_dataloader.dataset))
    assert chosen[0] == chosen[1] == chosen[2]
    assert set(trained) == {7 if validates else 12}


def test_a_later_validation_leaves_the_thresholds_as_they_are(phantom_root, make_padim, make_engine):
    model, callback = make_padim(), NormalsThreshold(**PROMISE)
    engine = make_engine(callbacks=[callback])
    data = phantom(phantom_root, val_split_mode="same_as_test")
    engine.fit(model, datamodule=data)
    before = {name: float(value) for name, value in model.post_processor.named_buffers(recurse=False)}
    file = engine.trainer.checkpoint_callback.best_model_path
    engine.validate(model, datamodule=data)
    assert before == {name: float(value) for name, value in model.post_processor.named_buffers(recurse=False)}
    # Another process has the scores of the checkpoint.
    other, again = make_padim(), NormalsThreshold(**PROMISE)
    make_engine(callbacks=[again]).validate(
        other, datamodule=phantom(phantom_root, val_split_mode="same_as_test"), ckpt_path=file
    )
    assert again.calibration == callback.calibration
    assert before == {name: float(value) for name, value in other.post_processor.named_buffers(recurse=False)}


def test_a_model_that_is_only_validated_gets_a_threshold_too(phantom_root, make_engine, make_padim, caplog):
    class Ready(Padim):
        """Stands for one that knows what is normal from the start."""

        learning_type = LearningType.FEW_SHOT

    fitted = make_padim()
    make_engine().fit(fitted, datamodule=phantom(phantom_root))
    model = make_padim(kind=Ready)
    model.load_state_dict(fitted.state_dict())
    callback, data = Watch(**PROMISE), phantom(phantom_root, val_split_mode="same_as_test")
    with caplog.at_level(logging.INFO, "anomalib_msacl.thresholds"):
        make_engine(callbacks=[callback]).fit(model, datamodule=data)
    assert float(model.post_processor.image_threshold) == callback.calibration["image"][conformal_rank(8, 0.2) - 1]
    assert "rank 8 of 8 held-out normal images; on average" in caplog.text
    with pytest.raises(InputError, match="never fitted, only validated"):
        make_engine(callbacks=[Watch(**PROMISE)]).fit(model, datamodule=phantom(phantom_root, val_split_mode="none"))


def test_it_is_told_where_a_model_gives_no_scores(phantom_root, make_msacl, make_engine, tiny_recipe, caplog):
    model, callback = make_msacl(tiny_recipe(max_steps=1, evaluations=0), detector=False), NormalsThreshold(**PROMISE)
    make_engine(callbacks=[callback]).fit(model, datamodule=phantom(phantom_root, val_split_mode="none"))
    assert not callback.calibration
    assert "Msacl gave the held-out images no scores, so no threshold was set" in caplog.text


def test_scores_that_are_no_numbers_are_refused(phantom_root, make_padim, make_engine):
    class Broken(Padim):
        def test_step(self, batch, *arguments):
            return batch.update(pred_score=torch.full((len(batch.image),), float("nan")))

    engine = make_engine(callbacks=[NormalsThreshold(**PROMISE)])
    with pytest.raises(InputError, match="Broken gives held-out normal images scores that are no numbers"):
        engine.fit(make_padim(kind=Broken), datamodule=phantom(phantom_root, val_split_mode="none"))


def test_a_warning_where_test_images_are_of_another_origin(phantom_root, make_padim, make_engine, caplog):
    model, callback = make_padim(), NormalsThreshold(**PROMISE)
    data = phantom(phantom_root, val_split_mode="none")
    engine = make_engine(callbacks=[callback])
    engine.train(model, datamodule=data)
    assert "are not like those" not in caplog.text
    file = engine.trainer.checkpoint_callback.best_model_path
    other = NormalsThreshold(**PROMISE)  # as in another process
    dark = phantom(phantom_root, val_split_mode="none", test_augmentations=Compose([Resize((64, 64)), _Darker()]))
    make_engine(callbacks=[other]).test(make_padim(), datamodule=dark, ckpt_path=file)
    warnings = [record.message for record in caplog.records if "are not like those" in record.message]
    assert len(warnings) == 1
    assert "of the 8 held-out normal ones but mostly higher" in warnings[0]
    assert "expect more false positives than promised." in warnings[0]


class _Darker(torch.nn.Module):
    def forward(self, image, mask=None):
        return (image * 0.3, mask) if mask is not None else image * 0.3


def test_without_labels_all_test_images_are_compared_and_it_is_told(caplog):
    callback = NormalsThreshold()
    callback.calibration = {"image": [float(value) for value in range(30)]}
    outputs = ImageBatch(image=torch.zeros(30, 3, 8, 8), pred_score=torch.arange(30) + 100.0)
    callback.on_test_batch_end(None, None, outputs, outputs, 0)
    callback.on_test_epoch_end(None, None)
    assert "30 test images, of which no label is known" in caplog.text
    assert "lesions among them may be the reason" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "checked", "medical"])
def test_other_datamodules(phantom_root, make_padim, make_engine, kind):
    folders = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/lesion"}
    folders |= {"name": "phantom", "root": next(phantom_root.iterdir()), "val_split_mode": "none"}
    folders |= {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    make = {"folder": Folder, "checked": CheckedFolder, "medical": MedicalFolder}[kind]
    callback = Watch(**PROMISE)
    engine = make_engine(callbacks=[callback])
    model = make_padim()
    engine.train(model, datamodule=make(**folders))
    assert len(callback.calibration["image"]) == 8
    assert "8 held-out normal images; on average" in callback.promise()  # nobody has named a patient
    assert not paths(callback.held_out_images) & callback.trained
    assert float(model.post_processor.image_threshold) == callback.calibration["image"][conformal_rank(8, 0.2) - 1]
