"""What a server and a model say of themselves, as values that msgspec encodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parnet_deploy import __version__
from parnet_deploy.serve.protocol.datatypes import config_type_of, datatype_of
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import VERSION, Signature
from parnet_deploy.spec import TensorSpec

SERVER = "parnet-deploy"

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
"""Extensions to the protocol, by Triton's names of them."""

_PLATFORMS: Mapping[str, str] = {
    "ncnn": "ncnn_param",
    "onnxruntime": "onnxruntime_onnx",
    "openvino": "openvino_ir",
    "tensorrt": "tensorrt_plan",
    "tensorrt-rtx": "tensorrt_rtx_plan",
}
"""The protocol's name of a framework and its format, ``<project>_<format>``, by backend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerMetadata:
    """A server's own name and version, and the extensions that it speaks."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorMetadata:
    """An input or output; -1 in the shape is any number of images up to the model's largest."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMetadata:
    """A model's name, versions, platform, inputs and outputs."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def server_metadata() -> ServerMetadata:
    """The document at ``/v2``."""
    return ServerMetadata(name=SERVER, version=__version__, extensions=EXTENSIONS)


def model_metadata(signature: Signature) -> ModelMetadata:
    """The document at ``/v2/models/NAME``.

    That the images may as well be encoded (BYTES) has no place in it: an input has one datatype.
    """
    return ModelMetadata(
        name=signature.name,
        versions=(VERSION,),
        platform=_platform(signature),
        inputs=tuple(map(_tensor, signature.inputs)),
        outputs=tuple(map(_tensor, signature.outputs)),
    )


def model_config(signature: Signature, settings: ServeSettings) -> dict[str, Any]:
    """The document at ``/v2/models/NAME/config``: Triton's ModelConfig, as JSON.

    The largest batch is never given as 0, Triton's word for a model whose first axis is none of
    images: clients then leave that axis away.

    Reference: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
    """
    config: dict[str, Any] = {
        "name": signature.name,
        "platform": _platform(signature),
        "backend": signature.backend,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": signature.batch.max,
        "input": [_config_input(signature, spec) for spec in signature.inputs],
        "output": [_config_tensor(spec) for spec in signature.outputs],
        "instance_group": [
            {"name": signature.name, "kind": "KIND_AUTO", "count": settings.contexts}
        ],
        "parameters": {"precision": {"string_value": signature.precision}},
    }
    if min(settings.max_batch, signature.batch.max) > 1:
        delay = round(settings.max_delay * 1e6)
        config["dynamic_batching"] = {"max_queue_delay_microseconds": delay}
    return config


def _platform(signature: Signature) -> str:
    return _PLATFORMS[signature.backend]


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(
        name=spec.name, datatype=datatype_of(spec.dtype), shape=(-1, *_sizes(spec))
    )


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": config_type_of(spec.dtype),
        "dims": list(_sizes(spec)),
    }


def _config_input(signature: Signature, spec: TensorSpec) -> dict[str, Any]:
    layout = "FORMAT_NCHW" if spec == signature.image else "FORMAT_NONE"
    return {**_config_tensor(spec), "format": layout}


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    """All axes but that of the images."""
    return tuple(-1 if isinstance(size, str) else size for size in spec.shape[1:])
