"""Sum up docs/results.md: its tables of each backbone become the first tables there, that of the README, and a picture.

    python scripts/results_summary.py

Writes between the marks `<!-- summary -->` and `<!-- end of the summary -->` of both pages, and docs/compare.png.
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS, README = ROOT / "docs" / "results.md", ROOT / "README.md"
START, END = "<!-- summary -->", "<!-- end of the summary -->"
BACKBONES = ("EfficientNet-Lite0", "MobileNetV2", "ResNet-50", "DINOv2-S")  # sections of the page
SETS = ("brain MRI", "capsule endoscopy", "chest X-ray", "colonoscopy", "circuit boards")
DETECTORS = ("PatchCore", "PaDiM", "kNN, pooled")
COLUMNS = ("PatchCore", "AUPRO of PatchCore", "PaDiM", "AUPRO of PaDiM", "kNN, pooled")
WORSE, BETTER = "#D55E00", "#0072B2"  # Okabe and Ito's, for colour-blind readers
_LOSS = 0.005  # more than this is printed in bold and drawn in the colour of a loss
_ROW = re.compile(rf"^\| (?:{'|'.join(SETS)}).*$", re.MULTILINE)
_PAIR = re.compile(r"(\d?\.\d+)(?: ± \.\d+)? -> (\d?\.\d+)")

Pair = tuple[float, float]  # before and after
Figures = dict[tuple[str, str, str], Pair]  # of a backbone, a set and a column


def figures() -> Figures:
    """Return the figures of the page of results, means of the seeds."""
    page = RESULTS.read_text(encoding="utf-8")
    found: dict[tuple[str, str, str], list[Pair]] = {}
    for backbone in BACKBONES:
        text = page.split(f"\n### {backbone}\n")[1].split("\n##", maxsplit=1)[0]
        for line in _ROW.findall(text):
            label, *cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
            for column, cell in zip(COLUMNS, cells, strict=False):
                if pair := _PAIR.match(cell):
                    key = backbone, label.split(",")[0], column
                    found.setdefault(key, []).append((float(pair[1]), float(pair[2])))
    return {key: (fmean(old for old, _ in pairs), fmean(new for _, new in pairs)) for key, pairs in found.items()}


def short(value: float) -> str:
    """Return a figure in [0, 1] to three places, without the zero in front."""
    return f"{value:.3f}".removeprefix("0")


def is_loss(pair: Pair) -> bool:
    """Say whether more than half a point was lost."""
    return pair[1] - pair[0] < -_LOSS


def cell(pair: Pair) -> str:
    """Return a cell of a table, in bold where something was lost."""
    text = f"{short(pair[0])} -> {short(pair[1])}"
    return f"**{text}**" if is_loss(pair) else text


def mean_cell(pairs: list[Pair]) -> str:
    """Return the cell of the mean of the sets, with the difference in points."""
    old, new = (fmean(values) for values in zip(*pairs, strict=True))
    return f"{cell((old, new))} ({(new - old) * 100:+.1f})"


def rows(found: Figures, column: str) -> list[str]:
    """Return a table of all backbones and sets."""
    sets = [name for name in SETS if any((backbone, name, column) in found for backbone in BACKBONES)]
    head = [column, *sets, "mean (points)"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for backbone in BACKBONES:
        pairs = [found[backbone, name, column] for name in sets]
        lines.append(f"| {' | '.join([backbone, *map(cell, pairs), mean_cell(pairs)])} |")
    return lines


def tables(found: Figures, columns: tuple[str, ...]) -> str:
    """Return the tables of some columns, one below the other."""
    return "\n\n".join("\n".join(rows(found, column)) for column in columns)


def replaced(page: str, text: str) -> str:
    """Return a page with another text between the marks."""
    before, rest = page.split(START)
    return f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}"


def pages(found: Figures) -> dict[Path, str]:
    """Return the two pages as they should be."""
    columns = {RESULTS: (*DETECTORS, "AUPRO of PatchCore", "AUPRO of PaDiM"), README: DETECTORS[:2]}
    return {path: replaced(path.read_text(encoding="utf-8"), tables(found, names)) for path, names in columns.items()}


def draw(found: Figures, picture: Path) -> None:
    """Draw the image AUROC of PatchCore before and after, all backbones and sets in one panel."""
    figure, axis = plt.subplots(figsize=(11, 8.6))
    names, places = [], []
    white: dict[str, Any] = {"s": 70, "facecolor": "white", "edgecolor": "#555555", "linewidth": 1.8}
    for number, backbone in enumerate(BACKBONES):
        top = number * (len(SETS) + 1.3)
        for row, name in enumerate(SETS):
            place = top + row
            old, new = pair = found[backbone, name, DETECTORS[0]]
            colour = WORSE if is_loss(pair) else BETTER
            axis.plot([old, new], [place, place], color=colour, linewidth=4, zorder=1, solid_capstyle="butt")
            axis.scatter([old], [place], zorder=2, **white)
            axis.scatter([new], [place], s=75, color=colour, zorder=3)
            names.append(name)
            places.append(place)
        axis.text(0.452, top - 0.75, backbone, fontsize=15, weight="bold", va="center")
    axis.set_yticks(places, names, fontsize=13)
    axis.set_ylim(max(places) + 0.8, -1.4)
    axis.set_xlim(0.45, 1)
    axis.set_xlabel("image AUROC of PatchCore (0.5 is chance, 1 is perfect)", fontsize=14)
    axis.tick_params(axis="x", labelsize=13)
    axis.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    colours = {"pre-trained by MSACL": BETTER, "pre-trained, and worse by more than half a point": WORSE}
    drawn = {line.get_color() for line in axis.get_lines()}
    handles = [axis.scatter([], [], label="weights as they came", **white)]
    handles += [axis.scatter([], [], s=75, color=hue, label=name) for name, hue in colours.items() if hue in drawn]
    figure.legend(handles=handles, fontsize=13, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(picture, dpi=90)


def main() -> None:
    """Write the pages and the picture."""
    found = figures()
    for path, text in pages(found).items():
        path.write_text(text, encoding="utf-8")
    draw(found, ROOT / "docs" / "compare.png")


if __name__ == "__main__":
    main()
