"""A picture of what a model marks: the anomaly map over the image, with scale and label."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from anomalib_msacl.medical.image import Array
from anomalib_msacl.screening.capture import placed
from anomalib_msacl.screening.region import WHOLE, Region

_LONGEST, _SHORTEST = 1024, 256  # pixels of the longer side of the picture
_BAR, _LINE = 70, 16  # pixels: width of the scale, height of a line of text
# Colours of the scale from 0 to 1, black to yellow: their brightness rises, also for people with colour blindness.
_STOPS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)


def draw_heat_map(image: Array, anomaly_map: Array, lines: list[str], region: Region = WHOLE) -> Image.Image:
    """Draw an anomaly map over its image.

    The more a pixel is marked, the more it has the colour of the scale, and the less of the image is seen. A line
    surrounds what is above the threshold of pixels, 0.5.

    Args:
        image: Shape ``(3, H, W)``, in [0, 1].
        anomaly_map: Normalised, shape ``(h, w)``; stretched to its part of the picture.
        lines: Text below the picture.
        region: The part of the image that the map covers; nothing is marked outside of it.

    Returns:
        The picture; its longer side is that of the image, but 256 pixels at least and 1024 at most, without scale and
        text.
    """
    size = _size(image.shape[-2], image.shape[-1])
    step = max(1, max(image.shape) // (2 * _LONGEST))  # a large image need not be copied as a whole
    image = image[:, ::step, ::step]
    picture = Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)).resize(
        size, Image.Resampling.BOX
    )
    values = placed(anomaly_map, (size[1], size[0]), region).clip(0, 1)
    weight = 0.7 * values[..., None]
    mixed = (1 - weight) * np.asarray(picture, dtype=np.float32) + weight * _colours(values)
    mixed[_edge(values > 0.5)] = (0, 255, 255)
    sheet = Image.new("RGB", (size[0] + _BAR, size[1] + _LINE * len(lines) + 4), "white")
    sheet.paste(Image.fromarray(mixed.round().astype(np.uint8)), (0, 0))
    _draw_scale(sheet, size)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        shown = line.encode(errors="replace").decode()  # names of files may hold bytes that are no characters
        pen.text((4, size[1] + 2 + number * _LINE), shown, fill="black")
    return sheet


def _size(height: int, width: int) -> tuple[int, int]:
    """Return width and height of the picture."""
    longest = max(height, width)
    scale = min(max(longest, _SHORTEST), _LONGEST) / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def _colours(values: Array) -> Array:
    """Return the colours of values in [0, 1], shape ``(..., 3)``, from 0 to 255."""
    places = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.interp(values, places, _STOPS[:, channel]) for channel in range(3)], axis=-1)


def _edge(inside: Array) -> Array:
    """Return the pixels of an area that touch its outside."""
    padded = np.pad(inside, 1, mode="edge")
    whole = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Array = inside & ~whole
    return edge


def _draw_scale(sheet: Image.Image, size: tuple[int, int]) -> None:
    """Draw the scale of colours to the right of a picture."""
    left, height = size[0] + 8, size[1] - 2 * _LINE
    if height < 2 * _LINE:
        return
    column = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(14, axis=1)
    sheet.paste(Image.fromarray(_colours(column).round().astype(np.uint8)), (left, _LINE))
    pen = ImageDraw.Draw(sheet)
    for value, name in ((1.0, "1"), (0.5, "0.5 limit"), (0.0, "0")):
        place = _LINE + round((1 - value) * (height - 1))
        pen.line([(left + 14, place), (left + 17, place)], fill="black")
        pen.text((left + 20 if len(name) == 1 else left + 18, place - 6), name[:3], fill="black")
