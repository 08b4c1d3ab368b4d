"""TensorRT and TensorRT RTX on the unfused export, built with their defaults.

Both are run as this project runs its own plans: what differs is the graph, and that their own
builder alone has folded it. TF32 is off, as everywhere where fp32 is said.
"""

from __future__ import annotations

from pathlib import Path

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.graph_engine import OPENER, build_graph
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of, contracts
from parnet_deploy.bench.peers.graphs import kept, unfused_graph
from parnet_deploy.bundle import open_model
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend

TITLE = "TensorRT, unfused export"
TITLE_RTX = "TensorRT RTX, unfused export"


def _prepare_with(asked: Preparation, backend: TensorRTBackend, title: str) -> Contestant:
    spec = open_model(Path(asked.model), check=False).manifest.spec
    inputs, outputs = contracts(asked.batch, spec.image_size, spec.classes)
    graph = unfused_graph(asked)

    def write(folder: Path) -> None:
        build_graph(
            graph,
            folder,
            backend=backend,
            device=asked.device,
            batch=asked.batch,
            inputs=inputs,
            outputs=outputs,
        )

    name = f"{backend}-{asked.device.replace(':', '')}-b{asked.batch}"
    folder = kept(asked.folder, name, write)
    return contestant_of(asked, title, OPENER, folder, {})


def _prepare(asked: Preparation) -> Contestant:
    return _prepare_with(asked, "tensorrt", TITLE)


def _prepare_rtx(asked: Preparation) -> Contestant:
    return _prepare_with(asked, "tensorrt-rtx", TITLE_RTX)


TENSORRT = Peer(
    name="tensorrt",
    title=TITLE,
    packages=("tensorrt", "cuda-bindings", "torch", "onnx", "onnx-graphsurgeon", "safetensors"),
    prepare=_prepare,
    extra="tensorrt,bench",
    devices=("cuda",),
    precisions={"cuda": ("fp32",)},
)

TENSORRT_RTX = Peer(
    name="tensorrt-rtx",
    title=TITLE_RTX,
    packages=("tensorrt-rtx", "cuda-bindings", "torch", "onnx", "onnx-graphsurgeon", "safetensors"),
    prepare=_prepare_rtx,
    extra="rtx,bench",
    devices=("cuda",),
    precisions={"cuda": ("fp32",)},
)
