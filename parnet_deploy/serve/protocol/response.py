"""An inference response: outputs as a body."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from parnet_deploy.serve.protocol.datatypes import BYTES, datatype_of
from parnet_deploy.serve.protocol.messages import BinarySize, OutputTensor, ResponseMessage
from parnet_deploy.serve.protocol.request import InferRequest, WantedOutput
from parnet_deploy.serve.signature import VERSION, Signature
from parnet_deploy.spec import Array

JSON = "application/json"
BINARY = "application/octet-stream"

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedResponse:
    """A response's body.

    Attributes:
        body: JSON, and behind it the bytes of the outputs that are wanted so.
        header_length: bytes of the JSON, which the client has to be told; None: all of the body.
        content_type: its media type.
    """

    body: bytes
    header_length: int | None
    content_type: str


def encode_response(
    request: InferRequest, outputs: Mapping[str, Array], signature: Signature
) -> EncodedResponse:
    """Encode what a model gave, as the client asked for it.

    Args:
        request: what the client asked for.
        outputs: the model's outputs by name, one row for each of the request's images; finite, as
            JSON has no other numbers and shows them as ``null``.
        signature: the model's name and labels.
    """
    encoded = encode_outputs(request, outputs, signature)
    head = _encoder.encode(
        ResponseMessage(
            id=request.id,
            model_name=signature.name,
            model_version=VERSION,
            outputs=[message for message, _ in encoded],
        )
    )
    tails = [data for _, data in encoded if data is not None]
    if not tails:
        return EncodedResponse(body=head, header_length=None, content_type=JSON)
    return EncodedResponse(
        body=b"".join([head, *tails]), header_length=len(head), content_type=BINARY
    )


def encode_outputs(
    request: InferRequest, outputs: Mapping[str, Array], signature: Signature
) -> list[tuple[OutputTensor, bytes | None]]:
    """Every output that is wanted: what is said of it, and its bytes if it is wanted as bytes.

    Args:
        request: what the client asked for.
        outputs: as `encode_response` takes them.
        signature: the model's labels.
    """
    return [
        _encode_output(wanted, outputs[wanted.name], signature.labels) for wanted in request.outputs
    ]


def _encode_output(
    wanted: WantedOutput, array: Array, labels: Sequence[str]
) -> tuple[OutputTensor, bytes | None]:
    """An output's place in the JSON, and its bytes if it is wanted as bytes."""
    if wanted.classes:
        return _encode_classes(wanted, array, labels)
    datatype = _datatype(array.dtype)
    if not wanted.binary:
        numbers = array.ravel().tolist()
        return OutputTensor(
            name=wanted.name, datatype=datatype, shape=array.shape, data=numbers
        ), None
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return _binary(wanted.name, datatype, array.shape, data)


@cache
def _datatype(dtype: np.dtype[Any]) -> str:
    """Worked out once: numpy makes a dtype's name anew each time, which takes long."""
    return datatype_of(dtype.name)


def _encode_classes(
    wanted: WantedOutput, array: Array, labels: Sequence[str]
) -> tuple[OutputTensor, bytes | None]:
    """The likeliest classes of each image, as Triton's classification extension writes them."""
    rows = array.reshape(len(array), -1)
    texts = [text for row in rows for text in _classes(row, wanted.classes, labels)]
    shape = (len(rows), min(wanted.classes, rows.shape[1]))
    if not wanted.binary:
        return OutputTensor(name=wanted.name, datatype=BYTES, shape=shape, data=texts), None
    return _binary(wanted.name, BYTES, shape, b"".join(map(_counted, texts)))


def _binary(
    name: str, datatype: str, shape: tuple[int, ...], data: bytes
) -> tuple[OutputTensor, bytes]:
    size = BinarySize(binary_data_size=len(data))
    return OutputTensor(name=name, datatype=datatype, shape=shape, parameters=size), data


def _classes(row: Array, count: int, labels: Sequence[str]) -> list[str]:
    """``value:index:label``, highest value first, of equal ones the first; six decimals."""
    order = np.argsort(-row.astype(np.float64), kind="stable")[:count].tolist()
    decimals = ".6f" if row.dtype.kind == "f" else "d"
    named = len(labels) == len(row)
    return [
        f"{row[index].item():{decimals}}:{index}" + (f":{labels[index]}" if named else "")
        for index in order
    ]


def _counted(text: str) -> bytes:
    """A text as an element of a BYTES tensor: its length in four bytes, then itself."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data
