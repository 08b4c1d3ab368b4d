"""One model's configuration: as a value, and as ``config.pbtxt``.

The fields have the names of Triton's ``ModelConfig``. Reference:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from parnet_deploy.serve.signature import VERSION
from parnet_deploy.serve.triton.text import Message, Word, entries, to_text

Platform = Literal["tensorrt_plan", "onnxruntime_onnx", "ensemble"]

FILES: Mapping[str, str] = {"tensorrt_plan": "model.plan", "onnxruntime_onnx": "model.onnx"}
"""What a version folder holds, under the name that each of Triton's backends looks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTensor:
    """An input or output.

    Attributes:
        name: its name in the graph.
        data_type: ``TYPE_FP32`` ...
        dims: its shape; without the batch where the model's `max_batch_size` is not 0.
        label_filename: class names, one a line, of an output that holds a number for each.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    label_filename: str = ""

    def message(self) -> Message:
        """As a field of a configuration."""
        labels = {"label_filename": self.label_filename} if self.label_filename else {}
        return {
            "name": self.name,
            "data_type": Word(self.data_type),
            "dims": list(self.dims),
            **labels,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceGroup:
    """Where a model runs: `count` times on the CPU, or on each of these GPUs."""

    count: int
    gpus: tuple[int, ...] = ()

    def message(self) -> Message:
        """As a field of a configuration."""
        kind = Word("KIND_GPU" if self.gpus else "KIND_CPU")
        return {"count": self.count, "kind": kind, "gpus": list(self.gpus)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicBatching:
    """How requests are put together."""

    max_queue_delay_microseconds: int
    preferred_batch_size: tuple[int, ...] = ()

    def message(self) -> Message:
        """As a field of a configuration."""
        return {
            "preferred_batch_size": list(self.preferred_batch_size),
            "max_queue_delay_microseconds": self.max_queue_delay_microseconds,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmup:
    """Runs before a model is ready: of a batch, `count` times."""

    batch_size: int
    count: int

    def message(self, inputs: tuple[ModelTensor, ...]) -> Message:
        """As a field of a configuration."""
        return {
            "name": f"batch {self.batch_size}",
            "batch_size": self.batch_size,
            "inputs": entries({tensor.name: _warmup_input(tensor) for tensor in inputs}),
            "count": self.count,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A model's part in an ensemble.

    Attributes:
        model_name: the model.
        model_version: its version.
        input_map: for each of its inputs, the ensemble's tensor that it is given.
        output_map: for each of its outputs, the ensemble's tensor that it makes.
    """

    model_name: str
    model_version: int
    input_map: Mapping[str, str] = field(hash=False)
    output_map: Mapping[str, str] = field(hash=False)

    def message(self) -> Message:
        """As a field of a configuration."""
        return {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "input_map": entries(self.input_map),
            "output_map": entries(self.output_map),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One model's configuration.

    Attributes:
        name: its name, which its folder has too.
        platform: what runs it.
        max_batch_size: images per run at most; 0: the batch is fixed, and part of every shape.
        inputs: what it reads.
        outputs: what it gives.
        instance_group: where it runs; None for an ensemble, which runs nothing itself.
        dynamic_batching: how requests are put together; None: they are not.
        warmup: runs before it is ready.
        cuda_graphs: batch sizes that are recorded as CUDA graphs (TensorRT); 0 where the batch is
            fixed.
        steps: of an ensemble.
        parameters: what else is to be known of it; Triton's backends read the names they know.
    """

    name: str
    platform: Platform
    max_batch_size: int
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    instance_group: InstanceGroup | None = None
    dynamic_batching: DynamicBatching | None = None
    warmup: tuple[Warmup, ...] = ()
    cuda_graphs: tuple[int, ...] = ()
    steps: tuple[Step, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)

    def message(self) -> Message:
        """As a message, in the order of the documentation."""
        return {
            "name": self.name,
            "platform": self.platform,
            "max_batch_size": self.max_batch_size,
            "input": [tensor.message() for tensor in self.inputs],
            "output": [tensor.message() for tensor in self.outputs],
            "version_policy": {"specific": {"versions": [int(VERSION)]}},
            **self._running(),
            "response_cache": {"enable": False},
            "parameters": entries(
                {key: {"string_value": value} for key, value in self.parameters.items()}
            ),
        }

    def text(self) -> str:
        """As ``config.pbtxt``."""
        return to_text(self.message())

    def _running(self) -> dict[str, Any]:
        """What only a model has that runs, and only an ensemble."""
        parts: dict[str, Any] = {}
        if self.instance_group is not None:
            parts["instance_group"] = [self.instance_group.message()]
        if self.dynamic_batching is not None:
            parts["dynamic_batching"] = self.dynamic_batching.message()
        if self.cuda_graphs:
            specs = [self._cuda_graph(size) for size in self.cuda_graphs]
            parts["optimization"] = {"cuda": {"graphs": True, "graph_spec": specs}}
        if self.steps:
            steps = [step.message() for step in self.steps]
            parts["ensemble_scheduling"] = {"step": steps}
        parts["model_warmup"] = [sample.message(self.inputs) for sample in self.warmup]
        return parts

    def _cuda_graph(self, batch_size: int) -> Message:
        shapes = {tensor.name: {"dim": list(tensor.dims)} for tensor in self.inputs}
        return {"batch_size": batch_size, "input": entries(shapes)}


def _warmup_input(tensor: ModelTensor) -> Message:
    """Zeros where random bytes would be numbers that are none (NaN)."""
    data = "random_data" if tensor.data_type == "TYPE_UINT8" else "zero_data"
    return {"data_type": Word(tensor.data_type), "dims": list(tensor.dims), data: True}
