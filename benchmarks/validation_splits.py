"""Thresholds chosen on synthetic and on real abnormal images, and what they do on a real test set.

    python benchmarks/validation_splits.py DATA WEIGHTS [--out results/validation_splits.csv] [--sets NAME ...]

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format. For each set and seed one PatchCore is fitted on four fifths of the normal training images. Then its threshold
is chosen, by anomalib's own post-processor, on

  perlin   the other fifth, half of it with anomalib's Perlin anomalies (its split mode `synthetic`),
  medmix   the same fifth, half of it with MedMix lesions (MedMixValidation),
  real     half of the test set,

and applied to the other half of the test set, the same for all three. Thresholds are given as the quantile of the
scores of normal test images that they stand at, because raw scores differ from fit to fit. `best` is the threshold
with the highest F1 on the very half it is judged on: no method can know it. Rows that are in the file already are not
run again. `--table FILE` only prints the table of a file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from anomalib.data import Folder, ImageBatch
from anomalib.data.utils.split import random_split
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.post_processing import PostProcessor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_recall,
    binary_specificity,
)

from _common import auroc, pre_processor, rows, set_of, sets_in, write_rows
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.data import MedMixDataset
from anomalib_msacl.data.splits import split_by_patient
from anomalib_msacl.transfer import transfer

FIGURES = ("threshold", "quantile", "f1", "sensitivity", "specificity", "auroc")
ARMS = ("perlin", "medmix", "real", "best")


def fit(folder: Path, weights: Path, seed: int, size: int, work: Path) -> tuple[Patchcore, Folder, Any]:
    """Fit PatchCore on four fifths of the training images; return it, the data and the last fifth."""
    lightning.seed_everything(seed, verbose=False)
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        coreset_sampling_ratio=0.01,
        pre_processor=pre_processor((size, size)),
        visualizer=False,
    )
    backbone = create_backbone("tf_efficientnet_lite0", str(weights))[0]
    transfer(backbone, model.model.feature_extractor.feature_extractor)
    data = set_of(folder, val_split_mode="same_as_test", seed=seed)
    data.setup("fit")
    data.train_data, held_out = split_by_patient(data.train_data, 0.2, seed)
    data._is_setup = True
    engine = Engine(
        default_root_dir=work, accelerator="cpu", devices=1, logger=False, limit_val_batches=0, barebones=False
    )
    engine.fit(model, datamodule=data)
    held_out.augmentations = data.test_data.augmentations
    return model.eval(), data, held_out


@torch.no_grad()
def scored(model: Patchcore, dataset: Any) -> list[ImageBatch]:
    """Return the batches of a dataset with raw scores and maps, before any normalisation."""
    batches: Iterable[ImageBatch] = DataLoader(dataset, batch_size=32, collate_fn=dataset.collate_fn)
    found = []
    for batch in batches:
        prediction = model.model(model.pre_processor(batch.image))
        found.append(batch.update(pred_score=prediction.pred_score, anomaly_map=prediction.anomaly_map))
    return found


def chosen_threshold(batches: list[ImageBatch]) -> float:
    """Return the image threshold that anomalib's post-processor chooses."""
    post_processor = PostProcessor()
    for batch in batches:
        post_processor.on_validation_batch_end(None, None, batch)
    post_processor.on_validation_epoch_end(None, None)
    return float(post_processor.image_threshold)


def figures(threshold: float, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, str]:
    """Return what a threshold does; images above it are called abnormal."""
    called = (scores > threshold).long()
    normal = scores[labels == 0]
    values = {
        "threshold": threshold,
        "quantile": float((normal <= threshold).float().mean()),
        "f1": float(binary_f1_score(called, labels)),
        "sensitivity": float(binary_recall(called, labels)),
        "specificity": float(binary_specificity(called, labels)),
        "auroc": auroc(scores, labels),
    }
    return {name: f"{value:.4f}" for name, value in values.items()}


def gather(batches: list[ImageBatch], field: str) -> torch.Tensor:
    """Return a field of all batches as one plain tensor."""
    return torch.cat([getattr(batch, field).as_subclass(torch.Tensor).flatten() for batch in batches])


def run(folder: Path, weights: Path, seed: int, size: int) -> list[dict[str, str]]:
    """Fit once, choose the threshold in each way and judge it on the same half of the test set."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        model, data, held_out = fit(folder, weights, seed, size, Path(work))
    fitted = time.monotonic() - start
    judged, real = random_split(data.test_data, 0.5, label_aware=True, seed=seed)
    judged_batches = scored(model, judged)
    scores, labels = gather(judged_batches, "pred_score"), gather(judged_batches, "gt_label").long()
    lightning.seed_everything(seed, verbose=False)  # anomalib's generator takes its numbers from everywhere
    sets = {"perlin": SyntheticAnomalyDataset.from_dataset(held_out), "medmix": MedMixDataset(held_out, seed=seed)}
    made = []
    for arm in ARMS:
        batches = judged_batches if arm == "best" else scored(model, sets.get(arm, real))
        values = figures(chosen_threshold(batches), scores, labels)
        made.append({"set": folder.name, "seed": str(seed), "arm": arm, **values, "fit_seconds": f"{fitted:.0f}"})
    return made


def table(path: Path) -> None:
    """Print the rows of a file as a Markdown table: mean and, in brackets, the smallest and the largest value."""
    content = rows(path)
    print("| set | threshold chosen on | quantile of normals | F1 | sensitivity | specificity |")
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["set"] for row in content):
        for arm in ARMS:
            found = [row for row in content if (row["set"], row["arm"]) == (name, arm)]
            cells = []
            for key in FIGURES[1:-1]:
                values = [float(row[key]) for row in found]
                cells.append(f"{statistics.fmean(values):.2f} ({min(values):.2f}-{max(values):.2f})")
            print(f"| {name} | {arm} | {' | '.join(cells)} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("results/validation_splits.csv"))
    parser.add_argument("--sets", nargs="*")
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
    for seed, name in ((seed, name) for seed in arguments.seeds for name in names):
        if any((row["set"], row["seed"]) == (name, str(seed)) for row in made):
            continue
        made += run(arguments.data / name, arguments.weights, seed, arguments.size)
        for row in made[-len(ARMS) :]:
            print(row, flush=True)
        write_rows(arguments.out, made)
    table(arguments.out)


if __name__ == "__main__":
    main()
