"""What a client sent, as an error message shows it: short and on one line, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_LONGEST = 64


def quoted(text: str) -> str:
    """A name between quotation marks; what cannot be printed is written out."""
    return f"'{''.join(map(_printable, shortened(text)))}'"


def shown(shape: Iterable[int | str]) -> str:
    """A shape, such as ``[N, 3, 224, 224]``."""
    return f"[{shortened(', '.join(map(str, shape)))}]"


def shortened(value: str | int) -> str:
    """A text or a number, cut where it is long."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def listed(kind: str, names: Sequence[str]) -> str:
    """What a model has of a kind: ``its only input is 'images'``, ``its inputs are 'a', 'b'``."""
    if len(names) == 1:
        return f"its only {kind} is '{names[0]}'"
    return f"its {kind}s are {', '.join(map(repr, names))}"


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
