"""Raw scores of held-out images, on the way of test and predict, and thresholds in anomalib's own buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_msacl.compat import isolated_random, use_test_augmentations
from anomalib_msacl.data.held_out import HeldOut
from anomalib_msacl.errors import InputError

_ROOM = 5.0  # how much farther than held-out normal scores others may lie before their normalised score is 0 or 1
_KINDS = ("image", "pixel")


def held_out_scores(
    trainer: Trainer, pl_module: LightningModule, datamodule: AnomalibDataModule, held_out: HeldOut
) -> dict[str, list[float]]:
    """Return the raw scores of the held-out units, ascending, by kind; a kind that the model lacks is missing."""
    found: dict[str, list[Tensor]] = {kind: [] for kind in _KINDS}
    for batch in _scored(trainer, pl_module, datamodule, held_out.images):
        for kind, value in zip(_KINDS, raw_scores(batch), strict=True):
            if value is not None:
                found[kind].append(value)
    largest = {}
    for kind, parts in found.items():
        values = torch.cat(parts).tolist() if parts else []
        if len(values) != len(held_out.units):
            continue
        if any(math.isnan(value) for value in values):
            raise InputError(
                f"NormalsThreshold: {type(pl_module).__name__} gives held-out normal images scores that are no "
                "numbers (NaN): look at its training, or set trainer.precision to 32-true"
            )
        units: dict[int, float] = {}
        for unit, value in zip(held_out.units, values, strict=True):
            units[unit] = max(value, units.get(unit, -math.inf))
        largest[kind] = sorted(units.values())
    return largest


def set_threshold(trainer: Trainer, pl_module: LightningModule, kind: str, scores: Sequence[float], rank: int) -> None:
    """Write a threshold, and a range that all known scores fit into, to anomalib's post-processor."""
    buffers = dict(cast("PostProcessor", pl_module.post_processor).named_buffers(recurse=False))
    low, high = buffers[f"{kind}_min"], buffers[f"{kind}_max"]
    threshold = scores[rank - 1]
    # anomalib normalises to (score - threshold) / (high - low) + 0.5, cut off at 0 and 1.
    width = float(high - low)
    known = not math.isnan(width)
    farthest = max(threshold - scores[0], scores[-1] - threshold)
    if known:
        farthest = max(farthest, threshold - float(low), float(high) - threshold)
    data = getattr(getattr(trainer, "datamodule", None), "val_data", None)
    if not known or not getattr(data, "has_anomalous", False):
        farthest *= _ROOM  # none of the known scores is that of a lesion
    buffer = buffers[f"_{kind}_threshold"].fill_(threshold)
    if float(buffer) < threshold:  # rounded down to fewer bits
        buffer.add_(abs(threshold) * torch.finfo(buffer.dtype).eps)
    if not known or width < 2 * farthest:
        low.fill_(threshold - farthest)
        high.fill_(threshold + farthest)


def raw_scores(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return what is compared with the two thresholds, as the model gives it.

    Args:
        batch: B scored images that no post-processor has been at.

    Returns:
        The score of each image, and the largest value of its anomaly map, shape ``(B,)``, any scale, 64 bits, on the
        CPU; None where the model gives none.
    """
    score, plane = batch.pred_score, batch.anomaly_map
    largest = None if plane is None else _plain(plane).flatten(1).amax(dim=1)
    return (largest if score is None else _plain(score).flatten()), largest


def _plain(values: Tensor) -> Tensor:
    return values.detach().as_subclass(Tensor).double().cpu()


def _scored(
    trainer: Trainer, pl_module: LightningModule, datamodule: AnomalibDataModule, images: AnomalibDataset
) -> Iterator[Any]:
    """Yield images in batches with the scores that ``test`` would give them, before the post-processor."""
    model = cast("AnomalibModule", pl_module)
    use_test_augmentations(datamodule, images, getattr(model.pre_processor, "transform", None))
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=datamodule.eval_batch_size,
        num_workers=datamodule.num_workers,
        collate_fn=datamodule.external_collate_fn or images.collate_fn,
    )
    precision = trainer.precision_plugin
    # Loaders draw from the global generator: what is trained must not depend on whether anyone looks.
    with isolated_random(), _evaluating(model), torch.no_grad():
        for index, loaded in enumerate(loader):
            batch = precision.convert_input(model.transfer_batch_to_device(loaded, model.device, 0))
            if isinstance(model.pre_processor, Callback):
                model.pre_processor.on_test_batch_start(trainer, model, batch, index)
            with precision.forward_context():
                yield model.test_step(batch, index)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back: some may have been frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
