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

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import LesionMixture, Lesions
from anomalib_msacl.medical.kinds import is_image, training_folder
from anomalib_msacl.medical.reader import Contents, ImageReader
from anomalib_msacl.recipe import Recipe

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_OUTLINE = (0.0, 0.62, 0.45)  # a green that people with colour blindness tell from tissue
_TITLES = ("original", "lesions", "outlines")
_GAP, _LINE, _ROOM = 2, 15, 20  # pixels between images, of a line of text, of the titles at the left


def lesion_sheet(
    folder: str | Path, mixture: LesionMixture | None = None, size: int = 128, columns: int = 8, seed: int = 0
) -> Image.Image:
    """Draw synthetic lesions on images of a folder.

    Three rows, with their titles at the left: the images as they are, with one, two and three lesions in turn, and the
    same with the outlines of the masks. Below each column stand the families of its lesions. The images are spread
    evenly over the folder in the order of their names. Of a volume it is the middle slice, or slices that are spread
    evenly over it where there are fewer files than columns.

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


def write_lesion_sheet(
    folder: str | Path, out: str | Path, size: int = 128, seed: int = 0, config: str | Path | None = None
) -> Path:
    """Draw a sheet and save it; the arguments are those of :func:`lesion_sheet`.

    Args:
        folder: A folder of normal images.
        out: The file.
        size: Side of an image in pixels.
        seed: Seed of the lesions.
        config: A configuration of anomalib whose recipe says which lesions are drawn; the default recipe if None.

    Returns:
        The file.

    Raises:
        InputError: As :func:`lesion_sheet`, and if the configuration has no recipe or the file cannot be written.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed of the sheet is {seed}: set it from 0 to {2**63 - 1}.")
    mixture = None
    if config is not None:
        from anomalib_msacl.comparison.configured import Configured  # noqa: PLC0415  # brings anomalib along

        mixture = Configured.read(config).recipe().lesions.mixture()
    sheet, path = lesion_sheet(folder, mixture, size, seed=seed), Path(out)
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
    frames = [frame for found in contents for frame in _spread(found, chosen.count(Path(found.path)))]
    try:
        read = [reader.read(path, frame).as_subclass(Tensor) for path, frame in zip(chosen, frames, strict=True)]
    except UnreadableError as error:
        broken = next((f"{found.path} {found.problem}" for found in contents if found.problem), f"a file {error}")
        raise InputError(f"{broken}; replace or remove it.") from error
    return torch.stack([resize(image, [size, size], antialias=True) for image in read])


def _spread(found: Contents, number: int) -> list[int]:
    """Return slices or frames of a file, evenly spread; a single one is that in the middle."""
    known = [frame for frame in found.frames if frame not in found.constant] or [0]
    return [known[(2 * place + 1) * len(known) // (2 * number)] for place in range(number)]


def _labels(lesions: Lesions, number: int) -> list[str]:
    """Return the families of the lesions of each image, with how often they occur where it is more than once."""
    found: list[Counter[str]] = [Counter() for _ in range(number)]
    for name, image in zip(lesions.family, lesions.image.tolist(), strict=True):
        found[image][name] += 1
    return [", ".join(name if often == 1 else f"{often} {name}" for name, often in each.items()) for each in found]


def _draw_sheet(rows: Sequence[Tensor], labels: Sequence[str]) -> Image.Image:
    """Return rows of images with a title at the left of each, and a label below each column."""
    step, font = rows[0].shape[-1] + _GAP, ImageFont.load_default(12)
    texts = [_lines(label, font, step - _GAP) for label in labels]
    height = len(rows) * step + _GAP
    size = (_ROOM + len(labels) * step + _GAP, height + _LINE * max(map(len, texts)) + _GAP)
    sheet = Image.new("RGB", size, "white")
    for line, (row, title) in enumerate(zip(rows, _TITLES, strict=True)):
        top = _GAP + line * step
        sheet.paste(_title(title, step - _GAP), (0, top))
        for column, image in enumerate(row):
            sheet.paste(to_pil_image(image.clamp(0, 1)), (_ROOM + _GAP + column * step, top))
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(texts):
        pen.text((_ROOM + _GAP + column * step, height), "\n".join(text), fill="black", font=font, spacing=1)
    return sheet


def _title(text: str, length: int) -> Image.Image:
    """Return the title of a row, to be read from below."""
    font = ImageFont.load_default(min(12, length / 4))
    strip = Image.new("RGB", (length, _ROOM), "white")
    ImageDraw.Draw(strip).text((length / 2, _ROOM / 2), text, fill="black", font=font, anchor="mm")
    return strip.transpose(Image.Transpose.ROTATE_90)


def _lines(label: str, font: _Font, width: int) -> list[str]:
    """Return a label in lines that are no wider than an image, unless a single word is."""
    lines = [""]
    for word in label.split(", "):
        longer = f"{lines[-1]}, {word}" if lines[-1] else word
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return lines
