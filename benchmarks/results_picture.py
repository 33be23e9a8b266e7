"""Draw the picture of the page of results from its own tables: image AUROC before and after, on one scale.

    python benchmarks/results_picture.py docs/results.md docs/compare.png

Reads the first table of each detector that has a row for ImageNet and one for MSACL, mean and standard deviation.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DETECTORS = ("PatchCore", "PaDiM")
BEFORE, AFTER = "#E69F00", "#0072B2"  # Okabe and Ito's, for colour-blind readers
_FIGURE = re.compile(r"(\d?\.\d+) ± (\.\d+)")


def figures(text: str, detector: str, row: str) -> list[tuple[float, float]]:
    """Return mean and standard deviation of each set, from the row that begins so in a table of a detector."""
    table = text.split(f"\n| {detector} | brain |")[1].split("\n\n", maxsplit=1)[0]
    line = next(line for line in table.splitlines() if line.startswith(row))
    return [(float(mean), float(spread)) for mean, spread in _FIGURE.findall(line)[:4]]


def panel(axis: Axes, text: str, detector: str) -> None:
    """Draw one detector."""
    before, after = figures(text, detector, "| ImageNet |"), figures(text, detector, "| **MSACL")
    for place, ((old, _), (new, _)) in enumerate(zip(before, after, strict=True)):
        axis.plot([old, new], [place, place], color="#999999", linewidth=3, zorder=1)
    rows = ((before, BEFORE, "o", "ImageNet's weights"), (after, AFTER, "D", "pre-trained by MSACL"))
    for found, colour, marker, label in rows:
        means, spreads = zip(*found, strict=True)
        axis.errorbar(
            means, range(4), xerr=spreads, fmt=marker, color=colour, markersize=8, capsize=5, elinewidth=2, label=label
        )
    axis.set_title(detector, fontsize=20)
    axis.set_xlabel("image AUROC", fontsize=17)
    axis.set_xlim(0.1, 1)
    axis.axvline(0.5, color="#999999", linestyle=":", linewidth=1.5)
    axis.set_ylim(3.5, -0.5)
    axis.tick_params(labelsize=15)
    axis.grid(axis="x", alpha=0.3)


def main() -> None:
    """Draw the picture."""
    page, picture = map(Path, sys.argv[1:])
    text = page.read_text(encoding="utf-8")
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, detector in zip(axes, DETECTORS, strict=True):
        panel(axis, text, detector)
    axes[0].set_yticks(range(4), ["brain MRI", "capsule endoscopy", "chest X-ray", "colonoscopy"], fontsize=17)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=17, loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main()
