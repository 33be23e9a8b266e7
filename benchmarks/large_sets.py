"""What large sets cost before and while they are trained with: time of the first look at them, and memory.

    python benchmarks/large_sets.py looks [--files 100000] [--folder FOLDER]
    python benchmarks/large_sets.py memory [--rows 10000 1000000]

``looks`` checks a folder of JPEG files of 224 pixels twice, as two runs one after the other do: the second finds what
the first has kept. ``memory`` pre-trains for a few steps with a datamodule that repeats twenty images until it has so
many. Every row is a process of its own, so that peaks are its own. Files that were just written lie in the memory of
the system: reading them from a disk comes on top.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torchvision.transforms.v2 import Normalize

from anomalib_msacl import Msacl, MsaclPretraining, Recipe
from anomalib_msacl.data import Phantom
from anomalib_msacl.data.checks import check_datamodule
from anomalib_msacl.pretraining.torch_model import MsaclTerms

SIDE, IN_A_FOLDER, REPEATED = 224, 1000, 20
STEPS = 40


class Repeated(Phantom):
    """Twenty phantoms, again and again."""

    def __init__(self, root: Path, rows: int) -> None:
        super().__init__("fundus", root, image_size=64, train_images=REPEATED, test_images=4, num_workers=0)
        self.rows = rows

    def setup(self, stage: str | None = None) -> None:
        """Repeat the rows of the training set."""
        super().setup(stage)
        if len(self.train_data) < self.rows:
            few = self.train_data.samples
            many = pd.concat([few] * -(-self.rows // len(few)), ignore_index=True)[: self.rows]
            many.attrs |= few.attrs
            self.train_data.samples = many


def peak() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)


def draw_files(folder: Path, number: int) -> None:
    """Write JPEG files, gradients with noise, of which no two are the same."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE][..., None] / SIDE
    for index in range(number):
        place = folder / f"{index // IN_A_FOLDER:04d}"
        place.mkdir(exist_ok=True)
        noise = Image.fromarray(draw.integers(0, 60, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        down, right, corner = 127 * draw.random(3)
        smooth = down * y + right * x + corner * (1 - x) * (1 - y)
        Image.fromarray(np.clip(smooth + np.asarray(noise), 0, 255).astype(np.uint8)).save(place / f"{index:06d}.jpg")


def look(folder: Path, seen: Path) -> dict[str, float]:
    """Set up a datamodule of a folder and check it."""
    begin, free = time.perf_counter(), peak()
    data = Folder("large", folder, "", val_split_mode="none", test_split_mode="none", num_workers=0)
    data.setup("fit")
    set_up, at = peak(), time.perf_counter()
    cpu = time.process_time()
    check_datamodule(data, seen=seen)
    seconds, cpu = time.perf_counter() - at, time.process_time() - cpu
    return {
        "set-up s": at - begin,
        "look s": seconds,
        "CPU s of the look": cpu,
        "table MB": set_up - free,
        "look MB": peak() - set_up,
    }


def train(folder: Path, way: str, rows: int) -> dict[str, float]:
    """Pre-train for some steps with so many rows, inside a detector or as one."""
    recipe = Recipe.of({"max_steps": STEPS, "batch_size": 8, "choice": {"evaluations": 1, "images": 16}})
    options: dict[str, Any] = {"default_root_dir": folder / "runs", "accelerator": "cpu", "devices": 1, "logger": False}
    options |= {"limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False}
    data = Repeated(folder, rows)
    data.prepare_data()
    free = peak()
    begin = time.perf_counter()
    data.setup(TrainerFn.FITTING)
    set_up, ready = peak(), time.perf_counter()
    if way == "callback":
        processor = PreProcessor(Normalize([0.5] * 3, [0.5] * 3))
        model: Any = Patchcore("test_resnet", ["layer2"], pre_trained=False, pre_processor=processor)
        options |= {"callbacks": [MsaclPretraining("random", recipe, folder / "weights")], "limit_train_batches": 1}
    else:
        # without its detector, which is fitted on 400 images whatever their number
        model = Msacl("test_resnet", "random", image_size=64, recipe=recipe, detector=False)
    steps, at = Steps(), time.perf_counter()
    Engine(**options).fit(model, datamodule=data)
    return {
        "set-up s": ready - begin,
        "s to the first step": steps.first - at,
        "table MB": set_up - free,
        "MB to the first step": steps.at_first - set_up,
        f"MB in {STEPS} steps": steps.at_last - steps.at_first,
        "MB after": peak() - steps.at_last,
        "peak MB": peak(),
    }


class Steps:
    """Time and memory at the first and at the last step of a training, of either way."""

    def __init__(self) -> None:
        self.first, self.at_first, self.at_last = 0.0, 0.0, 0.0
        original = MsaclTerms.total

        def total(*args: Any) -> Any:
            self.at_last = peak()
            if not self.first:
                self.first, self.at_first = time.perf_counter(), self.at_last
            return original(*args)

        MsaclTerms.total = total  # type: ignore[method-assign]


def apart(call: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, _quiet) as pool:
        return pool.apply(call, arguments)


def _quiet() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def show(rows: list[tuple[str, dict[str, float]]]) -> None:
    """Print a table."""
    names = list(rows[0][1])
    print(f"| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name, values in rows:
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values.values())} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["looks", "memory"])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="a folder of images, in place of new files")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    given = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the processes, too
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, pandas {pd.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if given.part == "memory":
            ways = [(way, rows) for way in ("callback", "Msacl") for rows in given.rows]
            show([(f"{way}, {rows:,} images", apart(train, place / f"{way}{rows}", way, rows)) for way, rows in ways])
            return
        folder = given.folder or place / "images"
        if not given.folder:
            folder.mkdir()
            draw_files(folder, given.files)
        show([(f"start {start}", apart(look, folder.resolve(), place / "seen.json")) for start in (1, 2)])


if __name__ == "__main__":
    main()
