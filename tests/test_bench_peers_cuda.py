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
from parnet_deploy.bench.peers import onnxruntime as onnxruntime_peer
from parnet_deploy.bench.peers.base import contestant_of
from parnet_deploy.bench.peers.onnxruntime import open_onnxruntime
from parnet_deploy.bench.peers.runner import TimedCallRunner
from parnet_deploy.bench.peers.torch_model import as_runner, settings_of
from parnet_deploy.errors import TargetError
from parnet_deploy.net import ParNet
from parnet_deploy.runtime import onnxruntime as runtime
from parnet_deploy.spec import IMAGES, LOGITS, variant

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


class Onnxruntime:
    """Its CUDA provider, which took a session, or left it to the CPU; what it was asked."""

    __file__ = "/nowhere/onnxruntime/__init__.py"

    def __init__(self, runs_on: str) -> None:
        self.runs_on = runs_on
        self.entries: dict[str, str] = {}
        self.provider: tuple[str, dict[str, str]] | None = None

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def set_default_logger_severity(self, level: int) -> None:
        pass

    def preload_dlls(self) -> None:
        pass

    def SessionOptions(self) -> Any:  # noqa: N802 - its name
        return SimpleNamespace(add_session_config_entry=self.entries.__setitem__)

    def InferenceSession(  # noqa: N802 - its name
        self, path: Path, options: Any, *, providers: Any, enable_fallback: int
    ) -> Any:
        ((name, settings),) = providers
        self.provider = name, settings
        assert not enable_fallback
        return SimpleNamespace(
            get_providers=lambda: [self.runs_on, "CPUExecutionProvider"],
            get_inputs=lambda: [SimpleNamespace(name=IMAGES, shape=[1, 3, 2, 2])],
            get_outputs=lambda: [SimpleNamespace(name=LOGITS, shape=[1, 3])],
        )


def onnxruntime_on(provider: str, monkeypatch: pytest.MonkeyPatch) -> Onnxruntime:
    made = Onnxruntime(provider)
    for module in (onnxruntime_peer, runtime):
        monkeypatch.setattr(module, "load_onnxruntime", lambda: made)
    return made


def test_onnxruntime_opens_the_session_that_its_users_get(
    asked: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No entry of its options is set: what the GPU has no kernel for may run on the CPU."""
    made = onnxruntime_on("CUDAExecutionProvider", monkeypatch)
    contestant = contestant_of(asked, "ONNX Runtime", "onnxruntime", Path("model.onnx"), {})
    open_onnxruntime(contestant).runner.close()
    assert made.entries == {}
    assert made.provider == ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})


def test_a_session_that_is_left_to_the_cpu_takes_no_part(
    asked: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime_on("CPUExecutionProvider", monkeypatch)
    contestant = contestant_of(asked, "ONNX Runtime", "onnxruntime", Path("model.onnx"), {})
    with pytest.raises(TargetError, match="ONNX Runtime fell back to the CPU"):
        open_onnxruntime(contestant)


def test_engines_of_this_project_run_wholly_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = onnxruntime_on("CUDAExecutionProvider", monkeypatch)
    runtime.open_session(Path("model.onnx"), made.SessionOptions(), "cuda")
    assert made.entries == {"session.disable_cpu_ep_fallback": "1"}
