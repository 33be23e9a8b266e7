"""The recipe: ranges, unknown names, plain data, and names of the version before."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_type_hints

import pytest

from anomalib_msacl import InputError, Recipe
from anomalib_msacl.recipe import RENAMED, LossRecipe, whitening_only


def test_plain_data_round_trip() -> None:
    recipe = Recipe(loss=LossRecipe(dense=0.5, positives="image"), whitening=whitening_only(0.2).whitening)
    assert Recipe.of(json.loads(json.dumps(recipe.plain()))) == recipe
    assert Recipe.of(None) == Recipe()
    assert Recipe.of(recipe) is recipe


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"loss": {"dense": -1.0}}, "loss.dense"),
        ({"loss": {"dense": None}}, "loss.dense"),
        ({"loss": {"dense": float("inf")}}, "loss.dense"),
        ({"loss": {"dense": float("nan")}}, "loss.dense"),
        ({"loss": {"dense": "1"}}, "loss.dense"),
        ({"loss": {"alpha": 0.5}}, "loss.alpha"),
        ({"loss": {"temperature": 0.0}}, "loss.temperature"),
        ({"loss": {"projection": 10**9}}, "loss.projection"),
        ({"loss": {"positives": "both"}}, "loss.positives"),
        ({"loss": {"dense_bank": 0}}, "loss.dense_bank"),
        ({"whitening": {"saved_std": 0.0}}, "whitening.saved_std"),
        ({"whitening": {"saved_std": float("inf")}}, "whitening.saved_std"),
        ({"accumulate": 0}, "accumulate"),
        ({"batch_size": 1}, "batch_size"),
        ({"batch_size": 4.5}, "batch_size"),
        ({"classes": 1}, "classes"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -1}, "seed"),
        ({"realign": "no"}, "realign"),
        ({"choice": {"held_out": 0.7}}, "choice.held_out"),
        ({"optimizer": {"warmup": 2.0}}, "optimizer.warmup"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name"),
        ({"view": {"scale": [1.0, 0.5]}}, "view.scale"),
        ({"loss": 3}, "loss"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"^recipe\.{name} is .*, but must be "):
        Recipe.of(values)


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"recipe.loss: unknown setting 'denze'; known are .*dense"):
        Recipe.of({"loss": {"denze": 1.0}})
    with pytest.raises(InputError, match=r"recipe: unknown setting 'looss'; known are .*loss"):
        Recipe.of({"looss": {}})


@pytest.mark.parametrize("old", RENAMED)
def test_a_name_of_the_version_before_is_answered_with_the_new_one(old: str) -> None:
    new = RENAMED[old].split(" ")[0]
    with pytest.raises(InputError, match=rf"recipe.{old} is now recipe.{new}"):
        Recipe.of({old: 1})
    part, name = new.split(".")
    assert name in get_type_hints(get_type_hints(Recipe)[part])


def test_pooled_features_are_needed_only_if_a_term_is_on() -> None:
    off = LossRecipe(centring=0.0, contrastive=0.0, augmentation=0.0, position=0.0)
    assert not off.uses_pooled_features
    assert dataclasses.replace(off, centring=0.1).uses_pooled_features


def test_every_setting_is_described() -> None:
    def check(kind: type) -> None:
        for name, hint in get_type_hints(kind).items():
            assert f"{name}: " in (kind.__doc__ or ""), (kind, name)
            if dataclasses.is_dataclass(hint):
                check(hint)

    check(Recipe)
