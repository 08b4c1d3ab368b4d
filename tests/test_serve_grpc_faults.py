"""gRPC: requests that are wrong in any way get a status that says so, and nothing else happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from serve_grpc import (
    SERVICE,
    Served,
    fronted,
    numbers,
    raw_request,
    refused,
    typed_request,
)
from served import SIGNATURE, echo_runner, images
from served_plane import png
from tritonclient.grpc import service_pb2 as pb

from parnet_deploy.spec import TensorSpec

IMAGE = images(1)["images"]
TWO = images(1, 2)["images"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with fronted() as found:
        yield found


@pytest.fixture(scope="module")
def channel(served: Served) -> grpc.Channel:
    return served.channel()


@pytest.fixture(scope="module")
def stub(served: Served) -> Any:
    return served.stub()


def changed(change: Callable[[Any], object], request: Callable[[], Any] | None = None) -> Any:
    """A good request, and what makes it bad."""
    message = request() if request else raw_request(IMAGE)
    change(message)
    return message


def with_raw(*parts: bytes) -> Any:
    request = raw_request(IMAGE)
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(parts)
    return request


def with_contents(datatype: str = "FP32", **fields: list[Any]) -> Any:
    request = with_raw()
    request.inputs[0].datatype = datatype
    request.inputs[0].contents.MergeFrom(pb.InferTensorContents(**fields))
    return request


def with_shape(*shape: int, typed: bool = False) -> Any:
    return (typed_request if typed else raw_request)(IMAGE, shape=shape)


def with_parameter(where: str, name: str, **value: Any) -> Any:
    request = raw_request(IMAGE)
    request.outputs.add(name="logits")
    getattr(request, where)[0].parameters[name].MergeFrom(pb.InferParameter(**value))
    return request


def encoded(*files: bytes, shape: list[int] | None = None) -> Any:
    request = pb.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="images", datatype="BYTES", shape=shape or [len(files)])
    tensor.contents.bytes_contents.extend(files)
    return request


NAN = np.full_like(IMAGE, np.nan)

FAULTS = {
    "nothing": (pb.ModelInferRequest(model_name="tiny"), "the input 'images' is missing"),
    "truncated": (with_raw(IMAGE.tobytes()[:-1]), "has 47 bytes of data"),
    "oversized": (with_raw(IMAGE.tobytes() + b"x"), "has 49 bytes of data"),
    "empty": (with_raw(b""), "has 0 bytes of data"),
    "two raw for one input": (with_raw(IMAGE.tobytes(), b""), "1 inputs and 2 raw_input_contents"),
    "raw and contents": (
        changed(lambda r: r.inputs[0].contents.fp32_contents.append(1.0)),
        "send all inputs one way",
    ),
    "raw and empty contents": (
        changed(lambda r: r.inputs[0].contents.SetInParent()),
        "send all inputs one way",
    ),
    "neither": (with_raw(), "input 'images' has no data"),
    "contents without elements": (with_contents(), "has 0 bytes of data"),
    "too few elements": (with_contents(fp32_contents=[1.0] * 11), "has 44 bytes of data"),
    "too many elements": (with_contents(fp32_contents=[1.0] * 13), "has 52 bytes of data"),
    "more elements than any": (
        with_contents(fp32_contents=[1.0] * 97),
        "has 97 elements, and at most 96 are taken",
    ),
    "the wrong field": (
        with_contents(int_contents=[1] * 12),
        "has int_contents, and elements of FP32 are expected in fp32_contents",
    ),
    "two fields": (
        with_contents(fp32_contents=[1.0] * 12, bool_contents=[True]),
        "has bool_contents",
    ),
    "infinite": (raw_request(NAN), "every number has to be finite"),
    "infinite elements": (typed_request(NAN), "every number has to be finite"),
    "wrong datatype": (raw_request(IMAGE, datatype="INT8"), "has the datatype 'INT8'"),
    "unknown datatype": (raw_request(IMAGE, datatype="FP31"), "has the unknown datatype 'FP31'"),
    "wrong datatype's elements": (with_contents("INT8", int_contents=[1]), "datatype 'INT8'"),
    "no datatype": (raw_request(IMAGE, datatype=""), "has the unknown datatype ''"),
    "NHWC": (with_shape(1, 2, 2, 3), "that looks like NHWC"),
    "no axis of images": (with_shape(3, 2, 2), "the axis of images is missing"),
    "a million axes": (with_shape(*[1] * 1_000_000), "is expected"),
    "no shape": (with_shape(), "has shape []"),
    "negative": (with_shape(-1, 3, 2, 2), "1 to 8 images"),
    "zero": (with_shape(0, 3, 2, 2), "1 to 8 images"),
    "lying": (with_shape(2, 3, 2, 2), "takes 96 in FP32"),
    "overflowing": (with_shape(2**62, 3, 2, 2), "1 to 8 images"),
    "overflowing axes": (with_shape(1, 2**62, 2**62, 2, typed=True), "is expected"),
    "too many images": (raw_request(np.zeros((9, 3, 2, 2), np.float32)), "1 to 8 images"),
    "another input": (raw_request(IMAGE, name="pictures"), "the model has no input 'pictures'"),
    "an extra input": (
        changed(
            lambda r: (
                r.inputs.add(name="more", shape=[1], datatype="FP32"),
                r.raw_input_contents.append(b"1234"),
            )
        ),
        "the model has no input 'more'",
    ),
    "an input twice": (
        changed(
            lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(IMAGE.tobytes()))
        ),
        "the input 'images' is given twice",
    ),
    "another output": (
        changed(lambda r: r.outputs.add(name="classes")),
        "the model has no output 'classes'",
    ),
    "an output twice": (
        changed(lambda r: (r.outputs.add(name="logits"), r.outputs.add(name="logits"))),
        "the output 'logits' is given twice",
    ),
    "classes as text": (
        with_parameter("outputs", "classification", string_param="2"),
        "'classification' is a number",
    ),
    "classes as a truth": (
        with_parameter("outputs", "classification", bool_param=True),
        "'classification' is a number",
    ),
    "fewer classes than none": (
        with_parameter("outputs", "classification", int64_param=-1),
        "a classification of -1",
    ),
    "an input in shared memory": (
        with_parameter("inputs", "shared_memory_region", string_param="mine"),
        "shared memory, which is not offered",
    ),
    "an output in shared memory": (
        with_parameter("outputs", "shared_memory_region", string_param="mine"),
        "shared memory, which is not offered",
    ),
    "no image": (encoded(b"GIF89a"), "the image"),
    "an empty file": (encoded(b""), "the image"),
    "a truncated image": (encoded(png(1), png(2)[:40]), "image 2 of 2"),
    "fewer files than said": (encoded(png(1), shape=[2]), "ends before image 1 of 2"),
    "more files than said": (encoded(png(1), png(2), shape=[1]), "behind the last of its 1"),
    "more files than any": (encoded(*[png(1)] * 9), "has 9 elements, and at most 8"),
    "raw files that lie": (
        changed(
            lambda r: r.raw_input_contents.append(b"\xff\xff\xff\xff123"),
            lambda: changed(lambda r: r.inputs[0].ClearField("contents"), lambda: encoded(png(1))),
        ),
        "says that image 0 has 4294967295 bytes",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(stub: Any, name: str) -> None:
    request, text = FAULTS[name]
    code, details, trailing = refused(lambda: stub.ModelInfer(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT, details
    assert text in details
    assert len(details) < 500
    assert "\n" not in details
    assert trailing["x-request-id"]
    assert numbers(stub.ModelInfer(raw_request(TWO))) == [1, 2]


@pytest.mark.parametrize(
    ("name", "version"), [("", ""), ("other", ""), ("tiny", "2"), ("tiny", "latest"), ("../x", "")]
)
def test_unknown_models(stub: Any, name: str, version: str) -> None:
    request = changed(lambda r: r.MergeFrom(pb.ModelInferRequest(model_version=version)))
    request.model_name = name
    asked = (
        lambda: stub.ModelInfer(request),
        lambda: stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)),
        lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name=name, version=version)),
        lambda: stub.ModelConfig(pb.ModelConfigRequest(name=name, version=version)),
    )
    for call in asked:
        code, details, _ = refused(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "'tiny', version '1', is" in details


def test_statistics_of_an_unknown_model(stub: Any) -> None:
    code, _, _ = refused(lambda: stub.ModelStatistics(pb.ModelStatisticsRequest(name="other")))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_number_beyond_the_datatype() -> None:
    """Protobuf has no type of 8 bits: what its field takes may be too large for the model."""
    spec = TensorSpec(name="images", shape=("N", 3, 2, 2), dtype="uint8")
    signature = replace(SIGNATURE, inputs=(spec,))
    with fronted(echo_runner(signature), signature=signature) as served:
        request = with_contents("UINT8", uint_contents=[256] * 12)
        code, details, _ = refused(lambda: served.stub().ModelInfer(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "input 'images' holds a number that is not UINT8: those are 0 to 255"


@pytest.mark.parametrize("method", ["ModelInfer", "ModelConfig", "ModelStatistics"])
def test_what_is_no_message(served: Served, method: str) -> None:
    call = served.channel().unary_unary(f"{SERVICE}/{method}")
    code, details, _ = refused(lambda: call(b"\x0a\xff\xff\xff\xff\x0fgarbage"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == f"the message is no {method}Request"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x2a\x00" * 8_000_000, id="inputs"),
        pytest.param(b"\x32\x00" * 1001, id="outputs"),
        pytest.param(b"\x3a\x00" * 8_000_000, id="raw contents"),
        pytest.param(b"\x22\x00" * 8_000_000, id="parameters"),
        pytest.param(b"\x2a\xd2\x0f" + b"\x22\x00" * 1001, id="parameters of an input"),
    ],
)
def test_parts_by_the_million(channel: grpc.Channel, data: bytes) -> None:
    """They are two bytes each, and a hundred once they are parsed."""
    code, details, _ = refused(lambda: channel.unary_unary(f"{SERVICE}/ModelInfer")(data))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the message has more than 1000 parts"


def test_a_question_is_short(stub: Any) -> None:
    code, details, _ = refused(lambda: stub.ModelReady(pb.ModelReadyRequest(name="x" * 70_000)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == "the message has more than 65536 bytes, which is the limit here"


def test_as_many_parts_as_may_be(stub: Any) -> None:
    request = raw_request(IMAGE)
    for number in range(900):
        request.parameters[f"nobody knows {number}"].bool_param = True
    assert numbers(stub.ModelInfer(request)) == [1]


def test_text_that_is_not_utf8(served: Served) -> None:
    call = served.channel().unary_unary(f"{SERVICE}/ModelInfer")
    code, _, _ = refused(lambda: call(b"\x0a\x02\xff\xfe"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_no_message_at_all(served: Served) -> None:
    call = served.channel().stream_unary(f"{SERVICE}/ModelInfer")
    code, details, _ = refused(lambda: call(iter(())))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")


@pytest.mark.parametrize("way", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_is_too_large_once_it_is_decompressed(
    stub: Any, way: grpc.Compression
) -> None:
    bomb = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(20_000_000)])
    code, _, _ = refused(lambda: stub.ModelInfer(bomb, compression=way))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert numbers(stub.ModelInfer(raw_request(IMAGE), compression=way)) == [1]


def test_an_error_of_our_own_tells_nothing_of_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("/etc/secret")

    monkeypatch.setattr(served.plane, "model_ready", fail)
    code, details, _ = refused(lambda: served.stub().ModelReady(pb.ModelReadyRequest(name="tiny")))
    assert code is grpc.StatusCode.INTERNAL
    assert details == "the server failed to answer this request; its log says why"
