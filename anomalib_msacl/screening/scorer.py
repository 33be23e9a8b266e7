"""What gives an image its score, whatever runs the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.image import Array
from anomalib_msacl.screening.bundle import Bundle

EXPORTS = (".xml", ".onnx")


@dataclass(frozen=True)
class Scored:
    """What a model says of an image.

    Attributes:
        raw: The score as the model gives it, any scale; None where it was cut off and is not known.
        score: The normalised score, in [0, 1], 0.5 at the threshold.
        abnormal: Whether the image is called abnormal.
        map: Normalised anomaly map, shape ``(h, w)``, 0.5 at the threshold of pixels; None for models without.
    """

    raw: float | None
    score: float
    abnormal: bool
    map: Array | None


class Scorer(Protocol):
    """A model that is ready, which several threads may call at once."""

    bundle: Bundle

    def score(self, image: Array) -> Scored:
        """Return what the model says of an image of shape ``(3, H, W)`` in [0, 1], float32."""
        ...


def load_scorer(
    model: str | Path, workers: int, threads: int, model_class: str | None = None, maps: bool = True
) -> Scorer:
    """Make a model ready.

    Args:
        model: A checkpoint (``.ckpt``), an exported ``model.xml`` or ``model.onnx``, or a folder with one of them.
        workers: Number of threads that will call it.
        threads: Number of cores that it may use.
        model_class: Class of a checkpoint's model, where its settings do not tell.
        maps: Whether anomaly maps are wanted.

    Returns:
        The model.

    Raises:
        InputError: If there is none, it cannot be read, or its bundle does not match.
    """
    path = find_model(Path(model))
    if path.suffix == ".ckpt":
        from anomalib_msacl.screening.torch_scorer import TorchScorer  # noqa: PLC0415  # brings torch and anomalib

        return TorchScorer(path, threads, model_class)
    if model_class is not None:
        raise InputError(f"model_class is for checkpoints, but {path} is an exported model: leave it out")
    from anomalib_msacl.screening.openvino_scorer import OpenVINOScorer  # noqa: PLC0415

    return OpenVINOScorer(path, workers, threads, maps)


def find_model(path: Path) -> Path:
    """Return the file of a model that is named by itself, or by a folder that it is in.

    Raises:
        InputError: If there is none, or more than one.
    """
    if path.is_file() and path.suffix in {".ckpt", *EXPORTS}:
        return path
    if not path.is_dir():
        what = "is no model" if path.exists() else "is missing"
        raise InputError(f"{path} {what}: name a checkpoint (.ckpt), or model.xml, or the folder of an export")
    found = sorted(each for ending in EXPORTS for each in path.rglob(f"*{ending}"))
    if len(found) != 1:
        names = f", which are {name_some([str(each.relative_to(path)) for each in found])}" if found else ""
        raise InputError(f"{path} has {len(found)} exported models{names}: name model.xml itself, or a checkpoint")
    return found[0]
