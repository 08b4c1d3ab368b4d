"""Responses of the Open Inference Protocol."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serve_protocol import DATATYPES, a_signature

from parnet_deploy.serve.protocol import (
    EncodedResponse,
    InferRequest,
    WantedOutput,
    encode_response,
)
from parnet_deploy.spec import Array

LOGITS = np.float32([[0.1, -2.0, 30.5, 30.5, 0.25], [5.0, 4.0, 3.0, 2.0, 1e-7]])


def request_of(*outputs: WantedOutput, name: str = "") -> InferRequest:
    return InferRequest(inputs={}, outputs=outputs, id=name, batch=2)


def encoded(*outputs: WantedOutput, name: str = "", **arrays: Array) -> EncodedResponse:
    return encode_response(
        request_of(*outputs, name=name), arrays or {"logits": LOGITS}, a_signature()
    )


def strict(data: bytes) -> Any:
    """JSON as RFC 8259 has it: Python's own decoder takes NaN and Infinity as well."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(data, parse_constant=refuse)


def split(response: EncodedResponse) -> tuple[Any, bytes]:
    """A response's JSON, and what stands behind it."""
    length = response.header_length
    if length is None:
        assert response.content_type == "application/json"
        return strict(response.body), b""
    assert response.content_type == "application/octet-stream"
    return strict(response.body[:length]), response.body[length:]


def test_an_output_as_numbers() -> None:
    message, tail = split(encoded(WantedOutput(name="logits"), name="42"))
    assert message == {
        "id": "42",
        "model_name": "tiny",
        "model_version": "1",
        "outputs": [
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [2, 5],
                "data": LOGITS.ravel().astype(float).tolist(),
            }
        ],
    }
    assert tail == b""


def test_an_output_as_bytes() -> None:
    message, tail = split(encoded(WantedOutput(name="logits", binary=True)))
    assert message == {
        "model_name": "tiny",
        "model_version": "1",
        "outputs": [
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [2, 5],
                "parameters": {"binary_data_size": 40},
            }
        ],
    }
    assert tail == LOGITS.astype("<f4").tobytes()


@pytest.mark.parametrize("make", [np.asfortranarray, lambda a: a[::-1], lambda a: a.astype(">f4")])
def test_bytes_are_little_endian_and_row_by_row(make: Any) -> None:
    _, tail = split(encoded(WantedOutput(name="logits", binary=True), logits=make(LOGITS)))
    found = np.frombuffer(tail, "<f4").reshape(2, 5)
    np.testing.assert_array_equal(found, make(LOGITS))


def test_bytes_stand_in_the_order_of_the_outputs() -> None:
    arrays = {"a": np.uint8([[1]]), "b": np.int64([[-2]]), "c": np.float16([[3]])}
    message, tail = split(
        encoded(
            WantedOutput(name="c", binary=True),
            WantedOutput(name="a"),
            WantedOutput(name="b", binary=True),
            **arrays,
        )
    )
    assert [output["name"] for output in message["outputs"]] == ["c", "a", "b"]
    assert [output["datatype"] for output in message["outputs"]] == ["FP16", "UINT8", "INT64"]
    assert message["outputs"][1]["data"] == [1]
    assert tail == struct.pack("<eq", 3, -2)


@given(dtype=st.sampled_from(sorted(DATATYPES)), binary=st.booleans(), data=st.data())
def test_every_shape_and_dtype_comes_back(dtype: str, binary: bool, data: st.DataObject) -> None:
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else {}
    shapes = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)
    elements = arrays.from_dtype(np.dtype(dtype), **finite)
    array = data.draw(arrays.arrays(dtype, shapes, elements=elements))
    message, tail = split(encoded(WantedOutput(name="x", binary=binary), x=array))
    (output,) = message["outputs"]
    assert output["datatype"] == DATATYPES[dtype]
    if binary:
        assert output["parameters"] == {"binary_data_size": len(tail)}
        found = np.frombuffer(tail, dtype)
    else:
        found = np.array(output["data"], dtype)
    np.testing.assert_array_equal(found.reshape(output["shape"]), array, strict=True)


def test_json_is_legal_whatever_the_numbers() -> None:
    """The plane lets no such numbers through; what would be written is JSON all the same."""
    odd = np.float32([[np.nan, np.inf, -np.inf, 1, 0]])
    message, _ = split(encoded(WantedOutput(name="logits"), logits=odd))
    assert message["outputs"][0]["data"] == [None, None, None, 1, 0]


# Classification

LIKELIEST = [
    "30.500000:2:cat",
    "30.500000:3:dog",
    "0.250000:4:eel",
    "5.000000:0:ant",
    "4.000000:1:bee",
    "3.000000:2:cat",
]


def test_classes_as_texts() -> None:
    message, _ = split(encoded(WantedOutput(name="logits", classes=3)))
    assert message["outputs"] == [
        {"name": "logits", "datatype": "BYTES", "shape": [2, 3], "data": LIKELIEST}
    ]


def test_classes_as_bytes() -> None:
    message, tail = split(encoded(WantedOutput(name="logits", classes=3, binary=True)))
    (output,) = message["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 3])
    assert output["parameters"] == {"binary_data_size": len(tail)}
    assert tail == b"".join(struct.pack("<I", len(t)) + t.encode() for t in LIKELIEST)


@pytest.mark.parametrize("classes", [5, 6, 2**80])
def test_no_more_classes_than_there_are(classes: int) -> None:
    message, _ = split(encoded(WantedOutput(name="logits", classes=classes)))
    (output,) = message["outputs"]
    assert output["shape"] == [2, 5]
    assert [text.split(":")[1] for text in output["data"]] == list("2340101234")
    assert output["data"][-1] == "0.000000:4:eel"


def test_whole_scores_and_no_labels() -> None:
    signature = a_signature(labels=())
    request = request_of(WantedOutput(name="logits", classes=2))
    response = encode_response(request, {"logits": np.uint8([[7, 255, 9]])}, signature)
    assert split(response)[0]["outputs"][0]["data"] == ["255:1", "9:2"]


def test_labels_of_any_letters() -> None:
    signature = a_signature(labels=("a:b", "\u96ea", '"', "", "e"))
    request = request_of(WantedOutput(name="logits", classes=5, binary=True))
    _, tail = split(encode_response(request, {"logits": LOGITS[1:]}, signature))
    texts = []
    while tail:
        (length,) = struct.unpack_from("<I", tail)
        texts.append(tail[4 : 4 + length].decode())
        tail = tail[4 + length :]
    assert texts == [
        "5.000000:0:a:b",
        "4.000000:1:\u96ea",
        '3.000000:2:"',
        "2.000000:3:",
        "0.000000:4:e",
    ]
