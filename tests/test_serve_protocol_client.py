"""NVIDIA's own client builds requests that are read here, and reads what is written here.

The same bodies, written by hand, are in the other tests of the protocol: these here are left out
where the client is not installed.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from serve_protocol import a_signature, an_image, image_in

from parnet_deploy.serve.protocol import (
    EncodedImages,
    InferRequest,
    WantedOutput,
    encode_response,
    parse_request,
)
from parnet_deploy.spec import Array

http: Any = pytest.importorskip("tritonclient.http")

LOGITS = np.float32([[0.1, -2.0, 30.5, 3.5, 0.25], [5.0, 4.0, 3.0, 2.0, 1.0]])


def asked(array: Array, datatype: str, *, binary: bool = True, **options: Any) -> InferRequest:
    """A request as the client builds it."""
    tensor = http.InferInput("images", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    body, length = http.InferenceServerClient.generate_request_body([tensor], **options)
    dtype = "float32" if datatype == "BYTES" else array.dtype.name
    return parse_request(body, length, a_signature(dtype))


def answered(request: InferRequest) -> Any:
    """What the client makes of the answer."""
    response = encode_response(request, {"logits": LOGITS}, a_signature())
    return http.InferenceServerClient.parse_response_body(
        response.body, header_length=response.header_length
    )


@pytest.mark.parametrize(("dtype", "name"), [("float32", "FP32"), ("uint8", "UINT8")])
@pytest.mark.parametrize("binary", [True, False])
def test_tensors(dtype: str, name: str, binary: bool) -> None:
    images = an_image(2, dtype)
    request = asked(images, name, binary=binary)
    np.testing.assert_array_equal(image_in(request), images, strict=True)
    assert request.outputs == (WantedOutput(name="logits", binary=True),)


def test_halves() -> None:
    images = an_image(2, "float16")
    np.testing.assert_array_equal(image_in(asked(images, "FP16")), images, strict=True)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_encoded_images(shape: tuple[int, ...]) -> None:
    files = (b"\xff\xd8\xff\xe0\0", b"\x89PNG\r\n")
    array = np.array(files, np.object_).reshape(shape)
    for request in (
        asked(array, "BYTES"),
        asked(
            np.array([base64.b64encode(f) for f in files], np.object_).reshape(shape),
            "BYTES",
            binary=False,
        ),
    ):
        images = request.inputs["images"]
        assert isinstance(images, EncodedImages)
        assert images.files == files


@pytest.mark.parametrize("binary", [True, False])
def test_answers(binary: bool) -> None:
    wanted = http.InferRequestedOutput("logits", binary_data=binary)
    request = asked(an_image(2), "FP32", outputs=[wanted], request_id="42")
    result = answered(request)
    np.testing.assert_array_equal(result.as_numpy("logits"), LOGITS, strict=True)
    assert result.get_response()["id"] == "42"
    assert result.get_response()["model_name"] == "tiny"
    assert result.get_response()["model_version"] == "1"


def test_an_answer_to_who_asks_for_nothing_in_particular() -> None:
    result = answered(asked(an_image(2), "FP32"))
    np.testing.assert_array_equal(result.as_numpy("logits"), LOGITS, strict=True)
    assert result.get_output("logits")["parameters"] == {"binary_data_size": 40}


@pytest.mark.parametrize("binary", [True, False])
def test_classes(binary: bool) -> None:
    wanted = http.InferRequestedOutput("logits", binary_data=binary, class_count=2)
    found = answered(asked(an_image(2), "FP32", outputs=[wanted])).as_numpy("logits")
    texts = [[t.decode() if binary else t for t in row] for row in found]
    assert texts == [
        ["30.500000:2:cat", "3.500000:3:dog"],
        ["5.000000:0:ant", "4.000000:1:bee"],
    ]


def test_what_a_client_may_say_besides() -> None:
    request = asked(
        an_image(2),
        "FP32",
        sequence_id=5,
        sequence_start=True,
        sequence_end=True,
        priority=3,
        timeout=1_000_000,
        parameters={"mine": "x"},
    )
    assert request.outputs == (WantedOutput(name="logits", binary=True),)
