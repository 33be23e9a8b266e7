"""Figures against scikit-learn, torchmetrics and anomalib; intervals against what resampling must give."""

from __future__ import annotations

import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPRO, AUROC, F1Score
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score, roc_curve
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex
from torchmetrics.functional.classification import binary_stat_scores

from anomalib_msacl import InputError
from anomalib_msacl.metrics import (
    FIGURES,
    Evidence,
    MedicalEvaluator,
    MedicalMetrics,
    _pixels,
    gather,
    image_figures,
    intervals,
    patients_by_batch,
    pixel_figures,
)
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
    for other in (score * 1000 - 7, score.double().exp(), score / 1e5):
        assert image_figures(Evidence(other, label)) == expected


def test_the_area_is_the_part_of_the_pairs_in_the_right_order():
    score, label = scores(60)
    score = score.round()  # ties count by half
    pairs = [
        1.0 if ill > well else 0.5 if ill == well else 0.0 for ill in score[label == 1] for well in score[label == 0]
    ]
    assert image_figures(Evidence(score, label))["image_AUROC"] == pytest.approx(np.mean(pairs))


def test_scores_that_are_no_numbers_have_no_order_and_infinite_ones_are_the_largest():
    score, label = torch.tensor([1.0, 2.0, 3.0, float("inf")]), torch.tensor([0, 1, 0, 1])
    assert image_figures(Evidence(score, label))["image_AUROC"] == 0.75
    assert np.isnan(image_figures(Evidence(score * torch.tensor([1, 1, float("nan"), 1]), label))["image_AUROC"])


def test_numbers_of_pixels_are_those_of_torchmetrics():
    random = torch.Generator().manual_seed(0)
    found, mask = (torch.rand(6, 200, generator=random) < part for part in (0.3, 0.1))
    found[0], mask[1] = False, False
    expected = binary_stat_scores(found.long(), mask.long(), multidim_average="samplewise")
    assert torch.equal(_pixels(found, mask), expected)


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


