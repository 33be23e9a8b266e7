"""Throughput of MedMix against anomalib's PerlinAnomalyGenerator and against a ResNet-18 step.

    python tests/benchmarks/medmix_speed.py [--batch 16] [--sizes 128 256 512] [--device cpu]

Every figure is the median over repetitions, taken in turn in one process. Perlin runs with probability 1 so that both
make a lesion in every image (MedMix with 1, 2 or 3 lesions).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator

from anomalib_msacl.medmix import MedMix


def seconds(call: Callable[[], object], repetitions: int) -> float:
    """Return the median time of a call, after one call to warm up."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=4).to(arguments.device).train()
    medmix, perlin = MedMix(counts=(1, 2, 3)), PerlinAnomalyGenerator(probability=1.0)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}")
    print("size  MedMix img/s  Perlin img/s  ratio  ResNet-18 step s  MedMix / step")
    for size in arguments.sizes:
        images = torch.rand(arguments.batch, 3, size, size, device=arguments.device)
        step = seconds(lambda images=images: network(images).sum().backward(), 3)
        ours = seconds(lambda images=images: medmix.synthesize(images), 15)
        theirs = seconds(lambda images=images: perlin(images), 3)
        rate, other = arguments.batch / ours, arguments.batch / theirs
        print(f"{size:4d}  {rate:12.0f}  {other:12.2f}  {rate / other:5.0f}  {step:16.3f}  {ours / step:13.3f}")


if __name__ == "__main__":
    main()
