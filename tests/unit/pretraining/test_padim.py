"""The scale of whitened maps that suits PaDiM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator
from anomalib.models.image.padim.torch_model import PadimModel
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomalib_msacl import Recipe
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.pretraining import NormalImages, Pretrained, Questions, Score, padim, pretrain
from anomalib_msacl.pretraining.padim import padim_score, suited_std, suiting_padim
from anomalib_msacl.pretraining.preparation import encoder_for
from tests.conftest import make_recipe

LAYERS = ["blocks.1", "blocks.2"]


def images(number: int, seed: int = 0) -> Tensor:
    """Images that are aligned: the same ramp with a little noise."""
    ramp = torch.linspace(0.2, 0.8, 64)
    noise = torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return (ramp[:, None] * ramp + 0.02 * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def whitened() -> Pretrained:
    torch.manual_seed(0)
    recipe = Recipe.of({"whitening": {"alone": True}, "choice": {"evaluations": 0}})
    start = encoder_for(create_backbone("test_efficientnet", "random"), recipe, LAYERS, (0.5,), (0.5,), (64, 64))
    return pretrain(*start, images(16), None, recipe)


def model(features: int) -> PadimModel:
    return PadimModel("test_efficientnet", LAYERS, pre_trained=False, n_features=features)


@pytest.mark.parametrize("std", [0.1, 0.2])
def test_the_score_is_that_of_padim_number_by_number(whitened: Pretrained, std: float) -> None:
    normal, questions = images(12, 1), Questions(images(12, 1), images(6, 2), whitened.recipe)

    def embeddings(of: Tensor) -> np.ndarray:
        with torch.no_grad():
            first, second = whitened.encoder.eval()(of, pooled=False)[0]
        second = second.repeat_interleave(first.shape[-1] // second.shape[-1], dim=-1)
        second = second.repeat_interleave(first.shape[-2] // second.shape[-2], dim=-2)
        return (torch.cat([first, second], dim=1) * std / 0.1).double().numpy()

    fitted, asked = embeddings(normal), embeddings(questions.images)
    height, width = fitted.shape[-2:]
    distances = np.zeros((len(asked), 1, height, width))
    for row in range(height):
        for column in range(width):
            rows = fitted[:, :, row, column]
            covariance = np.cov(rows, rowvar=False) + (0.01 + 1e-5) * np.eye(rows.shape[1])
            for number, one in enumerate(asked[:, :, row, column] - rows.mean(axis=0)):
                distances[number, 0, row, column] = np.sqrt(one @ np.linalg.solve(covariance, one))
    generator = AnomalyMapGenerator()
    maps = generator.smooth_anomaly_map(generator.up_sample(torch.tensor(distances).float(), (64, 64)))
    expected = maps.amax(dim=(1, 2, 3))

    found = padim_score(model(56), normal, questions, whitened, std)
    assert found.distances is not None
    torch.testing.assert_close(found.distances[0], expected, rtol=2e-3, atol=1e-4)
    assert found.image_auroc == pytest.approx(float(roc_auc_score(questions.labels, expected)), abs=0.02)


def test_the_model_that_is_asked_stays_as_it_was(whitened: Pretrained) -> None:
    asked = model(10)
    before = {name: tensor.clone() for name, tensor in asked.state_dict().items()}
    suited_std(asked, images(16, 1), whitened)
    assert asked.memory_bank == []
    after = asked.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_twice_the_deviation_is_taken_where_it_is_clearly_better(
    whitened: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the images that are held out the first scale tells a part of the lesions, the second all."""
    folds: list[list[float]] = []

    def scores(told: float, number: int) -> Score:
        normal = torch.linspace(0, 1, number)
        lesions = torch.where(torch.arange(2 * number) < told * 2 * number, torch.tensor(2.0), normal.repeat(2))
        labels = (torch.arange(3 * number) >= number).long()
        distances = torch.cat([normal, lesions])
        return Score(float(roc_auc_score(labels, distances)), 0.0, distances[None])

    def choice(first: float, second: float, number: int = 120) -> float:
        def score(_: PadimModel, fitted: Tensor, questions: Questions, __: Pretrained, std: float, ___: int) -> Score:
            held_out = questions.images[questions.labels == 0]
            seen = {float(image.sum()) for image in fitted}
            assert len(seen | {float(image.sum()) for image in held_out}) == number  # all take part, each once
            folds.append([float(image.sum()) for image in held_out])
            return scores(first if std == 0.1 else second, len(held_out))

        monkeypatch.setattr(padim, "padim_score", score)
        folds.clear()
        return suited_std(model(10), images(number, 2), whitened)

    assert choice(0.3, 1.0) == 0.2
    assert len(set(folds[0] + folds[2] + folds[4])) == 3 * 40  # no image is held out twice
    assert folds[::2] == folds[1::2]
    assert choice(0.3, 0.32) == choice(0.3, 0.3) == choice(1.0, 0.3) == 0.1
    assert choice(0.0, 1.0, number=14) == 0.1  # too few to tell
    assert not folds


def test_all_images_take_part_and_nothing_changes_without_whitening(
    whitened: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(padim, "suited_std", lambda _, images, __: seen.append(len(images)) or 0.2)
    some, others, none = NormalImages([images(4)]), NormalImages([images(3)]), NormalImages([])
    for held_out in (others, none):
        found = suiting_padim(model(10), whitened, some, held_out)
        assert found.recipe.whitening.saved_std == 0.2
    assert seen == [7, 4]
    plain = replace(whitened, provenance=replace(whitened.provenance, feature_std=None))
    assert suiting_padim(model(10), plain, some, others) is plain
    kept = replace(whitened, recipe=make_recipe(whitening=0.0))
    assert suiting_padim(model(10), kept, some, others) is kept
