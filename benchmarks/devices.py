"""How many images a second pre-training takes on one process and on several.

    python benchmarks/devices.py tf_efficientnet_lite0=offline resnet50=random [--sides 128 224] [--processes 1 2 4]

Each process has one thread of a CPU, and all are one group of gloo. The batch is 8 images however many processes there
are. Timed are the steps after the first, by the clock: nothing else should run. Memory is the peak of the largest
process. "before" is what stands before the first step: whitening on 32 images, the class centres of 32.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed

from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.pretraining import pretrain
from anomalib_msacl.pretraining.devices import joining_strategy
from anomalib_msacl.pretraining.lightning_model import make_trainer
from anomalib_msacl.recipe import Recipe
from cost import images_of

IMAGES, BATCH = 64, 8


class Clock(Callback):
    """Times of the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the time; a step is one batch here."""
        del trainer
        self.ends.append(time.perf_counter())


def work(rank: int, processes: int, folder: str, name: str, weights: str, steps: int) -> tuple[float, float, float]:
    """Pre-train in one process of a group; return images a second of all, seconds before the first step, and GB."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    images = torch.load(Path(folder) / "images.pt")
    settings = {"max_steps": steps, "batch_size": BATCH, "accumulate": 1, "choice": {"evaluations": 0}}
    recipe = Recipe.of({**settings, "whitening": {"images": 32}, "loss": {"centre_images": 32}})
    group: dict[str, Any] = {}
    if processes > 1:
        place = f"file://{folder}/group-{name}-{processes}-{images.shape[-1]}"
        distributed.init_process_group("gloo", place, rank=rank, world_size=processes, timeout=timedelta(minutes=10))
        group = {"devices": processes, "strategy": joining_strategy(rank)}
    backbone, provenance = create_backbone(name, weights)
    clock, begin = Clock(), time.perf_counter()
    trainer = make_trainer(recipe, accelerator="cpu", callbacks=[clock], **group)
    pretrain(Encoder(backbone), provenance, images, None, recipe, trainer)
    rate = BATCH * (steps - 1) / (clock.ends[-1] - clock.ends[0])
    before = clock.ends[0] - begin - BATCH / rate
    return rate, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def measure(processes: int, *arguments: Any) -> tuple[float, float, float]:
    """Return the same of so many processes: the slowest, and the largest."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = pool.starmap(work, [(rank, processes, *arguments) for rank in range(processes)], chunksize=1)
    rates, before, memory = zip(*found, strict=True)
    return min(rates), max(before), max(memory)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+", help="NAME=WEIGHTS")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 224])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    os.environ["PYTHONWARNINGS"], os.environ["OMP_NUM_THREADS"] = "ignore", "1"  # of the processes, too
    print(f"{os.cpu_count()} cores, torch {torch.__version__}\n")
    print(
        "| backbone, pixels, processes | images a second | before, s | GB of a process |\n|---|---|---|---|", flush=True
    )
    for side in given.sides:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(images_of(None, IMAGES, side), Path(folder) / "images.pt")
            for name, weights in (each.split("=", 1) for each in given.backbones):
                for processes in given.processes:
                    rate, before, memory = measure(processes, folder, name, weights, given.steps)
                    print(f"| {name}, {side}, {processes} | {rate:.2f} | {before:.1f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
