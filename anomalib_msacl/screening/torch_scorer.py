"""Checkpoints, run by anomalib itself: the scores of ``anomalib predict``."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import anomalib.models  # noqa: F401  # all models, whose settings are compared
import torch
from anomalib.models.components import AnomalibModule

from anomalib_msacl.checkpoints import read_checkpoint, restored
from anomalib_msacl.detectors.igd import Igd  # noqa: F401  # one of them
from anomalib_msacl.detectors.msacl import Msacl
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.image import Array
from anomalib_msacl.screening.describe import Record, describe
from anomalib_msacl.screening.scorer import Scored

_PARTS = {"self", "pre_processor", "post_processor", "evaluator", "visualizer"}  # which checkpoints leave out


class TorchScorer:
    """The model of a checkpoint on the CPU; threads wait for each other, and read images meanwhile.

    Args:
        path: The checkpoint.
        threads: Number of cores that it may use.
        model_class: Class of the model; found by the names of its settings if None.

    Raises:
        InputError: If it cannot be read, its class is not known, or it has no threshold or no detector.
    """

    def __init__(self, path: Path, threads: int, model_class: str | None = None) -> None:
        checkpoint = read_checkpoint(path, _subclasses(AnomalibModule))
        kind = _class_of(path, checkpoint, model_class)
        model = restored(kind, path, checkpoint, "--model_class")
        if isinstance(model, Msacl):
            model.model.check_fitted()
        self.bundle = describe(model, Record.of_checkpoint(checkpoint))
        self.bundle.image.known()
        self._model = model.eval()
        self._lock = threading.Lock()
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def score(self, image: Array) -> Scored:
        """Return what the model says of an image of shape ``(3, H, W)`` in [0, 1], float32."""
        model = cast("Any", self._model)
        batch = torch.from_numpy(image)[None]
        with self._lock:
            transform = getattr(model.pre_processor, "transform", None)  # with antialiasing, as in test and predict
            given = model.model(transform(batch) if transform else batch)
            found = model.post_processor(given)
        raw = given.pred_score if given.pred_score is not None else given.anomaly_map.amax(dim=(-2, -1))
        plane = None if found.anomaly_map is None else found.anomaly_map.squeeze().float().numpy()
        return Scored(raw.item(), found.pred_score.item(), bool(found.pred_label.item()), plane)


def _class_of(path: Path, checkpoint: dict[str, Any], name: str | None) -> type[AnomalibModule]:
    """Return the class of a checkpoint's model: the one that is named, or the one whose settings have these names."""
    models = list(_subclasses(AnomalibModule))
    if name is not None:
        found = [model for model in models if name in {model.__name__, f"{model.__module__}.{model.__name__}"}]
        wanted = f"there is no model {name!r}"
    else:
        given = {key for key in checkpoint.get("hyper_parameters", {}) if not key.startswith("_")}
        found = [model for model in models if given - _PARTS == _settings(model)]
        wanted = f"the settings in {path} are those of {len(found)} models, so that its class is not known"
    if len(found) != 1:
        raise InputError(f"{wanted}: name the class by --model_class, for example Patchcore or Msacl")
    return found[0]


def _settings(model: type[AnomalibModule]) -> set[str]:
    """Return the names of what a model is built with."""
    return set(inspect.signature(model.__init__).parameters) - _PARTS


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield all classes below a class."""
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
