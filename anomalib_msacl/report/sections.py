"""The sections of a report, each from what was gathered; what is not there is said in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anomalib_msacl.backbone.card import PACKAGES, version_of
from anomalib_msacl.comparison.outcome import Outcome
from anomalib_msacl.comparison.roc import roc_band
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.report import charts
from anomalib_msacl.report.findings import Findings
from anomalib_msacl.report.pictures import Row, Scale, extremes, image_picture, map_picture, uri
from anomalib_msacl.report.sheet import draw_sheet

_ARMS = ("untouched backbone", "pre-trained backbone")


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: Its heading.
        texts: Sentences.
        charts: SVG and caption of each chart.
        head: Cells of the table's first line; without it, the first column has the headings.
        table: Lines of cells.
        kept: First cell of the line that is set apart.
        sheet: Picture of the lesions, as a data URI.
        rows: Heading and images.
        code: Commands.
        details: Title and text of what is folded away.
    """

    title: str
    texts: list[str] = field(default_factory=list)
    charts: list[tuple[str, str]] = field(default_factory=list)
    head: Sequence[str] = ()
    table: list[Sequence[str]] = field(default_factory=list)
    kept: str | None = None
    sheet: str = ""
    rows: list[tuple[str, list[Row]]] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    details: list[tuple[str, str]] = field(default_factory=list)


def trained(found: Findings) -> Section:
    """What was trained."""
    section = Section("What was trained")
    arguments = found.run.config.section("model").get("init_args") or {}
    data = found.run.config.section("data")
    section.table = [("detector", found.run.model_name)]
    section.table += [(name, _words(arguments[name])) for name in ("backbone", "layers") if arguments.get(name)]
    section.table.append(("data", str(data.get("class_path", "-")).rpartition(".")[2]))
    if found.facts is not None:
        section.table.append(("normal training images", str(found.facts.images)))
        section.table.append(("steps of the pre-training", str(found.facts.steps)))
        section.table += [("kept", found.facts.kept)] if found.facts.kept else []
    if found.weights is not None:
        section.table.append(("weights", found.weights.name))
    if found.recipe is not None:
        changed = list(differences(found.recipe.plain(), Recipe().plain()))
        section.table.append(("recipe", ", ".join(changed) or "the default"))
    for name in ("run", "weights"):
        section.texts += [found.missing[name]] if name in found.missing else []
    return section


def curve_section(found: Findings) -> Section:
    """The curves of the pre-training."""
    section = Section("Curves of the pre-training")
    drawn = {name: points for name, points in found.curves.items() if len(points) > 1}  # one point is no curve
    terms = {name.removeprefix("train_"): points for name, points in drawn.items() if name == "train_loss"}
    held_out = {
        "image AUROC" if "image" in name else "pixel AUROC": points
        for name, points in drawn.items()
        if name.startswith("held_out_")
    }
    if terms:
        section.charts.append((charts.curves(terms, "loss"), "The loss, mean of an epoch."))
    if held_out:
        caption = "Held-out normal images against copies with synthetic lesions of families not trained with."
        section.charts.append((charts.curves(held_out, "AUROC, held out"), caption))
    if found.curves and not section.charts:
        section.texts.append("There are too few steps for curves.")
    elif not section.charts:
        section.texts.append("There are no curves: nothing was trained, or results/msacl/logs is not there any more.")
    return section


def choice(found: Findings) -> Section:
    """The choice of the weights."""
    section = Section("Choice of the weights")
    if found.facts is None or not found.facts.candidates:
        section.texts.append("No candidates were compared, or the model card of the weights is not at hand.")
        return section
    section.texts.append(
        "Each candidate was asked to tell held-out normal images from copies with synthetic lesions. The last one is "
        "kept unless another is clearly better. This is a guide, not a proof: no real lesion took part."
    )
    section.head = ("candidate", "image AUROC", "pixel AUROC")
    section.table = [(name, f"{image:.3f}", f"{pixel:.3f}") for name, image, pixel in found.facts.candidates]
    section.kept = found.facts.kept
    return section


