"""A turn: how many runs, what is timed, and the process that takes it."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parnet_deploy.bench.contest import worker
from parnet_deploy.bench.contest.measure import COMPUTE_SHARE, peak_memory, take_turn
from parnet_deploy.bench.contest.messages import Assignment, Reply, Turn
from parnet_deploy.bench.contest.opened import OpenedRunner
from parnet_deploy.bench.contest.process import WORKER
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.images import write_images
from parnet_deploy.errors import RunnerError, UsageError
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.spec import Array, Preprocessing, TensorSpec, decode
from parnet_deploy.spec.codec import encode_line

IMAGES = TensorSpec(name="images", shape=("N", 3, 32, 32), dtype="float32")
LOGITS = TensorSpec(name="logits", shape=("N", 2), dtype="float32")
FEEDS = {"images": np.ones((1, 3, 32, 32), np.float32)}


class Clock:
    """Time that only passes while something runs."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Network(FunctionRunner):
    """Every run takes as long as it is told to: the first ones are slow."""

    def __init__(self, clock: Clock, seconds: float = 0.25) -> None:
        self.clock, self.seconds, self.runs, self.fail_at = clock, seconds, 0, -1
        super().__init__(self.answer, inputs=(IMAGES,), outputs=(LOGITS,))

    def answer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.runs == self.fail_at:
            raise RunnerError("the GPU is lost")
        self.clock.now += self.seconds * (10 if self.runs < 2 else 1)
        self.runs += 1
        images = feeds["images"]
        means = images.mean((1, 2, 3), dtype=np.float64)
        return {"logits": np.stack([means, -means], 1).astype(np.float32)}


class GpuNetwork(Network):
    """One that can leave copies out of what it times, and tell its stages apart."""

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        self.run(feeds)
        return self.seconds / 5

    def trace(self, feeds: Mapping[str, Array]) -> tuple[Span, ...]:
        self.run(feeds)
        return (Span(stage="whole", device="cuda:0", start=0.0, end=self.seconds),)


@pytest.mark.parametrize(
    ("iterations", "seconds", "expected"),
    [(5, 0.0, 5), (1, 2.0, 8), (3, 0.3, 3), (10, 1.0, 10)],
)
def test_a_turn_ends_when_both_runs_and_seconds_are_reached(
    iterations: int, seconds: float, expected: int
) -> None:
    clock = Clock()
    network = Network(clock)
    turned = take_turn(
        network,
        FEEDS,
        Turn(warm_up=2, warm_up_seconds=0.0, iterations=iterations, seconds=seconds),
        clock,
    )
    assert turned.latencies == (250.0,) * expected  # the slow first two are the warm-up
    assert network.runs == 2 + expected
    assert turned.compute == ()


def test_slow_first_runs_count_without_a_warm_up() -> None:
    clock = Clock()
    turn = Turn(warm_up=0, warm_up_seconds=0.0, iterations=3, seconds=0.0)
    turned = take_turn(Network(clock), FEEDS, turn, clock)
    assert turned.latencies == (2500.0, 2500.0, 250.0)


@pytest.mark.parametrize(
    ("warm_up", "seconds", "warmed"),
    [(1, 0.0, 1), (1, 2.6, 2), (1, 5.1, 3), (5, 5.1, 5), (0, 6.0, 6)],
)
def test_a_warm_up_ends_when_both_runs_and_seconds_are_reached(
    warm_up: int, seconds: float, warmed: int
) -> None:
    """Two runs of 2.5 s each, and then runs of 0.25 s."""
    clock = Clock()
    network = Network(clock)
    turn = Turn(warm_up=warm_up, warm_up_seconds=seconds, iterations=4, seconds=0.0)
    turned = take_turn(network, FEEDS, turn, clock)
    assert network.runs == warmed + 4
    assert len(turned.latencies) == 4


