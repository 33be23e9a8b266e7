"""Heat maps before and after the pre-training, on five lesion images of every set.

    python benchmarks/heat_maps.py DATA WEIGHTS PICTURE [--out results/compare] [--sets ..] [--model patchcore]

The images are not chosen: of the lesion images in the order of their names, the first, and then those at one fifth,
two fifths ... of the list. A row is an image: itself, the mask where there is one, the map with the reference
backbone and the map with that of the arm. Maps of one set and arm share one scale, from their 1st to their 99th
percentile over the five images. Backbones are those of compare.py, which makes what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from _common import sets_in
from compare import Bench

IMAGES = 5


def chosen(folder: Path) -> list[Path]:
    """Return five images by the rule above."""
    paths = sorted((folder / "test" / "lesion").iterdir())
    return [paths[len(paths) * index // IMAGES] for index in range(IMAGES)]


def maps(bench: Bench, name: str, arm: str, model: str, seed: int, images: list[Tensor]) -> list[Tensor]:
    """Return the anomaly map of each image, scaled to [0, 1] over all of them."""
    bench.run(name, arm, seed, [model])
    with bench.fitted(name, model, seed, bench.backbone(name, arm, seed)) as (_, detector, _), torch.no_grad():
        network, transform = detector.model.eval(), detector.pre_processor.transform
        found = torch.cat([network(transform(image[None])).anomaly_map[0] for image in images])
    low, high = torch.quantile(found.flatten(), torch.tensor([0.01, 0.99]))
    return list(((found - low) / (high - low)).clamp(0, 1))


def main() -> None:
    """Draw one picture for each set, side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("compare.yaml"))
    parser.add_argument("--out", type=Path, default=Path("results/compare"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--arm", default="msacl")
    parser.add_argument("--model", default="patchcore")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config: dict[str, Any] = yaml.safe_load(arguments.config.read_text())
    bench = Bench(config, arguments.data, arguments.weights, arguments.out.resolve())
    names = arguments.sets or sets_in(arguments.data)
    arms = [config["reference"], arguments.arm]
    figure, axes = plt.subplots(IMAGES, 4 * len(names), figsize=(4.4 * len(names), 1.25 * IMAGES), squeeze=False)
    for place, name in enumerate(names):
        paths = chosen(arguments.data / name)
        images = [pil_to_tensor(Image.open(path).convert("RGB")).float() / 255 for path in paths]
        heat = [maps(bench, name, arm, arguments.model, arguments.seed, images) for arm in arms]
        for row, path in enumerate(paths):
            mask = next((arguments.data / name / "ground_truth" / "lesion").glob(f"{path.stem}.*"), None)
            pictures = [images[row].movedim(0, -1), Image.open(mask) if mask else None, heat[0][row], heat[1][row]]
            for column, picture in enumerate(pictures):
                axis = axes[row][4 * place + column]
                axis.axis("off")
                if picture is not None:
                    axis.imshow(picture, cmap="gray" if column < 2 else "inferno")
                if row == 0:
                    axis.set_title([name.replace("_", " "), "mask", *arms][column], fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
