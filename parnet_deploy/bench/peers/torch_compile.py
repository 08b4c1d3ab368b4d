"""``torch.compile``: Inductor on the CPU, autotuned kernels in CUDA graphs on a GPU.

Reference: https://docs.pytorch.org/docs/stable/generated/torch.compile.html.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of, device_number
from parnet_deploy.bench.peers.torch_model import TUNED, as_runner, load_network, settings_of
from parnet_deploy.bundle import versions

TITLE = "torch.compile"
TITLE_FUSED = "torch.compile, fused, channels-last"

CUDA_MODE = "max-autotune"
"""The fastest that it has: it measures kernels, and replays them as a CUDA graph."""

COMPILERS = ("g++", "clang++")


def open_torch_compile(contestant: Contestant) -> OpenedRunner:
    """Open a compiled network. It is compiled when it first answers.

    What is compiled is kept in the contestant's workspace: the first process of a contest
    compiles, as the first of a server would, and the next ones load.

    Raises:
        CheckpointError: its weights cannot be read.
        TargetError: torch does not find the device.
    """
    settings = settings_of(contestant)
    if settings.cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = settings.cache
    import torch

    network = load_network(contestant, settings)
    model = torch.compile(network, mode=settings.mode)
    return OpenedRunner(
        runner=as_runner(network, model, contestant, settings, "torch.compile"),
        versions=versions("torch", "triton"),
        precision=settings.precision,
    )


def _prepare_as(asked: Preparation, title: str, *, fused: bool) -> Contestant:
    on_gpu = device_number(asked.device) is not None
    settings = {
        "fused": fused,
        "channels_last": fused,
        "tuned": on_gpu,
        "mode": CUDA_MODE if on_gpu else None,
        "cache": str(asked.folder / f"{asked.peer}-cache"),
    }
    mode = f", {CUDA_MODE}{TUNED}" if on_gpu else ""
    return contestant_of(asked, title + mode, "torch-compile", Path(asked.model), settings)


def _prepare(asked: Preparation) -> Contestant:
    return _prepare_as(asked, TITLE, fused=False)


def _prepare_fused(asked: Preparation) -> Contestant:
    return _prepare_as(asked, TITLE_FUSED, fused=True)


def _lacks_compiler(device: str) -> str | None:
    """Inductor's code for a CPU, and its launchers for a GPU, are C++."""
    chosen = os.environ.get("CXX")
    if any(shutil.which(name) for name in ((chosen,) if chosen else COMPILERS)):
        return None
    looked = f"CXX is '{chosen}', which" if chosen else f"{' or '.join(COMPILERS)}"
    return f"torch.compile needs a C++ compiler, and {looked} is not found: install g++"


TORCH_COMPILE = Peer(
    name="torch-compile",
    title=TITLE,
    packages=("torch", "safetensors"),
    prepare=_prepare,
    precisions={"cpu": ("fp32",), "cuda": ("fp32", "fp16")},
    hindrance=_lacks_compiler,
)

TORCH_COMPILE_FUSED = Peer(
    name="torch-compile-fused",
    title=TITLE_FUSED,
    packages=("torch", "safetensors"),
    prepare=_prepare_fused,
    precisions={"cpu": ("fp32",), "cuda": ("fp32", "fp16")},
    hindrance=_lacks_compiler,
)
