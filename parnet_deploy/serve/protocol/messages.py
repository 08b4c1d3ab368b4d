"""The JSON of requests and responses, as values.

Members that are not named here are ignored, as the protocol has it. So are parameters: a network
keeps nothing from one request to the next, hence ``sequence_id`` and its like change nothing, and
a request's deadline is the server's, not its own ``timeout``. Of a name that stands twice in one
object the last one counts. ``null`` is taken for a member that is not there.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol.wording import quoted

T = TypeVar("T")

# Requests


class InputParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How an input is sent."""

    binary_data_size: int | None = None
    shared_memory_region: Any = None


class InputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input; its data stay JSON until it is known what they have to be."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def has_data(self) -> bool:
        """Whether it has data in the JSON."""
        return bytes(memoryview(self.data)[:4]) != b"null"


class OutputParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How an output is wanted."""

    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: Any = None


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """An output that is wanted."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for the request as a whole."""

    binary_data_output: bool | None = None


class RequestMessage(msgspec.Struct, frozen=True, kw_only=True):
    """An inference request's JSON."""

    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = None
    parameters: RequestParameters | None = None
    id: str | None = None


class _SentTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input whose shape is still JSON: a list of a million numbers is no shape."""

    name: str
    shape: msgspec.Raw
    datatype: str
    parameters: InputParameters | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _SentMessage(msgspec.Struct, frozen=True, kw_only=True):
    """An inference request's JSON as it is sent."""

    inputs: list[_SentTensor]
    outputs: list[RequestedOutput] | None = None
    parameters: RequestParameters | None = None
    id: str | None = None


# Responses


class BinarySize(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of an output that stand behind the JSON."""

    binary_data_size: int


class OutputTensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An output, with its data or with their size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: BinarySize | None = None
    data: list[Any] | None = None


class ResponseMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An inference response's JSON."""

    id: str = ""
    model_name: str
    model_version: str
    outputs: list[OutputTensor]


_REQUESTS = msgspec.json.Decoder(_SentMessage)
_SHAPES = msgspec.json.Decoder(list[int])

_LONGEST_SHAPE = 4096
"""Bytes of a shape's JSON."""

_MOST_INPUTS = 64
"""Inputs that are looked at; no model has so many."""


def decode_request(data: memoryview) -> RequestMessage:
    """A request's JSON.

    Raises:
        RequestError: 400, as `decode` raises it; or there are very many inputs, or axes of one.
    """
    if not data:
        raise RequestError(400, "the body is empty, and an inference request is expected")
    sent = decode(_REQUESTS, data, "the request")
    if len(sent.inputs) > _MOST_INPUTS:
        raise RequestError(400, f"{len(sent.inputs)} inputs are given, and no model has so many")
    return RequestMessage(
        inputs=[_tensor(each) for each in sent.inputs],
        outputs=sent.outputs,
        parameters=sent.parameters,
        id=sent.id,
    )


def _tensor(sent: _SentTensor) -> InputTensor:
    length = memoryview(sent.shape).nbytes
    if length > _LONGEST_SHAPE:
        raise RequestError(
            400,
            f"the shape of input {quoted(sent.name)} is {length} bytes of JSON, and no shape is "
            "so long",
        )
    return InputTensor(
        name=sent.name,
        shape=decode(_SHAPES, sent.shape, f"the shape of input {quoted(sent.name)}"),
        datatype=sent.datatype,
        parameters=sent.parameters,
        data=sent.data,
    )


def decode(decoder: msgspec.json.Decoder[T], data: memoryview | msgspec.Raw, what: str) -> T:
    """JSON as a value.

    Args:
        decoder: of the value's type.
        data: JSON in UTF-8.
        what: what it is, for the messages.

    Raises:
        RequestError: 400; it is not JSON, is nested too deeply, is not UTF-8, or something in it
            is missing, of another type, or a number with too many digits.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as exc:
        raise RequestError(400, f"{what} cannot be read: {exc}") from exc
    except msgspec.DecodeError as exc:
        raise RequestError(400, f"{what} cannot be read as JSON: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise RequestError(400, f"{what} cannot be read as JSON: it is not UTF-8") from exc
    except RecursionError as exc:
        raise RequestError(400, f"{what} cannot be read: it is nested too deeply") from exc
