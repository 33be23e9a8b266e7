"""MSACL on a small network beside detectors on a DINOv2 transformer: accuracy, and milliseconds an image on one core.

    python benchmarks/compare.py run DATA LITE0 --models patchcore --arms msacl --seeds 0 --out results/compare
    python benchmarks/dino.py DATA LITE0 DINO --pretrained results/compare/weights [--sets ..] [--sizes 126 224]

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says. LITE0 and DINO are folders in
timm's format, of tf_efficientnet_lite0 and vit_small_patch14_dinov2, both as they are. The first command leaves the
backbones that were pre-trained on each set. `block 10` reads the last block but one: the last one of the weights that
this was measured with has been fine-tuned for something else. Times are CPU time of anomalib's torch model, one image,
one thread, median of twenty, resizing left out. Rows that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import timm
import torch
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, Evaluator
from anomalib.models import AnomalyDINO, Padim, Patchcore
from anomalib.models.components.feature_extractors import TimmFeatureExtractor

from _common import AUROC, HALF, pre_processor, rows, set_of, sets_in, write_rows
from anomalib_msacl import MsaclPretraining, Recipe

LITE0, DINO = "tf_efficientnet_lite0", "vit_small_patch14_dinov2"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ROUNDS = 20


def anomaly_dino(block: int | None = None, **parts: Any) -> AnomalyDINO:
    """Return AnomalyDINO that waits for its weights, and reads another block than the last."""
    with patch.object(timm, "create_model", partial(_without_download, timm.create_model)):
        model = AnomalyDINO(encoder_name=DINO, **parts)
    if block is not None:
        model.model.last_layer = f"blocks.{block}"
        encoder = TimmFeatureExtractor(DINO, layers=[model.model.last_layer], pre_trained=False, output_fmt="NLC")
        model.model.feature_encoder = encoder.eval()
    return model


def _without_download(create: Callable[..., Any], *names: Any, **options: Any) -> Any:
    return create(*names, **options | {"pretrained": False})


def on_dino(**parts: Any) -> Patchcore:
    """Return PatchCore on the transformer."""
    layers = ["blocks.6", "blocks.10"]
    return Patchcore(backbone=DINO, layers=layers, pre_trained=False, coreset_sampling_ratio=0.01, **parts)


def patchcore(**parts: Any) -> Patchcore:
    """Return PatchCore on the small network."""
    layers = ["blocks.2", "blocks.4"]
    return Patchcore(backbone=LITE0, layers=layers, pre_trained=False, coreset_sampling_ratio=0.01, **parts)


def padim(**parts: Any) -> Padim:
    """Return PaDiM on the small network."""
    return Padim(
        backbone=LITE0, layers=["blocks.1", "blocks.2", "blocks.4"], pre_trained=False, n_features=100, **parts
    )


class Case:
    """A detector, its weights and the size of its input.

    Args:
        name: In the table.
        build: Makes the detector.
        weights: Folder in timm's format.
        size: Side of its input in pixels.
    """

    def __init__(self, name: str, build: Callable[..., Any], weights: Path, size: int) -> None:
        self.name, self.build, self.weights, self.size = name, build, weights, size

    def figures(self, folder: Path) -> dict[str, str]:
        """Fit and test it on a set."""
        masks = (folder / "ground_truth").is_dir()
        metrics: list[Any] = [AUROC(fields=["pred_score", "gt_label"], prefix="image_")]
        metrics += [AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_")] if masks else []
        mean, std = IMAGENET if self.build not in {patchcore, padim} else (HALF, HALF)
        parts: dict[str, Any] = {"pre_processor": pre_processor((self.size, self.size), mean, std)}
        parts |= {"post_processor": False, "evaluator": Evaluator(test_metrics=metrics), "visualizer": False}
        lightning.seed_everything(0, verbose=False)
        with tempfile.TemporaryDirectory() as work:
            handed_over = MsaclPretraining(str(self.weights.resolve()), Recipe(max_steps=0), Path(work) / "weights")
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            where = {"default_root_dir": work, "accelerator": "cpu", "devices": 1, "limit_val_batches": 0}
            engine = Engine(callbacks=[handed_over], **where, **quiet)
            model = self.build(**parts)
            data = set_of(folder, masks, train_batch_size=32, eval_batch_size=32, val_split_mode="same_as_test", seed=0)
            engine.fit(model, datamodule=data)
            found = engine.test(model, datamodule=data)[0]
        return {
            "image_AUROC": f"{found['image_AUROC']:.4f}",
            "pixel_AUPRO": f"{found['pixel_AUPRO']:.4f}" if masks else "",
            "ms": f"{self.milliseconds(model.model):.1f}",
        }

    @torch.inference_mode()
    def milliseconds(self, network: torch.nn.Module) -> float:
        """Return the CPU time of one image."""
        network.eval()
        image, taken = torch.rand(1, 3, self.size, self.size), []
        for _ in range(ROUNDS + 3):
            begun = time.process_time()
            network(image)
            taken.append(time.process_time() - begun)
        return 1000 * statistics.median(taken[3:])


def cases(folder: Path, lite0: Path, dino: Path, pretrained: Path, sizes: list[int]) -> list[Case]:
    """Return what is compared on a set."""
    found = [
        Case("PatchCore, lite0, ImageNet", patchcore, lite0, 128),
        Case("PaDiM, lite0, ImageNet", padim, lite0, 128),
    ]
    for path in sorted(pretrained.glob(f"{folder.name}-msacl-0-*")):
        found += [Case("PatchCore, lite0, MSACL", patchcore, path, 128), Case("PaDiM, lite0, MSACL", padim, path, 128)]
    for size in sizes:
        found.append(Case(f"AnomalyDINO, {size} px", anomaly_dino, dino, size))
        found.append(Case(f"AnomalyDINO, block 10, {size} px", partial(anomaly_dino, 10), dino, size))
        found.append(Case(f"PatchCore, DINOv2-S, {size} px", on_dino, dino, size))
    return found


def table(content: list[dict[str, str]]) -> None:
    """Print the rows as a Markdown table: image AUROC (AUPRO) of each set, mean, milliseconds."""
    names = list(dict.fromkeys(row["set"] for row in content))
    print(f"| detector | {' | '.join(names)} | mean | ms an image |\n|{'---|' * (len(names) + 3)}")
    for name in dict.fromkeys(row["detector"] for row in content):
        of = {row["set"]: row for row in content if row["detector"] == name}
        cells = [
            f"{float(of[one]['image_AUROC']):.3f}"
            + (f" ({of[one]['pixel_AUPRO'][1:5]})" if of[one]["pixel_AUPRO"] else "")
            for one in names
            if one in of
        ]
        mean = statistics.fmean(float(row["image_AUROC"]) for row in of.values())
        ms = statistics.median(float(row["ms"]) for row in of.values())
        print(f"| {name} | {' | '.join(cells)} | {mean:.3f} | {ms:.1f} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("lite0", type=Path)
    parser.add_argument("dino", type=Path)
    parser.add_argument("--pretrained", type=Path, default=Path("results/compare/weights"))
    parser.add_argument("--out", type=Path, default=Path("results/dino.csv"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--sizes", type=int, nargs="*", default=[126, 224])
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    made = rows(given.out)
    for name in given.sets or sets_in(given.data):
        for case in cases(given.data / name, given.lite0, given.dino, given.pretrained, given.sizes):
            if not any((row["set"], row["detector"]) == (name, case.name) for row in made):
                made.append({"set": name, "detector": case.name, **case.figures(given.data / name)})
                write_rows(given.out, made)
    table(made)


if __name__ == "__main__":
    main()
