"""A model whose threshold nothing has set calls no image abnormal: figures, tables and reports leave the label out."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import MEBinPostProcessor

from anomalib_msacl.comparison.outcome import predict
from anomalib_msacl.compat import decided, undecided
from anomalib_msacl.metrics import MedicalEvaluator
from anomalib_msacl.scores import ScoresCsv
from tests.conftest import phantom


@pytest.mark.parametrize("mode", ["none", "from_test"])
def test_without_a_threshold_nothing_is_called_abnormal(
    mode: str, phantom_root: Path, make_patchcore: Callable[..., Any], make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    known = mode == "from_test"
    model = make_patchcore(evaluator=MedicalEvaluator(resamples=0))
    data = phantom(phantom_root, val_split_mode=mode)
    table = ScoresCsv(tmp_path / "scores.csv")
    engine = make_engine(callbacks=[table], logger=False, limit_val_batches=1.0 if known else 0)
    engine.train(model, datamodule=data)
    figures = set(engine.trainer.callback_metrics)
    assert {"image_AUROC", "image_SensitivityAt95Specificity", "pixel_AUPRO"} <= figures
    decisions = {"image_Sensitivity", "image_Specificity", "image_Accuracy", "pixel_IoU", "pixel_Dice"}
    assert figures & decisions == (decisions if known else set())
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} <= ({"normal", "abnormal"} if known else {""})
    assert {row["truth"] for row in rows} == {"normal", "abnormal"}
    found = predict(engine, model, data)
    assert found is not None
    assert (found.called is not None, found.threshold is not None) == (known, known)


def test_only_what_a_missing_threshold_decided_is_left_out(make_patchcore: Callable[..., Any]) -> None:
    model = make_patchcore()
    assert undecided(model) == {"pred_label", "pred_mask"}
    model.post_processor._pixel_threshold.fill_(2.0)  # anomalib takes it for images too
    assert undecided(model) == set()
    model.post_processor.enable_threshold_matching = False
    assert undecided(model) == {"pred_label"}
    model.post_processor.enable_thresholding = False  # labels are the model's own
    assert undecided(model) == set()
    assert undecided(make_patchcore(post_processor=False)) == set()
    # Its masks come from the map alone.
    assert undecided(make_patchcore(post_processor=MEBinPostProcessor())) == {"pred_label"}


def test_the_batch_itself_stays_as_it_is(make_patchcore: Callable[..., Any]) -> None:
    batch = ImageBatch(image=torch.zeros(2, 3, 8, 8), pred_score=torch.ones(2), pred_label=torch.ones(2).bool())
    found = decided(batch, make_patchcore())
    assert found.pred_label is None
    assert torch.equal(found.pred_score, batch.pred_score)
    assert batch.pred_label is not None
