"""Every field of a dataclass as an option of a command; its words in the help stand beside it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from parnet_deploy.errors import UsageError

T = TypeVar("T")


def with_options_of(*values: type) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command an option for each field of some dataclasses, but their names.

    Args:
        values: dataclasses whose fields are written as ``Annotated[type, "words"]``.

    Returns:
        What is to stand over a command with ``**changes``: the fields that were given on the
        command line. Typer sees its own options, then those of the fields.

    Raises:
        ValueError: the command has a parameter of its own with a field's name.
    """
    kinds = {name: kind for value in values for name, kind in _kinds(value).items()}

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        signature = signature.replace(
            parameters=[*own, *(_parameter(name, *kind) for name, kind in kinds.items())]
        )

        @functools.wraps(command)
        def with_options(**options: Any) -> T:
            for name, (kind, _) in kinds.items():
                value = options.pop(name)
                if value is not None:
                    options[name] = _numbers(name, value, kind) if _is_tuple(kind) else value
            return command(**options)

        with_options.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        with_options.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
        return with_options

    return decorate


def flag(name: str, value: Any) -> str:
    """How a field was given on the command line: ``--no-name`` where it was switched off."""
    option = name.replace("_", "-")
    return f"--no-{option}" if value is False else f"--{option}"


def part_of(changes: Mapping[str, Any], value: type) -> dict[str, Any]:
    """Those of the changes that are fields of a dataclass."""
    return {name: change for name, change in changes.items() if name in _kinds(value)}


def _kinds(value: type) -> dict[str, tuple[Any, str]]:
    """Of every field but the name: its type, without None, and its words."""
    hints = get_type_hints(value, include_extras=True)
    hints.pop("name", None)
    kinds = {}
    for name, hint in hints.items():
        kind, words = get_args(hint)
        if NoneType in get_args(kind):
            (kind,) = (part for part in get_args(kind) if part is not NoneType)
        kinds[name] = kind, words
    return kinds


def _parameter(name: str, kind: Any, words: str) -> inspect.Parameter:
    """A parameter that typer makes an option of; None says that it was not given."""
    option = name.replace("_", "-")
    decl = f"--{option}/--no-{option}" if kind is bool else f"--{option}"
    metavar = None
    if _is_tuple(kind):
        parts = ("..." if part is ... else part.__name__ for part in get_args(kind))
        kind, metavar = str, f"<{','.join(parts)}>"
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(decl, metavar=metavar, help=words)],
    )


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _numbers(name: str, text: str, kind: Any) -> tuple[float, ...]:
    """``0.3,0.6`` as numbers, as many as the field has.

    Raises:
        UsageError: they are no numbers, or too few or too many.
    """
    expected = None if ... in get_args(kind) else len(get_args(kind))
    try:
        numbers = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        numbers = None
    if numbers is None or len(numbers) != (expected or len(numbers)):
        many = "numbers" if expected is None else f"{expected} numbers"
        raise UsageError(
            f"--{name.replace('_', '-')} takes {many} with commas between, not '{text}'"
        )
    return numbers
