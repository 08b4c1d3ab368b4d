"""A recipe's fields as options, through a small command as typer calls it."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from parnet_deploy.cli.field_options import with_options_of
from parnet_deploy.cli.main import PARSER_ERROR, app
from parnet_deploy.errors import UsageError
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES, find_recipe

OPTIONS = [field.name for field in fields(Recipe) if field.name != "name"]

# Of every field a value that no named recipe has, as text and as it is.
OTHERWISE: dict[str, tuple[tuple[str, ...], Any]] = {
    "epochs": (("--epochs", "77"), 77),
    "batch_size": (("--batch-size", "96"), 96),
    "optimiser": (("--optimiser", "sgd"), "sgd"),
    "learning_rate": (("--learning-rate", "0.4"), 0.4),
    "schedule": (("--schedule", "step"), "step"),
    "warmup_epochs": (("--warmup-epochs", "0.5"), 0.5),
    "decay_at": (("--decay-at", "0.3,0.6, 0.85"), (0.3, 0.6, 0.85)),
    "decay_rate": (("--decay-rate", "0.3"), 0.3),
    "momentum": (("--momentum", "0"), 0.0),
    "nesterov": (("--nesterov",), True),
    "weight_decay": (("--weight-decay", "0"), 0.0),
    "label_smoothing": (("--label-smoothing", "0"), 0.0),
    "dropout": (("--dropout", "0"), 0.0),
    "conv_dropout": (("--conv-dropout", "0.15"), 0.15),
    "crop": (("--crop", "random-resized"), "random-resized"),
    "crop_scale": (("--crop-scale", "0.25,1"), (0.25, 1.0)),
    "shift": (("--shift", "0"), 0.0),
    "rotation": (("--rotation", "3"), 3.0),
    "zoom": (("--zoom", "0.2"), 0.2),
    "flip": (("--flip", "0.4"), 0.4),
    "colour_jitter": (("--colour-jitter", "0.3"), 0.3),
    "rand_augment": (("--rand-augment", "3"), 3),
    "rand_augment_magnitude": (("--rand-augment-magnitude", "7.5"), 7.5),
    "rand_augment_noise": (("--rand-augment-noise", "0"), 0.0),
    "erasing": (("--erasing", "0.1"), 0.1),
    "ema_decay": (("--ema-decay", "0.99"), 0.99),
}


class Command:
    """An app of one command, and what that was called with last."""

    def __init__(self) -> None:
        self.app = typer.Typer(rich_markup_mode=None)
        self.app.command()(with_options_of(Recipe)(self._command))
        self.called: tuple[str, dict[str, Any]] | None = None

    def _command(
        self,
        recipe: Annotated[str, typer.Option("--recipe", help="How to train.")] = "quick",
        **changes: Any,
    ) -> int:
        """Train."""
        self.called = recipe, changes
        return 0

    def __call__(self, *arguments: str) -> tuple[str, dict[str, Any]]:
        self.called = None
        assert self.app(list(arguments), standalone_mode=False) == 0
        assert self.called is not None
        return self.called


@pytest.fixture
def command() -> Command:
    return Command()


def test_nothing_given_changes_nothing(command: Command) -> None:
    assert command() == ("quick", {})
    assert command("--recipe", "cifar-400") == ("cifar-400", {})


def test_every_field_but_the_name_is_tried() -> None:
    assert sorted(OTHERWISE) == sorted(OPTIONS)


@pytest.mark.parametrize("field", OPTIONS)
def test_a_field_alone(command: Command, field: str) -> None:
    arguments, value = OTHERWISE[field]
    _, changes = command(*arguments)
    assert changes == {field: value}
    assert type(changes[field]) is type(value)
    quick = RECIPES["quick"]
    assert getattr(quick, field) != value
    given = quick.changed(**changes)
    assert getattr(given, field) == value
    if field != "batch_size":
        assert given == replace(quick, **changes)


def test_all_fields_at_once(command: Command) -> None:
    arguments = [argument for given, _ in OTHERWISE.values() for argument in given]
    _, changes = command(*arguments)
    expected = {field: value for field, (_, value) in OTHERWISE.items()}
    assert RECIPES["quick"].changed(**changes) == Recipe(name="quick", **expected)


def test_off_is_given_too(command: Command) -> None:
    name, changes = command("--recipe", "imagenet-120", "--no-nesterov", "--decay-at", "")
    assert changes == {"nesterov": False, "decay_at": ()}
    assert find_recipe(name).changed(**changes).nesterov is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--decay-at", "0.3,x"), "--decay-at takes numbers with commas between, not '0.3,x'"),
        (("--decay-at", "0.3,"), "--decay-at takes numbers with commas between, not '0.3,'"),
        (("--crop-scale", "1"), "--crop-scale takes 2 numbers with commas between, not '1'"),
        (("--crop-scale", ""), "--crop-scale takes 2 numbers with commas between, not ''"),
        (("--crop-scale", "0.1,0.2,1"), "takes 2 numbers with commas between, not '0.1,0.2,1'"),
    ],
)
def test_lists_that_are_none(command: Command, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command(*arguments)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--epochs", "many"), ("--epochs",)),
        (("--learning-rate", "fast"), ("--learning-rate",)),
        (("--optimiser", "adam"), ("--optimiser", "adam", "sgd", "adamw")),
        (("--crop", "random"), ("--crop", "random", "random-resized")),
        (("--name", "mine"), ("--name",)),
    ],
)
def test_what_the_parser_refuses(
    command: Command, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(PARSER_ERROR) as caught:
        command(*arguments)
    said = getattr(caught.value, "format_message", caught.value.__str__)()
    assert all(part in said for part in parts), said


def test_help_has_every_field_with_its_words(command: Command) -> None:
    help_text = CliRunner().invoke(command.app, ["--help"], env={"COLUMNS": "200"}).output
    unbroken = " ".join(help_text.split())
    assert "Train." in unbroken
    assert "--recipe" in unbroken
    hints = get_type_hints(Recipe, include_extras=True)
    for field in OPTIONS:
        decl = f"--{field.replace('_', '-')} " if field != "nesterov" else "--nesterov / --no-nest"
        assert decl in unbroken
        assert get_args(hints[field])[1] in unbroken, field
    assert "--decay-at <float,...>" in unbroken
    assert "--crop-scale <float,float>" in unbroken


# The real command


def options_of_train() -> list[str]:
    """Every way to write one of the command's options."""
    help_text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "300"}).output
    listed = help_text.split("Options:")[1]
    return [
        option
        for line in listed.splitlines()
        if (match := re.match(r"  (-\S.*?)(?:  |$)", line))
        for option in re.findall(r"--[a-z-]+", re.sub(r"<.*?>", "", match[1]))
    ]


def test_train_has_every_field_and_no_option_twice() -> None:
    options = options_of_train()
    assert len(options) == len(set(options))
    assert {f"--{field.replace('_', '-')}" for field in OPTIONS} <= set(options)


def test_the_guide_names_only_options_that_there_are() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", guide))
    others = {
        "--nproc-per-node",
        "--nnodes",
        "--rdzv-endpoint",
        "--logdir",
        "--ten-crop",
        "--checkpoint",
        "--calibrate",
    }
    assert named - others - set(options_of_train()) == set()
    assert others <= named, "an exception that is no longer needed"


def test_a_name_of_its_own_that_is_a_field_s() -> None:
    def command(epochs: int = 1, **changes: Any) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="duplicate parameter name: 'epochs'"):
        with_options_of(Recipe)(command)
