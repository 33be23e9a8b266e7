"""Throughput of MedMix against anomalib's PerlinAnomalyGenerator and against a ResNet-18 step.

    python benchmarks/lesion_speed.py [--batch 16] [--sizes 128 256 512] [--device cpu]

Every figure is the median over repetitions, taken in turn in one process. Perlin runs with probability 1 so that both
make a lesion in every image (MedMix with 1, 2 or 3 lesions); once from noise alone, and once as DRAEM uses it, with
texture images from a folder (made here: JPEG files of 640 x 480 pixels, the size of those of DTD).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import timm
import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from PIL import Image

from anomalib_msacl import MedMix


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
    medmix, noise = MedMix(counts=(1, 2, 3)), PerlinAnomalyGenerator(probability=1.0)
    folder = tempfile.TemporaryDirectory()
    for index in range(20):
        pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 60, 80), (480, 640), mode="bicubic").clamp(0, 1)
        Image.fromarray((255 * pixels[0].movedim(0, -1)).byte().numpy()).save(f"{folder.name}/{index}.jpg")
    textures = PerlinAnomalyGenerator(folder.name, probability=1.0)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}")
    print("size  MedMix img/s  Perlin img/s (ratio)  with textures (ratio)  ResNet-18 step s  MedMix / step")
    for size in arguments.sizes:
        images = torch.rand(arguments.batch, 3, size, size, device=arguments.device)
        step = seconds(lambda images=images: network(images).sum().backward(), 3)
        ours = seconds(lambda images=images: medmix.synthesize(images), 15)
        rate = arguments.batch / ours
        others = [arguments.batch / seconds(lambda images=images, g=g: g(images), 4) for g in (noise, textures)]
        ratios = "  ".join(f"{other:12.1f} ({rate / other:4.0f})" for other in others)
        print(f"{size:4d}  {rate:12.0f}  {ratios}  {step:21.3f}  {ours / step:13.3f}")
    folder.cleanup()


if __name__ == "__main__":
    main()
