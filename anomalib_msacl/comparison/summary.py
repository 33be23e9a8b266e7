"""What a comparison says: tables and sentences, also where pre-training did not help."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

from anomalib_msacl.comparison.outcome import Outcome
from anomalib_msacl.comparison.resampling import strata
from anomalib_msacl.comparison.statistics import interval, resampled_difference, spread
from anomalib_msacl.comparison.trials import Trial

_FEW = 30  # images of a class below which an interval over images says little


def summary(trials: Sequence[Trial]) -> str:
    """Return a page in Markdown.

    Args:
        trials: Of one set; all with test images, or all without.
    """
    lines = list(_tested(trials) if trials[0].untouched else _untested(trials))
    return "\n".join(lines) + "\n"


def write_scores(trials: Sequence[Trial], path: Path) -> None:
    """Write a row for every model, seed, backbone and test image: file, frame, label and score."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "seed", "backbone", "image", "frame", "label", "score"])
        for trial in trials:
            for arm, outcome in (("untouched", trial.untouched), ("pre-trained", trial.pretrained)):
                if outcome is None or outcome.label is None:
                    continue
                frames: Sequence[Any] = outcome.frames or [""] * len(outcome.paths)
                rows = zip(outcome.paths, frames, outcome.label.tolist(), outcome.score.tolist(), strict=True)
                writer.writerows([trial.model, trial.seed, arm, *row] for row in rows)


def _tested(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the page of a set with abnormal test images."""
    first = trials[0].untouched
    labels = first.label.tolist() if first is not None and first.label is not None else []
    ill, seeds = sum(labels), len({trial.seed for trial in trials})
    yield f"Image AUROC on {len(labels) - ill} normal and {ill} abnormal test images, {_count(seeds, 'seed')}."
    yield ""
    rows, told = [], []
    for model, own in _by_model(trials):
        before, after = ([_auroc(outcome) for outcome in side] for side in _sides(own))
        mean, half = interval([b - a for a, b in zip(before, after, strict=True)])
        low, high = _over_images(own)
        over_seeds = "-" if math.isnan(half) else f"{mean - half:+.3f} to {mean + half:+.3f}"
        over_images = f"{low:+.3f} to {high:+.3f}"
        rows.append((model, spread(before), spread(after), f"{mean:+.3f}", over_seeds, over_images))
        told.append(_verdict(model, (mean - half, mean + half), (low, high), len(own)))
    yield from _table(("model", "untouched", "pre-trained", "difference", "95 % over seeds", "95 % over images"), rows)
    yield ""
    yield from told
    yield from _pixels(trials)
    yield ""
    yield "The interval over seeds is that of other trainings on these images; the one over images is that of other"
    yield "images like these. Neither speaks of another scanner, another site or another disease."
    groups = [] if first is None else first.groups
    if len(set(groups)) < len(groups):
        yield "Slices of one file are drawn together, since they are not independent of each other."
    if min(map(len, strata(labels, groups))) < _FEW:
        yield f"With fewer than {_FEW} images of a class, expect the interval over images to be too narrow."


def _untested(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the page of a set without abnormal test images."""
    yield "There are no abnormal test images, so that nothing can be said of real lesions. What can be said: how well"
    yield "held-out normal images are told from copies with synthetic lesions of families that were not trained with."
    yield "The figures are image AUROC, as the choice of the weights sees it:"
    yield ""
    rows = []
    for trial in trials:
        scores = {name: image for name, image, _ in trial.choice.candidates}
        kept = trial.choice.kept or "last step"
        cells = [spread([scores[name]] if name in scores else []) for name in ("untouched", kept)]
        rows.append((trial.model, str(trial.seed), *cells, kept))
    yield from _table(("model", "seed", "untouched", "kept", "which is"), rows)
    yield ""
    yield "Synthetic lesions are a guide, not a proof. Labelled images in test/good and test/lesion would tell more."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table whose columns stand below each other in a terminal too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    yield f"| {lines[0]} |"
    yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    yield from (f"| {line} |" for line in lines[1:])


def _verdict(model: str, seeds: tuple[float, float], images: tuple[float, float], count: int) -> str:
    """Say in one sentence whether pre-training helped a model, and in another what a few seeds are worth."""
    known = [bounds for bounds in (seeds, images) if not math.isnan(bounds[0])]
    if all(low > 0 for low, _ in known):
        said = "pre-training helped on this set."
    elif all(high < 0 for _, high in known):
        said = "pre-training made it worse on this set; use the untouched backbone."
    else:
        said = "no difference that these seeds and images can tell, which does not prove that there is none."
    few = {1: " One seed only", 2: " Two seeds give a very wide interval"}.get(count, "")
    return f"- {model}: {said}{few + ': repeat with three or more before you rely on it.' if few else ''}"


def _pixels(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield the table of pixels where there are masks and maps."""
    found = [(model, own) for model, own in _by_model(trials) if all(map(_has_pixels, own))]
    if not found:
        return
    yield ""
    yield "Pixel AUROC, of maps of at most 128 pixels a side:"
    yield ""
    rows = []
    for model, own in found:
        before, after = ([outcome.pixel_auroc for outcome in side] for side in _sides(own))
        mean, half = interval([b - a for a, b in zip(before, after, strict=True)])
        over_seeds = "-" if math.isnan(half) else f"{mean - half:+.3f} to {mean + half:+.3f}"
        rows.append((model, spread(before), spread(after), f"{mean:+.3f}", over_seeds))
    yield from _table(("model", "untouched", "pre-trained", "difference", "95 % over seeds"), rows)


def _by_model(trials: Sequence[Trial]) -> list[tuple[str, list[Trial]]]:
    """Return the trials of each model."""
    return [(name, [t for t in trials if t.model == name]) for name in dict.fromkeys(t.model for t in trials)]


def _sides(trials: Sequence[Trial]) -> tuple[list[Any], list[Any]]:
    """Return the outcomes with the untouched and with the pre-trained backbone."""
    return [trial.untouched for trial in trials], [trial.pretrained for trial in trials]


def _over_images(trials: Sequence[Trial]) -> tuple[float, float]:
    """Return the bounds over images of what pre-training adds."""
    before, after = _sides(trials)
    # Where the normal test images are drawn from the training images, they differ from seed to seed.
    if len({tuple(outcome.paths) for outcome in before}) == 1:
        first, second = ([outcome.score for outcome in side] for side in (after, before))
        return resampled_difference(before[0].label, first, second, groups=before[0].groups)
    bounds = [
        resampled_difference(a.label, [b.score], [a.score], groups=a.groups) for a, b in zip(before, after, strict=True)
    ]
    return statistics.fmean(low for low, _ in bounds), statistics.fmean(high for _, high in bounds)


def _auroc(outcome: Outcome) -> float:
    """Return the AUROC of images."""
    return float(roc_auc_score(outcome.label, outcome.score))


def _has_pixels(trial: Trial) -> bool:
    """Whether maps and masks were there."""
    return all(each is not None and each.pixel_auroc is not None for each in (trial.untouched, trial.pretrained))


def _count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
