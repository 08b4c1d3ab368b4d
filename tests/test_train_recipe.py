"""Recipes as data: what they refuse, how they are changed, and that they are the paper's."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.errors import UsageError
from parnet_deploy.spec import decode, encode
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES, find_recipe

QUICK = RECIPES["quick"]
GUIDE = Path(__file__).parents[1] / "docs" / "training.md"


def figures(recipe: Recipe, *names: str) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in names}


# The named ones


def test_recipes_are_filed_under_their_names() -> None:
    assert list(RECIPES) == ["quick", "qat", "cifar-400", "imagenet-120", "imagenet-200"]
    assert all(recipe.name == name for name, recipe in RECIPES.items())


def test_find_recipe_suggests_the_nearest() -> None:
    assert find_recipe("quick") is QUICK
    with pytest.raises(UsageError, match="no recipe 'quik'; did you mean 'quick'"):
        find_recipe("quik")
    with pytest.raises(UsageError, match="did you mean 'imagenet-120'"):
        find_recipe("imagenet-12")


def test_imagenet_is_the_paper_s() -> None:
    """Section 4.

    "We train our models for 120 epochs using the SGD optimizer, a step scheduler with a warmup for
    first 5 epochs, a learning rate decay of 0.1 at every 30th epoch, an initial learning rate of
    0.8, and a batch size of 2048"; "smoothed labels"; "cropping, flipping, color-jitter, and
    rand-augment".
    """
    recipe = RECIPES["imagenet-120"]
    stated = {
        "epochs": 120,
        "optimiser": "sgd",
        "schedule": "step",
        "warmup_epochs": 5,
        "decay_rate": 0.1,
        "learning_rate": 0.8,
        "batch_size": 2048,
        "crop": "random-resized",
    }
    assert figures(recipe, *stated) == stated
    assert [part * recipe.epochs for part in recipe.decay_at] == [30, 60, 90]
    for used in ("label_smoothing", "flip", "colour_jitter", "rand_augment"):
        assert getattr(recipe, used) > 0
    assert recipe.dropout is None, "0.1 for L and XL only: the variant says it"


def test_longer_training_is_table_5_s() -> None:
    """Section 4: "a longer training regime (200 epochs, cosine annealing)"."""
    longer, usual = RECIPES["imagenet-200"], RECIPES["imagenet-120"]
    assert (longer.epochs, longer.schedule) == (200, "cosine")
    others = {"name": "", "epochs": 1000, "schedule": "cosine", "decay_at": ()}
    assert replace(longer, **others) == replace(usual, **others), "and nothing else"


def test_cifar_is_the_paper_s() -> None:
    """Section 4.

    "mirroring/shifting"; "400 epochs with a batch size of 128. The initial learning rate is 0.1
    and is decreased by a factor of 5 at 30%, 60%, and 80% of the epochs"; "a weight decay of
    0.0003"; "dropout in the convolution layer at 0.2 and dropout in the final fully-connected layer
    at 0.2".
    """
    recipe = RECIPES["cifar-400"]
    stated = {
        "epochs": 400,
        "batch_size": 128,
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "schedule": "step",
        "warmup_epochs": 0,
        "decay_at": (0.3, 0.6, 0.8),
        "decay_rate": 1 / 5,
        "weight_decay": 0.0003,
        "dropout": 0.2,
        "conv_dropout": 0.2,
        "crop": "shift",
        "flip": 0.5,
        "label_smoothing": 0,
        "colour_jitter": 0,
        "rand_augment": 0,
        "erasing": 0,
    }
    assert figures(recipe, *stated) == stated
    assert recipe.shift * 32 == 4, "pixels, in the works that the paper names"


def test_quick_is_quick_and_leaves_digits_unmirrored() -> None:
    assert QUICK.epochs <= 20
    assert QUICK.flip == 0.0


# In the guide


def guide_cell(value: object) -> str:
    match value:
        case None:
            return "network's own"
        case bool():
            return "yes" if value else "no"
        case tuple():
            return ", ".join(f"{part:g}" for part in value) or "-"
        case str():
            return value
        case _:
            return f"{value:g}"


def test_the_guide_s_table_is_what_the_recipes_are() -> None:
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    rows = [
        ("option", *(f"`{name}`" for name in RECIPES)),
        ("---",) * (len(RECIPES) + 1),
        *(
            (
                f"`--{name.replace('_', '-')}`",
                *(guide_cell(getattr(r, name)) for r in RECIPES.values()),
            )
            for name in names
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    assert f"\n\n{table}\n\n" in GUIDE.read_text(encoding="utf-8")


# What cannot be


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("epochs", (0, -1)),
        ("batch_size", (1, 0, -2)),
        ("optimiser", ("adam", "SGD", "")),
        ("learning_rate", (0.0, -0.1, math.nan, math.inf)),
        ("schedule", ("linear",)),
        ("warmup_epochs", (15, -1, math.nan, math.inf)),
        ("decay_at", ((0.5, 0.5), (0.6, 0.3), (0.0,), (1.0,), (-0.1,), (math.nan,))),
        ("decay_rate", (0.0, 1.1, math.nan)),
        ("momentum", (1.0, -0.1, math.nan)),
        ("weight_decay", (-0.1, math.inf, math.nan)),
        ("label_smoothing", (1.0, -0.1, math.nan)),
        ("dropout", (1.0, -0.1, math.nan)),
        ("conv_dropout", (1.0, -0.1, math.nan)),
        ("crop", ("centre",)),
        ("crop_scale", ((0.5, 0.4), (0.0, 1.0), (0.1, 1.1), (math.nan, 1.0))),
        ("shift", (1.0, -0.1)),
        ("rotation", (-1.0, math.inf)),
        ("zoom", (1.0, -0.1)),
        ("flip", (1.1, -0.1, math.nan)),
        ("colour_jitter", (-0.1, math.inf)),
        ("rand_augment", (-1,)),
        ("rand_augment_magnitude", (-1, 10.5)),
        ("rand_augment_noise", (-0.1, float("inf"))),
        ("erasing", (1.1, -0.1)),
        ("ema_decay", (1.0, -0.1)),
    ],
)
def test_what_is_refused_is_named(field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(UsageError) as caught:
            replace(QUICK, **{field: value})
        message = str(caught.value)
        assert message.startswith(f"a recipe's {field} is "), message
        assert message.endswith(f", not {value}"), message


def test_every_field_but_name_and_switch_can_be_refused() -> None:
    marks = test_what_is_refused_is_named.pytestmark  # type: ignore[attr-defined]
    tried = {field for mark in marks for field, _ in mark.args[1]}
    assert tried == {field.name for field in fields(Recipe)} - {"name", "nesterov"}


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_epochs": 14.5},
        {"momentum": 0.0},
        {"decay_rate": 1.0},
        {"weight_decay": 0.0},
        {"crop_scale": (1.0, 1.0)},
        {"flip": 1.0},
        {"rand_augment_magnitude": 10},
        {"dropout": 0.0},
        {"decay_at": (0.01, 0.99)},
    ],
)
def test_what_is_just_possible(changes: dict[str, Any]) -> None:
    assert asdict(QUICK.changed(**changes)) == asdict(QUICK) | changes


def test_a_recipe_stays_as_it_is() -> None:
    with pytest.raises(FrozenInstanceError):
        QUICK.epochs = 3  # type: ignore[misc]


# Changed


def test_the_learning_rate_follows_the_batch() -> None:
    """Section 4: "a decrease to a learning rate of 0.4 and a batch size of 1024"."""
    recipe = RECIPES["imagenet-120"]
    assert recipe.changed(batch_size=1024) == replace(recipe, batch_size=1024, learning_rate=0.4)
    assert recipe.changed(batch_size=256).learning_rate == pytest.approx(0.1)
    assert RECIPES["cifar-400"].changed(batch_size=256).learning_rate == pytest.approx(0.2)


def test_a_learning_rate_that_is_given_is_taken() -> None:
    recipe = RECIPES["imagenet-120"]
    changed = recipe.changed(batch_size=1024, learning_rate=0.8)
    assert (changed.batch_size, changed.learning_rate) == (1024, 0.8)
    assert recipe.changed(learning_rate=0.3).batch_size == 2048


@given(batch=st.integers(2, 1 << 16))
def test_the_rate_per_image_is_kept(batch: int) -> None:
    for recipe in RECIPES.values():
        changed = recipe.changed(batch_size=batch)
        assert changed.learning_rate / batch == pytest.approx(
            recipe.learning_rate / recipe.batch_size
        )


def test_changed_changes_what_is_given_only() -> None:
    assert QUICK.changed() == QUICK
    changed = QUICK.changed(epochs=30, optimiser="sgd", dropout=0.1)
    expected = asdict(QUICK) | {"epochs": 30, "optimiser": "sgd", "dropout": 0.1}
    assert asdict(changed) == expected


def test_changed_refuses() -> None:
    with pytest.raises(UsageError, match="a recipe has no colour, speed"):
        QUICK.changed(speed=3, epochs=2, colour="red")
    with pytest.raises(UsageError, match="batch_size is at least 2"):
        QUICK.changed(batch_size=0)  # and not that the learning rate is 0
    with pytest.raises(UsageError, match="warmup_epochs is less than its epochs, not 2"):
        QUICK.changed(epochs=2, warmup_epochs=2)


def test_fewer_epochs_shorten_the_warm_up_and_more_do_not_lengthen_it() -> None:
    recipe = RECIPES["imagenet-120"]
    assert recipe.changed(epochs=12).warmup_epochs == 0.5
    assert recipe.changed(epochs=240).warmup_epochs == 5
    assert recipe.changed(epochs=12, warmup_epochs=2).warmup_epochs == 2


# As JSON

_PARTS = st.floats(0.0, 1.0, exclude_max=True)
_CHANCES = st.floats(0.0, 1.0)
_AMOUNTS = st.floats(0.0, 1e6)
_DECAYS = st.sets(st.floats(0.0, 1.0, exclude_min=True, exclude_max=True), max_size=4)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that is one."""
    epochs = draw(st.integers(1, 1000))
    return Recipe(
        name=draw(st.text(max_size=10)),
        epochs=epochs,
        batch_size=draw(st.integers(2, 1 << 20)),
        optimiser=draw(st.sampled_from(["sgd", "adamw"])),
        learning_rate=draw(st.floats(0.0, 1e3, exclude_min=True)),
        schedule=draw(st.sampled_from(["cosine", "step"])),
        warmup_epochs=draw(st.floats(0.0, epochs, exclude_max=True)),
        decay_at=tuple(sorted(draw(_DECAYS))),
        decay_rate=draw(st.floats(0.0, 1.0, exclude_min=True)),
        momentum=draw(_PARTS),
        nesterov=draw(st.booleans()),
        weight_decay=draw(_AMOUNTS),
        label_smoothing=draw(_PARTS),
        dropout=draw(st.none() | _PARTS),
        conv_dropout=draw(st.none() | _PARTS),
        crop=draw(st.sampled_from(["whole", "shift", "random-resized"])),
        crop_scale=tuple(sorted(draw(st.tuples(*[st.floats(0.01, 1.0)] * 2)))),  # type: ignore[arg-type]
        shift=draw(_PARTS),
        rotation=draw(_AMOUNTS),
        zoom=draw(_PARTS),
        flip=draw(_CHANCES),
        colour_jitter=draw(_AMOUNTS),
        rand_augment=draw(st.integers(0, 10)),
        rand_augment_magnitude=draw(st.floats(0, 10)),
        rand_augment_noise=draw(st.floats(0, 3)),
        erasing=draw(_CHANCES),
        ema_decay=draw(_PARTS),
    )


@given(recipe=recipes())
def test_json_gives_the_same_recipe_back(recipe: Recipe) -> None:
    assert decode(encode(recipe), Recipe) == recipe


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_named_recipe_gives_the_same_recipe_back(name: str) -> None:
    assert decode(encode(RECIPES[name]), Recipe) == RECIPES[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b'"epochs": 15', b'"epochs": "many"'), "not a Recipe: Expected `int`, got `str`"),
        ((b'"sgd"', b'"adam"'), "not a Recipe: Invalid enum value 'adam'"),
        ((b'"epochs": 15', b'"epochs": 0'), "a recipe's epochs is at least 1"),
        (
            (b'"weight_decay"', b'"weight_loss"'),
            "not a Recipe: .*missing required field `weight_decay`",
        ),
    ],
)
def test_json_that_is_no_recipe(change: tuple[bytes, bytes], message: str) -> None:
    text = encode(replace(QUICK, optimiser="sgd"))
    assert change[0] in text
    with pytest.raises(UsageError, match=message):
        decode(text.replace(*change), Recipe)
