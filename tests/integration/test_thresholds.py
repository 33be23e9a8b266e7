"""A threshold from normal images is in the checkpoint: plain anomalib gives the same labels without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from anomalib.models import Padim
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import NormalsThreshold
from tests.conftest import phantom

ELSEWHERE = """
import json, sys
sys.modules["anomalib_msacl"] = None
from pathlib import Path
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim

torch.set_num_threads(1)
checkpoint, images, work = sys.argv[1:]
model = Padim.load_from_checkpoint(checkpoint)
engine = Engine(default_root_dir=work, accelerator="cpu", devices=1, enable_progress_bar=False)
batches = []
for path in sorted(Path(images).rglob("*.png")):
    batches += engine.predict(model, dataset=PredictDataset(path), ckpt_path=checkpoint)
post = model.post_processor
print(json.dumps({
    "thresholds": [float(post.image_threshold), float(post.pixel_threshold)],
    "labels": {"/".join(Path(batch.image_path[0]).parts[-2:]): int(batch.pred_label) for batch in batches},
    "scores": {"/".join(Path(batch.image_path[0]).parts[-2:]): float(batch.pred_score) for batch in batches},
    "pixels": {"/".join(Path(batch.image_path[0]).parts[-2:]): int(batch.pred_mask.sum()) for batch in batches},
}))
"""


@pytest.mark.parametrize("mode", ["none", "from_test"])
def test_plain_anomalib_has_the_threshold(phantom_root, make_engine, tmp_path, mode):
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
    data = phantom(phantom_root, val_split_mode=mode, seed=0)
    callback = NormalsThreshold(specificity=0.8, ratio=0.4)
    engine = make_engine(callbacks=[callback])
    engine.fit(model, datamodule=data)
    checkpoint = engine.trainer.checkpoint_callback.best_model_path
    post = model.post_processor
    images = next(phantom_root.iterdir()) / "test"
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, checkpoint, str(images), str(tmp_path / "elsewhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["thresholds"] == [float(post.image_threshold), float(post.pixel_threshold)]
    assert found["thresholds"][0] in callback.calibration["image"]
    assert "callbacks used to create the checkpoint need to be provided" not in done.stderr
    for batch in engine.predict(model, datamodule=phantom(phantom_root, val_split_mode="none")):
        for path, label, score, mask in zip(
            batch.image_path, batch.pred_label, batch.pred_score, batch.pred_mask, strict=True
        ):
            name = "/".join(Path(path).parts[-2:])
            assert found["labels"][name] == int(label)
            assert found["scores"][name] == pytest.approx(float(score), abs=1e-5)
            assert found["pixels"][name] == int(mask.sum())
    assert len(found["labels"]) == 12
