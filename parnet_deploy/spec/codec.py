"""Specs and manifests as JSON, and back with every type checked."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from parnet_deploy.errors import SpecError

T = TypeVar("T")


def encode(value: object) -> bytes:
    """A frozen dataclass (or anything made of them) as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


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
