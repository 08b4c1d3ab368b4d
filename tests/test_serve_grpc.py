"""gRPC: what is answered, by NVIDIA's own client and by messages made by hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from serve_grpc import Served, eventually, fronted, numbers, raw_request, refused, typed_request
from served import SIGNATURE, echo, images
from served_plane import png
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from parnet_deploy import __version__
from parnet_deploy.runtime.base import FunctionRunner
from parnet_deploy.spec import Array, TensorSpec


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with fronted() as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as found:
        yield found


def an_input(array: Array, datatype: str = "FP32") -> triton.InferInput:
    found = triton.InferInput("images", list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def test_an_answer_is_the_engines(client: triton.InferenceServerClient) -> None:
    for batch in (1, 3, 8):
        feeds = {"images": np.random.default_rng(batch).random((batch, 3, 2, 2), np.float32)}
        answer = client.infer("tiny", [an_input(feeds["images"])], request_id=f"request {batch}")
        np.testing.assert_array_equal(answer.as_numpy("logits"), echo(feeds)["logits"])
        message = answer.get_response()
        assert (message.model_name, message.model_version) == ("tiny", "1")
        assert message.id == f"request {batch}"
        assert message.outputs[0].datatype == "FP32"


def test_encoded_images(client: triton.InferenceServerClient) -> None:
    files = np.array([png(51), png(255)], np.object_)
    answer = client.infer("tiny", [an_input(files, "BYTES")]).as_numpy("logits")
    np.testing.assert_allclose(answer[:, 0], [0.2, 1.0])
    request = pb.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="images", shape=[2, 1], datatype="BYTES")
    tensor.contents.bytes_contents.extend(files.tolist())
    typed = client._client_stub.ModelInfer(request)
    np.testing.assert_allclose(numbers(typed), [0.2, 1.0])


def test_classification(client: triton.InferenceServerClient) -> None:
    wanted = triton.InferRequestedOutput("logits", class_count=2)
    answer = client.infer("tiny", [an_input(images(7, -3)["images"])], outputs=[wanted])
    assert answer.as_numpy("logits").tolist() == [
        [b"7.000000:0:cat", b"0.000000:1:dog"],
        [b"0.000000:1:dog", b"0.000000:2:owl"],
    ]


@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_compressed_messages(client: triton.InferenceServerClient, way: str) -> None:
    answer = client.infer("tiny", [an_input(images(5)["images"])], compression_algorithm=way)
    assert answer.as_numpy("logits")[0, 0] == 5


def test_parameters_that_mean_nothing_to_a_network(client: triton.InferenceServerClient) -> None:
    answer = client.infer(
        "tiny",
        [an_input(images(4)["images"])],
        model_version="1",
        sequence_id=5,
        sequence_start=True,
        priority=1,
        timeout=1,
        parameters={"color": "red", "depth": 3, "exact": True},
    )
    assert answer.as_numpy("logits")[0, 0] == 4


@pytest.mark.parametrize(
    ("dtype", "datatype", "field"),
    [
        ("bool", "BOOL", "bool_contents"),
        ("int8", "INT8", "int_contents"),
        ("int16", "INT16", "int_contents"),
        ("int32", "INT32", "int_contents"),
        ("int64", "INT64", "int64_contents"),
        ("uint8", "UINT8", "uint_contents"),
        ("uint16", "UINT16", "uint_contents"),
        ("uint32", "UINT32", "uint_contents"),
        ("uint64", "UINT64", "uint64_contents"),
        ("float32", "FP32", "fp32_contents"),
        ("float64", "FP64", "fp64_contents"),
        ("float16", "FP16", None),
    ],
)
def test_every_datatype_both_ways(dtype: str, datatype: str, field: str | None) -> None:
    """The least, the greatest and numbers in between arrive as they were sent."""
    spec = TensorSpec(name="images", shape=("N", 3, 2, 2), dtype=dtype)
    signature = replace(SIGNATURE, inputs=(spec,))
    array = _numbers_of(dtype)
    fed: list[Array] = []

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        fed.append(feeds["images"].copy())
        return {"logits": np.zeros((1, 4), np.float32)}

    runner = FunctionRunner(run, inputs=signature.inputs, outputs=signature.outputs)
    with fronted(runner, signature=signature) as served:
        stub = served.stub()
        stub.ModelInfer(raw_request(array, datatype=datatype))
        typed = raw_request(array, datatype=datatype)
        del typed.raw_input_contents[:]
        if field is None:
            typed.inputs[0].contents.fp32_contents.extend([0.0] * array.size)
            code, details, _ = refused(lambda: stub.ModelInfer(typed))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "elements of FP16 are expected in raw_input_contents" in details
        else:
            getattr(typed.inputs[0].contents, field).extend(array.ravel().tolist())
            stub.ModelInfer(typed)
    assert len(fed) == (1 if field is None else 2)
    for found in fed:
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def _numbers_of(dtype: str) -> Array:
    array = np.arange(12).astype(dtype)
    if array.dtype.kind in "iuf":
        limits = np.finfo(dtype) if array.dtype.kind == "f" else np.iinfo(dtype)
        array[:2] = limits.min, limits.max
    return array.reshape(1, 3, 2, 2)


def test_health(client: triton.InferenceServerClient, served: Served) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    with pytest.raises(InferenceServerException, match="there is no model 'other' here"):
        client.is_model_ready("other")


def test_what_is_not_ready() -> None:
    with fronted() as served:
        stub = served.stub()
        served.plane.model.drain()
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert not stub.ModelReady(pb.ModelReadyRequest(name="tiny")).ready


def test_metadata(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata()
    assert (server.name, server.version) == ("parnet-deploy", __version__)
    assert "statistics" in server.extensions
    model = client.get_model_metadata("tiny")
    assert (model.name, model.versions, model.platform) == ("tiny", ["1"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, t.shape) for t in model.inputs] == [
        ("images", "FP32", [-1, 3, 2, 2])
    ]
    assert [(t.name, t.datatype, t.shape) for t in model.outputs] == [("logits", "FP32", [-1, 4])]


def test_configuration(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("tiny").config
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 8)
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert config.input[0].format == model_config_pb2.ModelInput.FORMAT_NCHW
    assert config.input[0].dims == [3, 2, 2]
    assert config.parameters["precision"].string_value == "fp32"


def test_statistics_count_what_gRPC_asked_for() -> None:  # noqa: N802 - its name
    with fronted() as served:
        stub = served.stub()
        stub.ModelInfer(raw_request(images(1, 2)["images"]))
        stub.ModelInfer(typed_request(images(3)["images"]))
        assert refused(lambda: stub.ModelInfer(pb.ModelInferRequest(model_name="tiny")))
        for asked in (pb.ModelStatisticsRequest(name="tiny"), pb.ModelStatisticsRequest()):
            (found,) = stub.ModelStatistics(asked).model_stats
            assert (found.name, found.inference_count) == ("tiny", 3)
            assert found.inference_stats.success.count == 2
            assert found.inference_stats.success.ns > 0
            assert found.inference_stats.fail.count == 1


@pytest.mark.parametrize(
    "method",
    [
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting"),
        *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
        *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
        "LogSettings",
    ],
)
def test_what_is_not_offered(served: Served, method: str) -> None:
    request = getattr(pb, f"{method}Request")()
    code, details, _ = refused(lambda: getattr(served.stub(), method)(request))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details == f"{method} is not offered here"


def test_streams_are_not_offered(served: Served) -> None:
    asked = iter([raw_request(images(1)["images"])])
    code, details, _ = refused(lambda: list(served.stub().ModelStreamInfer(asked)))
    assert (code, details) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "ModelStreamInfer is not offered here",
    )


def test_methods_and_services_that_nobody_knows(served: Served) -> None:
    for path in ("/inference.GRPCInferenceService/Sing", "/other.Service/ModelInfer", "/"):
        call = served.channel().unary_unary(path)
        code, details, _ = refused(lambda: call(b""))  # noqa: B023 - called at once
        assert (code, details) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_a_call_is_logged_with_its_id(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    stub = served.stub()
    with caplog.at_level(logging.INFO, "parnet_deploy"):
        _, call = stub.ModelInfer.with_call(
            raw_request(images(1)["images"]), metadata=(("x-request-id", "abc-1"),)
        )
        _, _, trailing = refused(
            lambda: stub.ModelInfer(
                pb.ModelInferRequest(), metadata=(("x-request-id", "two words"),)
            )
        )
        eventually(lambda: len(caplog.records) == 2)
    assert dict(call.trailing_metadata())["x-request-id"] == "abc-1"
    assert "words" not in trailing["x-request-id"]
    answered, other = caplog.records
    assert answered.getMessage() == "gRPC ModelInfer OK"
    facts = answered.parnet_facts  # type: ignore[attr-defined]
    assert (facts["id"], facts["status"]) == ("abc-1", "OK")
    assert facts["infer_ms"] > 0
    assert facts["received"] > facts["sent"] > 0
    assert facts["client"].startswith("ipv4:127.0.0.1:")
    assert other.getMessage() == "gRPC ModelInfer NOT_FOUND"
    assert other.parnet_facts["id"] == trailing["x-request-id"]  # type: ignore[attr-defined]
