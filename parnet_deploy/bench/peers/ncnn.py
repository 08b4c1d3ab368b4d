"""ncnn on the unfused export, converted by its own converter, pnnx, which folds what it can.

ncnn runs one image at a time: a batch is run image by image, as its users do. Reference:
https://github.com/Tencent/ncnn/wiki/use-ncnn-with-pytorch-or-onnx.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of, contracts
from parnet_deploy.bench.peers.graphs import GRAPH, kept, one_file, unfused_graph
from parnet_deploy.bench.peers.runner import CallRunner
from parnet_deploy.bundle import open_model, versions
from parnet_deploy.errors import BuildError, EngineError
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.spec import Array

TITLE = "ncnn, unfused export, fp32"

OPENER = "ncnn"

SECONDS = 300.0
"""How long a conversion may take."""

_REDUCED = ("use_fp16_storage", "use_fp16_packed", "use_fp16_arithmetic", "use_bf16_storage")
"""Options that trade precision for speed, where a CPU can; some are on by default."""

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"


def open_ncnn(contestant: Contestant) -> OpenedRunner:
    """Load a converted network, one thread a core, and every option of reduced precision off.

    Raises:
        EngineError: ncnn cannot load it.
    """
    import ncnn

    folder, settings = Path(contestant.path), contestant.settings
    net = ncnn.Net()
    net.opt.num_threads = usable_cores()
    for option in _REDUCED:
        setattr(net.opt, option, False)
    if net.load_param(str(folder / PARAM)) or net.load_model(str(folder / BIN)):
        raise EngineError(f"ncnn cannot load the network in {folder}")
    (source,), (target,) = net.input_names(), net.output_names()

    def answer(image: Array) -> Array:
        extractor = net.create_extractor()
        if extractor.input(source, ncnn.Mat(image)):
            raise RuntimeError("it did not take an image")
        status, value = extractor.extract(target)
        if status:
            raise RuntimeError(f"it ended with {status}")
        return np.array(value)

    def call(images: Array) -> Array:
        return np.stack([answer(image) for image in images])

    height, width = settings["size"]
    inputs, outputs = contracts(settings["batch"], (height, width), settings["classes"])
    runner = CallRunner(call, title="ncnn", inputs=inputs, outputs=outputs)
    return OpenedRunner(runner=runner, versions=versions("ncnn", "pnnx"))


def _prepare(asked: Preparation) -> Contestant:
    spec = open_model(Path(asked.model), check=False).manifest.spec
    height, width = spec.image_size
    graph = unfused_graph(replace(asked, batch=1))

    def write(folder: Path) -> None:
        one_file(graph, folder / GRAPH)
        convert(folder, height, width)

    folder = kept(asked.folder, "ncnn", write)
    settings = {"size": [height, width], "classes": spec.classes}
    return contestant_of(asked, TITLE, OPENER, folder, settings)


def convert(folder: Path, height: int, width: int) -> None:
    """Let pnnx make ``model.ncnn.*`` of ``model.onnx`` in a folder, with float32 weights.

    Raises:
        BuildError: it did not.
    """
    import pnnx

    command: list[Any] = [pnnx.EXEC_PATH, GRAPH, f"inputshape=[1,3,{height},{width}]", "fp16=0"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BuildError(f"pnnx did not convert the graph: {exc}") from exc
    if done.returncode or not (folder / BIN).is_file():
        said = done.stderr.strip().splitlines()
        raise BuildError(f"pnnx did not convert the graph: {said[-1] if said else 'no reason'}")


NCNN = Peer(
    name="ncnn",
    title=TITLE,
    packages=("ncnn", "pnnx", "torch", "onnx", "onnx-graphsurgeon", "safetensors"),
    prepare=_prepare,
    devices=("cpu",),
    precisions={"cpu": ("fp32",)},
)
