"""The recipe: ranges, unknown names, plain data, and names of the version before."""

from __future__ import annotations

import dataclasses
import json
from typing import get_type_hints

import pytest

from anomalib_msacl import InputError, Recipe
from anomalib_msacl.recipe import RENAMED, LossRecipe, whitening_only


def test_plain_data_round_trip() -> None:
    recipe = Recipe(loss=LossRecipe(dense=0.5, alpha=3.0), whitening=whitening_only(0.2).whitening)
    assert Recipe.of(json.loads(json.dumps(recipe.plain()))) == recipe
    assert Recipe.of(None) == Recipe()
    assert Recipe.of(recipe) is recipe


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


def test_positives_of_the_same_image_need_a_second_view_of_it() -> None:
    alone = {"loss": {"positives": "image"}}
    with pytest.raises(InputError, match=r"recipe.loss.positives is image, but recipe.view.number is 1.*set view.numb"):
        Recipe.of(alone)
    assert Recipe.of({**alone, "view": {"number": 2}}).view.number == 2
    assert Recipe.of({"loss": {"positives": "image", "contrastive": 0.0}}).loss.contrastive == 0


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
