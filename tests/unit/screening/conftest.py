"""A small detector, fitted on DICOM files with a threshold from held-out normal images, and its export."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from filelock import FileLock
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import NormalsThreshold
from anomalib_msacl.cli import main
from anomalib_msacl.data import MedicalFolder
from tests.medical_files import tissue, write_dicom

SIZE = (48, 40)
TEST = 6


@dataclass(frozen=True)
class Trained:
    """A fitted detector.

    Attributes:
        root: Folder with the files, normal ones to fit and six new ones in ``new``.
        checkpoint: Its checkpoint.
        export: Folder of its export.
        data: The datamodule that it was fitted with; its test images are the new ones.
        predicted: Normalised score and label of each new file, by ``Engine.predict``.
        calibration: Raw scores of the held-out images.
    """

    root: Path
    checkpoint: Path
    export: Path
    data: MedicalFolder
    predicted: list[tuple[float, bool]]
    calibration: list[float]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Trained:
    """Made by the first process of the tests that asks for it; the others read it."""
    if worker_id == "master":  # one process runs all tests
        return train(tmp_path_factory.mktemp("screening"))
    folder = tmp_path_factory.getbasetemp().parent / "screening"
    with FileLock(f"{folder}.lock"):
        file = folder / "trained.pickle"
        if not file.exists():
            folder.mkdir()
            file.write_bytes(pickle.dumps(train(folder)))
        found: Trained = pickle.loads(file.read_bytes())
    return found


def train(root: Path) -> Trained:
    """Fit the detector and export it, below a folder."""
    window = {"WindowCenter": 1200, "WindowWidth": 600}
    for index in range(20):
        write_dicom(root / f"good/{index:02d}", tissue(index, SIZE), PatientID=f"P{index}", **window)
    for index in range(TEST):
        pixels = tissue(100 + index, SIZE)
        if index % 2:
            pixels[10:30, 10:30] = 1490  # a bright square
        write_dicom(root / f"new/{index}", pixels, PatientID=f"N{index // 2}", **window)
    torch.manual_seed(1)
    transform = Compose([Resize((32, 32), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    options: dict[str, Any] = {"backbone": "test_resnet", "layers": ["layer2", "layer3"], "pre_trained": False}
    model = Patchcore(**options, pre_processor=PreProcessor(transform), visualizer=False)
    data = MedicalFolder(
        "mine", root, "good", normal_test_dir="new", val_split_mode="none", patient_tag="PatientID", seed=0
    )
    callback = NormalsThreshold(0.8, ratio=0.4)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    engine = Engine(callbacks=[callback], default_root_dir=root / "results", accelerator="cpu", devices=1, **quiet)
    engine.fit(model, datamodule=data)
    checkpoint = Path(engine.best_model_path)
    predicted = engine.predict(model, datamodule=data, ckpt_path=checkpoint) or []
    found = [(s, lab) for b in predicted for s, lab in zip(b.pred_score.tolist(), b.pred_label.tolist(), strict=True)]
    named = ["--model", "anomalib.models.Patchcore", "--model.backbone", "test_resnet", "--model.pre_trained", "false"]
    where = ["--ckpt_path", str(checkpoint), "--export_type", "openvino", "--export_root", str(root / "export")]
    main(["export", *named, "--model.layers", "[layer2]", *where])
    return Trained(root, checkpoint, root / "export", data, found, callback.calibration["image"])
