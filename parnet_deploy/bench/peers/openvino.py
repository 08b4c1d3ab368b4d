"""OpenVINO on the unfused export, with its hint for latency.

Reference: https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/high-level-performance-hints.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of
from parnet_deploy.bench.peers.graphs import unfused_graph
from parnet_deploy.bench.peers.runner import CallRunner, first_line
from parnet_deploy.bundle import versions
from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.openvino import load_openvino
from parnet_deploy.spec import Array, TensorSpec

TITLE = "OpenVINO, unfused export, latency hint, fp32"

HINTS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
"""By itself it computes in bfloat16 on CPUs that can, which is another answer."""


def open_openvino(contestant: Contestant) -> OpenedRunner:
    """Read a graph and compile it for this CPU.

    Raises:
        EngineError: OpenVINO cannot read or compile it.
    """
    openvino = load_openvino()  # which reports to nobody
    try:
        compiled = openvino.Core().compile_model(contestant.path, "CPU", HINTS)
    except Exception as exc:  # its exceptions share no base class
        raise EngineError(f"OpenVINO cannot open {contestant.path}: {first_line(exc)}") from exc

    def call(images: Array) -> Array:
        answer: Array = compiled(images)[0]
        return answer

    inputs, outputs = (_contract(compiled.input(0)),), (_contract(compiled.output(0)),)
    runner = CallRunner(call, title="OpenVINO", inputs=inputs, outputs=outputs)
    return OpenedRunner(runner=runner, versions=versions("openvino"))


def _contract(port: Any) -> TensorSpec:
    shape = tuple(int(size) for size in port.shape)
    return TensorSpec(name=port.any_name, shape=shape, dtype="float32")


def _prepare(asked: Preparation) -> Contestant:
    return contestant_of(asked, TITLE, "openvino", Path(unfused_graph(asked)), {})


OPENVINO = Peer(
    name="openvino",
    title=TITLE,
    packages=("openvino", "torch", "onnx", "onnx-graphsurgeon", "safetensors"),
    prepare=_prepare,
    devices=("cpu",),
    precisions={"cpu": ("fp32",)},
)
