"""Options as people write them, parsed into values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, get_args

import typer

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import UsageError

T = TypeVar("T", bound=str)


def parse_size(text: str) -> tuple[int, int]:
    """``224`` or ``HxW`` as (height, width) in pixels.

    Raises:
        UsageError: it is neither.
    """
    parts = text.lower().split("x")
    try:
        height, width = (int(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except ValueError as exc:
        raise UsageError(
            f"an image size is a number or HxW, such as 224 or 192x320, not '{text}'"
        ) from exc
    return height, width


def parse_batch(text: str) -> BatchRange:
    """``N`` (fixed) or ``MIN:OPT:MAX`` (dynamic).

    Raises:
        UsageError: it is neither, or not a range.
    """
    try:
        numbers = [int(part) for part in text.split(":")]
        low, best, high = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError as exc:
        raise UsageError(f"a batch is N or MIN:OPT:MAX, such as 1 or 1:1:8, not '{text}'") from exc
    return BatchRange(min=low, opt=best, max=high)


def parse_numbers(option: str) -> Callable[[str], tuple[int, ...]]:
    """A parser of comma-separated whole numbers, for the option of that name."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in text.split(","))
        except ValueError as exc:
            raise UsageError(
                f"{option} takes whole numbers with commas between, not '{text}'"
            ) from exc

    return parse


def parse_choice(option: str, text: str, kind: object) -> str:
    """One of a Literal's values.

    Raises:
        UsageError: it is none of them.
    """
    choices = get_args(kind)
    if text not in choices:
        raise UsageError(f"{option} is one of {', '.join(choices)}; not '{text}'")
    return text


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that were given on the command line and would mean nothing.

    Args:
        context: of the command.
        names: of its parameters that do not apply.
        why: what was asked for that they do not go with.

    Raises:
        UsageError: one was given.
    """
    wrong = set(names)
    given = []
    for option in context.command.params:
        if option.name in wrong and _on_the_command_line(context, option.name):
            off = context.params[option.name] is False
            written = (option.secondary_opts if off else None) or option.opts
            given.append(max(written, key=len))
    if given:
        raise UsageError(f"{why}, so leave out {', '.join(sorted(given))}")


def _on_the_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    # By its name: which package the source is from depends on typer's version.
    return source is not None and source.name == "COMMANDLINE"
