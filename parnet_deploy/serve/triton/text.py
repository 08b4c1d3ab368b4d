"""Protocol buffers' text format, which ``config.pbtxt`` is written in.

Reference: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

Scalar: TypeAlias = str | int | bool
Value: TypeAlias = "Scalar | Message | Sequence[Scalar | Message]"
Message: TypeAlias = Mapping[str, Value]

_ESCAPES = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


class Word(str):
    """A value of an enumeration: it stands without quotes."""

    __slots__ = ()


def to_text(message: Message) -> str:
    """A message as text, one field a line.

    A field is a scalar, a message, or a sequence of either, which is a repeated field; an empty
    one is left out, a scalar of 0 or ``false`` is not.
    """
    return "".join(f"{line}\n" for line in _lines(message))


def entries(pairs: Mapping[str, Value]) -> list[Message]:
    """A map field: a message of a key and a value for each entry."""
    return [{"key": key, "value": value} for key, value in pairs.items()]


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value)
        elif isinstance(value, str | int):
            yield f"{name}: {_scalar(value)}"
        else:
            yield from _repeated(name, value)


def _repeated(name: str, values: Sequence[Scalar | Message]) -> Iterator[str]:
    scalars = [_scalar(value) for value in values if not isinstance(value, Mapping)]
    if scalars:
        yield f"{name}: [{', '.join(scalars)}]"
    for value in values:
        if isinstance(value, Mapping):
            yield from _block(name, value)


def _block(name: str, message: Message) -> Iterator[str]:
    yield f"{name} {{"
    for line in _lines(message):
        yield f"  {line}"
    yield "}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    return f'"{"".join(map(_character, value))}"'


def _character(character: str) -> str:
    """A character as it stands between quotes: what is not printable ASCII, byte by byte."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    if " " <= character <= "~":
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8"))
