"""A checkpoint is a plain one of anomalib: it exports and predicts where this package cannot be imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.deploy import ExportType, OpenVINOInferencer
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import MsaclPretraining, Recipe
from tests.conftest import phantom

# Runs without this package: `anomalib export`, then torch and OpenVINO on the same images.
ELSEWHERE = """
import json, sys
sys.modules["anomalib_msacl"] = None
from pathlib import Path
import torch
from anomalib.cli.cli import AnomalibCLI
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer
from anomalib.models import Patchcore
checkpoint, images, out = sys.argv[1:]
AnomalibCLI(["export", "--model", "anomalib.models.Patchcore", "--model.backbone", "test_resnet",
    "--model.layers", "[layer2,layer3]", "--model.pre_trained", "false", "--ckpt_path", checkpoint,
    "--export_type", "openvino", "--export_root", out])
model = Patchcore.load_from_checkpoint(checkpoint).eval()
inferencer = OpenVINOInferencer(Path(out) / "weights" / "openvino" / "model.xml", device="CPU")
scores = []
for path in sorted(Path(images).rglob("*.png")):
    with torch.no_grad():
        here = model(read_image(path, as_tensor=True)[None])
    there = inferencer.predict(str(path))
    worst = abs(here.anomaly_map.numpy() - there.anomaly_map).max()
    scores.append([here.pred_score.item(), there.pred_score.item(), float(worst)])
print("RESULT " + json.dumps(scores))
"""


def test_openvino_agrees_with_torch_where_the_package_and_the_weights_are_gone(
    phantom_root: Path, tmp_path: Path, make_engine: Callable[..., Any]
) -> None:
    transform = Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    model = Patchcore(
        "test_resnet",
        ["layer2", "layer3"],
        pre_trained=False,
        coreset_sampling_ratio=0.1,
        pre_processor=PreProcessor(transform),
        visualizer=False,
    )
    recipe = Recipe(max_steps=2, batch_size=4, evaluations=0, centre_images=4)
    engine = make_engine(callbacks=[MsaclPretraining("random", recipe, tmp_path / "msacl")])
    engine.fit(model, datamodule=phantom(phantom_root, seed=0))
    shutil.rmtree(tmp_path / "msacl")
    images = next(phantom_root.glob("*/test"))
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, engine.best_model_path, str(images), str(tmp_path / "out")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    assert len(result) == 12
    for here, there, map_difference in result:
        assert here == pytest.approx(there, abs=1e-3)
        assert map_difference < 1e-2
    assert len({round(here, 6) for here, _, _ in result}) > 6


def test_msacl_itself_exports_to_openvino(
    make_msacl: Callable[..., Any],
    make_engine: Callable[..., Any],
    phantom_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # OpenVINO leaves a cache in the working folder
    msacl, engine = make_msacl(), make_engine()
    engine.fit(msacl, datamodule=phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.2, seed=0))
    path = engine.export(msacl, ExportType.OPENVINO, export_root=tmp_path / "out", ckpt_path=engine.best_model_path)
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        here = msacl.eval()(image[None])
    there = OpenVINOInferencer(path, device="CPU").predict(image.permute(1, 2, 0).numpy())
    assert here.pred_score.item() == pytest.approx(there.pred_score.item(), abs=1e-3)
