"""What the page shows of an image; nothing here needs the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.data.inspection import brief
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.image import Array
from anomalib_msacl.screening.command import usable_cores
from anomalib_msacl.screening.files import FileReader
from anomalib_msacl.screening.heat_map import draw_heat_map
from anomalib_msacl.screening.region import seen_region, unfollowed
from anomalib_msacl.screening.scorer import Scored, load_scorer


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    Attributes:
        scored: Score, label and map.
        limit: Normalised scores above it are called abnormal.
        text: Label, score and threshold, as Markdown.
        image: The image as the model gets it, before it is resized.
        heat_map: The map over the image; None for models without maps, and where its place is not known.
    """

    scored: Scored
    limit: float
    text: str
    image: Image.Image
    heat_map: Image.Image | None


class Examiner:
    """Scores one image after the other, as ``screen`` does.

    Args:
        model: A checkpoint, an exported ``model.xml``, or the folder of an export.
        model_class: Class of a checkpoint's model, where its settings do not tell.

    Raises:
        InputError: If the model cannot be used.
    """

    def __init__(self, model: str | Path, model_class: str | None = None) -> None:
        self._scorer = load_scorer(model, 1, usable_cores(), model_class)
        self._reader = FileReader.of(self._scorer.bundle)
        self.version = self._scorer.bundle.version
        self.threshold = self._scorer.bundle.image.chosen

    def examine(self, path: str | Path, index: int = 0) -> Answer:
        """Return what the model says of an image.

        Args:
            path: PNG, JPEG, TIFF, DICOM or NIfTI.
            index: Which slice or frame of a file of several, from 0.

        Returns:
            Score, label and map.

        Raises:
            InputError: If the file cannot be read or scored.
        """
        path = Path(path)
        try:
            frame = self._frame(path, index)
            other_windows = self._reader.other_windows
            image = self._reader.pixels(path, frame)
            scored = self._scorer.score(image)
        except InputError:
            raise
        except Exception as error:  # broken files make the libraries raise nearly any kind
            told = str(error) if isinstance(error, UnreadableError) else f"fails: {brief(error)}"
            raise InputError(f"{path.name} {told}") from error
        return self._answer(image, scored, self._reader.other_windows > other_windows)

    def _frame(self, path: Path, index: int) -> int | None:
        """Return the name of a slice or frame by its place."""
        frames = self._reader.frames(path)
        if not 0 <= index < len(frames):
            raise InputError(f"{path.name} has no slice or frame {index}: set a number from 0 to {len(frames) - 1}")
        return frames[index]

    def _answer(self, image: Array, scored: Scored, other_window: bool) -> Answer:
        """Put an answer into words and pictures, and say where the file has another window than it was read by."""
        limits, transform = self._scorer.bundle.image, self._scorer.bundle.transform
        limit = 1 - limits.sensitivity
        label = "Abnormal" if scored.abnormal else "Normal"
        text = f"## {label}\n\nScore **{scored.score:.3f}**, threshold **{limit:.3g}**"
        if scored.raw is not None:
            text += f" (before scaling: {scored.raw:.4g}, threshold {limits.decision:.4g})"
        if other_window:
            window = self._reader.reading.reader.intensity.common_window
            text += f"\n\nRead by the window of the training images ({window}): the file has another, or none"
        heat_map = None
        if scored.map is not None and (step := unfollowed(transform)):
            text += f"\n\nNo map: where it belongs is not known behind the model's step {step}"
        elif scored.map is not None:
            line = f"{label.lower()}, score {scored.score:.3f} (threshold {limit:.3g})"
            region = seen_region(transform, image.shape[-2], image.shape[-1])
            heat_map = draw_heat_map(image, scored.map, [line], region)
        return Answer(
            scored=scored,
            limit=limit,
            text=text,
            image=Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)),
            heat_map=heat_map,
        )
