"""Thresholds from held-out normal images alone, and what they do on a real test set.

    python benchmarks/thresholds.py DATA WEIGHTS [--out results/thresholds.csv] [--sets NAME ...] [--seeds 0 1]

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format, or `offline`. For each set and seed a fifth of the normal training images goes to the choice of the weights.
Of the others NormalsThreshold holds out two fifths; `Msacl` is trained on the rest, and PatchCore and PaDiM are fitted
on its backbone and the same images. Then half of the held-out images is drawn five times (--draws), and each draw sets
the threshold in these ways:

  normals .95  the conformal rank of the scores that promises at most 5 % false positives on average,
  normals .90  the same for 10 %,
  sure .90     the rank that promises at most 10 % in 95 % of such draws (confidence=0.95),
  perlin F1    anomalib's highest F1 on these images, half of them with anomalib's Perlin anomalies,
  medmix F1    the same with MedMix lesions,
  real F1      anomalib's highest F1 on half of the real test set (val_split_mode: from_test).

With `--folds 10` nothing is held out: `folds .95` and `folds .90` are the same ranks of scores of all training images,
each by one of ten fits without it, for PatchCore and PaDiM on the weights as they are and after MsaclPretraining, which
sees all images.

They are judged on the whole test set, the last on its other half. `shift` is the part of draws in which the scores of
normal test images differ from those of the held-out ones (Kolmogorov-Smirnov, p < .01), so that NormalsThreshold would
warn. Rows that are in the file already are not run again. `--table FILE` only prints the table of a file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from anomalib.data import ImageBatch
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from torch import Tensor

from _common import HALF, pre_processor, rows, set_of, sets_in, write_rows
from anomalib_msacl import Msacl, MsaclPretraining, NormalsThreshold, Recipe
from anomalib_msacl.data import MedMixDataset
from anomalib_msacl.thresholds import conformal_rank, shift
from validation_splits import chosen_threshold, gather, scored

ARCHITECTURE = "tf_efficientnet_lite0"
LAYERS = ["blocks.2", "blocks.4"]
DETECTORS = ("msacl", "patchcore", "padim")
PROMISES: dict[str, tuple[float, float | None]] = {
    "normals .95": (0.05, None),
    "normals .90": (0.1, None),
    "sure .90": (0.1, 0.95),
}
ARMS = (*PROMISES, "perlin F1", "medmix F1", "real F1", "folds .95", "folds .90")
FIGURES = ("specificity", "sensitivity")
POOL = 0.4


def msacl(weights: str, folder: Path, seed: int, size: int) -> Msacl:
    """Return the detector that pre-trains, and leaves its backbone in a folder for the others."""
    return Msacl(ARCHITECTURE, weights, LAYERS, size, Recipe(seed=seed), folder, HALF, HALF, visualizer=False)


def detector(name: str, size: int) -> Any:
    """Return a detector of anomalib that waits for its backbone."""
    options: dict[str, Any] = {"backbone": ARCHITECTURE, "layers": LAYERS, "pre_trained": False, "visualizer": False}
    options["pre_processor"] = pre_processor((size, size))
    kind, own = (Patchcore, {"coreset_sampling_ratio": 0.01}) if name == "patchcore" else (Padim, {"n_features": 100})
    return kind(**own, **options)


def judged(threshold: float, scores: Tensor, labels: Tensor) -> dict[str, str]:
    """Return specificity and sensitivity of a threshold; images above it are called abnormal."""
    called = scores > threshold
    values = {
        "specificity": float((~called[labels == 0]).double().mean()),
        "sensitivity": float(called[labels == 1].double().mean()),
    }
    return {name: f"{value:.4f}" for name, value in values.items()}


def scores_only(scores: Tensor, labels: Tensor) -> ImageBatch:
    """Return a batch that holds scores and labels, for anomalib's post-processor."""
    return ImageBatch(image=torch.zeros(len(scores), 3, 1, 1), pred_score=scores, gt_label=labels)


