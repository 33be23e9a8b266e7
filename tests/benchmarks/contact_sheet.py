"""A picture of synthetic lesions on one's own normal images, to look at before anything is trained on them.

    python tests/benchmarks/contact_sheet.py sheet.png FOLDER [FOLDER ...] [--size 128] [--seed 0]
                                             [--families medmix haze ..] [--foreground_threshold .08]

Two rows a folder: images with one, two and three lesions of the families of the default recipe, and the same with the
outline of the masks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from anomalib.data.utils import read_image
from torch.nn import functional as F  # noqa: N812
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import resize
from torchvision.utils import make_grid, save_image

from anomalib_msacl import Recipe
from anomalib_msacl.lesions import FAMILIES, LesionMixture

COLUMNS = 8


def rows(folder: Path, size: int, lesions: LesionMixture, generator: torch.Generator) -> torch.Tensor:
    """Return two rows of images of a folder, evenly spaced by name."""
    if not folder.is_dir():
        sys.exit(f"{folder} is no folder; name one of pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        sys.exit(f"{folder} has no images; name a folder of pictures.")
    paths = [paths[index * len(paths) // COLUMNS] for index in range(COLUMNS)]
    images = torch.stack([resize(read_image(path, as_tensor=True), [size, size]) for path in paths])
    counts = torch.arange(COLUMNS) % 3 + 1
    image, mask, _ = lesions.synthesize(images.as_subclass(torch.Tensor), counts, generator)
    outline = mask + F.max_pool2d(-mask, 3, 1, 1) > 0
    return torch.cat([image, torch.where(outline, torch.tensor([0.0, 1.0, 0.0])[:, None, None], image)])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="+", default=Recipe().families, choices=list(FAMILIES))
    parser.add_argument("--foreground_threshold", type=float, default=LesionMixture().foreground_threshold)
    arguments = parser.parse_args()
    lesions = LesionMixture(arguments.families, foreground_threshold=arguments.foreground_threshold)
    generator = torch.Generator().manual_seed(arguments.seed)
    pictures = torch.cat([rows(folder, arguments.size, lesions, generator) for folder in arguments.folders])
    save_image(make_grid(pictures, nrow=COLUMNS), arguments.out)


if __name__ == "__main__":
    main()
