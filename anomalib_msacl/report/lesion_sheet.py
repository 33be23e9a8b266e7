"""A contact sheet of synthetic lesions on images of your own, to look at before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import resize, to_pil_image

from anomalib_msacl.comparison.layout import training_folder
from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import LesionMixture, Lesions
from anomalib_msacl.medical.kinds import is_image
from anomalib_msacl.medical.reader import ImageReader
from anomalib_msacl.recipe import Recipe

_OUTLINE = (0.0, 0.62, 0.45)  # a green that people with colour blindness tell from tissue
_LABEL = 16  # pixels below a column


def lesion_sheet(
    folder: str | Path, mixture: LesionMixture | None = None, size: int = 128, columns: int = 8, seed: int = 0
) -> Image.Image:
    """Draw synthetic lesions on images of a folder.

    Three rows: the images as they are, with one, two and three lesions in turn, and the same with the outlines of the
    masks. Below each column stand the families of its lesions. The images are spread evenly over the folder in the
    order of their names.

    Args:
        folder: A folder of normal images, DICOM and NIfTI files among them, or a set that has ``train/good``.
        mixture: What draws the lesions; that of the default recipe if None.
        size: Side of an image in pixels, at least 32; lesions grow with it.
        columns: Images a row, at least 1.
        seed: Seed of the lesions.

    Returns:
        The picture, RGB.

    Raises:
        InputError: If the folder is missing, has no images or one that cannot be read, or a size is too small.
    """
    if columns < 1 or size < 32:
        raise InputError(f"the sheet has columns {columns} and size {size}: set them to 1 and 32 at least.")
    return draw_sheet(_read(Path(folder), size, columns), mixture or Recipe().lesions.mixture(), seed)


def draw_sheet(images: Tensor, mixture: LesionMixture, seed: int = 0) -> Image.Image:
    """Draw the sheet of images that were read already.

    Args:
        images: One a column, in [0, 1], shape ``(N, 3, H, W)``, square and at least 32 pixels a side.
        mixture: What draws the lesions.
        seed: Seed of the lesions.

    Returns:
        The picture, RGB.
    """
    columns = len(images)
    counts = torch.arange(columns) % 3 + 1
    lesions = mixture.draw(images, counts, torch.Generator().manual_seed(seed))
    changed, masks = mixture.apply(images, lesions)
    outline = masks + F.max_pool2d(-masks, 3, 1, 1) > 0
    outlined = torch.where(outline, torch.tensor(_OUTLINE)[:, None, None], changed)
    return _draw_sheet([images, changed, outlined], _labels(lesions, columns))


def write_lesion_sheet(folder: str | Path, out: str | Path, size: int = 128, seed: int = 0) -> Path:
    """Draw a sheet and save it; the arguments are those of :func:`lesion_sheet`.

    Returns:
        The file.

    Raises:
        InputError: As :func:`lesion_sheet`, and if the file cannot be written.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed of the sheet is {seed}: set it from 0 to {2**63 - 1}.")
    sheet, path = lesion_sheet(folder, size=size, seed=seed), Path(out)
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path} ({error}); name a .png or .jpg file in a folder that exists.") from error
    return path


def _read(folder: Path, size: int, number: int) -> Tensor:
    """Return images of a folder in [0, 1], shape ``(number, 3, size, size)``."""
    place = training_folder(folder)
    paths = sorted(path for path in place.rglob("*") if path.is_file() and is_image(path, place))
    if not paths:
        raise InputError(f"{place} has no images; name a folder of normal images.")
    chosen = [paths[index * len(paths) // number] for index in range(number)]
    reader = ImageReader()
    contents = [reader.inspect(str(path)) for path in dict.fromkeys(chosen)]
    reader.fit(found for found in contents if not found.problem)
    first = {found.path: found.frames[0] for found in contents if found.frames}
    try:
        read = [reader.read(path, first.get(str(path), 0)).as_subclass(Tensor) for path in chosen]
    except UnreadableError as error:
        broken = next((f"{found.path} {found.problem}" for found in contents if found.problem), f"a file {error}")
        raise InputError(f"{broken}; replace or remove it.") from error
    return torch.stack([resize(image, [size, size], antialias=True) for image in read])


def _labels(lesions: Lesions, number: int) -> list[str]:
    """Return the families of the lesions of each image, with how often they occur where it is more than once."""
    found: list[Counter[str]] = [Counter() for _ in range(number)]
    for name, image in zip(lesions.family, lesions.image.tolist(), strict=True):
        found[image][name] += 1
    return [", ".join(name if often == 1 else f"{often} {name}" for name, often in each.items()) for each in found]


def _draw_sheet(rows: Sequence[Tensor], labels: Sequence[str]) -> Image.Image:
    """Return rows of images with a label below each column."""
    size, gap = rows[0].shape[-1], 2
    width, height = len(labels) * (size + gap) + gap, len(rows) * (size + gap) + gap
    sheet = Image.new("RGB", (width, height + 2 * _LABEL), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, label in enumerate(labels):
        left = gap + column * (size + gap)
        for line, row in enumerate(rows):
            sheet.paste(to_pil_image(row[column].clamp(0, 1)), (left, gap + line * (size + gap)))
        words, lines = label.split(", "), [""]
        for word in words:
            longer = f"{lines[-1]}, {word}" if lines[-1] else word
            lines = [*lines[:-1], longer] if pen.textlength(longer, font) <= size else [*lines, word]
        for line, text in enumerate(lines[:2]):
            pen.text((left, height + line * (_LABEL - 3)), text, fill="black", font=font)
    return sheet
