"""Weights stored once: every graph's initializers point into one safetensors file.

ONNX external data is a file, an offset and a length; safetensors is a header and the tensors' bytes
behind it. So the graphs point straight into the safetensors file, which other tools can read too.
References: https://onnx.ai/onnx/repo-docs/ExternalData.html and
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data
from safetensors import SafetensorError
from safetensors.numpy import save_file

from parnet_deploy.errors import ExportError
from parnet_deploy.spec import Array

EXTERNAL_BYTES = 1024  # smaller ones, shapes and scalars among them, stay in the graph


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a tensor's bytes lie in the weights file."""

    offset: int
    length: int


def write_weights(path: Path, tensors: Mapping[str, Array]) -> dict[str, Location]:
    """Write tensors as safetensors.

    Returns:
        The place of every tensor in the file.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "onnx-external-data"})
    except SafetensorError as exc:  # a full disk, among others
        raise ExportError(f"cannot write the weights to {path}: {exc}") from exc
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
    data = 8 + header_length
    return {
        name: Location(
            offset=data + entry["data_offsets"][0],
            length=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def large_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers that are to be stored outside the graph."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if len(tensor.raw_data) >= EXTERNAL_BYTES
    }


def externalise(
    model: onnx.ModelProto, locations: Mapping[str, Location], *, file: str
) -> onnx.ModelProto:
    """Let a graph's large initializers point into the weights file.

    Args:
        model: the graph, changed in place.
        locations: where they lie.
        file: the weights file, relative to the graph's own folder and below it.

    Returns:
        The same graph.
    """
    for tensor in model.graph.initializer:
        if place := locations.get(tensor.name):
            set_external_data(tensor, file, offset=place.offset, length=place.length)
            tensor.ClearField("raw_data")
    return model
