"""Thresholds from held-out normal images alone, and what they do on a real test set.

    python benchmarks/thresholds.py DATA WEIGHTS [--out results/thresholds.csv] [--sets NAME ...] [--seeds 0 1 2]

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format, or `offline`. For each set, detector and seed one model is fitted while NormalsThreshold holds out a fifth of
the normal training images. Then the threshold is set in these ways:

  normals .95  the conformal rank of the held-out scores that promises at most 5 % false positives on average,
  normals .90  the same for 10 %,
  sure .90     the rank that promises at most 10 % in 95 % of such draws (confidence=0.95),
  medmix F1    anomalib's highest F1 on the same held-out images, half of them with MedMix lesions,
  real F1      anomalib's highest F1 on half of the real test set (val_split_mode: from_test).

They are judged on the whole test set, the last on its other half. A way that needs more images than are held out has
no row. Rows that are in the file already are not run again. `--table FILE` only prints the table of a file.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from anomalib.data.utils.split import random_split
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore

from _common import pre_processor, rows, set_of, sets_in
from anomalib_msacl import NormalsThreshold
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.data import MedMixDataset
from anomalib_msacl.thresholds import conformal_rank, images_needed
from anomalib_msacl.transfer import transfer
from validation_splits import chosen_threshold, gather, scored

ARCHITECTURE = "tf_efficientnet_lite0"
LAYERS = ["blocks.2", "blocks.4"]
PROMISES: dict[str, tuple[float, float | None]] = {
    "normals .95": (0.05, None),
    "normals .90": (0.1, None),
    "sure .90": (0.1, 0.95),
}
ARMS = (*PROMISES, "medmix F1", "real F1")
FIGURES = ("specificity", "sensitivity")


def detector(name: str, weights: str, size: int) -> Any:
    """Return a detector on the pre-trained backbone."""
    options: dict[str, Any] = {"backbone": ARCHITECTURE, "layers": LAYERS, "pre_trained": False, "visualizer": False}
    options["pre_processor"] = pre_processor((size, size))
    kind, own = (Patchcore, {"coreset_sampling_ratio": 0.01}) if name == "patchcore" else (Padim, {"n_features": 100})
    model = kind(**own, **options)
    transfer(create_backbone(ARCHITECTURE, weights)[0], model.model.feature_extractor.feature_extractor)
    return model


def judged(threshold: float, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, str]:
    """Return specificity and sensitivity of a threshold; images above it are called abnormal."""
    called = scores > threshold
    values = {
        "specificity": float((~called[labels == 0]).double().mean()),
        "sensitivity": float(called[labels == 1].double().mean()),
    }
    return {name: f"{value:.4f}" for name, value in values.items()}


def run(folder: Path, name: str, weights: str, seed: int, size: int) -> list[dict[str, str]]:
    """Fit once, set the threshold in each way and judge it."""
    lightning.seed_everything(seed, verbose=False)
    model, data = detector(name, weights, size), set_of(folder, val_split_mode="none", seed=seed)
    callback = NormalsThreshold(specificity=0.9, seed=seed)
    with tempfile.TemporaryDirectory() as work:
        options: dict[str, Any] = {"default_root_dir": work, "accelerator": "cpu", "devices": 1, "logger": False}
        Engine(callbacks=[callback], enable_progress_bar=False, **options).fit(model, datamodule=data)
    model = model.eval()
    test = scored(model, data.test_data)
    scores, labels = gather(test, "pred_score"), gather(test, "gt_label").long()
    held_out = callback.calibration["image"]
    found = {}
    for arm, (alpha, confidence) in PROMISES.items():
        if len(held_out) >= images_needed(alpha, confidence):
            found[arm] = judged(held_out[conformal_rank(len(held_out), alpha, confidence) - 1], scores, labels)
    lesions = MedMixDataset(callback.held_out_images, seed=seed)
    found["medmix F1"] = judged(chosen_threshold(scored(model, lesions)), scores, labels)
    other, half = random_split(data.test_data, 0.5, label_aware=True, seed=seed)
    threshold = chosen_threshold(scored(model, half))
    rest = scored(model, other)
    found["real F1"] = judged(threshold, gather(rest, "pred_score"), gather(rest, "gt_label").long())
    base = {"set": folder.name, "detector": name, "seed": str(seed), "held_out": str(len(held_out))}
    return [{**base, "arm": arm, **values} for arm, values in found.items()]


def table(path: Path) -> None:
    """Print the rows of a file as a Markdown table: mean and, in brackets, the smallest and the largest value."""
    content = rows(path)
    print("| set | detector | held out | threshold | specificity | sensitivity |")
    print("|---|---|---|---|---|---|")
    for key in dict.fromkeys((row["set"], row["detector"]) for row in content):
        for arm in ARMS:
            found = [row for row in content if (row["set"], row["detector"], row["arm"]) == (*key, arm)]
            if not found:
                continue
            cells = []
            for figure in FIGURES:
                values = [float(row[figure]) for row in found]
                cells.append(f"{statistics.fmean(values):.2f} ({min(values):.2f}-{max(values):.2f})")
            print(f"| {' | '.join([*key, found[0]['held_out'], arm, *cells])} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--out", type=Path, default=Path("results/thresholds.csv"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--detectors", nargs="*", choices=["patchcore", "padim"], default=["patchcore", "padim"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table or not arguments.data:
        table(arguments.table or arguments.out)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    made = rows(arguments.out)
    names = arguments.sets or sets_in(arguments.data)
    jobs = [(seed, name, kind) for seed in arguments.seeds for name in names for kind in arguments.detectors]
    for seed, name, kind in jobs:
        if any((row["set"], row["detector"], row["seed"]) == (name, kind, str(seed)) for row in made):
            continue
        made += run(arguments.data / name, kind, arguments.weights, seed, arguments.size)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
    table(arguments.out)


if __name__ == "__main__":
    main()
