"""The same detector on the untouched and on the pre-trained backbone, seed by seed."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
from anomalib.engine import Engine

from anomalib_msacl.backbone.card import CardFacts, read_card
from anomalib_msacl.callback import MsaclPretraining
from anomalib_msacl.comparison.configured import Configured
from anomalib_msacl.comparison.layout import Layout
from anomalib_msacl.comparison.outcome import Outcome, predict
from anomalib_msacl.errors import InputError
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


@dataclass(frozen=True)
class Trial:
    """One model with one seed.

    Attributes:
        model: Name of the model.
        seed: Of the split, the pre-training and the draws of the detector.
        untouched: With the initial weights; None where there is nothing to test on.
        pretrained: With the pre-trained weights; None where there is nothing to test on.
        choice: What the choice of the weights compared, on held-out normal images with synthetic lesions.
    """

    model: str
    seed: int
    untouched: Outcome | None
    pretrained: Outcome | None
    choice: CardFacts


def run_trials(
    layout: Layout,
    models: Sequence[Configured],
    seeds: Sequence[int],
    out: Path,
    told: Callable[[str], None] = logger.info,
) -> Iterator[Trial]:
    """Run every model with every seed; the pre-trained weights are kept and used again.

    Args:
        layout: The images.
        models: Configurations; their section ``data`` is not used.
        seeds: One trial each.
        out: Folder for the weights.
        told: Called with a line before each part, for people.

    Yields:
        The trials, in the order of the models and of the seeds.

    Raises:
        InputError: If images or configurations cannot work.
    """
    names = _names(models)
    for config in models:  # a mistake in the last one would cost the work of all others
        config.model(post_processor=False, evaluator=False)
        config.pretraining()
    for name, config in zip(names, models, strict=True):
        for seed in seeds:
            yield _trial(layout, config, name, seed, out, told)


def _trial(layout: Layout, config: Configured, name: str, seed: int, out: Path, told: Callable[[str], None]) -> Trial:
    """Run one model with one seed."""
    given = config.pretraining() or MsaclPretraining()
    recipe = replace(given.recipe, seed=seed)
    tested = bool(layout.abnormal)
    outcomes: list[Outcome | None] = []
    for arm, used in (("untouched", untouched_recipe(recipe)), ("pre-trained", recipe)):
        if not tested and arm == "untouched":
            outcomes.append(None)
            continue
        told(f"{name}, seed {seed}, {arm}")
        callback = MsaclPretraining(given.weights, used, out / "weights")
        outcomes.append(_outcome(layout, config, seed, callback, tested))
        directory = callback.directory
    facts = read_card(directory) if directory else None
    if facts is None:
        raise InputError(f"the pre-trained weights of {name} have no model card in {out / 'weights'}; remove them.")
    return Trial(name, seed, outcomes[0], outcomes[1], facts)


def _outcome(layout: Layout, config: Configured, seed: int, callback: MsaclPretraining, tested: bool) -> Outcome | None:
    """Fit a detector on the backbone that a callback brings, and test it."""
    lightning.seed_everything(seed, verbose=False)
    model = config.model(post_processor=False, evaluator=False)
    data = layout.datamodule(seed)
    with quiet_engine(**config.training(), callbacks=[callback]) as engine:
        engine.fit(model, datamodule=data)
        found = predict(engine, model, data) if tested else None
    return None if found is None else found.without_maps()  # there is one of each trial, to the end


@contextmanager
def quiet_engine(**options: Any) -> Iterator[Engine]:
    """Give an engine that prints nothing and writes into a folder that is removed afterwards.

    Args:
        **options: Further arguments of the engine.
    """
    with tempfile.TemporaryDirectory() as work:
        yield Engine(
            devices=1, limit_val_batches=options.pop("limit_val_batches", 0), default_root_dir=work, **QUIET, **options
        )


def _names(models: Sequence[Configured]) -> list[str]:
    """Return a name for each model: that of its class, and where classes repeat what tells their files apart.

    Raises:
        InputError: If a file is given twice.
    """
    files = [Path(config.place).resolve() for config in models]
    twice = [config.place for config, file in zip(models, files, strict=True) if files.count(file) > 1]
    if twice:
        raise InputError(f"the models name {twice[-1]} more than once; name each configuration once.")
    kinds = [str(config.section("model").get("class_path", "")).rpartition(".")[2] for config in models]
    names = list(kinds)
    for kind in {kind for kind in kinds if kinds.count(kind) > 1}:
        rows = [row for row, each in enumerate(kinds) if each == kind]
        for row, label in zip(rows, _labels([Path(models[row].place) for row in rows]), strict=True):
            names[row] = f"{kind} ({label})"
    return names


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return what tells files apart: their names, or else the parts of their paths that differ.

    >>> _labels([Path("a/one.yaml"), Path("b/two.yaml")])
    ['one', 'two']
    >>> _labels([Path("a/v0/config.yaml"), Path("a/v1/config.yaml")])
    ['v0', 'v1']
    """
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    parts = [path.absolute().parts for path in paths]
    for end in (slice(1, None), slice(None, -1)):  # what all of them begin with, then what all end with
        place = 0 if end.start else -1
        while len({each[place] for each in parts}) == 1 and min(map(len, parts)) > 1:
            parts = [each[end] for each in parts]
    return ["/".join(each) for each in parts]


def untouched_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe that hands the initial weights over as they are."""
    return replace(recipe, max_steps=0, whitening=replace(recipe.whitening, alone=False))
