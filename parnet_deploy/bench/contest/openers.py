"""From a contestant, which is data, to something that runs. This is what a worker process does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.graph_engine import open_graph
from parnet_deploy.bench.peers.mnn import open_mnn
from parnet_deploy.bench.peers.ncnn import open_ncnn
from parnet_deploy.bench.peers.onnxruntime import open_onnxruntime
from parnet_deploy.bench.peers.openvino import open_openvino
from parnet_deploy.bench.peers.torch_compile import open_torch_compile
from parnet_deploy.bench.peers.torch_eager import open_torch
from parnet_deploy.bundle import EngineBundle, open_engine_bundle, versions
from parnet_deploy.errors import UsageError
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import Backend

__all__ = ["OPENERS", "OpenedRunner", "open_contestant", "open_engine"]

Opener = Callable[[Contestant], OpenedRunner]

_PACKAGES: Mapping[Backend, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


def open_contestant(contestant: Contestant) -> OpenedRunner:
    """Open a contestant with the opener that it names.

    Raises:
        UsageError: there is no such opener.
        EngineError: it cannot run here.
        MissingDependencyError: what runs it is not installed.
        CheckpointError: its weights cannot be read.
    """
    if contestant.opener not in OPENERS:
        known = ", ".join(OPENERS)
        raise UsageError(f"an opener is one of {known}; not '{contestant.opener}'")
    return OPENERS[contestant.opener](contestant)


def open_engine(contestant: Contestant) -> OpenedRunner:
    """An engine bundle of this project. Its files were checked before the contest began."""
    bundle = open_engine_bundle(Path(contestant.path), check=False)
    return OpenedRunner(
        runner=open_runner(bundle),
        versions=versions("parnet-deploy", *_PACKAGES[bundle.manifest.backend]),
        precision=bundle.manifest.computes or bundle.manifest.precision,
        kernels=_kernels(bundle),
    )


def _kernels(bundle: EngineBundle) -> int | None:
    """Launches of a run over all stages, where every stage's are known."""
    counts = [stage.kernels for stage in bundle.manifest.stages]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


OPENERS: Mapping[str, Opener] = {
    "engine": open_engine,
    "graph": open_graph,
    "torch": open_torch,
    "torch-compile": open_torch_compile,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "ncnn": open_ncnn,
    "mnn": open_mnn,
}
