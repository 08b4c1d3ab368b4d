"""Peers of a GPU, as far as they can be tried without one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers import PEERS, Preparation
from parnet_deploy.bench.peers.runner import TimedCallRunner
from parnet_deploy.bench.peers.torch_model import as_runner, settings_of
from parnet_deploy.net import ParNet
from parnet_deploy.spec import variant

LAUNCHING, COMPUTING = 2.0, 5.0  # milliseconds of the host, and then of the GPU


@dataclass
class Queue:
    """A GPU's one stream: what is put there starts when all before it has ended."""

    host: float = 0.0
    gpu: float = 0.0
    runs: list[str] = field(default_factory=list)

    def run(self, images: str) -> None:
        """A network: the host launches, the GPU computes."""
        self.runs.append(images)
        self.host += LAUNCHING
        self.gpu = max(self.gpu, self.host) + COMPUTING

    def event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    """The moment at which the GPU comes to it."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.at = queue, float("nan")

    def record(self) -> None:
        self.at = max(self.queue.gpu, self.queue.host)

    def synchronize(self) -> None:
        self.queue.host = max(self.queue.host, self.at)

    def elapsed_time(self, end: Event) -> float:
        assert end.queue.host >= end.at, "nobody has waited for it"
        return end.at - self.at


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Torch's CUDA, as far as it is used, on that queue."""
    made = Queue()
    moving = SimpleNamespace(to=lambda *to, **layout: "images on the GPU")

    def wait() -> None:
        made.host = max(made.host, made.gpu)

    monkeypatch.setattr(torch, "from_numpy", lambda images: moving)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return made


@pytest.fixture
def asked(tmp_path: Path) -> Preparation:
    return Preparation(
        peer="torch",
        network="digits",
        model="model",
        workspace=str(tmp_path),
        images="images.npz",
        device="cuda:0",
    )


def opened(contestant: Contestant, queue: Queue) -> TimedCallRunner:
    network = ParNet(variant("digits").spec)
    model: Any = queue.run
    runner = as_runner(network, model, contestant, settings_of(contestant), "torch")
    assert isinstance(runner, TimedCallRunner)
    return runner


def test_compute_alone_counts_no_launches(asked: Preparation, queue: Queue) -> None:
    """The run that is timed is queued behind another, as this project's own are."""
    runner = opened(PEERS["torch"].prepare(asked), queue)
    (source,) = runner.inputs
    feeds = {source.name: np.zeros(source.shape, np.float32)}
    for _ in range(3):
        assert runner.time_compute(feeds) == pytest.approx(COMPUTING / 1000)
    assert queue.runs == ["images on the GPU"] * 6


@pytest.mark.parametrize(
    ("name", "tuned"),
    [
        ("torch", False),
        ("torch-fused", True),
        ("torch-compile", True),
        ("torch-compile-fused", True),
    ],
)
def test_who_tunes_lets_cudnn_measure(
    name: str, tuned: bool, asked: Preparation, queue: Queue
) -> None:
    contestant = PEERS[name].prepare(replace(asked, peer=name))
    assert ("cudnn.benchmark" in contestant.name) is tuned
    opened(contestant, queue)
    assert torch.backends.cudnn.benchmark is tuned
    assert not torch.backends.cudnn.allow_tf32
    on_cpu = PEERS[name].prepare(replace(asked, peer=name, device="cpu"))
    assert "cudnn" not in on_cpu.name
