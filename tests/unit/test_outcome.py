"""What is kept of the test images of a detector: no batch with its images, and no maps of a trial."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback

from anomalib_msacl.comparison import find_layout, trials
from anomalib_msacl.comparison.configured import Configured
from anomalib_msacl.comparison.outcome import joined, outcome_of, predict
from anomalib_msacl.compat import decided
from tests.conftest import phantom
from tests.unit.test_comparison import config  # noqa: F401  # a fixture


@pytest.mark.parametrize("post_processor", [True, False])
def test_predictions_are_kept_small_and_let_go(
    config: Path,  # noqa: F811
    phantom_root: Path,
    post_processor: bool,
) -> None:
    """At most two batches live at a time, and what is kept is what all of them together would have given."""
    alive: list[int] = []

    class Watch(Callback):
        def on_predict_batch_start(self, *_: Any) -> None:
            alive.append(sum(isinstance(each, ImageBatch) for each in gc.get_objects()))

    model = Configured.read(config).model(post_processor=post_processor, evaluator=False)
    data = phantom(phantom_root, eval_batch_size=1)
    limit = 1.0 if post_processor else 0  # validation images give a threshold
    with trials.quiet_engine(callbacks=[Watch()], accelerator="cpu", limit_val_batches=limit) as engine:
        engine.fit(model, datamodule=data)
        found = predict(engine, model, data)
        assert len(alive) == 6
        assert max(alive) - min(alive) <= 1
        names = [type(callback).__name__ for callback in engine.trainer.callbacks]
        assert "_Parts" not in names  # or each prediction would cost more than the one before
        batches = engine.predict(model=model, datamodule=data, return_predictions=True)
    assert found is not None
    expected = joined([outcome_of(decided(batch, model)) for batch in batches], found.threshold)
    assert (found.threshold is not None) == (found.called is not None) == post_processor
    for field in ("score", "label", "called", "maps", "masks"):
        one, other = getattr(found, field), getattr(expected, field)
        assert (one is None and other is None) or torch.equal(one, other), field
    assert (found.paths, found.frames) == (expected.paths, expected.frames)


def test_trials_keep_no_maps(config: Path, phantom_root: Path, tmp_path: Path) -> None:  # noqa: F811
    (root,) = phantom_root.iterdir()
    (trial,) = trials.run_trials(find_layout(root), [Configured.read(config)], [0], tmp_path / "out")
    for found in (trial.untouched, trial.pretrained):
        assert found is not None
        assert found.maps is found.masks is None
        assert found.pixel_auroc is not None