def lesions(found: Findings) -> Section:
    """The lesions that were trained with."""
    section = Section("Lesions that were trained with")
    if found.recipe is None or found.training is None or not len(found.training):
        section.texts.append(found.missing.get("lesions", "The training images are not at hand, so none can be drawn."))
        return section
    columns = min(6, len(found.training))
    rows = [len(found.training) * place // columns for place in range(columns)]
    sheet = draw_sheet(found.training[rows], found.recipe.lesions.mixture(), found.recipe.seed)
    section.texts.append(
        "Training images, the same with one to three lesions, and their outlines. These are examples of the recipe; "
        "the training drew others."
    )
    section.sheet = uri(sheet)
    return section


def features(found: Findings) -> Section:
    """The feature space before and after."""
    section = Section("Feature space before and after")
    if not found.planes:
        section.texts.append(found.missing.get("features", "Features need checkpoint, images and weights of the run."))
        return section
    caption = (
        "Features of the layers, averaged over each image, in the plane of the two main directions of the normal "
        "training images. Each panel has a plane of its own; a small lesion hardly moves an average."
    )
    section.charts.append((charts.planes(found.planes), caption))
    return section


def results(found: Findings) -> Section:
    """Scores, threshold and ROC."""
    section = Section("Scores of the test images")
    section.texts += [found.missing[name] for name in ("scores", "split", "before") if name in found.missing]
    if found.after is None:
        return section
    arms = list(_arms(found))
    parts = {title: _groups(outcome) for title, outcome in arms}
    threshold = found.after.threshold
    caption = (
        "Each detector has scores of its own scale."
        if threshold is None
        else ("The scores of each detector are scaled by its own validation images; the dashed line is its threshold.")
    )
    section.charts.append((charts.histogram(parts, threshold), caption))
    lines: dict[str, Any] = {}
    table: list[Sequence[str]] = []
    for title, outcome in arms:
        if not outcome.has_both:
            continue
        band = roc_band(outcome.score.numpy(), outcome.label.numpy(), groups=outcome.groups)  # type: ignore[union-attr]
        lines[title] = (band.false, band.true, band.low, band.high)
        table.append((title, f"{band.area:.3f}", f"{band.bounds[0]:.3f} to {band.bounds[1]:.3f}", *_counts(outcome)))
    if not lines:
        section.texts.append("Without both normal and abnormal test images there is no ROC.")
        return section
    caption = "Shaded: 95 % of 500 resamples of the test images."
    section.charts.append((charts.roc(lines), caption))
    section.head = ("backbone", "image AUROC", "95 % interval", "sensitivity", "specificity")
    section.table = table
    together = "images of one patient" if found.after.patients else "slices of one file"
    section.texts.append(
        f"The interval is that of other test images like these; {together} are drawn together. "
        "Sensitivity and specificity are at the threshold."
    )
    return section


def images(found: Findings) -> Section:
    """The best and the worst images with their maps."""
    section = Section("Best and worst images")
    if found.after is None or found.images is None:
        section.texts.append("Images need the checkpoint and the test images of the run.")
        return section
    arms = list(_arms(found))
    scales = {title: Scale.of(outcome) for title, outcome in arms}
    unit = "0.5 is the threshold" if found.after.threshold is not None else "dark is low"
    section.texts.append(
        f"All maps of a detector share one scale: {unit}. Green: outline of the true mask, where there is one."
    )
    for heading, rows in extremes(found.after).items():
        section.rows.append((heading, [_row(found, row, arms, scales) for row in rows]))
    return section


def reproduction(found: Findings) -> Section:
    """Versions and commands."""
    section = Section("Versions, and how to make this run again")
    section.table = [(name, version_of(name)) for name in PACKAGES]
    section.texts.append(
        "The versions are those of the machine that made this report. The configuration below holds every setting."
    )
    section.code = ["anomalib-msacl train --config config.yaml\nanomalib-msacl report " + _relative(found.run.folder)]
    section.details = [("config.yaml", (found.run.folder / "config.yaml").read_text(encoding="utf-8"))]
    return section


def differences(settings: Mapping[str, Any], default: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield the settings that are not the default ones.

    >>> list(differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}))
    ['b.c: 2']
    """
    for name, value in settings.items():
        if isinstance(value, Mapping) and isinstance(default.get(name), Mapping):
            yield from differences(value, default[name], f"{place}{name}.")
        elif value != default.get(name):
            yield f"{place}{name}: {value}"


def _arms(found: Findings) -> Iterator[tuple[str, Outcome]]:
    """Yield title and outcome of the detectors that are there."""
    for title, outcome in zip(_ARMS, (found.before, found.after), strict=True):
        if outcome is not None:
            yield title, outcome


def _groups(outcome: Outcome) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of normal and of abnormal images; all are the former without labels."""
    if outcome.label is None:
        return outcome.score, outcome.score[:0]
    return outcome.score[outcome.label == 0], outcome.score[outcome.label == 1]


def _counts(outcome: Outcome) -> tuple[str, str]:
    """Return sensitivity and specificity with what they are counted from."""
    if outcome.called is None or outcome.label is None or outcome.threshold is None:
        return "no threshold", "no threshold"
    found = []
    for label in (1, 0):
        called = outcome.called[outcome.label == label]
        found.append(f"{int((called == label).sum())} of {len(called)}")
    return found[0], found[1]


def _row(found: Findings, row: int, arms: Sequence[tuple[str, Outcome]], scales: Mapping[str, Scale]) -> Row:
    """Return the pictures of one image."""
    after = arms[-1][1]
    assert found.images is not None  # noqa: S101  # the caller has looked
    mask = None if after.masks is None else after.masks[row]
    pictures = [("image", uri(image_picture(found.images(row), mask)))]
    words = ["score"]
    for title, outcome in arms:
        words.append(f"{title}: {float(outcome.score[row]):.3f}")
        if outcome.maps is not None:
            pictures.append((title, uri(map_picture(outcome.maps[row], scales[title]))))
    return Row(Path(after.paths[row]).name, words, pictures)


def _words(value: Any) -> str:
    """Return a value of a configuration for people."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _relative(folder: Path) -> str:
    """Return a folder relative to the working folder where that is shorter."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else folder.name
