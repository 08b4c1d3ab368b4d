"""Requests of the Open Inference Protocol that are as they should be."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serve_protocol import (
    DATATYPES,
    a_signature,
    an_image,
    binary_body,
    binary_input,
    body_of,
    image_in,
    json_input,
    parsed,
    refused,
)

import parnet_deploy.serve.protocol.request as request_module
from parnet_deploy.bundle import BatchRange
from parnet_deploy.serve.protocol import EncodedImages, WantedOutput, parse_request
from parnet_deploy.spec import Array, TensorSpec

# Tensors


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_binary_tensor_is_a_view_of_the_body(dtype: str) -> None:
    images = an_image(2, dtype)
    message = {"inputs": [binary_input(images)]}
    for padding in range(16):
        head = json.dumps(message).encode() + b" " * padding
        body = head + images.tobytes()
        request = parse_request(body, len(head), a_signature(dtype))
        found = image_in(request)
        np.testing.assert_array_equal(found, images, strict=True)
        assert request.batch == 2
        there = np.frombuffer(body, np.uint8)
        aligned = (there.ctypes.data + len(head)) % images.itemsize == 0
        assert np.shares_memory(found, there) == aligned
        assert found.flags.aligned
        assert found.flags.c_contiguous


def test_both_alignments_of_floats_occurred() -> None:
    """Otherwise the test above would not have seen the copy."""
    body, length = binary_body(an_image())
    begin = np.frombuffer(body, np.uint8).ctypes.data
    assert {(begin + length + padding) % 4 for padding in range(16)} == {0, 1, 2, 3}


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float16"])
@pytest.mark.parametrize("nested", [False, True])
def test_numbers_in_json(dtype: str, nested: bool) -> None:
    images = an_image(3, dtype)
    data = images.tolist() if nested else images.ravel().tolist()
    message = {"inputs": [json_input(images, data=data)]}
    body, _ = body_of(message)
    request = parse_request(body, None, a_signature(dtype))
    np.testing.assert_array_equal(image_in(request), images, strict=True)
    assert request.batch == 3


def test_the_whole_body_may_be_declared_to_be_json() -> None:
    body, length = body_of({"inputs": [json_input(an_image())]})
    assert length == len(body)
    assert parse_request(body, length, a_signature()).batch == 1


def test_whole_numbers_are_floats_too() -> None:
    data = [1] * 71 + [2**70]
    found = image_in(parsed({"inputs": [json_input(an_image(), data=data)]}))
    assert found.ravel()[[0, -1]].tolist() == [1.0, 2.0**70]


@given(
    dtype=st.sampled_from(sorted(DATATYPES)),
    batch=st.integers(1, 4),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    binary=st.booleans(),
    data=st.data(),
)
def test_every_shape_and_dtype_arrives(
    dtype: str, batch: int, sizes: tuple[int, int, int], binary: bool, data: st.DataObject
) -> None:
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    drawn = arrays.arrays(
        dtype, (batch, *sizes), elements=arrays.from_dtype(np.dtype(dtype), **elements)
    )
    images = data.draw(drawn)
    spec = TensorSpec(name="images", shape=("N", *sizes), dtype=dtype)
    signature = a_signature(inputs=(spec,))
    if binary:
        body, length = binary_body(images)
        request = parse_request(body, length, signature)
    else:
        request = parse_request(body_of({"inputs": [json_input(images)]})[0], None, signature)
    np.testing.assert_array_equal(image_in(request), images, strict=True)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fewer_images_than_a_fixed_batch_are_welcome(batch: int) -> None:
    signature = a_signature(
        batch=BatchRange(min=3, opt=3, max=3),
        inputs=(TensorSpec(name="images", shape=(3, 3, 4, 6), dtype="float32"),),
    )
    assert parse_request(*binary_body(an_image(batch)), signature).batch == batch


def test_several_inputs_come_in_the_order_of_the_client() -> None:
    specs = tuple(
        TensorSpec(name=name, shape=("N", size), dtype=dtype)
        for name, size, dtype in (("a", 2, "float32"), ("b", 3, "uint8"), ("c", 1, "int64"))
    )
    a, b = np.float32([[1, 2]]), np.uint8([[3, 4, 5]])
    request = parsed(
        {
            "inputs": [
                binary_input(b, name="b"),
                json_input(np.int64([[-(2**63)]]), name="c"),
                binary_input(a, name="a"),
            ]
        },
        b.tobytes(),
        a.tobytes(),
        signature=a_signature(inputs=specs),
    )
    assert {name: np.asarray(value).tolist() for name, value in request.inputs.items()} == {
        "a": [[1, 2]],
        "b": [[3, 4, 5]],
        "c": [[-(2**63)]],
    }


# Encoded images

FILES = (b"\xff\xd8 a JPEG", b"", b"\x00\xff" * 500)


def encoded_input(shape: list[int], **changes: Any) -> dict[str, Any]:
    return {"name": "images", "shape": shape, "datatype": "BYTES", **changes}


def counted(files: tuple[bytes, ...]) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_encoded_images_as_bytes(shape: list[int]) -> None:
    tail = counted(FILES)
    given_input = encoded_input(shape, parameters={"binary_data_size": len(tail)})
    request = parsed({"inputs": [given_input]}, tail)
    images = request.inputs["images"]
    assert isinstance(images, EncodedImages)
    assert images.files == FILES
    assert request.batch == 3


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("nested", [False, True])
def test_encoded_images_as_base64(shape: list[int], nested: bool) -> None:
    texts: Array = np.array([base64.b64encode(file).decode() for file in FILES], object)
    data = texts.reshape(shape).tolist() if nested else texts.tolist()
    request = parsed({"inputs": [encoded_input(shape, data=data)]}, signature=a_signature("uint8"))
    images = request.inputs["images"]
    assert isinstance(images, EncodedImages)
    assert images.files == FILES


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_any_files_arrive(files: list[bytes]) -> None:
    tail = counted(tuple(files))
    for changes, tails in (
        ({"parameters": {"binary_data_size": len(tail)}}, [tail]),
        ({"data": [base64.b64encode(file).decode() for file in files]}, []),
    ):
        request = parsed({"inputs": [encoded_input([len(files)], **changes)]}, *tails)
        images = request.inputs["images"]
        assert isinstance(images, EncodedImages)
        assert images.files == tuple(files)


# What is wanted


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, WantedOutput(name="logits")),
        ({"outputs": []}, WantedOutput(name="logits")),
        ({"outputs": [{"name": "logits"}]}, WantedOutput(name="logits")),
        (
            {"parameters": {"binary_data_output": True}},
            WantedOutput(name="logits", binary=True),
        ),
        (
            {"parameters": {"binary_data_output": True}, "outputs": [{"name": "logits"}]},
            WantedOutput(name="logits", binary=True),
        ),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
            },
            WantedOutput(name="logits"),
        ),
        (
            {
                "outputs": [
                    {"name": "logits", "parameters": {"binary_data": True, "classification": 3}}
                ]
            },
            WantedOutput(name="logits", binary=True, classes=3),
        ),
    ],
)
def test_wanted_outputs(members: dict[str, Any], wanted: WantedOutput) -> None:
    request = parse_request(*binary_body(an_image(), **members), a_signature())
    assert request.outputs == (wanted,)


def test_outputs_come_in_the_order_of_the_client() -> None:
    outputs = tuple(TensorSpec(name=n, shape=("N", 5), dtype="float32") for n in "abc")
    members = {"outputs": [{"name": "c"}, {"name": "a"}]}
    request = parse_request(*binary_body(an_image(), **members), a_signature(outputs=outputs))
    assert [wanted.name for wanted in request.outputs] == ["c", "a"]
    request = parse_request(*binary_body(an_image()), a_signature(outputs=outputs))
    assert [wanted.name for wanted in request.outputs] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["42", "a name, and more", "\u96ea \U0001f408"])
def test_a_clients_own_name_of_a_request(name: str) -> None:
    assert parse_request(*binary_body(an_image(), id=name), a_signature()).id == name


def test_without_a_name() -> None:
    assert parse_request(*binary_body(an_image()), a_signature()).id == ""


# What is ignored


@pytest.mark.parametrize(
    "members",
    [
        {"parameters": {"sequence_id": 7, "sequence_start": True, "sequence_end": False}},
        {"parameters": {"sequence_id": "seven", "priority": 1, "timeout": 5_000_000}},
        {"parameters": {"somebodys_own": {"nested": [1, None]}, "triton_final": "x"}},
        {"parameters": None, "outputs": None, "id": None},
        {"model_name": "another", "unknown": [[]]},
    ],
)
def test_what_a_network_has_no_use_for_changes_nothing(members: dict[str, Any]) -> None:
    request = parse_request(*binary_body(an_image(), **members), a_signature())
    np.testing.assert_array_equal(image_in(request), an_image())
    assert request.outputs == (WantedOutput(name="logits"),)
    assert request.id == ""


def test_unknown_parameters_of_tensors_change_nothing() -> None:
    images = an_image()
    parameters = {"binary_data_size": images.nbytes, "content_type": "x", "deep": [{}]}
    message = {
        "inputs": [binary_input(images, parameters=parameters)],
        "outputs": [{"name": "logits", "parameters": {"of": "mine"}}],
    }
    np.testing.assert_array_equal(image_in(parsed(message, images.tobytes())), images)


def test_the_last_of_two_members_of_one_name_counts() -> None:
    body = body_of({"inputs": [json_input(an_image())]})[0]
    twice = b'{"id": "first", "inputs": [], "id": "last", ' + body[1:]
    request = parse_request(twice, None, a_signature())
    assert request.id == "last"
    assert request.batch == 1


# The same JSON again


def test_the_same_json_is_checked_once_and_read_with_other_bytes_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[bytes] = []
    real = request_module.decode_request

    def noted(data: memoryview) -> Any:
        decoded.append(bytes(data))
        return real(data)

    monkeypatch.setattr(request_module, "decode_request", noted)
    head, _ = body_of({"inputs": [binary_input(an_image())], "id": "again"})
    found = []
    for number in range(3):
        image = np.full_like(an_image(), number)
        request = parse_request(head + image.tobytes(), len(head), a_signature())
        np.testing.assert_array_equal(image_in(request), image)
        assert request.id == "again"
        found.append(request)
    assert decoded == [head]
    assert found[0].inputs is not found[1].inputs
    np.testing.assert_array_equal(image_in(found[0]), np.zeros_like(an_image()))
    other = head.replace(b"again", b"other")
    assert parse_request(other + an_image().tobytes(), len(other), a_signature()).id == "other"


def test_what_is_remembered_for_one_model_does_not_hold_for_another() -> None:
    image = an_image(2)
    body, length = binary_body(image)
    assert parse_request(body, length, a_signature()).batch == 2
    small = a_signature(batch=BatchRange(min=1, opt=1, max=1))
    refused(lambda: parse_request(body, length, small), "1 image may be sent at once")
    bytes_wanted = a_signature("uint8")
    refused(lambda: parse_request(body, length, bytes_wanted), "UINT8")
    assert parse_request(body, length, a_signature()).batch == 2


def test_bytes_are_compared_with_what_is_remembered_every_time() -> None:
    image = an_image()
    body, length = binary_body(image)
    for _ in range(2):
        assert parse_request(body, length, a_signature()).batch == 1
        refused(lambda: parse_request(body[:-1], length, a_signature()), "287 bytes are left")
        refused(lambda: parse_request(body + b"x", length, a_signature()), "1 bytes are left")
        refused(lambda: parse_request(body[:-4] + b"\0\0\xc0\x7f", length, a_signature()), "finite")


def test_a_json_that_is_refused_is_refused_again() -> None:
    body, length = binary_body(an_image())
    bad = body.replace(b"FP32", b"FP64")
    for _ in range(2):
        refused(lambda: parse_request(bad, length, a_signature()), "datatype 'FP64'")


def test_long_json_and_json_without_bytes_behind_it_are_not_remembered() -> None:
    kept = request_module._kept_plan.cache_info().currsize
    image = an_image()
    long, length = body_of({"inputs": [binary_input(image)], "more": "x" * 4096}, image.tobytes())
    assert parse_request(long, length, a_signature()).batch == 1
    alone, length = body_of({"inputs": [json_input(image)], "id": "no bytes"})
    assert parse_request(alone, length, a_signature()).batch == 1
    assert request_module._kept_plan.cache_info().currsize == kept
    assert request_module._kept_plan.cache_info().maxsize == 32
