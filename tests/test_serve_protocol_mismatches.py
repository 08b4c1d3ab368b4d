"""Requests whose tensors, outputs or names do not fit the model, and what the messages say."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from serve_protocol import (
    a_signature,
    an_image,
    binary_body,
    binary_input,
    body_of,
    json_input,
    parsed,
    refused,
)

from parnet_deploy.bundle import BatchRange
from parnet_deploy.serve.protocol import parse_request
from parnet_deploy.spec import TensorSpec

HUGE = 2**63

# Datatypes and shapes


@pytest.mark.parametrize("datatype", ["UINT8", "FP64", "FP16", "BF16", "INT32", "BOOL"])
def test_another_datatype(datatype: str) -> None:
    tensor = json_input(an_image(), datatype=datatype)
    refused(
        lambda: parsed({"inputs": [tensor]}),
        f"has the datatype '{datatype}', and FP32 (or BYTES, for encoded images) is expected",
    )


@pytest.mark.parametrize("datatype", ["", "fp32", "float32", "FP33", "STRING", "TYPE_FP32"])
def test_an_unknown_datatype(datatype: str) -> None:
    tensor = json_input(an_image(), datatype=datatype)
    refused(lambda: parsed({"inputs": [tensor]}), f"has the unknown datatype '{datatype}'")


def test_only_images_may_be_encoded() -> None:
    images = TensorSpec(name="images", shape=("N", 3, 4, 6), dtype="float32")
    other = TensorSpec(name="other", shape=("N", 2), dtype="int8")
    message = {
        "inputs": [
            json_input(an_image()),
            {"name": "other", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]},
        ]
    }
    refused(
        lambda: parsed(message, signature=a_signature(inputs=(images, other))),
        "input 'other' has the datatype 'BYTES', and INT8 is expected",
    )


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        (
            [1, 4, 6, 3],
            "has shape [1, 4, 6, 3], and [N, 3, 4, 6] is expected; that looks like NHWC",
        ),
        ([1, 480, 640, 3], "that looks like NHWC"),
        ([4, 6, 3], "that looks like HWC without an axis of images"),
        ([3, 4, 6], "the axis of images is missing"),
        ([1, 3, 6, 4], "has shape [1, 3, 6, 4], and [N, 3, 4, 6] is expected"),
        ([1, 1, 4, 6], "has shape [1, 1, 4, 6], and"),
        ([72], "has shape [72], and"),
        ([], "has shape [], and"),
        ([1, 3, 4, 6, 1], "has shape [1, 3, 4, 6, 1], and"),
        ([1, 3, 0, 6], "has shape [1, 3, 0, 6], and"),
        ([1, -3, -4, 6], "has shape [1, -3, -4, 6], and"),
        ([-1, 3, 4, 6], "has shape [-1, 3, 4, 6], and 1 to 4 images may be sent at once"),
        ([0, 3, 4, 6], "has shape [0, 3, 4, 6], and 1 to 4 images"),
        ([5, 3, 4, 6], "has shape [5, 3, 4, 6], and 1 to 4 images"),
        ([HUGE, 3, 4, 6], "has shape [9223372036854775808, 3, 4, 6], and 1 to 4 images"),
        ([2**62, 2**62, 4, 6], "and [N, 3, 4, 6] is expected"),
        ([1] * 1000, "...], and [N, 3, 4, 6] is expected"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_another_shape(shape: list[int], part: str, binary: bool) -> None:
    make = binary_input if binary else json_input
    tensor = make(an_image(), shape=shape)
    tails = [an_image().tobytes()] if binary else []
    refused(lambda: parsed({"inputs": [tensor]}, *tails), part)


@pytest.mark.parametrize("shape", [[1, 3, 5, 3], [1, 4, 6, 4], [1, 3, 6, 4], [4, 6, 4], [3]])
def test_what_looks_like_nothing_else_has_no_hint(shape: list[int]) -> None:
    message = refused(lambda: parsed({"inputs": [json_input(an_image(), shape=shape)]}))
    assert message.endswith("and [N, 3, 4, 6] is expected")


def test_a_model_for_one_image() -> None:
    spec = TensorSpec(name="images", shape=(1, 3, 4, 6), dtype="float32")
    signature = a_signature(batch=BatchRange(), inputs=(spec,))
    body = binary_body(an_image(2))
    refused(
        lambda: parse_request(*body, signature),
        "has shape [2, 3, 4, 6], and 1 image may be sent at once",
    )
    body = body_of({"inputs": [json_input(an_image(), shape=[1, 4, 6, 3])]})
    refused(lambda: parse_request(*body, signature), "and [1, 3, 4, 6] is expected")


def test_inputs_of_different_batches() -> None:
    specs = tuple(TensorSpec(name=name, shape=("N", 2), dtype="uint8") for name in "ab")
    tensors = [
        json_input(np.zeros((n, 2), np.uint8), name=name) for n, name in ((1, "a"), (2, "b"))
    ]
    refused(
        lambda: parsed({"inputs": tensors}, signature=a_signature(inputs=specs)),
        "the inputs hold different numbers of images",
    )


# Numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_that_are_not_finite(value: float, dtype: str) -> None:
    image = an_image(2, dtype)
    image[1, 2, 3, 4] = value
    refused(
        lambda: parse_request(*binary_body(image), a_signature(dtype)),
        f"input 'images' is {value} at [1, 2, 3, 4], and every number has to be finite",
    )


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "nan", "1e999", "1e400"])
def test_json_has_no_such_numbers(literal: str) -> None:
    body = body_of({"inputs": [json_input(an_image(), data=["IT"] * 72)]})[0]
    body = body.replace(b'"IT"', literal.encode())
    refused(lambda: parse_request(body, None, a_signature("float32")))


def test_numbers_that_only_the_datatype_makes_infinite() -> None:
    for dtype, number in (("float32", 1e39), ("float16", 65520.0)):
        data = [number] * 72
        refused(
            lambda dtype=dtype, data=data: parsed(
                {"inputs": [json_input(an_image(dtype=dtype), data=data)]},
                signature=a_signature(dtype),
            ),
            "is inf at [0, 0, 0, 0], and every number has to be finite",
        )


@pytest.mark.parametrize("number", [-1, 256, 10**30])
def test_integers_out_of_range(number: int) -> None:
    tensor = json_input(an_image(dtype="uint8"), data=[7] * 71 + [number])
    refused(
        lambda: parsed({"inputs": [tensor]}, signature=a_signature("uint8")),
        "holds a number that is not UINT8: those are 0 to 255",
    )


# Encoded images


def encoded(shape: list[int], tail: bytes) -> tuple[dict[str, Any], bytes]:
    tensor = {
        "name": "images",
        "shape": shape,
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(tail)},
    }
    return {"inputs": [tensor]}, tail


@pytest.mark.parametrize(
    ("shape", "tail", "part"),
    [
        ([1], b"", "ends before image 0 of 1 begins"),
        ([1], b"\1\0\0", "ends before image 0 of 1 begins"),
        ([1], struct.pack("<I", 5) + b"four", "says that image 0 has 5 bytes, and 4 are left"),
        ([1], struct.pack("<I", 2**32 - 1) + b"x", "image 0 has 4294967295 bytes, and 1 are left"),
        ([1], struct.pack("<I", 1) + b"xyz", "has 2 bytes behind the last of its 1 images"),
        ([2], struct.pack("<I", 1) + b"x", "ends before image 1 of 2 begins"),
        ([1], b"\xff\xd8\xff\xe0 not counted", "says that image 0 has 3774863615 bytes"),
        ([0], b"", "has shape [0], and 1 to 4 images may be sent at once"),
        ([-1], b"", "has shape [-1], and 1 to 4 images"),
        ([5], b"\0" * 20, "has shape [5], and 1 to 4 images"),
        ([HUGE], b"\0" * 20, "and 1 to 4 images"),
        ([], b"", "has shape [], and encoded images are [N]: one element each"),
        ([1, 2], b"\0" * 8, "has shape [1, 2], and encoded images are [N]"),
        ([1, 3, 4, 6], b"\0" * 288, "has shape [1, 3, 4, 6], and encoded images are [N]"),
    ],
)
def test_encoded_images_that_lie(shape: list[int], tail: bytes, part: str) -> None:
    refused(lambda: parsed(*encoded(shape, tail)), part)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (["no base64!"], "image 0 is not base64"),
        (["QUJD", "QUJ"], "image 1 is not base64"),
        (["QUJD\n"], "image 0 is not base64"),
        (["data:image/png;base64,QUJD"], "image 0 is not base64"),
        (["\u00e9"], "image 0 is not base64"),
        ([7], "Expected `str`, got `int`"),
        ([["QUJD", "QUJD"]], "nested 2 deep"),
        (["QUJD"] * 3, "are 3 elements or more, and its shape"),
    ],
)
def test_encoded_images_that_are_not_base64(data: list[Any], part: str) -> None:
    count = 2 if len(data) > 1 else 1
    tensor = {"name": "images", "shape": [count], "datatype": "BYTES", "data": data}
    refused(lambda: parsed({"inputs": [tensor]}), part)


def test_encoded_images_nested_otherwise() -> None:
    for data in ([["QUJD", "QUJD"]], [["QUJD"], []]):
        tensor = {"name": "images", "shape": [2, 1], "datatype": "BYTES", "data": data}
        refused(lambda tensor=tensor: parsed({"inputs": [tensor]}))


# Names


def test_a_missing_input() -> None:
    specs = tuple(TensorSpec(name=name, shape=("N", 2), dtype="uint8") for name in "abc")
    tensor = json_input(np.zeros((1, 2), np.uint8), name="b")
    refused(
        lambda: parsed({"inputs": [tensor]}, signature=a_signature(inputs=specs)),
        "the inputs 'a', 'c' are missing",
    )


def test_an_extra_input() -> None:
    tensors = [json_input(an_image()), json_input(an_image(), name="mask")]
    refused(
        lambda: parsed({"inputs": tensors}),
        "the model has no input 'mask'; its only input is 'images'",
    )


def test_an_input_twice() -> None:
    image = an_image()
    tensors = [binary_input(image), binary_input(image)]
    refused(
        lambda: parsed({"inputs": tensors}, image.tobytes(), image.tobytes()),
        "the input 'images' is given twice",
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x" * 1000, "'" + "x" * 61 + "...'"),
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        ("\u96ea", "'\u96ea'"),
        ("../../etc/passwd", "'../../etc/passwd'"),
    ],
)
def test_a_name_in_a_message(name: str, text: str) -> None:
    refused(
        lambda: parsed({"inputs": [json_input(an_image(), name=name)]}),
        f"the model has no input {text}; its only input is 'images'",
    )


@pytest.mark.parametrize(
    ("outputs", "part"),
    [
        ([{"name": "probs"}], "the model has no output 'probs'; its only output is 'logits'"),
        ([{"name": "logits"}] * 2, "the output 'logits' is given twice"),
        ([{}], "missing required field `name` - at `$.outputs[0]`"),
        ([{"name": "logits", "parameters": {"binary_data": 1}}], "Expected `bool"),
        ([{"name": "logits", "parameters": {"classification": "5"}}], "Expected `int"),
        ([{"name": "logits", "parameters": {"classification": 1.5}}], "Expected `int"),
        (
            [{"name": "logits", "parameters": {"classification": -1}}],
            "output 'logits' is wanted with a classification of -1, and a number of classes",
        ),
    ],
)
def test_outputs_that_cannot_be(outputs: list[Any], part: str) -> None:
    refused(lambda: parse_request(*binary_body(an_image(), outputs=outputs), a_signature()), part)


# Shared memory


@pytest.mark.parametrize("extra", [{}, {"shared_memory_byte_size": 288}])
def test_shared_memory_is_not_offered(extra: dict[str, int]) -> None:
    parameters = {"shared_memory_region": "mine", **extra}
    tensor = binary_input(an_image(), parameters=parameters)
    expected = "is in shared memory, which is not offered"
    refused(lambda: parsed({"inputs": [tensor]}), f"input 'images' {expected}")
    outputs = [{"name": "logits", "parameters": parameters}]
    body: tuple[bytes, int] = binary_body(an_image(), outputs=outputs)
    refused(lambda: parse_request(*body, a_signature()), f"output 'logits' {expected}")