def test_a_resample_without_the_images_of_high_maps_has_an_area_up_to_the_limit():
    map_ = torch.rand(12, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.3
    map_[:6] += 0.4  # as of another scanner
    mask = torch.zeros(12, 32, 32, dtype=torch.bool)
    mask[::3, 8:16, 8:16] = True
    map_[mask] = 2
    evidence = gather({"score": map_.flatten(1).amax(1), "label": mask.flatten(1).any(1), "map": map_, "mask": mask})
    assert pixel_figures(evidence.select(torch.arange(6, 12)))["pixel_AUPRO"] == pytest.approx(1, abs=2e-3)


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
    plain = intervals(evidence, image_figures, range(100), 200, 0)
    tripled = evidence.select(torch.arange(100).repeat_interleave(3))
    patients = [index // 3 for index in range(300)]
    for name, bounds in intervals(tripled, image_figures, patients, 200, 0).items():
        assert bounds == pytest.approx(plain[name], abs=1e-6)
    low, high = intervals(tripled, image_figures, range(300), 200, 0)["image_Accuracy"]
    assert high - low < 0.75 * (plain["image_Accuracy"][1] - plain["image_Accuracy"][0])


@pytest.mark.parametrize("resamples", [0, 50])
def test_the_evaluator_logs_figures_and_bounds(resamples, phantom_root, make_patchcore, make_engine):
    model = make_patchcore(evaluator=MedicalEvaluator(resamples=resamples))
    engine = make_engine()
    engine.train(model, datamodule=phantom(phantom_root))
    logged = engine.trainer.callback_metrics
    image = ["AUROC", "Sensitivity", "Specificity", "Accuracy", "SensitivityAt95Specificity"]
    names = [f"image_{name}" for name in image] + [f"pixel_{name}" for name in ("IoU", "Dice", "AUPRO")]
    assert set(names) == set(FIGURES)
    assert set(logged) == {name + end for name in names for end in (("", "_low", "_high") if resamples else ("",))}
    for name in names if resamples else ():
        assert 0 <= logged[f"{name}_low"] <= logged[f"{name}_high"] <= 1


def test_a_metric_that_the_evaluator_gives_itself_is_refused_before_the_training():
    fields = ["pred_score", "gt_label"]
    with pytest.raises(InputError, match=r"test_metrics has image_AUROC, which .* leave the metric out, or"):
        MedicalEvaluator(test_metrics=[F1Score(fields=["pred_label", "gt_label"]), AUROC(fields, "image_")])
    other = MedicalEvaluator(test_metrics=[AUROC(fields, "my_")], val_metrics=AUROC(fields, "image_"))
    assert [metric.name for metric in other.test_metrics] == ["my_AUROC"]


def batches(size: int, given: dict[str, torch.Tensor] | None = None) -> list[ImageBatch]:
    """The images of ``maps`` in batches, two to a patient."""
    given = given or maps()
    fields = {"score": "pred_score", "label": "gt_label", "called": "pred_label"}
    fields |= {"map": "anomaly_map", "mask": "gt_mask", "found": "pred_mask"}
    made = []
    for rows in torch.arange(40).split(size):
        values: dict[str, Any] = {fields[name]: value[rows] for name, value in given.items()}
        paths = [f"{int(row) // 2}.png" for row in rows]
        made.append(ImageBatch(image=torch.zeros(len(rows), 3, 48, 48), image_path=paths, **values))
    return made


def computed(parts: list[ImageBatch], **options: Any) -> dict[str, float]:
    metric = MedicalMetrics(**{"resamples": 20, **options})
    for part in parts:
        metric.update(part)
    return {name: float(value) for name, value in metric.compute().items()}


def test_the_metric_gives_the_figures_and_their_intervals():
    given = maps()
    given["called"] = given["score"] > 0.6
    found, evidence = computed(batches(40, given)), gather(given)
    patients = [index // 2 for index in range(40)]
    for figures in (image_figures, pixel_figures):
        bounds = intervals(evidence, figures, patients, 20, 0)
        for name, value in figures(evidence).items():
            # AUPRO itself is anomalib's; its interval is that of a curve of a hundred points.
            assert found.pop(name) == pytest.approx(value, abs=2e-3 if name == "pixel_AUPRO" else 1e-6)
            assert (found.pop(f"{name}_low"), found.pop(f"{name}_high")) == pytest.approx(bounds[name])
    assert not found


@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_of_any_size_give_the_same(size):
    assert computed(batches(size)) == computed(batches(16))


def test_the_devices_put_their_images_together():
    parts = batches(10)
    one, other = MedicalMetrics(resamples=0), MedicalMetrics(resamples=0)
    for metric, mine in ((one, parts[:2]), (other, parts[2:])):
        for part in mine:
            metric.update(part)
    empty = torch.tensor([])  # what torchmetrics sends of a state without content
    sent = [
        [torch.cat(state) if state else empty for state in (getattr(metric, name) for name in one._defaults)]
        for metric in (one, other)
    ]
    order = iter(zip(*sent, strict=True))

    def gather_all(tensor: torch.Tensor, group: Any) -> list[torch.Tensor]:
        """What ``torch.distributed`` would return: a state of both devices."""
        both = next(order)
        assert torch.equal(both[0], tensor)
        return list(both)

    one.dist_sync_fn, one.distributed_available_fn = gather_all, lambda: True
    assert {name: float(value) for name, value in one.compute().items()} == computed(parts, resamples=0)
    assert sum(map(len, one.score)) == 20  # each device goes on with its own


def test_a_metric_can_be_reset_pickled_and_kept_on_the_processor():
    metric, parts = MedicalMetrics(resamples=0, compute_on_cpu=True), batches(20)
    metric.update(parts[0])
    again = pickle.loads(pickle.dumps(metric))
    again.update(parts[1])
    assert {name: float(value) for name, value in again.compute().items()} == computed(parts, resamples=0)
    metric.reset()
    metric.update(parts[1])
    assert {name: float(value) for name, value in metric.compute().items()} == computed(parts[1:], resamples=0)


def test_groups_go_before_paths_and_images_without_either_are_groups_of_their_own():
    (batch,) = batches(40)
    by_path = computed([batch])
    widths = {}
    for name, groups in {
        "named": [index // 2 for index in range(40)],
        "one": [index // 20 for index in range(40)],
    }.items():
        metric = MedicalMetrics(resamples=20)
        metric.update(batch, groups)
        widths[name] = {key: float(value) for key, value in metric.compute().items()}
    assert widths["named"] == by_path
    assert widths["one"] != by_path
    batch.image_path = None
    single = MedicalMetrics(resamples=20)
    single.update(batch, range(40))
    assert computed([batch]) == {name: float(value) for name, value in single.compute().items()}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_scores_or_labels_there_are_no_figures(caplog):
    batch = ImageBatch(image=torch.zeros(2, 3, 8, 8), gt_label=torch.tensor([0, 1]))
    assert computed([batch]) == {}
    assert "no scores or no labels" in caplog.text


def test_a_field_that_some_batches_lack_takes_no_part():
    first, second = batches(20)
    second.anomaly_map = None
    found = computed([first, second], resamples=0)
    assert "pixel_AUPRO" not in found
    assert {"image_AUROC", "pixel_Dice"} <= found.keys()


class Table(torch.utils.data.Dataset):
    """A data set that only has its table."""

    def __init__(self, samples: pd.DataFrame) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)


def trainer_of(samples: pd.DataFrame, **options: Any) -> SimpleNamespace:
    data = Table(samples)
    samplers = {name: sampler(data) for name, sampler in options.items()}
    return SimpleNamespace(datamodule=SimpleNamespace(test_data=data), test_dataloaders=DataLoader(data, 2, **samplers))


def test_every_process_knows_the_patients_of_its_own_images():
    table = pd.DataFrame({"image_path": list("abcde"), "patient": ["P", "P", "Q", "R", "R"]})
    assert patients_by_batch(trainer_of(table)) == [["P", "P"], ["Q", "R"], ["R"]]
    halves = [
        patients_by_batch(
            trainer_of(table, sampler=partial(DistributedSampler, num_replicas=2, rank=rank, shuffle=False))
        )
        for rank in (0, 1)
    ]
    assert halves == [[["P", "Q"], ["R"]], [["P", "R"], ["P"]]]  # a sampler fills up the last batch
    assert patients_by_batch(trainer_of(table, sampler=RandomSampler)) is None
    assert patients_by_batch(trainer_of(table.drop(columns="patient"))) is None


def test_fewer_than_no_resamples_are_refused():
    with pytest.raises(InputError, match="resamples is -1"):
        MedicalEvaluator(resamples=-1)


def test_a_resample_is_drawn_without_a_tensor_for_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [0, 1, 1, 2, 0, 3, 3, 3, 4]
    evidence = Evidence(torch.arange(9.0), torch.arange(9) % 2)
    drawn: list[list[float]] = []
    joined: list[int] = []
    cat = torch.cat
    monkeypatch.setattr(torch, "cat", lambda *given, **options: joined.append(1) or cat(*given, **options))
    intervals(evidence, lambda part: drawn.append(part.score.tolist()) or {"a": 0.0}, groups, 20, 3)
    assert not joined
    members, generator = [[0, 4], [1, 2], [3], [5, 6, 7], [8]], torch.Generator().manual_seed(3)
    for rows in drawn:
        chosen = torch.randint(5, (5,), generator=generator).tolist()
        assert rows == [row for group in chosen for row in members[group]]
