"""The recipe: ranges, unknown names, plain data."""

from __future__ import annotations

import json

import pytest

from anomalib_msacl import InputError, Recipe


def test_plain_data_round_trip() -> None:
    recipe = Recipe(dense=0.5, medmix={"radius": [0.1, 0.2]}, positives="image")
    assert Recipe.of(json.loads(json.dumps(recipe.plain()))) == recipe
    assert Recipe.of(None) == Recipe()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"dense": -1.0}, "dense"),
        ({"dense": None}, "dense"),
        ({"deviation": 0.0}, "deviation"),
        ({"accumulate": 0}, "accumulate"),
        ({"batch_size": 1}, "batch_size"),
        ({"classes": 1}, "classes"),
        ({"alpha": 0.5}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"held_out": 0.7}, "held_out"),
        ({"warmup": 2.0}, "warmup"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float | None], name: str) -> None:
    with pytest.raises(InputError, match=f"recipe.{name} is {next(iter(values.values()))}"):
        Recipe.of(values)


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"unknown setting 'denze'; known are .*dense"):
        Recipe.of({"denze": 1.0})


def test_image_terms_are_needed_only_if_one_is_on() -> None:
    off = {"centring": 0.0, "contrastive": 0.0, "augmentation": 0.0, "position": 0.0}
    assert not Recipe(**off).uses_image_terms
    assert Recipe(**{**off, "centring": 0.1}).uses_image_terms
