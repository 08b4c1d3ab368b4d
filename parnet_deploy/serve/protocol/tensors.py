"""Arrays and encoded images, out of bytes or out of JSON."""

from __future__ import annotations

import binascii
import functools
import itertools
import math
import re
import struct
from typing import Any

import msgspec
import numpy as np

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol.datatypes import datatype_of
from parnet_deploy.serve.protocol.messages import decode
from parnet_deploy.serve.protocol.wording import quoted, shown
from parnet_deploy.spec import Array

_KINDS: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}
"""What numpy's kinds of element types are in JSON."""

_LENGTH = struct.Struct("<I")
_OPENING = re.compile(rb"[\s\[]*")
_TEXT_OR_COMMA = re.compile(rb'"(?:[^"\\]|\\.)*+"|,', re.DOTALL)


def array_from_bytes(name: str, data: memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    """An array of what a client sent as bytes: little-endian, row by row, without gaps.

    Args:
        name: the input's name, for the messages.
        data: its bytes.
        dtype: numpy's name of its element type.
        shape: its shape, already checked against the model's.

    Returns:
        A view of `data`, which cannot be written to; a copy where they are not aligned.

    Raises:
        RequestError: 400; there are fewer or more bytes than the shape needs, or a number is not
            finite.
    """
    wire = np.dtype(dtype).newbyteorder("<")
    needed = math.prod(shape) * wire.itemsize
    if len(data) != needed:
        raise RequestError(
            400,
            f"input {quoted(name)} has {len(data)} bytes of data, and its shape {shown(shape)} "
            f"takes {needed} in {datatype_of(dtype)}",
        )
    array: Array = np.frombuffer(data, wire).reshape(shape)
    if not (array.flags.aligned and wire.isnative):
        array = array.astype(dtype)
    _check_finite(name, array)
    return array


def array_from_json(name: str, data: msgspec.Raw, dtype: str, shape: tuple[int, ...]) -> Array:
    """An array of numbers in JSON: a flat list, or lists nested as the shape says.

    Args:
        name: the input's name, for the messages.
        data: the JSON.
        dtype: numpy's name of its element type; what it cannot hold exactly is rounded.
        shape: its shape, already checked against the model's.

    Raises:
        RequestError: 400; it is not such a list, there are fewer or more numbers than the shape
            needs, or one is out of the element type's range or, rounded, not finite.
    """
    array = _arranged(name, data, np.dtype(dtype), shape)
    _check_finite(name, array)
    return array


def files_from_bytes(name: str, data: memoryview, count: int) -> tuple[bytes, ...]:
    """Encoded images: each is its length in four bytes, little-endian, and then itself.

    Raises:
        RequestError: 400; a length reaches beyond the data, or bytes are left behind the last.
    """
    files, start = [], 0
    for number in range(count):
        if len(data) - start < _LENGTH.size:
            raise RequestError(
                400, f"input {quoted(name)} ends before image {number} of {count} begins"
            )
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise RequestError(
                400,
                f"input {quoted(name)} says that image {number} has {length} bytes, and "
                f"{len(data) - start} are left",
            )
        files.append(bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise RequestError(
            400,
            f"input {quoted(name)} has {len(data) - start} bytes behind the last of its {count} "
            "images",
        )
    return tuple(files)


def files_from_json(name: str, data: msgspec.Raw, shape: tuple[int, ...]) -> tuple[bytes, ...]:
    """Encoded images in JSON, which cannot hold bytes: as base64 text (RFC 4648, section 4).

    Raises:
        RequestError: 400; it is not a list of as many texts as the shape says, or one is not
            base64.
    """
    texts = _arranged(name, data, np.dtype(object), shape).ravel()
    files = []
    for number, text in enumerate(texts):
        try:
            files.append(binascii.a2b_base64(text, strict_mode=True))
        except ValueError as exc:
            raise RequestError(
                400,
                f"input {quoted(name)}: image {number} is not base64; send it so in JSON, or as "
                "bytes behind it (binary_data_size)",
            ) from exc
    return tuple(files)


def _arranged(name: str, data: msgspec.Raw, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """JSON's numbers or texts as an array of a shape."""
    depth = max(1, _depth(data))
    if depth not in (1, len(shape)):
        raise RequestError(
            400,
            f"the data of input {quoted(name)} are nested {depth} deep, and a flat list or one "
            f"nested as its shape {shown(shape)} is expected",
        )
    _check_length(name, data, shape, depth)
    decoder = _decoder(_KINDS.get(dtype.kind, str), depth)
    values = decode(decoder, data, f"the data of input {quoted(name)}")
    array = _filled(name, values, dtype)
    if array.size != math.prod(shape) or (depth > 1 and array.shape != shape):
        found = f"have shape {shown(array.shape)}" if depth > 1 else f"are {array.size} elements"
        raise RequestError(
            400,
            f"the data of input {quoted(name)} {found}, and its shape {shown(shape)} takes "
            f"{math.prod(shape)}",
        )
    return array.reshape(shape)


def _check_length(name: str, data: msgspec.Raw, shape: tuple[int, ...], depth: int) -> None:
    """Refuse lists that hold more than a shape takes while they are still JSON.

    Two bytes of it would become 32 as a number in a list, and a list of its own takes a hundred.
    What is missing, or wrong in another way, shows when the lists are made.
    """
    text = np.frombuffer(data, np.uint8)
    most = math.prod(shape)
    elements, more = 1 + int(np.count_nonzero(text == ord(","))), ""
    if elements > most and np.count_nonzero(text == ord('"')):  # commas in texts separate nothing
        found = (match.start() for match in _TEXT_OR_COMMA.finditer(data))
        commas = (start for start in found if text[start] == ord(","))
        elements, more = 1 + sum(1 for _ in itertools.islice(commas, most)), " or more"
    if elements > most:
        raise RequestError(
            400,
            f"the data of input {quoted(name)} are {elements} elements{more}, and its shape "
            f"{shown(shape)} takes {most}",
        )
    # Axes in another order have more lists, and are told so when they are made.
    most_lists = max(most, sum(math.prod(shape[:level]) for level in range(depth)))
    if depth > 1 and (lists := np.count_nonzero(text == ord("["))) > most_lists:
        raise RequestError(
            400,
            f"the data of input {quoted(name)} are {lists} lists, more than any of shape "
            f"{shown(shape)}",
        )


def _filled(name: str, values: list[Any], dtype: np.dtype[Any]) -> Array:
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype)
    except OverflowError as exc:
        limits = np.iinfo(dtype)
        raise RequestError(
            400,
            f"input {quoted(name)} holds a number that is not {datatype_of(dtype.name)}: those "
            f"are {limits.min} to {limits.max}",
        ) from exc
    except ValueError as exc:
        raise RequestError(
            400, f"the data of input {quoted(name)} are lists of different lengths"
        ) from exc


def _depth(data: msgspec.Raw) -> int:
    """How many lists begin at the start of JSON."""
    opening = _OPENING.match(memoryview(data))
    return opening.group().count(b"[") if opening else 0


@functools.cache
def _decoder(kind: type, depth: int) -> msgspec.json.Decoder[Any]:
    """A decoder of lists of lists ... of a type; cached, as there are few."""
    nested: Any = kind
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested)


def _check_finite(name: str, array: Array) -> None:
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    where = np.unravel_index(np.argmin(finite), array.shape)
    raise RequestError(
        400,
        f"input {quoted(name)} is {array[where]} at {shown(map(int, where))}, and every number "
        "has to be finite",
    )
