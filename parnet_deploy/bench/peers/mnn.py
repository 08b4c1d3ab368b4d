"""MNN on the unfused export, converted by its own converter.

The converter's own command sends what it converted to its makers, for which it installs a package;
its function, which is called here, does neither. Reference:
https://mnn-docs.readthedocs.io/en/latest/start/python.html.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of, contracts
from parnet_deploy.bench.peers.graphs import kept, unfused_graph
from parnet_deploy.bench.peers.runner import CallRunner, first_line
from parnet_deploy.bundle import open_model, versions
from parnet_deploy.errors import BuildError, EngineError
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.spec import IMAGES, LOGITS, Array

TITLE = "MNN, unfused export, fp32, Winograd memory level 2"

NETWORK = "model.mnn"

WINOGRAD_MEMORY_LEVEL = (3, 2)
"""Its hint of that name, and the highest of the levels 0 to 3 whose answers are float32's.

By itself it takes 3, and Winograd's largest tiles with it: ParNet-L's logits are wrong by 1.5e-4
then, and by 3e-6 with 2.
"""


def open_mnn(contestant: Contestant) -> OpenedRunner:
    """Load a converted network, one thread a core, in its ``high`` precision: float32.

    Raises:
        EngineError: MNN cannot load it.
    """
    from MNN import expr, nn

    path, settings = Path(contestant.path), contestant.settings
    options = {"backend": "CPU", "precision": "high", "numThread": usable_cores()}
    try:
        manager = nn.create_runtime_manager((options,))
        manager.set_hint(*WINOGRAD_MEMORY_LEVEL)
        net = nn.load_module_from_file(str(path), [IMAGES], [LOGITS], runtime_manager=manager)
    except Exception as exc:  # its bindings raise SystemError, among others
        raise EngineError(f"MNN cannot load {path}: {first_line(exc)}") from exc

    def call(images: Array) -> Array:
        given = expr.const(np.ascontiguousarray(images), images.shape, expr.NCHW)
        (answer,) = net.forward([given])
        return np.array(expr.convert(answer, expr.NCHW).read())

    height, width = settings["size"]
    inputs, outputs = contracts(settings["batch"], (height, width), settings["classes"])
    runner = CallRunner(call, title="MNN", inputs=inputs, outputs=outputs)
    return OpenedRunner(runner=runner, versions=versions("MNN"))


def _prepare(asked: Preparation) -> Contestant:
    spec = open_model(Path(asked.model), check=False).manifest.spec
    graph = unfused_graph(asked)
    folder = kept(asked.folder, f"mnn-b{asked.batch}", lambda work: _convert(graph, work / NETWORK))
    settings = {"size": list(spec.image_size), "classes": spec.classes}
    return contestant_of(asked, TITLE, "mnn", folder / NETWORK, settings)


def _convert(graph: Path, network: Path) -> None:
    """Let MNN's converter make its own file of a graph.

    Raises:
        BuildError: it did not.
    """
    import _tools  # of the package MNN: its converter without what sends words to its makers

    words = ("mnnconvert", "-f", "ONNX", "--modelFile", str(graph), "--MNNModel", str(network))
    if not _tools.mnnconvert([*words, "--bizCode", "MNN"]) or not network.is_file():
        raise BuildError("MNN's converter did not convert the graph")


MNN = Peer(
    name="mnn",
    title=TITLE,
    packages=("MNN", "torch", "onnx", "onnx-graphsurgeon", "safetensors"),
    prepare=_prepare,
    devices=("cpu",),
    precisions={"cpu": ("fp32",)},
)
