"""Specs and manifests as JSON, and back with every type checked."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from parnet_deploy.errors import SpecError

T = TypeVar("T")


def encode(value: object) -> bytes:
    r"""A frozen dataclass (or anything made of them) as indented JSON.

    JSON is UTF-8, and a file's name need not be: what is not stands there as ``\udcff``, as it is
    shown on a terminal.
    """
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        data = msgspec.json.encode(_printable(msgspec.to_builtins(value)))
    return msgspec.json.format(data, indent=2) + b"\n"


def encode_line(value: object) -> bytes:
    """The same in one line, which ends it: what two processes say to each other."""
    return msgspec.json.encode(value) + b"\n"


def decode(data: bytes | str, kind: type[T]) -> T:
    """JSON as a value of the given dataclass.

    Raises:
        SpecError: the text is not JSON, or a field is missing or of the wrong type; the message
            names it. Fields that the class does not have are ignored.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as exc:
        raise SpecError(f"not a {kind.__name__}: {exc}") from exc


def _printable(value: Any) -> Any:
    """The same with its texts' lone surrogates written out; dicts and lists are copied."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value