def engine_in(work: str, callbacks: list[Any]) -> Engine:
    """Return an engine that writes to a folder, shows nothing and validates nothing."""
    quiet: dict[str, Any] = {"logger": False, "limit_val_batches": 0, "enable_progress_bar": False}
    return Engine(callbacks=callbacks, default_root_dir=work, accelerator="cpu", devices=1, **quiet)


class Fitted:
    """A detector that was fitted while images were held out.

    Args:
        model: The detector.
        callbacks: Besides the one that holds images out.
        folder: The set.
        seed: Seed of the draw of held-out images, and of the detector.
        batch_size: Training images in a batch.
    """

    def __init__(self, model: Any, callbacks: list[Any], folder: Path, seed: int, batch_size: int) -> None:
        self.seed = seed
        split: dict[str, Any] = {"val_split_mode": "from_train", "val_split_ratio": 0.2, "seed": seed}
        self.data = set_of(folder, train_batch_size=batch_size, **split)
        holds_out = NormalsThreshold(specificity=0.9, ratio=POOL, seed=seed)
        lightning.seed_everything(seed, verbose=False)
        with tempfile.TemporaryDirectory() as work:
            engine = engine_in(work, [holds_out, *callbacks])
            engine.fit(model, datamodule=self.data)
        self.model = model.eval()
        assert holds_out.held_out_images is not None
        self.pool = holds_out.held_out_images
        self.test = scored(self.model, self.data.test_data)
        self.scores = gather(self.test, "pred_score")
        self.labels = gather(self.test, "gt_label").long()
        self.normal = gather(scored(self.model, self.pool), "pred_score")

    def draw(self, number: int) -> list[dict[str, str]]:
        """Set the threshold in each way from one half of the held-out images."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        chosen = torch.randperm(len(self.pool), generator=generator)[: len(self.pool) // 2]
        held_out = sorted(self.normal[chosen].tolist())
        found = {}
        for arm, (alpha, confidence) in PROMISES.items():
            rank = conformal_rank(len(held_out), alpha, confidence)
            found[arm] = judged(held_out[rank - 1], self.scores, self.labels)
        images = self.pool.subsample(chosen.tolist())
        lightning.seed_everything(number, verbose=False)  # anomalib's generator takes its numbers from everywhere
        for arm, lesions in (
            ("perlin F1", SyntheticAnomalyDataset.from_dataset(images)),
            ("medmix F1", MedMixDataset(images, seed=number)),
        ):
            found[arm] = judged(chosen_threshold(scored(self.model, lesions)), self.scores, self.labels)
        half = self.half(generator)
        threshold = chosen_threshold([scores_only(self.scores[half], self.labels[half])])
        found["real F1"] = judged(threshold, self.scores[~half], self.labels[~half])
        p_value = shift(held_out, self.scores[self.labels == 0].tolist()).p_value
        base = {"seed": str(self.seed), "draw": str(number), "held_out": str(len(held_out))}
        return [{**base, "arm": arm, **values, "shift_p": f"{p_value:.3g}"} for arm, values in found.items()]

    def half(self, generator: torch.Generator) -> Tensor:
        """Return which test images belong to a random half of the normal and of the abnormal ones."""
        chosen = torch.zeros_like(self.labels, dtype=torch.bool)
        for label in (0, 1):
            of_label = (self.labels == label).nonzero()[:, 0]
            chosen[of_label[torch.randperm(len(of_label), generator=generator)[: len(of_label) // 2]]] = True
        return chosen


def run(folder: Path, weights: str, seed: int, size: int, draws: int, detectors: list[str]) -> list[dict[str, str]]:
    """Pre-train once, fit each detector once, and judge every draw."""
    made = []
    with tempfile.TemporaryDirectory() as work:
        backbone = Path(work) / "backbone"
        for name in DETECTORS:
            if name == "msacl":
                model, callbacks = msacl(weights, backbone, seed, size), []
                batch_size = model.recipe.batch_size
            elif name in detectors:
                callback = MsaclPretraining(str(backbone), Recipe(max_steps=0), Path(work) / name)
                model, callbacks, batch_size = detector(name, size), [callback], 32
            else:
                continue
            fitted = Fitted(model, callbacks, folder, seed, batch_size)
            for number in range(draws if name in detectors else 0):
                made += [{"set": folder.name, "detector": name, **row} for row in fitted.draw(number)]
    return made


def run_folds(folder: Path, weights: str, seed: int, size: int, folds: int) -> list[dict[str, str]]:
    """Judge thresholds from scores of training images, each by a fit without it."""
    made = []
    with tempfile.TemporaryDirectory() as work:
        for recipe, suffix in ((Recipe(max_steps=0), ", untouched"), (Recipe(seed=seed), "")):
            for name in DETECTORS[1:]:
                lightning.seed_everything(seed, verbose=False)
                pretraining = MsaclPretraining(weights, recipe, Path(work) / f"weights{len(suffix)}")
                callback = NormalsThreshold(specificity=0.9, folds=folds, seed=seed)
                model = detector(name, size)
                data = set_of(folder, train_batch_size=32, val_split_mode="none", seed=seed)
                engine_in(work, [pretraining, callback]).fit(model, datamodule=data)
                test = scored(model.eval(), data.test_data)
                scores, labels = gather(test, "pred_score"), gather(test, "gt_label").long()
                known = callback.calibration["image"]
                base = {"set": folder.name, "detector": name + suffix, "seed": str(seed), "draw": "0"}
                base |= {"held_out": str(len(known))}
                p_value = f"{shift(known, scores[labels == 0].tolist()).p_value:.3g}"
                for arm, alpha in (("folds .95", 0.05), ("folds .90", 0.1)):
                    found = judged(known[conformal_rank(len(known), alpha) - 1], scores, labels)
                    made.append({**base, "arm": arm, **found, "shift_p": p_value})
    return made


def table(path: Path) -> None:
    """Print the rows of a file as a Markdown table: mean specificity, the smallest of all draws, mean sensitivity."""
    content = rows(path)
    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in content)]
    print(f"| set, detector | {' | '.join(arms)} | shift |")
    print(f"|{'---|' * (len(arms) + 2)}")
    for key in dict.fromkeys((row["set"], row["detector"]) for row in content):
        of_key = [row for row in content if (row["set"], row["detector"]) == key]
        cells = []
        for arm in arms:
            found = [row for row in of_key if row["arm"] == arm]
            if not found:
                cells.append("-")
                continue
            specificity, sensitivity = ([float(row[figure]) for row in found] for figure in FIGURES)
            means = statistics.fmean(specificity), statistics.fmean(sensitivity)
            cells.append(f"{means[0]:.2f} ({min(specificity):.2f}), {means[1]:.2f}")
        told = statistics.fmean(float(row["shift_p"]) < 0.01 for row in of_key)
        print(f"| {', '.join(key)} | {' | '.join(cells)} | {told:.1f} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", nargs="?")
    parser.add_argument("--out", type=Path, default=Path("results/thresholds.csv"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--folds", type=int, help="nothing is held out, and so many fits score the training images")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table or not arguments.data:
        table(arguments.table or arguments.out)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    made = rows(arguments.out)
    names = arguments.sets or sets_in(arguments.data)
    weights = str(Path(arguments.weights).resolve()) if Path(arguments.weights).exists() else arguments.weights
    for seed, name in ((seed, name) for seed in arguments.seeds for name in names):
        if arguments.folds:
            if any((row["set"], row["seed"], row["arm"]) == (name, str(seed), "folds .95") for row in made):
                continue
            made += run_folds(arguments.data / name, weights, seed, arguments.size, arguments.folds)
            write_rows(arguments.out, made)
            continue
        missing = [
            kind
            for kind in arguments.detectors
            if not any((row["set"], row["detector"], row["seed"]) == (name, kind, str(seed)) for row in made)
        ]
        if not missing:
            continue
        made += run(arguments.data / name, weights, seed, arguments.size, arguments.draws, missing)
        write_rows(arguments.out, made)
    table(arguments.out)


if __name__ == "__main__":
    main()
