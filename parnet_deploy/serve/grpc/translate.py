"""Inference by the protocol's messages: the same request, and the same checks, as over HTTP.

A message's tensors become the bytes that stand behind the JSON there. So a request is refused in
the same cases, with the same words, whatever brought it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as messages

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol.datatypes import BYTES, datatype_of
from parnet_deploy.serve.protocol.messages import (
    InputParameters,
    InputTensor,
    OutputParameters,
    RequestedOutput,
    RequestMessage,
)
from parnet_deploy.serve.protocol.request import InferRequest, read_request
from parnet_deploy.serve.protocol.response import encode_outputs
from parnet_deploy.serve.protocol.wording import quoted
from parnet_deploy.serve.signature import VERSION, Signature
from parnet_deploy.spec import Array, TensorSpec

_REGION = "shared_memory_region"

_FIELDS: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "bool"),
    "INT8": ("int_contents", "int32"),
    "INT16": ("int_contents", "int32"),
    "INT32": ("int_contents", "int32"),
    "INT64": ("int64_contents", "int64"),
    "UINT8": ("uint_contents", "uint32"),
    "UINT16": ("uint_contents", "uint32"),
    "UINT32": ("uint_contents", "uint32"),
    "UINT64": ("uint64_contents", "uint64"),
    "FP32": ("fp32_contents", "float32"),
    "FP64": ("fp64_contents", "float64"),
    BYTES: ("bytes_contents", "object"),
}
"""The field of ``InferTensorContents`` for each datatype, and numpy's name of what it holds. There
is none for FP16 and BF16: those are sent raw."""

_AXES = 16
"""Of a shape with more axes than these the rest is not looked at: it is refused as it is."""

_LENGTH = struct.Struct("<I")


def request_of(message: Any, signature: Signature) -> InferRequest:
    """A ``ModelInferRequest``, checked against the model's signature.

    All outputs are wanted as bytes.

    Args:
        message: what a client asks for.
        signature: what the model reads and gives.

    Raises:
        RequestError: 400; the message says what was found and what is expected.
    """
    sources = _sources(message, signature)
    inputs = [
        _input(tensor, None if source is None else len(source))
        for tensor, source in zip(message.inputs, sources, strict=True)
    ]
    outputs = [
        RequestedOutput(name=output.name, parameters=_output_parameters(output.parameters))
        for output in message.outputs
    ]
    given = [source for source in sources if source is not None]
    tail = given[0] if len(given) == 1 else b"".join(given)
    if not outputs:
        outputs = [
            RequestedOutput(name=spec.name, parameters=OutputParameters(binary_data=True))
            for spec in signature.outputs
        ]
    return read_request(
        RequestMessage(inputs=inputs, outputs=outputs, id=message.id), memoryview(tail), signature
    )


def response_of(request: InferRequest, outputs: Mapping[str, Array], signature: Signature) -> bytes:
    """What a model gave as a ``ModelInferResponse``, serialised.

    Args:
        request: what the client asked for, of `request_of`.
        outputs: the model's outputs by name, one row for each of the request's images; finite.
        signature: the model's name and labels.
    """
    response = messages.ModelInferResponse(
        model_name=signature.name, model_version=VERSION, id=request.id
    )
    for tensor, data in encode_outputs(request, outputs, signature):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(data)
    serialised: bytes = response.SerializeToString()
    return serialised


def _sources(message: Any, signature: Signature) -> list[bytes | None]:
    """Every input's bytes, in order; None where it has none."""
    raw, inputs = message.raw_input_contents, message.inputs
    if not raw:
        return [_contents(tensor, signature) for tensor in inputs]
    both = next((tensor for tensor in inputs if tensor.HasField("contents")), None)
    if both is not None:
        raise RequestError(
            400,
            f"input {quoted(both.name)} has contents, and there are raw_input_contents, too; send "
            "all inputs one way",
        )
    if len(raw) != len(inputs):
        raise RequestError(
            400,
            f"there are {len(inputs)} inputs and {len(raw)} raw_input_contents, and one for each "
            "input is expected",
        )
    return list(raw)


def _input(tensor: Any, size: int | None) -> InputTensor:
    region = _parameter(tensor.parameters, _REGION)
    if size is None and region is None:
        raise RequestError(
            400,
            f"input {quoted(tensor.name)} has no data: neither contents nor raw_input_contents",
        )
    return InputTensor(
        name=tensor.name,
        shape=list(tensor.shape[:_AXES]),
        datatype=tensor.datatype,
        parameters=InputParameters(binary_data_size=size, shared_memory_region=region),
    )


def _output_parameters(given: Any) -> OutputParameters:
    classes = _parameter(given, "classification")
    if classes is not None and type(classes) is not int:
        raise RequestError(400, "the parameter 'classification' is a number of classes")
    return OutputParameters(
        binary_data=True,
        classification=classes,
        shared_memory_region=_parameter(given, _REGION),
    )


def _parameter(given: Any, name: str) -> Any:
    """A parameter's value; None where it is not given, or is given without one."""
    if name not in given:  # to ask a map of protobuf for what it has not would put it in
        return None
    kind = given[name].WhichOneof("parameter_choice")
    return None if kind is None else getattr(given[name], kind)


def _contents(tensor: Any, signature: Signature) -> bytes | None:
    """The bytes of an input whose elements stand in fields of their own."""
    if not tensor.HasField("contents"):
        return None
    spec = next((spec for spec in signature.inputs if spec.name == tensor.name), None)
    if spec is None or tensor.datatype not in (datatype_of(spec.dtype), BYTES):
        return b""  # it is refused for that, without a look at its elements
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    field, dtype = _FIELDS.get(tensor.datatype, ("raw_input_contents", ""))
    if wrong := [name for name in filled if name != field]:
        raise RequestError(
            400,
            f"input {quoted(tensor.name)} has {wrong[0]}, and elements of {tensor.datatype} are "
            f"expected in {field}",
        )
    elements = getattr(tensor.contents, field, ())
    _check_count(tensor, len(elements), spec, signature)
    if tensor.datatype == BYTES:
        return b"".join(part for each in elements for part in (_LENGTH.pack(len(each)), each))
    return _numbers(tensor, np.array(elements, dtype), spec)


def _check_count(tensor: Any, count: int, spec: TensorSpec, signature: Signature) -> None:
    """Refuse more elements than any request takes, before they are turned into something larger."""
    largest = signature.batch.max
    limit = largest if tensor.datatype == BYTES else math.prod(spec.concrete(largest))
    if count > limit:
        raise RequestError(
            400,
            f"input {quoted(tensor.name)} has {count} elements, and at most {limit} are taken",
        )


def _numbers(tensor: Any, array: Array, spec: TensorSpec) -> bytes:
    """Numbers as bytes: fields are wider than some datatypes."""
    narrow = array.astype(spec.dtype)
    if narrow.dtype.kind in "iu" and (narrow != array).any():
        limits = np.iinfo(spec.dtype)
        raise RequestError(
            400,
            f"input {quoted(tensor.name)} holds a number that is not {tensor.datatype}: those are "
            f"{limits.min} to {limits.max}",
        )
    return narrow.astype(narrow.dtype.newbyteorder("<"), copy=False).tobytes()
