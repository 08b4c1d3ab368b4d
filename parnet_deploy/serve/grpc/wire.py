"""Bytes of a ``ModelInferRequest``, looked through before they are parsed.

An empty tensor takes two bytes on the wire, and fifty times as many once it is parsed. No request
that can be answered has many parts, so that one that has is refused before it grows.

Reference: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tritonclient.grpc import service_pb2 as messages

from parnet_deploy.errors import RequestError

PARTS = 1000
"""Fields of a request, its inputs and its outputs, all together; a usual one has a dozen."""

NO_MESSAGE = "the message is no {}Request"
"""What is said of bytes that cannot be parsed."""

_FIELDS = messages.ModelInferRequest.DESCRIPTOR.fields_by_name
_NESTED = frozenset(_FIELDS[name].number for name in ("inputs", "outputs"))

_VARINT, _64_BITS, _SIZED, _32_BITS = 0, 1, 2, 5
_LONGEST = 10
"""Bytes of a varint."""


def check_parts(data: bytes) -> None:
    """Refuse what has more parts than any request that can be answered.

    Raises:
        RequestError: 400; so it has, or it is no message.
    """
    try:
        has_more = next(islice(_parts(data), PARTS, None), None) is not None
    except ValueError as exc:
        raise RequestError(400, NO_MESSAGE.format("ModelInfer")) from exc
    if has_more:
        raise RequestError(400, f"the message has more than {PARTS} parts")


def _parts(data: bytes) -> Iterator[int]:
    for number, start, end in _fields(data, 0, len(data)):
        yield number
        if number in _NESTED:
            yield from (nested for nested, _, _ in _fields(data, start, end))


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Every field's number, and where what it holds begins and ends.

    Raises:
        ValueError: it is no message.
    """
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        size = 0
        if kind == _VARINT:
            size = _varint(data, position)[1] - position
        elif kind == _SIZED:
            size, position = _varint(data, position)
        elif kind in (_64_BITS, _32_BITS):
            size = 8 if kind == _64_BITS else 4
        else:
            raise ValueError("a group, which nobody uses any more")
        if size > end - position:
            raise ValueError("a field reaches beyond its message")
        yield tag >> 3, position, position + size
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = 0
    for shift, byte in enumerate(data[position : position + _LONGEST]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, position + shift + 1
    raise ValueError("a number does not end")
