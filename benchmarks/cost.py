"""What pre-training costs, against a bare loop of forward and backward passes over as many images.

    python benchmarks/cost.py WEIGHTS [--data FOLDER] [--side 128]

Both are measured in one run, on one thread, in CPU seconds, so that a busy machine matters little. The bare loop has
the same backbone, the same frozen stages, batches of the same size and channels-last tensors, and nothing else. Without
``--data`` the images are phantoms. The parts are those of the pipeline; "rest" is what no part accounts for.
"""

from __future__ import annotations

import argparse
import functools
import logging
import resource
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms.v2.functional import resize

from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.pretraining import Pretraining, Questions, pretrain
from anomalib_msacl.pretraining.preparation import encoder_for
from anomalib_msacl.pretraining.synthesis import Synthesis
from anomalib_msacl.pretraining.torch_model import MsaclTerms
from anomalib_msacl.pretraining.views import WeakView
from anomalib_msacl.recipe import Recipe

TRAINING, HELD_OUT = 320, 64
PARTS: dict[str, tuple[Any, str]] = {
    "weak views": (WeakView, "forward"),
    "lesions": (Synthesis, "__call__"),
    "patches of l_pos": (MsaclTerms, "_position"),
    "drawing of the questions": (Pretraining, "ask"),
    "whitening": (Pretraining, "whiten"),
    "centres": (Pretraining, "fix_centres"),
    "scoring of candidates": (Questions, "score"),
    "realignment": (Pretraining, "realign"),
}


class Clock:
    """CPU seconds of functions, those of functions inside of them left out."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[list[float]] = []

    def watch(self, owner: Any, method: str, name: str) -> Callable[[], None]:
        """Measure a method, and return what undoes it."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            self._open.append([0.0])
            try:
                return original(*args, **kwargs)
            finally:
                whole = time.process_time() - start
                (inside,) = self._open.pop()
                self.spent[name] += whole - inside
                if self._open:
                    self._open[-1][0] += whole

        setattr(owner, method, timed)
        return lambda: setattr(owner, method, original)


def images_of(folder: str | None, number: int, side: int) -> Tensor:
    """Return normal images in [0, 1], shape ``(N, 3, side, side)``."""
    if folder is None:
        from anomalib_msacl.data import Phantom

        data = Phantom("brain", image_size=side, train_images=number)
        data.prepare_data()
        folder = str(Path(str(data.root)) / "train" / "good")
    paths = sorted(path for path in Path(folder).iterdir() if path.is_file())[:number]
    read = (resize(read_image(str(path), ImageReadMode.RGB), [side, side], antialias=True) for path in paths)
    return torch.stack([image.float() / 255 for image in read])


def start(weights: str, recipe: Recipe, side: int) -> tuple[Encoder, Any]:
    """Return an encoder of tf_efficientnet_lite0 and the record of its weights."""
    backbone = create_backbone("tf_efficientnet_lite0", weights)
    return encoder_for(backbone, recipe, ["blocks.2", "blocks.4"], size=(side, side))


def bare(encoder: Encoder, images: Tensor, recipe: Recipe) -> float:
    """Return the CPU seconds of forward and backward passes over as many images, channels last."""
    encoder.train().to(memory_format=torch.channels_last)
    head = nn.Linear(encoder.dim, 1)
    batch = recipe.batch_size * recipe.classes * recipe.view.number
    begin = time.process_time()
    for number in range(recipe.max_steps * recipe.accumulate):
        rows = torch.arange(number * batch, (number + 1) * batch) % len(images)
        _, pooled = encoder(images[rows].contiguous(memory_format=torch.channels_last))
        head(pooled).sum().backward()
        encoder.zero_grad(set_to_none=True)
    return time.process_time() - begin


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="offline", help="initial weights")
    parser.add_argument("--data", help="a folder of normal images; phantoms if left out")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    recipe = Recipe(max_steps=given.steps)
    images = images_of(given.data, TRAINING + HELD_OUT, given.side)
    training, held_out = images[:-HELD_OUT], images[-HELD_OUT:]

    reference = bare(start(given.weights, recipe, given.side)[0], training, recipe)
    clock = Clock()
    undo = [clock.watch(owner, method, name) for name, (owner, method) in PARTS.items()]
    encoder, provenance = start(given.weights, recipe, given.side)
    begin = time.process_time()
    pretrain(encoder, provenance, training, held_out, recipe)
    whole = time.process_time() - begin
    for restore in undo:
        restore()

    rows = [(name, clock.spent[name]) for name in PARTS]
    rows.append(("rest: forward, backward, optimiser, Lightning", whole - sum(seconds for _, seconds in rows)))
    print(f"| part, {len(training)} images of {given.side} pixels | CPU s | of the bare loop |\n|---|---|---|")
    for name, seconds in [*rows, ("**whole pre-training**", whole), ("bare loop, channels last", reference)]:
        print(f"| {name} | {seconds:.1f} | {seconds / reference:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "linux" else 1 << 30)
    print(f"\nPeak memory of the process: {peak:.2f} GB; torch {torch.__version__}, one thread.")


if __name__ == "__main__":
    main()
