"""What tests of the Open Inference Protocol share: a small model, and bodies written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol import InferRequest, parse_request
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array, Preprocessing, TensorSpec

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's names as the tests know them: copied from its text, not from the code."""


def a_signature(dtype: str = "float32", **changes: object) -> Signature:
    """A model of 4x6 images and 5 classes that takes up to 4 images."""
    signature = Signature(
        name="tiny",
        inputs=(TensorSpec(name="images", shape=("N", 3, 4, 6), dtype=dtype),),
        outputs=(TensorSpec(name="logits", shape=("N", 5), dtype="float32"),),
        batch=BatchRange(min=1, opt=2, max=4),
        labels=("ant", "bee", "cat", "dog", "eel"),
        preprocessing=Preprocessing(size=(4, 6)),
        softmax=False,
        backend="onnxruntime",
        precision="fp32",
    )
    return replace(signature, **changes)  # type: ignore[arg-type]


def an_image(batch: int = 1, dtype: str = "float32") -> Array:
    """Images that differ everywhere."""
    numbers = np.arange(batch * 72) % 251
    return numbers.reshape(batch, 3, 4, 6).astype(dtype)


def binary_input(array: Array, **changes: Any) -> dict[str, Any]:
    """An input whose bytes stand behind the JSON."""
    return {
        "name": "images",
        "shape": list(array.shape),
        "datatype": DATATYPES[array.dtype.name],
        "parameters": {"binary_data_size": array.nbytes},
        **changes,
    }


def json_input(array: Array, **changes: Any) -> dict[str, Any]:
    """An input whose numbers stand in the JSON."""
    return {
        "name": "images",
        "shape": list(array.shape),
        "datatype": DATATYPES[array.dtype.name],
        "data": array.ravel().tolist(),
        **changes,
    }


def body_of(message: object, *tails: bytes) -> tuple[bytes, int]:
    """A body, and the length of its JSON."""
    head = json.dumps(message).encode()
    return b"".join([head, *tails]), len(head)


def binary_body(array: Array, **changes: Any) -> tuple[bytes, int]:
    """A request of one binary input, with other members than usual."""
    message = {"inputs": [binary_input(array)], **changes}
    return body_of(message, array.tobytes())


def parsed(message: object, *tails: bytes, signature: Signature | None = None) -> InferRequest:
    body, length = body_of(message, *tails)
    return parse_request(body, length, signature or a_signature())


def image_in(request: InferRequest) -> Array:
    """The images of a request, where they are an array."""
    value = request.inputs["images"]
    assert isinstance(value, np.ndarray)
    return value


def refused(call: Callable[[], object], *parts: str) -> str:
    """The message with which a call is refused as the client's mistake."""
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.status == 400
    message = str(caught.value)
    for part in parts:
        assert part in message, (part, message)
    assert len(message) < 500
    assert "\n" not in message
    return message
