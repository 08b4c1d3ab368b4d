"""gRPC and HTTP refuse the same requests with the same words, and make the same of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_protocol import a_signature, an_image
from tritonclient.grpc import service_pb2 as pb

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.grpc.translate import request_of, response_of
from parnet_deploy.serve.grpc.wire import PARTS, check_parts
from parnet_deploy.serve.protocol import InferRequest, encode_response, parse_request

SIGNATURE = a_signature()
ONE, TWO = an_image().tobytes(), an_image(2).tobytes()
FILE = b"\3\0\0\0abc"
SOME = st.sampled_from

TENSORS = st.tuples(
    SOME(["images", "images", "images", "pictures"]),
    st.one_of(
        SOME([(1, 3, 4, 6), (2, 3, 4, 6), (1, 4, 6, 3), (3, 4, 6), (1,), (2,), (1, 1), ()]),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(tuple),
    ),
    SOME(["FP32", "FP32", "BYTES", "INT8", "FP16", "BF16", "XY"]),
    st.one_of(SOME([ONE, TWO, FILE, FILE * 2, ONE[:-1], b""]), st.binary(max_size=20)),
)
OUTPUTS = st.tuples(SOME(["logits", "logits", "classes"]), st.integers(-2, 9))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def both(tensors: list[Any], outputs: list[Any], name: str) -> tuple[Any, bytes, int]:
    """The same request as a message and as a body."""
    message = pb.ModelInferRequest(model_name="tiny", id=name)
    head: dict[str, Any] = {"id": name, "inputs": [], "parameters": {"binary_data_output": True}}
    for its_name, shape, datatype, data in tensors:
        message.inputs.add(name=its_name, shape=shape, datatype=datatype)
        message.raw_input_contents.append(data)
        size = {"binary_data_size": len(data)}
        tensor = {"name": its_name, "shape": shape, "datatype": datatype, "parameters": size}
        head["inputs"].append(tensor)
    for its_name, classes in outputs:
        wanted = message.outputs.add(name=its_name)
        wanted.parameters["classification"].int64_param = classes
        parameters = {"classification": classes}
        head.setdefault("outputs", []).append({"name": its_name, "parameters": parameters})
    body = json.dumps(head).encode()
    return message, body + b"".join(tensor[3] for tensor in tensors), len(body)


def outcome(call: Callable[[], InferRequest]) -> InferRequest | str:
    try:
        return call()
    except RequestError as exc:
        return f"{exc.status} {exc}"


@settings(max_examples=150)
@given(tensors=st.lists(TENSORS, max_size=2), outputs=st.lists(OUTPUTS, max_size=2), name=NAMES)
def test_the_same_request(tensors: list[Any], outputs: list[Any], name: str) -> None:
    message, body, length = both(tensors, outputs, name)
    ours = outcome(lambda: request_of(message, SIGNATURE))
    theirs = outcome(lambda: parse_request(body, length, SIGNATURE))
    if isinstance(theirs, str) or isinstance(ours, str):
        assert ours == theirs
        return
    assert (ours.id, ours.batch) == (theirs.id, theirs.batch)
    assert ours.outputs == theirs.outputs
    for image, other in zip(ours.inputs.values(), theirs.inputs.values(), strict=True):
        if isinstance(image, np.ndarray):
            np.testing.assert_array_equal(image, other)
        else:
            assert image.files == other.files  # type: ignore[union-attr]


@pytest.mark.parametrize("outputs", [[], [("logits", 0)], [("logits", 3)]])
def test_the_same_answer(outputs: list[Any]) -> None:
    message, body, length = both([("images", (2, 3, 4, 6), "FP32", TWO)], outputs, "mine")
    logits = {"logits": np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], np.float32)}
    ours = pb.ModelInferResponse.FromString(
        response_of(request_of(message, SIGNATURE), logits, SIGNATURE)
    )
    theirs = encode_response(parse_request(body, length, SIGNATURE), logits, SIGNATURE)
    head = msgspec.json.decode(theirs.body[: theirs.header_length])
    assert (ours.id, ours.model_name) == (head["id"], head["model_name"])
    assert ours.model_version == head["model_version"]
    (found,), (expected,) = ours.outputs, head["outputs"]
    assert (found.name, found.datatype) == (expected["name"], expected["datatype"])
    assert list(found.shape) == expected["shape"]
    assert ours.raw_output_contents[0] == theirs.body[theirs.header_length :]


def test_raw_tensors_are_not_copied() -> None:
    """But for protobuf's own handing over of the bytes."""
    message, _, _ = both([("images", (1, 3, 4, 6), "FP32", ONE)], [], "")
    image = request_of(message, SIGNATURE).inputs["images"]
    assert isinstance(image, np.ndarray)
    assert not image.flags.owndata
    assert not image.flags.writeable


@given(data=st.binary(max_size=100))
def test_whatever_bytes_are_looked_through(data: bytes) -> None:
    """What is let through is little, and what is refused is no message of this protocol."""
    try:
        check_parts(data)
    except RequestError as exc:
        assert (exc.status, str(exc)) == (400, "the message is no ModelInferRequest")  # noqa: PT017


@given(
    request=st.builds(
        pb.ModelInferRequest,
        id=NAMES,
        raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
    )
)
def test_messages_are_let_through(request: Any) -> None:
    request.inputs.add(name=request.id, shape=[-1, 5, 2**40]).contents.fp32_contents.append(1.5)
    request.outputs.add(name="x" * 200).parameters["y"].double_param = 2.5
    check_parts(request.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        b"\x2a\x00" * PARTS,
        b"\x2a\x06" + b"\x22\x00" * 3 + b"\x3a\x00" * (PARTS - 4),
        b"\x3a\x80\x80\x01" + bytes(1 << 14),
    ],
)
def test_not_too_many_parts(data: bytes) -> None:
    check_parts(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x2a\x00" * (PARTS + 1),
        b"\x32\x00" * (PARTS + 1),
        b"\x2a\x06" + b"\x22\x00" * 3 + b"\x3a\x00" * (PARTS - 3),
        b"\x08\x01" * (PARTS + 1),  # fields that nobody knows
        b"\x0d1234" * (PARTS + 1),
        b"\x0912345678" * (PARTS + 1),
    ],
)
def test_too_many_parts(data: bytes) -> None:
    with pytest.raises(RequestError, match="more than 1000 parts"):
        check_parts(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0b\x0c" + b"\x2a\x00" * (PARTS + 1),  # protobuf reads on behind a group
        b"\x3a\x05abc",
        b"\x2a\x03\x0a\x05a",
        b"\x0d123",
        b"\xff" * 11,
        b"\x80",
    ],
)
def test_no_messages(data: bytes) -> None:
    with pytest.raises(RequestError, match="the message is no ModelInferRequest"):
        check_parts(data)
