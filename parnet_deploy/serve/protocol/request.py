"""An inference request: what a client asks for, checked against the model's signature.

The policy on numbers that are not finite: a NaN or an infinity among a model's inputs is refused
with 400, and so is a number that only its element type rounds to infinity. A network's answer to
them means nothing, and such an answer looks like any other. JSON has no literal for them anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol.datatypes import BYTES, KNOWN, datatype_of
from parnet_deploy.serve.protocol.messages import (
    InputParameters,
    InputTensor,
    OutputParameters,
    RequestedOutput,
    RequestMessage,
    decode_request,
)
from parnet_deploy.serve.protocol.shapes import check_files, check_shape
from parnet_deploy.serve.protocol.tensors import (
    array_from_bytes,
    array_from_json,
    files_from_bytes,
    files_from_json,
)
from parnet_deploy.serve.protocol.wording import listed, quoted, shortened
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array, TensorSpec

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that tells how many of a body's bytes are JSON."""

_KEPT = 4096
"""Bytes of the longest JSON that is remembered once it has been checked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedImages:
    """Files in a format such as JPEG or PNG, in place of a tensor: datatype BYTES, shape [N]."""

    files: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedOutput:
    """An output that a client asked for.

    Attributes:
        name: its name.
        binary: as bytes behind the JSON, instead of numbers in it.
        classes: that many likeliest classes as ``score:index:label`` instead of the tensor; 0: the
            tensor (Triton's classification extension).
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InferRequest:
    """What a client asks for, checked against the model's signature.

    Attributes:
        inputs: by name: (N, 3, H, W) arrays of the model's dtype, or encoded images. Arrays may be
            views of the body, which cannot be written to.
        outputs: what is wanted, in the client's order.
        id: the client's own name of the request; empty where it gave none.
        batch: N, from 1 to what the model takes at most.
    """

    inputs: Mapping[str, Array | EncodedImages]
    outputs: tuple[WantedOutput, ...]
    id: str = ""
    batch: int = 1


def parse_request(
    body: bytes | memoryview, header_length: int | None, signature: Signature
) -> InferRequest:
    """Read a body.

    Args:
        body: JSON, and behind it the bytes of binary tensors in the order of the inputs.
        header_length: bytes of the JSON, as the client's header says; None: all of the body.
        signature: what the model reads and gives.

    Raises:
        RequestError: 400; the message says what was found and what is expected.
    """
    length = _json_length(len(body), header_length)
    view = memoryview(body)
    if length <= _KEPT and length < len(body):
        plan = _kept_plan(bytes(view[:length]), signature)
    else:
        plan = _plan(decode_request(view[:length]), signature)
    return _request(plan, view[length:])


def read_request(message: RequestMessage, tail: memoryview, signature: Signature) -> InferRequest:
    """Check a request that has been taken apart.

    Args:
        message: what a client asks for.
        tail: the bytes of binary tensors, in the order of the inputs.
        signature: what the model reads and gives.

    Raises:
        RequestError: 400, as `parse_request`.
    """
    return _request(_plan(message, signature), tail)


def _json_length(size: int, header_length: int | None) -> int:
    if header_length is None:
        return size
    if not 0 <= header_length <= size:
        raise RequestError(
            400, f"{HEADER_LENGTH} is {shortened(header_length)}, and the body has {size} bytes"
        )
    return header_length


# A request without the bytes behind its JSON


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Input:
    """An input, checked as far as the JSON tells.

    Attributes:
        spec: what the model reads.
        shape: of the tensor; of encoded images (N,) or (N, 1).
        encoded: whether it holds encoded images.
        data: its data in the JSON, where there are any.
        size: else its bytes behind the JSON.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    encoded: bool
    data: msgspec.Raw
    size: int | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Plan:
    """What a request's JSON asks for. Nothing in it can be changed: requests may share it."""

    inputs: tuple[_Input, ...]
    outputs: tuple[WantedOutput, ...]
    id: str


def _plan(message: RequestMessage, signature: Signature) -> _Plan:
    tensors = message.inputs
    specs = {spec.name: spec for spec in signature.inputs}
    _check_names("input", [tensor.name for tensor in tensors], list(specs))
    missing = [quoted(name) for name in specs if name not in {tensor.name for tensor in tensors}]
    if missing:
        some = "the input" if len(missing) == 1 else "the inputs"
        verb = "is" if len(missing) == 1 else "are"
        raise RequestError(400, f"{some} {', '.join(missing)} {verb} missing")
    inputs = tuple(_input(tensor, specs[tensor.name], signature) for tensor in tensors)
    if len({each.shape[0] for each in inputs}) > 1:
        raise RequestError(400, "the inputs hold different numbers of images")
    return _Plan(inputs=inputs, outputs=_wanted(message, signature), id=message.id or "")


@functools.lru_cache(maxsize=32)
def _kept_plan(json: bytes, signature: Signature) -> _Plan:
    """The same out of a short JSON: clients send theirs again and again, to the byte."""
    return _plan(decode_request(memoryview(json)), signature)


def _input(tensor: InputTensor, spec: TensorSpec, signature: Signature) -> _Input:
    _check_tensor(tensor, spec, signature)
    parameters = tensor.parameters or InputParameters()
    _refuse_shared_memory("input", tensor.name, parameters.shared_memory_region)
    size = parameters.binary_data_size
    if (size is None) != tensor.has_data:
        found = "no data" if size is None else "both"
        raise RequestError(
            400,
            f"input {quoted(tensor.name)} has {found}, and either data or binary_data_size is "
            "expected",
        )
    return _Input(
        spec=spec,
        shape=tuple(tensor.shape),
        encoded=tensor.datatype == BYTES,
        data=tensor.data,
        size=size,
    )


def _check_tensor(tensor: InputTensor, spec: TensorSpec, signature: Signature) -> None:
    """Compare an input's datatype and shape with what the model reads."""
    expected, image = datatype_of(spec.dtype), spec == signature.image
    if tensor.datatype == BYTES and image:
        check_files(tensor.shape, spec.name, signature.batch)
    elif tensor.datatype == expected:
        check_shape(tensor.shape, spec, signature.batch)
    else:
        kind = "" if tensor.datatype in KNOWN else "unknown "
        other = f" (or {BYTES}, for encoded images)" if image else ""
        raise RequestError(
            400,
            f"input {quoted(spec.name)} has the {kind}datatype {quoted(tensor.datatype)}, and "
            f"{expected}{other} is expected",
        )


# The bytes behind it


def _request(plan: _Plan, tail: memoryview) -> InferRequest:
    """A plan with its inputs' values; `tail` is what stands behind the JSON."""
    values: dict[str, Array | EncodedImages] = {}
    for each in plan.inputs:
        if each.size is None:
            values[each.spec.name] = _read_json(each)
        else:
            _check_size(each.spec.name, each.size, len(tail))
            values[each.spec.name] = _read_bytes(each, tail[: each.size])
            tail = tail[each.size :]
    if tail:
        raise RequestError(400, f"{len(tail)} bytes are left behind the last input's data")
    return InferRequest(
        inputs=values, outputs=plan.outputs, id=plan.id, batch=plan.inputs[0].shape[0]
    )


def _check_size(name: str, size: int, left: int) -> None:
    if not 0 <= size <= left:
        hint = "" if left else f"; {HEADER_LENGTH} tells where the JSON ends"
        raise RequestError(
            400,
            f"input {quoted(name)} has a binary_data_size of {shortened(size)}, and {left} bytes "
            f"are left behind the JSON{hint}",
        )


def _read_json(each: _Input) -> Array | EncodedImages:
    if each.encoded:
        return EncodedImages(files=files_from_json(each.spec.name, each.data, each.shape))
    return array_from_json(each.spec.name, each.data, each.spec.dtype, each.shape)


def _read_bytes(each: _Input, data: memoryview) -> Array | EncodedImages:
    if each.encoded:
        return EncodedImages(files=files_from_bytes(each.spec.name, data, each.shape[0]))
    return array_from_bytes(each.spec.name, data, each.spec.dtype, each.shape)


# Outputs


def _wanted(message: RequestMessage, signature: Signature) -> tuple[WantedOutput, ...]:
    """The outputs that a client asked for, or all of them."""
    names = [spec.name for spec in signature.outputs]
    parameters = message.parameters
    binary = parameters is not None and bool(parameters.binary_data_output)
    if not message.outputs:
        return tuple(WantedOutput(name=name, binary=binary) for name in names)
    _check_names("output", [output.name for output in message.outputs], names)
    return tuple(_wanted_output(output, binary=binary) for output in message.outputs)


def _wanted_output(output: RequestedOutput, *, binary: bool) -> WantedOutput:
    parameters = output.parameters or OutputParameters()
    _refuse_shared_memory("output", output.name, parameters.shared_memory_region)
    classes = parameters.classification or 0
    if classes < 0:
        raise RequestError(
            400,
            f"output {quoted(output.name)} is wanted with a classification of "
            f"{shortened(classes)}, and a number of classes is expected",
        )
    own = parameters.binary_data
    return WantedOutput(name=output.name, binary=binary if own is None else own, classes=classes)


def _check_names(kind: str, found: Iterable[str], expected: Sequence[str]) -> None:
    """Refuse names that the model does not have, and those that stand twice."""
    seen: set[str] = set()
    for name in found:
        if name not in expected:
            raise RequestError(
                400, f"the model has no {kind} {quoted(name)}; {listed(kind, expected)}"
            )
        if name in seen:
            raise RequestError(400, f"the {kind} {quoted(name)} is given twice")
        seen.add(name)


def _refuse_shared_memory(kind: str, name: str, region: object) -> None:
    if region is not None:
        raise RequestError(
            400,
            f"{kind} {quoted(name)} is in shared memory, which is not offered; send and fetch it "
            "in the body",
        )
