"""A picture of synthetic lesions on one's own normal images, to look at before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from anomalib.data.utils import read_image
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import resize, to_pil_image
from torchvision.utils import make_grid

from anomalib_msacl.errors import InputError
from anomalib_msacl.families import LesionMix
from anomalib_msacl.medmix import MedMix
from anomalib_msacl.recipe import Recipe

_GREEN = (0.0, 1.0, 0.0)


def lesion_sheet(
    folders: Sequence[str | Path],
    size: int = 128,
    families: Sequence[str] | None = None,
    foreground_threshold: float | None = None,
    columns: int = 8,
    seed: int = 0,
) -> Image.Image:
    """Draw synthetic lesions on images of some folders.

    Two rows a folder: images with one, two and three lesions in turn, and the same with the outline of the masks in
    green. The images are not chosen: they are spread evenly over the folder's pictures in the order of their names.

    Args:
        folders: Folders of normal pictures; files of other kinds are passed over.
        size: Side of an image in pixels; lesions grow with it.
        families: Lesion families; those of the default recipe if None.
        foreground_threshold: As in :class:`~anomalib_msacl.MedMix`; its default if None.
        columns: Images a row.
        seed: Seed of the lesions.

    Returns:
        The picture, RGB.

    Raises:
        InputError: If a folder is missing or has no pictures, or a family does not exist.
    """
    medmix = MedMix() if foreground_threshold is None else MedMix(foreground_threshold=foreground_threshold)
    lesions = LesionMix(list(families or Recipe().lesions.families), medmix)
    generator = torch.Generator().manual_seed(seed)
    rows = [_rows(Path(folder), size, columns, lesions, generator) for folder in folders]
    picture: Image.Image = to_pil_image(make_grid(torch.cat(rows), nrow=columns).clamp(0, 1))
    return picture


def _rows(folder: Path, size: int, columns: int, lesions: LesionMix, generator: torch.Generator) -> Tensor:
    """Return the two rows of a folder, shape ``(2 * columns, 3, size, size)``, with values in [0, 1]."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one of pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        raise InputError(f"{folder} has no pictures; name a folder of some")
    paths = [paths[index * len(paths) // columns] for index in range(columns)]
    read = (torch.as_tensor(read_image(path, as_tensor=True)) for path in paths)
    images = torch.stack([resize(image.as_subclass(Tensor), [size, size]) for image in read])
    image, mask, _ = lesions.synthesize(images, torch.arange(columns) % 3 + 1, generator)
    outline = mask + F.max_pool2d(-mask, 3, 1, 1) > 0
    return torch.cat([image, torch.where(outline, torch.tensor(_GREEN)[:, None, None], image)])
