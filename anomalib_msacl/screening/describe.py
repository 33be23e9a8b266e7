"""What goes into a bundle: found in a model of anomalib, and in the checkpoint or the trainer that it comes from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule
from torchvision.transforms.v2 import Compose, Resize

import anomalib_msacl
from anomalib_msacl.backbone.tensors import digest
from anomalib_msacl.compat import is_attached
from anomalib_msacl.data.units import recorded_unit
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.reading import READING, reading_in
from anomalib_msacl.screening.bundle import Bundle, Calibration, Limits
from anomalib_msacl.thresholds.callback import PROMISE, SCORES, NormalsThreshold, promise_record
from anomalib_msacl.transfer import find_backbone

_PACKAGES = ("anomalib", "torch", "torchvision", "timm", "openvino", "onnx")


@dataclass(frozen=True)
class Record:
    """What a checkpoint knows beside the model.

    Attributes:
        reading: How its files were read; None if anomalib's own reader did.
        scores: Raw scores of held-out images that the thresholds come from, by ``image`` and ``pixel``.
        promise: What :func:`anomalib_msacl.thresholds.callback.promise_record` returned; empty without it.
    """

    reading: Mapping[str, Any] | None
    scores: Mapping[str, list[float]]
    promise: Mapping[str, Any]

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Record:
        """Take the record out of a checkpoint of Lightning."""
        return cls(reading_in(checkpoint), checkpoint.get(SCORES, {}), checkpoint.get(PROMISE, {}))

    @classmethod
    def of_trainer(cls, model: LightningModule) -> Record:
        """Take the record from what a model was fitted with, empty where it was not fitted here."""
        if not is_attached(model):
            return cls(None, {}, {})
        trainer = cast("Any", model.trainer)
        datamodule = getattr(trainer, "datamodule", None)
        state = {} if datamodule is None else datamodule.state_dict()
        callbacks = [one for one in trainer.callbacks if isinstance(one, NormalsThreshold) and one.calibration]
        scores, promise = (callbacks[0].calibration, promise_record(callbacks[0])) if callbacks else ({}, {})
        return cls(state.get(READING), scores, promise)


def describe(model: AnomalibModule, record: Record) -> Bundle:
    """Return the bundle of a model, without files.

    Args:
        model: A fitted model.
        record: What its checkpoint knows.

    Returns:
        The bundle; thresholds are None where the model has none.
    """
    steps = _steps(getattr(model.pre_processor, "transform", None))
    resize = next((step.size for step in steps if isinstance(step, Resize)), ())
    name, weights = _backbone(model)
    calibration = None
    if record.scores.get("image"):
        promise = record.promise
        scores = tuple(sorted(record.scores["image"]))
        calibration = Calibration(scores, recorded_unit(promise, record.reading), float(promise.get("level", 0.01)))
    return Bundle(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        backbone=name,
        backbone_sha256=weights,
        weights_sha256=digest(model.state_dict()),
        versions=versions(),
        transform=tuple(repr(step) for step in steps),
        size=tuple(resize),
        image=_limits(model, "image", record),
        pixel=_limits(model, "pixel", record),
        reading=record.reading,
        calibration=calibration,
    )


def versions() -> dict[str, str]:
    """Return the versions of this package, and of those that make an export."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES if importlib.util.find_spec(name)}
    return {"anomalib-msacl": anomalib_msacl.__version__, **installed}


def _steps(transform: Any) -> list[Any]:
    """Return the steps of a transform."""
    if isinstance(transform, Compose):
        return [step for part in transform.transforms for step in _steps(part)]
    return [] if transform is None else [transform]


def _backbone(model: AnomalibModule) -> tuple[str, str]:
    """Return name and digest of the backbone, empty where there is none of one architecture."""
    try:
        found = find_backbone(model)
    except InputError:
        return "", ""
    return found.architecture, digest(next(iter(found.networks.values())).state_dict())


def _limits(model: AnomalibModule, kind: str, record: Record) -> Limits:
    """Return threshold and range as anomalib's post-processor holds them."""
    post = model.post_processor
    if not isinstance(post, PostProcessor) or not (post.enable_normalization and post.enable_thresholding):
        return Limits(chosen="the model has no post-processor that normalises scores and compares them")
    threshold, low, high = (_number(getattr(post, f"{kind}_{end}")) for end in ("threshold", "min", "max"))
    return Limits(threshold, low, high, _chosen(post, kind, record), float(getattr(post, f"{kind}_sensitivity")))


def _number(value: Any) -> float | None:
    """Return what a buffer holds, None for NaN."""
    number = float(value)
    return None if math.isnan(number) else number


def _chosen(post: PostProcessor, kind: str, record: Record) -> str:
    """Say how a threshold was chosen."""
    buffers = dict(post.named_buffers(recurse=False))
    if math.isnan(float(buffers[f"_{kind}_threshold"])):
        return "there is none of its own" if kind in record.scores or kind == "image" else "that of images"
    if kind in record.scores:
        promise = str(record.promise.get("promise", "thresholds from held-out normal images"))
        return f"NormalsThreshold: {promise}"
    if type(post) is PostProcessor:
        return "anomalib's F1: the highest F1 on the validation images"
    return f"{type(post).__name__} of {type(post).__module__}"
