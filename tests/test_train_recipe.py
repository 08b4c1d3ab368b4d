"""Recipes as data: what they refuse, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parnet_deploy.errors import UsageError
from parnet_deploy.train import RECIPES, Augmentation, Recipe, find_recipe

QUICK = RECIPES["quick"]


def test_recipes_are_filed_under_their_names() -> None:
    assert all(recipe.name == name for name, recipe in RECIPES.items())


def test_find_recipe_suggests_the_nearest() -> None:
    assert find_recipe("quick") is QUICK
    with pytest.raises(UsageError, match="no recipe 'quik'; did you mean 'quick'"):
        find_recipe("quik")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("peak_rate", 0.0),
        ("peak_rate", math.nan),
        ("warmup", 1.0),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("label_smoothing", 1.0),
    ],
)
def test_recipe_refuses_and_names_the_field(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"recipe's {field} is .*not {value}"):
        replace(QUICK, **{field: value})


@pytest.mark.parametrize("change", [{"shift": -0.1}, {"rotation": math.inf}, {"zoom": 1.0}])
def test_augmentation_refuses(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="augmentation"):
        Augmentation(**change)


@example(steps=1, warmup=0.9)  # no step is left for the way down
@example(steps=2, warmup=0.9)
@given(steps=st.integers(1, 500), warmup=st.floats(0.0, 0.9))
def test_learning_rate_rises_to_its_peak_and_falls_to_nothing(steps: int, warmup: float) -> None:
    recipe: Recipe = replace(QUICK, warmup=warmup)
    rates = [recipe.learning_rate(step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(recipe.peak_rate)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0.0
    assert recipe.learning_rate(steps, steps) == pytest.approx(0.0, abs=1e-12)


def test_learning_rate_by_hand() -> None:
    recipe = replace(QUICK, warmup=0.2, peak_rate=1.0)
    rates = [recipe.learning_rate(step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # half-way down the cosine
