"""A threshold from normal images is in the checkpoint: plain anomalib gives the same labels without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Padim
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import NormalsThreshold
from tests.conftest import phantom

MODES = ("none", "from_test")
ELSEWHERE = """
import json, sys
sys.modules["anomalib_msacl"] = None
from pathlib import Path
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim

torch.set_num_threads(1)
images, work, *checkpoints = sys.argv[1:]
name = lambda batch: "/".join(Path(batch.image_path[0]).parts[-2:])
found = []
for checkpoint in checkpoints:
    model = Padim.load_from_checkpoint(checkpoint)
    engine = Engine(default_root_dir=work, accelerator="cpu", devices=1, enable_progress_bar=False)
    batches = engine.predict(model, dataset=PredictDataset(images), ckpt_path=checkpoint)
    post = model.post_processor
    found.append({
        "thresholds": [float(post.image_threshold), float(post.pixel_threshold)],
        "labels": {name(batch): int(batch.pred_label) for batch in batches},
        "scores": {name(batch): float(batch.pred_score) for batch in batches},
        "pixels": {name(batch): int(batch.pred_mask.sum()) for batch in batches},
    })
print(json.dumps(found))
"""


@dataclass
class Fitted:
    """A detector with a threshold from normal images, and what plain anomalib says of its checkpoint."""

    engine: Engine
    model: Padim
    callback: NormalsThreshold
    elsewhere: dict[str, Any]
    warnings: str


def fit(mode: str, root: Path, work: Path) -> tuple[Engine, Padim, NormalsThreshold]:
    torch.manual_seed(1)
    transform = Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    model = Padim(
        backbone="test_resnet",
        layers=["layer2", "layer3"],
        pre_trained=False,
        n_features=20,
        pre_processor=PreProcessor(transform=transform),
        visualizer=False,
    )
    callback = NormalsThreshold(specificity=0.8, ratio=0.4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    engine = Engine(callbacks=[callback], default_root_dir=work, accelerator="cpu", devices=1, **quiet)
    engine.fit(model, datamodule=phantom(root, val_split_mode=mode, seed=0))
    return engine, model, callback


@pytest.fixture(scope="module")
def fitted(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fitted]:
    """One detector for each way to split."""
    work = tmp_path_factory.mktemp("thresholds")
    found = {mode: fit(mode, phantom_root, work / mode) for mode in MODES}
    checkpoints = [engine.best_model_path for engine, *_ in found.values()]
    images = next(phantom_root.iterdir()) / "test"
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, images, work / "elsewhere", *checkpoints]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    elsewhere = json.loads(done.stdout.splitlines()[-1])
    return {mode: Fitted(*found[mode], said, done.stderr) for mode, said in zip(MODES, elsewhere, strict=True)}


@pytest.mark.parametrize("mode", MODES)
def test_plain_anomalib_has_the_threshold(fitted: dict[str, Fitted], phantom_root: Path, mode: str) -> None:
    model, found = fitted[mode].model, fitted[mode].elsewhere
    post = model.post_processor
    assert found["thresholds"] == [float(post.image_threshold), float(post.pixel_threshold)]
    assert found["thresholds"][0] in fitted[mode].callback.calibration["image"]
    assert "callbacks used to create the checkpoint need to be provided" not in fitted[mode].warnings
    for batch in fitted[mode].engine.predict(model, datamodule=phantom(phantom_root, val_split_mode="none")):
        for path, label, score, mask in zip(
            batch.image_path, batch.pred_label, batch.pred_score, batch.pred_mask, strict=True
        ):
            name = "/".join(Path(path).parts[-2:])
            assert found["labels"][name] == int(label)
            assert found["scores"][name] == pytest.approx(float(score), abs=1e-5)
            assert found["pixels"][name] == int(mask.sum())
    assert len(found["labels"]) == 12
