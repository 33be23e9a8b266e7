"""What several benchmarks share: the layout of a set, the input of the networks, and areas under ROC curves.

Does not import anomalib_msacl: exports.py runs where it cannot be imported.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.metrics import AnomalibMetric
from anomalib.pre_processing import PreProcessor
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchvision.transforms.v2 import Compose, Normalize, Resize

HALF = (0.5, 0.5, 0.5)


def set_of(root: Path, masks: bool = False, **options: Any) -> Folder:
    """Return a set that is laid out as configs/msacl_patchcore_folder.yaml says; not set up yet."""
    return Folder(
        name=root.name,
        root=root.resolve(),
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/lesion",
        mask_dir="ground_truth/lesion" if masks else None,
        num_workers=0,
        **options,
    )


def sets_in(data: Path) -> list[str]:
    """Return the names of the sets in a folder."""
    return sorted(path.name for path in data.iterdir() if path.is_dir())


def pre_processor(size: Sequence[int], mean: Sequence[float] = HALF, std: Sequence[float] = HALF) -> PreProcessor:
    """Return the input of a network: images of one size, normalised."""
    return PreProcessor(transform=Compose([Resize(list(size), antialias=True), Normalize(list(mean), list(std))]))


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, content: Sequence[dict[str, str]]) -> None:
    """Write rows of the same columns, at least one, to a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)


def auroc(scores: Any, truth: Any) -> float:
    """Return the exact area under the curve of one-dimensional scores of any scale, or of a list of arrays of them."""
    if isinstance(scores, list | tuple):
        scores, truth = (np.concatenate([np.ravel(part) for part in parts]) for parts in (scores, truth))
    return float(roc_auc_score(truth, scores))


class AUROC(AnomalibMetric, Metric):
    """Like anomalib's, for scores of any scale: torchmetrics' takes those outside [0, 1] for logits, and saturates."""

    full_state_update = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("truth", [], dist_reduce_fx="cat")

    def update(self, batch: Any) -> None:
        """Keep the two fields of a batch."""
        for kept, field in zip((self.scores, self.truth), self.fields, strict=True):
            kept.append(getattr(batch, field).detach().as_subclass(Tensor).flatten())

    def compute(self) -> Tensor:
        """Return the area."""
        scores, truth = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.truth).cpu()
        return torch.tensor(auroc(scores.numpy(), truth.long().numpy()))
