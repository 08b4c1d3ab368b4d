"""Whatever arrives, it is a request or it is refused as the client's mistake."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serve_protocol import a_signature, an_image, binary_input, json_input

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol import InferRequest, encode_response, parse_request

NUMBERS = st.one_of(
    st.integers(-2, 6),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**40, 1e308, 0.5, -0.0]),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["images", "logits", "FP32", "BYTES", "UINT8", "BF16", "QUJD", "\ud800", "\0", "x" * 300]
    ),
)
NAMES = st.sampled_from(
    [
        "inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data",
        "binary_data_size", "binary_data", "binary_data_output", "classification",
        "shared_memory_region", "shared_memory_byte_size", "sequence_id", "priority", "timeout", "",
    ]
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(NAMES, st.text(max_size=3)), inner, max_size=5),
    ),
    max_leaves=20,
)


def outcome(body: bytes, length: int | None) -> InferRequest | None:
    """A request that can be answered, or None if it was refused; nothing else may happen."""
    refusal = None
    try:
        request = parse_request(body, length, a_signature())
    except RequestError as exc:
        refusal = exc
    if refusal is not None:
        assert 400 <= refusal.status < 500
        assert 0 < len(str(refusal)) < 500
        msgspec.json.encode({"error": str(refusal)})
        return None
    check_answerable(request)
    return request


def check_answerable(request: InferRequest) -> None:
    assert 1 <= request.batch <= 4
    for value in request.inputs.values():
        if isinstance(value, np.ndarray):
            assert value.shape == (request.batch, 3, 4, 6)
            assert value.dtype == np.float32
            assert np.isfinite(value).all()
        else:
            assert len(value.files) == request.batch
    answer = np.zeros((request.batch, 5), np.float32)
    response = encode_response(request, {"logits": answer}, a_signature())
    json.loads(response.body[: response.header_length])


@given(st.binary(max_size=400), st.none() | st.integers(-5, 500))
@settings(max_examples=300)
def test_any_bytes(body: bytes, length: int | None) -> None:
    outcome(body, length)


@given(VALUES, st.binary(max_size=20), st.none() | st.integers(-5, 500))
@settings(max_examples=300)
def test_any_json(value: object, tail: bytes, length: int | None) -> None:
    head = json.dumps(value).encode()
    outcome(head + tail, len(head) if length is None else length)
    outcome(head, None)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a value of JSON; of a long list's items only the first four."""
    found = [path]
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = list(enumerate(value))[:4]
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def changed(message: Any, path: tuple[Any, ...], value: object) -> Any:
    """A copy with another value at one place; ``...`` takes away what is there."""
    if not path:
        return None if value is ... else value
    message = copy.deepcopy(message)
    parent = message
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return message


def messages() -> list[tuple[Any, bytes]]:
    """Requests that are as they should be, of every form."""
    image = an_image(2)
    files = b"\3\0\0\0abc\0\0\0\0"
    encoded = {"name": "images", "shape": [2], "datatype": "BYTES"}
    outputs = [{"name": "logits", "parameters": {"binary_data": True, "classification": 2}}]
    return [
        (
            {"id": "7", "inputs": [binary_input(image)], "outputs": outputs, "parameters": {}},
            image.tobytes(),
        ),
        ({"inputs": [json_input(image)], "parameters": {"binary_data_output": True}}, b""),
        ({"inputs": [json_input(image, data=image.tolist())], "outputs": []}, b""),
        ({"inputs": [{**encoded, "parameters": {"binary_data_size": len(files)}}]}, files),
        ({"inputs": [{**encoded, "data": ["QUJD", ""]}]}, b""),
    ]


def test_what_is_changed_below_is_accepted_unchanged() -> None:
    for message, tail in messages():
        head = json.dumps(message).encode()
        assert outcome(head + tail, len(head)) is not None


@given(st.data())
@settings(max_examples=400)
def test_a_request_with_something_changed(data: st.DataObject) -> None:
    message, tail = data.draw(st.sampled_from(messages()))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(message)))
        message = changed(message, path, data.draw(st.just(...) | VALUES))
    head = json.dumps(message).encode()
    cut = data.draw(st.integers(-3, 3))
    tail = tail[:cut] if cut < 0 else tail + b"\0" * cut
    outcome(head + tail, len(head) + data.draw(st.sampled_from([0, 0, 0, -1, 1])))


@given(st.data())
@settings(max_examples=300)
def test_a_body_with_some_bytes_changed(data: st.DataObject) -> None:
    message, tail = data.draw(st.sampled_from(messages()))
    head = json.dumps(message).encode()
    body = bytearray(head + tail)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(body), len(head))


@given(st.text(max_size=20))
@example("\ud800")
@example("\x00\u2028")
def test_any_name_of_a_request_comes_back_or_is_refused(name: str) -> None:
    image = an_image()
    message = {"id": name, "inputs": [binary_input(image)]}
    head = json.dumps(message).encode()
    request = outcome(head + image.tobytes(), len(head))
    if request is not None:
        response = encode_response(request, {"logits": np.zeros((1, 5), np.float32)}, a_signature())
        assert json.loads(response.body).get("id", "") == name
    else:
        assert any("\ud800" <= letter <= "\udfff" for letter in name)