@pytest.mark.parametrize("iterations", [1, 4, 5, 12])
def test_compute_alone_is_timed_in_some_runs_more(iterations: int) -> None:
    clock = Clock()
    turned = take_turn(
        GpuNetwork(clock),
        FEEDS,
        Turn(warm_up=2, warm_up_seconds=0.0, iterations=iterations, seconds=0.0),
        clock,
    )
    assert len(turned.latencies) == iterations
    assert turned.compute == (50.0,) * -(-iterations // COMPUTE_SHARE)


def test_peak_memory_is_the_greatest_so_far(tmp_path: Path) -> None:
    before = peak_memory()
    block = np.ones(64 << 20, np.uint8)
    assert peak_memory() >= before
    assert peak_memory() >= block.nbytes
    del block
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n")
    assert peak_memory(status) == 2048 * 1024
    assert peak_memory(tmp_path / "missing") > 1 << 20


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    images = write_images(tmp_path / "images.npz", Preprocessing(size=(32, 32)), count=6, seed=0)
    contestant = Contestant(
        name="a", group="ours", network="l", opener="engine", path="none", images=str(images)
    )
    return Assignment(contestant=contestant, batch=3, answers=str(tmp_path / "answer.npy"))


def opened(runner: FunctionRunner) -> OpenedRunner:
    return OpenedRunner(runner=runner, versions={"ours": "1.0"}, precision="fp16", kernels=9)


def serve(
    assignment: Assignment, runner: FunctionRunner, turns: int, monkeypatch: pytest.MonkeyPatch
) -> list[Reply]:
    monkeypatch.setattr(worker, "open_contestant", lambda contestant: opened(runner))
    turn = Turn(warm_up=0, warm_up_seconds=0.0, iterations=2, seconds=0.0)
    lines = [encode_line(assignment), *[encode_line(turn)] * turns]
    said: list[Reply] = []
    worker.serve(io.StringIO(b"".join(lines).decode()), said.append)
    return said


def test_a_contestant_answers_takes_its_turns_and_tells_what_it_took(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *turns, last = serve(assignment, GpuNetwork(Clock()), 3, monkeypatch)
    assert first.opened is not None
    assert (first.opened.output, first.opened.precision, first.opened.kernels) == (
        "logits",
        "fp16",
        9,
    )
    assert [len(reply.turned.latencies) for reply in turns if reply.turned] == [2, 2, 2]
    assert last.finished is not None
    assert [span.stage for span in last.finished.timeline] == ["whole"]
    assert last.finished.host_memory > 1 << 20


def test_answers_to_all_images_are_written(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(Clock())
    serve(assignment, network, 0, monkeypatch)
    answers = np.load(assignment.answers)
    with np.load(assignment.contestant.images) as file:
        means = file["float32"].mean((1, 2, 3), dtype=np.float64)
    assert len(answers) == 6
    np.testing.assert_allclose(answers[:, 0], means, rtol=1e-5)
    assert network.runs == 1 + 2  # the first answer, and all of them three by three


def test_too_few_images_are_told(assignment: Assignment, monkeypatch: pytest.MonkeyPatch) -> None:
    many = replace(assignment, batch=7)
    with pytest.raises(UsageError, match="7 images are needed, and there are 6"):
        serve(many, Network(Clock()), 0, monkeypatch)


def test_a_run_that_fails_ends_it_with_its_error(
    assignment: Assignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(Clock())
    network.fail_at = 3
    with pytest.raises(RunnerError, match="the GPU is lost"):
        serve(assignment, network, 3, monkeypatch)


def run_worker(*lines: bytes) -> tuple[int, list[Any]]:
    done = subprocess.run(WORKER, input=b"".join(lines), capture_output=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_process_says_why_it_cannot_open_its_contestant(assignment: Assignment) -> None:
    status, replies = run_worker(encode_line(assignment))
    assert status == 1
    assert len(replies) == 1
    assert replies[0]["error"].startswith("there is no bundle at none")


def test_a_reply_crosses_unchanged() -> None:
    reply = Reply(error="a\nb")
    assert encode_line(reply).count(b"\n") == 1
    assert decode(encode_line(reply), Reply) == reply
