"""Torch itself: the network as it was trained, and fused as one who knows ParNet would run it."""

from __future__ import annotations

from pathlib import Path

from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Peer, Preparation, contestant_of, device_number
from parnet_deploy.bench.peers.torch_model import TUNED, as_runner, load_network, settings_of
from parnet_deploy.bundle import versions

TITLE = "torch, eager"
TITLE_FUSED = "torch, eager, fused, channels-last"


def open_torch(contestant: Contestant) -> OpenedRunner:
    """Open a network in torch, operator by operator.

    Raises:
        CheckpointError: its weights cannot be read.
        TargetError: torch does not find the device.
    """
    settings = settings_of(contestant)
    network = load_network(contestant, settings)
    return OpenedRunner(
        runner=as_runner(network, network, contestant, settings, "torch"),
        versions=versions("torch"),
        precision=settings.precision,
    )


def _prepare(asked: Preparation) -> Contestant:
    return contestant_of(asked, TITLE, "torch", Path(asked.model), {})


def _prepare_fused(asked: Preparation) -> Contestant:
    on_gpu = device_number(asked.device) is not None
    settings = {"fused": True, "channels_last": True, "tuned": on_gpu}
    title = TITLE_FUSED + (TUNED if on_gpu else "")
    return contestant_of(asked, title, "torch", Path(asked.model), settings)


TORCH = Peer(
    name="torch",
    title=TITLE,
    packages=("torch", "safetensors"),
    prepare=_prepare,
    precisions={"cpu": ("fp32",), "cuda": ("fp32", "fp16")},
)

TORCH_FUSED = Peer(
    name="torch-fused",
    title=TITLE_FUSED,
    packages=("torch", "safetensors"),
    prepare=_prepare_fused,
    precisions={"cpu": ("fp32",), "cuda": ("fp32", "fp16")},
)
