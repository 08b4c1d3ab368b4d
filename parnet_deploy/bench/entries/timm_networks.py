"""The networks that the paper compares ParNet with, from timm, as engines built like ours.

Paper: tables 2 and 3. Their weights are seeded and untrained, which latency does not depend on;
their batch normalisations are calibrated on the images that they are fed, so that no value
overflows or gets so small that a CPU takes longer over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.graph_engine import OPENER, build_graph
from parnet_deploy.bench.entries.images import read_images, write_images
from parnet_deploy.bench.peers import ncnn
from parnet_deploy.bench.peers.base import (
    Kind,
    contracts,
    device_number,
    gpu_lacking,
    packages_lacking,
)
from parnet_deploy.bench.peers.graphs import GRAPH, export_with_torch, kept
from parnet_deploy.errors import UsageError
from parnet_deploy.spec import Array, Backend, Preprocessing

if TYPE_CHECKING:
    from torch import nn

CLASSES = 1000
SIZE = (224, 224)

_KINDS: Mapping[Backend, tuple[Kind, ...]] = {
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu",),
    "ncnn": ("cpu",),
    "tensorrt": ("cuda",),
    "tensorrt-rtx": ("cuda",),
}

IMAGES, REFERENCE, ENGINE = "images.npz", "reference.npy", "engine"
"""What lies in a network's folder beside its graph."""

NEEDS = ("timm", "torch", "onnx", "safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmNetwork:
    """A network of timm's.

    Attributes:
        title: as the paper calls it.
        model: as timm calls it.
    """

    title: str
    model: str


TIMM_NETWORKS: Mapping[str, TimmNetwork] = {
    "resnet34": TimmNetwork(title="ResNet34", model="resnet34"),
    "resnet50": TimmNetwork(title="ResNet50", model="resnet50"),
    "repvgg-b1g4": TimmNetwork(title="RepVGG-B1g4", model="repvgg_b1g4"),
    "repvgg-b2g4": TimmNetwork(title="RepVGG-B2g4", model="repvgg_b2g4"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmRequest:
    """What is to be prepared. It crosses to the process that does it as JSON.

    Attributes:
        name: one of `TIMM_NETWORKS`.
        workspace: folder for what is prepared.
        backend: what builds and runs its engine.
        device: ``cpu`` or ``cuda:N``.
        batch: images per run.
        seed: of weights and images.
    """

    name: str
    workspace: str
    backend: Backend
    device: str = "cpu"
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: no such network or device, or no image per run.
        """
        if self.name not in TIMM_NETWORKS:
            raise UsageError(f"a network is one of {', '.join(TIMM_NETWORKS)}; not '{self.name}'")
        if self.batch < 1:
            raise UsageError(f"a batch has at least one image, not {self.batch}")
        device_number(self.device)


def timm_problem(asked: TimmRequest) -> str | None:
    """Why a network of timm's cannot take part here, or None. Nothing is imported."""
    number = device_number(asked.device)
    kind: Kind = "cpu" if number is None else "cuda"
    if kind not in _KINDS[asked.backend]:
        return f"{asked.backend} runs on {' and '.join(_KINDS[asked.backend])} only"
    needs = (*NEEDS, "pnnx") if asked.backend == "ncnn" else NEEDS
    lacking = packages_lacking(needs, "bench")
    return gpu_lacking(number) if lacking is None and number is not None else lacking


def timm_contestant(asked: TimmRequest) -> Contestant:
    """Export a network as ``torch.onnx.export`` does, and build an engine of it.

    RepVGG is in its deploy form, which timm itself makes. For ncnn pnnx converts the graph: this
    project's own converter knows the layers of a ParNet. The contestant's settings name, as
    ``reference``, a file with the network's logits in float64, before all that.

    Raises:
        ExportError: torch cannot export it.
        BuildError: the backend cannot build it.
        BundleError: the workspace cannot be written.
    """
    network = TIMM_NETWORKS[asked.name]
    workspace = Path(asked.workspace)
    workspace.mkdir(parents=True, exist_ok=True)
    device = asked.device.replace(":", "")
    name = f"{asked.name}-{asked.backend}-{device}-b{asked.batch}"
    folder = kept(workspace, name, lambda work: _write(asked, network.model, work))
    where = asked.backend if asked.device == "cpu" else f"{asked.backend}, {asked.device}"
    by_pnnx = asked.backend == "ncnn"
    settings = {"size": list(SIZE), "classes": CLASSES, "batch": asked.batch} if by_pnnx else {}
    return Contestant(
        name=f"{network.title}, {where}",
        group="peer",
        network=asked.name,
        opener=ncnn.OPENER if by_pnnx else OPENER,
        path=str(folder / ENGINE),
        images=str(folder / IMAGES),
        devices=(asked.device,),
        settings={"reference": str(folder / REFERENCE), **settings},
    )


def _write(asked: TimmRequest, name: str, folder: Path) -> None:
    """Images, what is right of them, the graph and its engine."""
    write_images(folder / IMAGES, Preprocessing(size=SIZE), count=asked.batch, seed=asked.seed)
    images = read_images(folder / IMAGES, "float32")
    model = make_network(name, images, seed=asked.seed)
    np.save(folder / REFERENCE, logits_in_float64(model, images))
    (folder / ENGINE).mkdir()
    if asked.backend == "ncnn":  # one image at a time, by the converter that knows every layer
        export_with_torch(deploy_form(model), (3, *SIZE), 1, folder / ENGINE / GRAPH)
        ncnn.convert(folder / ENGINE, *SIZE)
        return
    export_with_torch(deploy_form(model), (3, *SIZE), asked.batch, folder / GRAPH)
    inputs, outputs = contracts(asked.batch, SIZE, CLASSES)
    build_graph(
        folder / GRAPH,
        folder / ENGINE,
        backend=asked.backend,
        device=asked.device,
        batch=asked.batch,
        inputs=inputs,
        outputs=outputs,
    )


def make_network(model: str, images: Array, *, seed: int) -> nn.Module:
    """A seeded, untrained network of timm's, in inference mode.

    Args:
        model: timm's name.
        images: (N, 3, H, W) float32, which its batch normalisations are calibrated on.
        seed: of its weights; the global random state is untouched.
    """
    import timm
    import torch

    from parnet_deploy.net import calibrate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(model, pretrained=False)
    calibrate(network, torch.from_numpy(images))
    return network


def deploy_form(model: nn.Module) -> nn.Module:
    """The network as timm deploys it: a RepVGG's branches become one convolution."""
    from timm.utils.model import reparameterize_model

    form: nn.Module = reparameterize_model(model)
    return form.eval()


def logits_in_float64(model: nn.Module, images: Array) -> Array:
    """What a network answers in float64; it stays as it is."""
    import copy

    import torch

    exact = copy.deepcopy(model).double().eval()
    with torch.inference_mode():
        logits: Array = exact(torch.from_numpy(images).double()).numpy()
    return logits
