"""What a server and a model say of themselves."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from serve_protocol import a_signature

from parnet_deploy import __version__
from parnet_deploy.bundle import BatchRange
from parnet_deploy.serve.protocol import model_config, model_metadata, server_metadata
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.spec import Backend, TensorSpec


def as_json(value: object) -> Any:
    return json.loads(msgspec.json.encode(value))


def test_a_server() -> None:
    assert as_json(server_metadata()) == {
        "name": "parnet-deploy",
        "version": __version__,
        "extensions": [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "statistics",
        ],
    }


def test_a_model() -> None:
    assert as_json(model_metadata(a_signature())) == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 4, 6]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 5]}],
    }


def test_a_models_configuration() -> None:
    assert as_json(model_config(a_signature("uint8"), ServeSettings(contexts=2))) == {
        "name": "tiny",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 4,
        "input": [
            {
                "name": "images",
                "data_type": "TYPE_UINT8",
                "dims": [3, 4, 6],
                "format": "FORMAT_NCHW",
            }
        ],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [5]}],
        "instance_group": [{"name": "tiny", "kind": "KIND_AUTO", "count": 2}],
        "parameters": {"precision": {"string_value": "fp32"}},
    }


def test_dynamic_batching_is_told() -> None:
    settings = ServeSettings(max_batch=4, max_delay=0.0015)
    config = model_config(a_signature(), settings)
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 1500}


@pytest.mark.parametrize(("size", "axis"), [(1, 1), (8, 8)])
def test_a_fixed_batch_is_a_largest_one(size: int, axis: int) -> None:
    """Fewer images than the engine's batch are filled up: for clients it is any number up to it."""
    batch = BatchRange(min=size, opt=size, max=size)
    spec = TensorSpec(name="images", shape=(axis, 3, 4, 6), dtype="float32")
    signature = a_signature(batch=batch, inputs=(spec,))
    assert model_metadata(signature).inputs[0].shape == (-1, 3, 4, 6)
    assert model_config(signature, ServeSettings())["max_batch_size"] == size


@pytest.mark.parametrize("backend", get_args(Backend))
def test_every_backend_has_a_platform(backend: str) -> None:
    platform = model_metadata(a_signature(backend=backend)).platform
    assert platform.startswith(backend.replace("-", "_"))
    assert platform.count("_") >= 1


def test_the_configuration_is_tritons_message() -> None:
    """Every member is one of ModelConfig's, and of its type."""
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    settings = ServeSettings(max_batch=4, max_delay=0.001)
    config = model_config(a_signature(), settings)
    message = json_format.Parse(msgspec.json.encode(config), messages.ModelConfig())
    assert message.max_batch_size == 4
    assert message.input[0].data_type == messages.TYPE_FP32
    assert list(message.input[0].dims) == [3, 4, 6]
    assert message.dynamic_batching.max_queue_delay_microseconds == 1000


def test_an_engine_of_batch_1_has_no_dynamic_batching() -> None:
    signature = a_signature(batch=BatchRange(min=1, opt=1, max=1))
    assert "dynamic_batching" not in model_config(signature, ServeSettings(max_batch=4))
