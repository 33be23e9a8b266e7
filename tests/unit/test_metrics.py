"""Figures against scikit-learn, torchmetrics and anomalib; intervals against what resampling must give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score, roc_curve
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from anomalib_msacl import InputError
from anomalib_msacl.metrics import Evidence, MedicalEvaluator, gather, image_figures, intervals, pixel_figures, ranks
from tests.conftest import phantom


def scores(number: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = (torch.arange(number) % 2).long()
    return 40 + 3 * torch.randn(number, generator=generator) + 4 * label, label


def maps(number: int = 40, side: int = 48) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(number, side, side, dtype=torch.uint8)
    for index in range(0, number, 2):
        y, x = torch.randint(0, side - 12, (2,), generator=generator).tolist()
        mask[index, y : y + 10, x : x + 12] = 1
        if index % 3 == 0:
            mask[index, :5, :5] = 1
    noise = torch.rand(number, side, side, generator=generator)
    score_map = torch.nn.functional.avg_pool2d(noise + 0.25 * mask, 5, 1, 2)
    score = score_map.flatten(1).amax(dim=1)
    label = mask.flatten(1).amax(dim=1)
    return {"score": score, "label": label, "map": score_map, "mask": mask, "found": score_map > 0.55}


def test_image_figures_are_those_of_scikit_learn():
    score, label = scores()
    called = score > 43
    found = image_figures(Evidence(score, label, called))
    false, true, _ = roc_curve(label, score, drop_intermediate=False)
    assert found["image_AUROC"] == pytest.approx(roc_auc_score(label, score), abs=1e-6)
    assert found["image_Sensitivity"] == pytest.approx(recall_score(label, called))
    assert found["image_Specificity"] == pytest.approx(recall_score(label, called, pos_label=0))
    assert found["image_Accuracy"] == pytest.approx(accuracy_score(label, called))
    assert found["image_SensitivityAt95Specificity"] == pytest.approx(true[1 - false >= 0.95].max())


def test_scores_of_any_scale_give_the_same_figures():
    score, label = scores()
    expected = image_figures(Evidence(score, label))
    for other in (score * 1000 - 7, score.exp(), score / 1e5):
        assert image_figures(Evidence(other, label)) == expected
    assert ranks(torch.tensor([5.0, -2.0, 5.0])).tolist() == [1, 0, 1]


def test_pixel_figures_are_those_of_torchmetrics_and_anomalib():
    given = maps()
    found = pixel_figures(gather(given))
    for name, metric in (("IoU", BinaryJaccardIndex()), ("Dice", BinaryF1Score())):
        assert found[f"pixel_{name}"] == pytest.approx(
            float(metric(given["found"].int(), given["mask"].int())), abs=1e-6
        )
    theirs = AUPRO(fields=["anomaly_map", "gt_mask"])
    batch = ImageBatch(image=torch.zeros(40, 3, 1, 1), anomaly_map=given["map"], gt_mask=given["mask"])
    theirs.update(batch)
    assert found["pixel_AUPRO"] == pytest.approx(float(theirs.compute()), abs=2e-3)


def test_a_resample_has_the_area_that_anomalib_gives_it():
    given = maps()
    rows = torch.randint(0, 40, (40,), generator=torch.Generator().manual_seed(1))
    theirs = AUPRO(fields=["anomaly_map", "gt_mask"])
    batch = ImageBatch(image=torch.zeros(40, 3, 1, 1), anomaly_map=given["map"][rows], gt_mask=given["mask"][rows])
    theirs.update(batch)
    assert pixel_figures(gather(given).select(rows))["pixel_AUPRO"] == pytest.approx(float(theirs.compute()), abs=4e-3)


def test_missing_classes_masks_and_thresholds_give_no_figures():
    score, label = scores()
    normal = image_figures(Evidence(score, torch.zeros_like(label), score > 43))
    assert np.isnan([normal["image_AUROC"], normal["image_Sensitivity"]]).all()
    assert 0 < normal["image_Specificity"] < 1
    assert set(image_figures(Evidence(score, label))) == {"image_AUROC", "image_SensitivityAt95Specificity"}
    assert pixel_figures(gather({"score": score, "label": label})) == {}


def test_intervals_agree_with_scipy():
    score, label = scores()
    evidence = Evidence(score, label, score > 43)
    ours = intervals(evidence, image_figures, range(200), 1000, 0)["image_Accuracy"]
    right = ((score > 43).long() == label).float().numpy()
    theirs = bootstrap((right,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_patients_are_drawn_as_a_whole():
    score, label = scores(100)
    evidence = Evidence(score, label, score > 43)
    plain = intervals(evidence, image_figures, range(100), 400, 0)
    tripled = evidence.select(torch.arange(100).repeat_interleave(3))
    patients = [index // 3 for index in range(300)]
    for name, bounds in intervals(tripled, image_figures, patients, 400, 0).items():
        assert bounds == pytest.approx(plain[name], abs=1e-6)
    low, high = intervals(tripled, image_figures, range(300), 400, 0)["image_Accuracy"]
    assert high - low < 0.75 * (plain["image_Accuracy"][1] - plain["image_Accuracy"][0])


@pytest.mark.parametrize("resamples", [0, 50])
def test_the_evaluator_logs_figures_and_bounds(resamples, phantom_root, make_patchcore, make_engine):
    model = make_patchcore(evaluator=MedicalEvaluator(resamples=resamples))
    engine = make_engine()
    engine.train(model, datamodule=phantom(phantom_root))
    logged = engine.trainer.callback_metrics
    image = ["AUROC", "Sensitivity", "Specificity", "Accuracy", "SensitivityAt95Specificity"]
    names = [f"image_{name}" for name in image] + [f"pixel_{name}" for name in ("IoU", "Dice", "AUPRO")]
    assert set(logged) == {name + end for name in names for end in (("", "_low", "_high") if resamples else ("",))}
    for name in names if resamples else ():
        assert 0 <= logged[f"{name}_low"] <= logged[f"{name}_high"] <= 1


def test_fewer_than_no_resamples_are_refused():
    with pytest.raises(InputError, match="resamples is -1"):
        MedicalEvaluator(resamples=-1)
