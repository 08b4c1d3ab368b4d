"""What a line of the log says, in text or in JSON."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

_IN_MESSAGE = frozenset(("event", "method", "path", "status"))
"""Facts that the text has in its message already."""


class Said(NamedTuple):
    """Something that is to be logged.

    Attributes:
        when: seconds since 1970.
        level: of `logging`.
        logger: its name.
        message: in short.
        request: the id of the request that it belongs to; empty where it belongs to none.
        facts: what JSON has as fields of their own.
        error: what was raised.
    """

    when: float
    level: int
    logger: str
    message: str
    request: str
    facts: Mapping[str, Any]
    error: BaseException | None = None


def in_text(said: Said) -> str:
    """``2026-01-31T12:00:00.000Z INFO POST /classify 200 id=... ms=3.1``; a traceback follows."""
    parts = [_time(said.when), logging.getLevelName(said.level), _flat(said.message)]
    facts = said.facts
    if name := facts.get("id", said.request):
        parts.append(f"id={_flat(name)}")
    for name, value in facts.items():
        if name == "id" or name in _IN_MESSAGE:
            continue
        if isinstance(value, int | float):
            parts.append(f"{name}={value}")
        elif value != "":
            parts.append(f"{name}={_flat(str(value))}")
    line = " ".join(parts)
    return line if said.error is None else f"{line}\n{_traceback(said.error)}"


def in_json(said: Said) -> str:
    """One JSON object, the traceback in a field of it."""
    line: dict[str, Any] = {
        "time": _time(said.when),
        "level": logging.getLevelName(said.level).lower(),
        "logger": said.logger,
        "message": said.message,
    }
    if said.request:
        line["id"] = said.request
    line |= said.facts
    if said.error is not None:
        line["traceback"] = _traceback(said.error)
    return msgspec.json.encode(line).decode()


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _time(when: float) -> str:
    return f"{_second(int(when))}.{int(when * 1000) % 1000:03d}Z"


@lru_cache(maxsize=4)
def _second(when: int) -> str:
    """Most lines are of the same second as the line before."""
    return f"{datetime.fromtimestamp(when, tz=UTC):%Y-%m-%dT%H:%M:%S}"


def _flat(text: str) -> str:
    """In one line, whatever a client put into it."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
