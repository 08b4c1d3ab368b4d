"""ONNX Runtime with its own defaults, on the unfused export and on what torch exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of, device_number
from parnet_deploy.bench.peers.graphs import torch_exporter, torch_graph, unfused_graph
from parnet_deploy.bench.peers.runner import CallRunner
from parnet_deploy.bundle import versions
from parnet_deploy.runtime.onnxruntime import load_onnxruntime, open_session
from parnet_deploy.spec import Array, TensorSpec

TITLE = "ONNX Runtime, unfused export"


def open_onnxruntime(contestant: Contestant) -> OpenedRunner:
    """Open a graph with the session options that ONNX Runtime has by itself.

    Its threads wait for work by spinning then, which a session that has the machine to itself
    gains by. On a GPU it may place single nodes on the CPU; one that is left to the CPU as a whole
    takes no part. Its TF32, which it uses there by default, is off: precisions are compared with
    their equals.

    Raises:
        TargetError: its provider does not run here.
        EngineError: the graph does not load.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    number = device_number(contestant.devices[0])
    session = open_session(
        Path(contestant.path),
        load_onnxruntime().SessionOptions(),
        "cpu" if number is None else "cuda",
        number or 0,
        whole=False,
    )
    (source,), (target,) = session.get_inputs(), session.get_outputs()

    def call(images: Array) -> Array:
        answer: Array = session.run(None, {source.name: images})[0]
        return answer

    runner = CallRunner(
        call, title="ONNX Runtime", inputs=(_contract(source),), outputs=(_contract(target),)
    )
    return OpenedRunner(runner=runner, versions=versions("onnxruntime-gpu", "onnxruntime"))


def _contract(argument: Any) -> TensorSpec:
    """An input or output of a session; all of the graphs that are opened here are float32."""
    return TensorSpec(name=argument.name, shape=tuple(argument.shape), dtype="float32")


def _prepare(asked: Preparation) -> Contestant:
    return contestant_of(asked, TITLE, "onnxruntime", unfused_graph(asked), {})


def _prepare_torch(asked: Preparation) -> Contestant:
    title = f"ONNX Runtime, torch.onnx.export ({torch_exporter()})"
    return contestant_of(asked, title, "onnxruntime", torch_graph(asked), {})


ONNXRUNTIME = Peer(
    name="onnxruntime",
    title=TITLE,
    packages=("torch", "onnx", "onnx-graphsurgeon", "safetensors", "onnxruntime-gpu"),
    prepare=_prepare,
    precisions={"cpu": ("fp32",), "cuda": ("fp32",)},
)

TORCH_ONNX = Peer(
    name="torch-onnx",
    title="ONNX Runtime, torch.onnx.export",
    packages=("torch", "onnx", "safetensors", "onnxruntime-gpu"),
    prepare=_prepare_torch,
    precisions={"cpu": ("fp32",), "cuda": ("fp32",)},
)
