"""Charts as SVG that take their colours from the page, so that they suit light and dark.

Colours are those of Okabe and Ito, which people with colour blindness tell apart; shapes differ too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from anomalib_msacl.report.features import Plane

# Stand-ins that no chart uses otherwise, and what the page puts in their place.
_INK, _NORMAL, _ABNORMAL, _THIRD = "#010203", "#010204", "#010205", "#010206"
_PAGE = {_INK: "currentColor", _NORMAL: "var(--normal)", _ABNORMAL: "var(--abnormal)", _THIRD: "var(--third)"}
_WIDE = 500  # pixels above which a chart does not shrink to the width of a phone, but can be moved
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "msacl",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def curves(found: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Draw curves over the steps.

    Args:
        found: Pairs of step and value by name; three at most are told apart by colour.
        label: Of the values.
    """
    with _chart(1) as (axes, output):
        styles = zip((_NORMAL, _ABNORMAL, _THIRD, _INK), ("o", "s", "^", "D"), ("-", "--", ":", "-."), strict=True)
        for (name, points), (colour, marker, line) in zip(found.items(), styles, strict=False):
            axes[0].plot(*zip(*points, strict=True), line, marker=marker, markersize=4, color=colour, label=name)
        axes[0].set_xlabel("optimiser steps")
        axes[0].set_ylabel(label)
        axes[0].xaxis.set_major_locator(_whole(6))
        if len(found) > 1:
            axes[0].legend()
    return _svg(output, label)


def histogram(parts: Mapping[str, Sequence[ArrayLike]], threshold: float | None) -> str:
    """Draw histograms of scores, a panel for each detector, all on one scale.

    Args:
        parts: By title, the scores of normal and of abnormal images.
        threshold: Score above which an image is called abnormal.
    """
    values = np.concatenate([np.asarray(scores, float).ravel() for pair in parts.values() for scores in pair])
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    bins = np.linspace(low, high if high > low else low + 1, 26)
    with _chart(len(parts)) as (axes, output):
        for axis, (title, (normal, abnormal)) in zip(axes, parts.items(), strict=True):
            axis.hist(normal, bins, color=_NORMAL, alpha=0.75, label="normal")
            if np.size(abnormal):
                axis.hist(abnormal, bins, color=_ABNORMAL, histtype="step", linewidth=2, label="abnormal")
            if threshold is not None:
                axis.axvline(threshold, color=_INK, linestyle="--", linewidth=1.2, label="threshold")
            axis.set_title(title)
            axis.set_xlabel("anomaly score")
        axes[0].set_ylabel("images")
        axes[0].yaxis.set_major_locator(_whole(5))
        axes[-1].legend()
    return _svg(output, "score histograms")


def roc(lines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]]) -> str:
    """Draw receiver operating characteristics.

    Args:
        lines: By name, one or two, the pre-trained backbone last: false positive rate, true positive rate, and the
            bounds of the latter.
    """
    with _chart(1, square=True) as (axes, output):
        axes[0].plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
        styles = [(_INK, "--"), (_THIRD, "-")][-len(lines) :]
        for (name, (false, true, low, high)), (colour, line) in zip(lines.items(), styles, strict=False):
            axes[0].plot(false, true, line, color=colour, label=name)
            axes[0].fill_between(np.asarray(false), np.asarray(low), np.asarray(high), color=colour, alpha=0.15, lw=0)
        axes[0].set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
        axes[0].legend(loc="lower right")
    return _svg(output, "receiver operating characteristic")


def planes(found: Sequence[Plane]) -> str:
    """Draw the feature space, a panel for each backbone."""
    with _chart(len(found), square=True) as (axes, output):
        for axis, plane in zip(axes, found, strict=True):
            axis.scatter(*plane.training.T, s=9, color=_INK, alpha=0.25, linewidths=0, label="training")
            groups = (("normal", 0, _NORMAL, "o"), ("abnormal", 1, _ABNORMAL, "x"))
            for name, label, colour, marker in groups:
                rows = plane.test if plane.labels is None else plane.test[plane.labels == label]
                if plane.labels is None and label:
                    continue
                axis.scatter(
                    *rows.T,
                    s=22,
                    marker=marker,
                    color=colour,
                    linewidths=1,
                    label=f"test, {name}" if plane.labels is not None else "test",
                )
            axis.set_title(plane.title)
            axis.set(xlabel=f"first direction ({100 * plane.explained:.0f} % in the plane)", xticks=[], yticks=[])
        axes[0].set_ylabel("second direction")
        axes[-1].legend(fontsize=9)
    return _svg(output, "feature space before and after")


def _whole(number: int) -> MaxNLocator:
    """Return what puts ticks at round whole numbers, at most so many."""
    return MaxNLocator(number, steps=[1, 2, 5, 10], integer=True)


@contextmanager
def _chart(panels: int, square: bool = False) -> Iterator[tuple[Any, io.StringIO]]:
    """Give axes side by side, and the text that they are written to at the end."""
    output = io.StringIO()
    with mpl.rc_context(_STYLE):
        width = 4.2 if square else 4.8
        figure = Figure(figsize=(width * panels, 3.6 if square else 2.9), layout="constrained")
        yield figure.subplots(1, panels, squeeze=False, sharex=not square, sharey=not square)[0], output
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _svg(output: io.StringIO, title: str) -> str:
    """Return an SVG to put into a page: scalable, with a title, in the page's colours."""
    text = output.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend|PathCollection|FillBetween)[^"]*"',
        "",
        text,
    )
    for stand_in, colour in _PAGE.items():
        text = text.replace(stand_in, colour)
    width = re.search(r'width="([\d.]+)pt"', text)
    side = float(width.group(1)) * 4 / 3 if width else 0
    shown = f'style="max-width:{side:.0f}px"'
    if side > _WIDE:
        shown = f'class="wide" style="max-width:{side:.0f}px;min-width:{0.7 * side:.0f}px"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}" {shown}', 1)
