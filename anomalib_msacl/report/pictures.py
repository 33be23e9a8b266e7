"""Images beside their maps, as PNG inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_msacl.comparison.outcome import Outcome

SIDE = 160  # pixels of a picture
_MAP = "inferno"  # of even steps in brightness, also for people with colour blindness
_OUTLINE = (0.0, 0.62, 0.45)


@dataclass(frozen=True)
class Row:
    """One test image.

    Attributes:
        name: Name of its file.
        words: What is said of it, line by line.
        pictures: Title and PNG, as a data URI.
    """

    name: str
    words: Sequence[str]
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Scale:
    """The values that are drawn darkest and brightest, the same for all maps of a detector.

    Attributes:
        low: Drawn darkest.
        high: Drawn brightest.
    """

    low: float
    high: float

    @classmethod
    def of(cls, outcome: Outcome) -> Scale:
        """Return [0, 1] where a validation set gave the range; else the 1st and 99th percentile of the maps."""
        if outcome.threshold is not None or outcome.maps is None:
            return cls(0, 1)
        low, high = np.percentile(outcome.maps.float().numpy(), [1, 99])
        return cls(float(low), float(high) if high > low else float(low) + 1)


def uri(picture: Image.Image) -> str:
    """Return a picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_picture(image: Tensor, mask: Tensor | None = None) -> Image.Image:
    """Return an image, with the outline of its mask.

    Args:
        image: In [0, 1], shape ``(3, H, W)``.
        mask: Of any size, shape ``(h, w)``.
    """
    shown = F.interpolate(image[None], [SIDE, SIDE], mode="bilinear", antialias=True)[0].clamp(0, 1)
    if mask is not None and mask.any():
        large = F.interpolate(mask[None, None].float(), [SIDE, SIDE])
        outline = (large + F.max_pool2d(-large, 3, 1, 1) > 0)[0]
        shown = torch.where(outline, torch.tensor(_OUTLINE)[:, None, None], shown)
    picture: Image.Image = to_pil_image(shown)
    return picture


def map_picture(values: Tensor, scale: Scale) -> Image.Image:
    """Return an anomaly map in colours.

    Args:
        values: Shape ``(h, w)``.
        scale: Of the colours.
    """
    large = F.interpolate(values[None, None].float(), [SIDE, SIDE], mode="bilinear")[0, 0].numpy()
    colours = mpl.colormaps[_MAP]((large - scale.low) / (scale.high - scale.low))
    return Image.fromarray((255 * colours[..., :3]).astype(np.uint8))


def extremes(outcome: Outcome, number: int = 3) -> dict[str, list[int]]:
    """Return the rows of the best and of the worst images, by a heading.

    Args:
        outcome: Of the detector.
        number: Rows of each, at most.
    """
    order = outcome.score.argsort(descending=True).tolist()
    if outcome.label is None:
        return {"Highest scores": order[:number], "Lowest scores": order[::-1][:number]}
    ill = [row for row in order if outcome.label[row]]
    well = [row for row in order if not outcome.label[row]]
    found = {
        "Found most clearly": ill[:number],
        "Abnormal images with the lowest scores": ill[::-1][:number],
        "Normal images with the highest scores": well[:number],
    }
    return {title: rows for title, rows in found.items() if rows}
