"""When stages run: as soon as their inputs are there, side by side, from many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.bundle import ModelBundle, open_engine_bundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime import FunctionRunner, SplitRunner, StageRunner, open_runner
from parnet_deploy.runtime.timeline import Span, Traces
from parnet_deploy.spec import Array, TensorSpec

PATIENCE = 20.0  # seconds; what takes longer hangs

Values = Mapping[str, Array]
Work = Callable[[Values], None]


def tensor(name: str) -> TensorSpec:
    return TensorSpec(name=name, shape=(2,), dtype="float32")


def stage(name: str, reads: str, work: Work = lambda feeds: None) -> StageRunner:
    """A stage that adds up what it reads, after doing `work`; it gives a value of its own name."""

    def function(feeds: Values) -> Values:
        work(feeds)
        return {name: np.sum(list(feeds.values()), axis=0, dtype=np.float32)}

    names = reads.split()
    runner = FunctionRunner(function, inputs=tuple(map(tensor, names)), outputs=(tensor(name),))
    return StageRunner(name=name, device="cpu", runner=runner)


def join(*stages: StageRunner) -> SplitRunner:
    return SplitRunner(stages, inputs=(tensor("x"),), outputs=(tensor(stages[-1].name),))


FEEDS = {"x": np.array([1.0, 2.0], dtype=np.float32)}


def wait_for(event: threading.Event) -> Work:
    def work(feeds: Values) -> None:
        assert event.wait(PATIENCE), "it was never allowed to go on"

    return work


def test_a_stage_starts_when_its_inputs_are_there_and_not_when_all_others_have_ended() -> None:
    """A slow stream does not hold up what reads only the fast one."""
    reached = threading.Event()
    slow = stage("slow", "x", wait_for(reached))  # ends only after the last of the other branch
    fast = stage("fast", "x")
    behind = stage("behind", "fast", lambda feeds: reached.set())
    last = stage("last", "slow behind")
    with join(slow, fast, behind, last) as runner:
        assert runner.run(FEEDS)["last"].tolist() == [2.0, 4.0]


def test_three_streams_run_at_the_same_time() -> None:
    """Each waits for the other two to be running, which they never are one after the other."""
    together = threading.Barrier(3)

    def meet(feeds: Values) -> None:
        together.wait(PATIENCE)

    streams = [stage(f"stream{n}", "x", meet) for n in (1, 2, 3)]
    with join(*streams, stage("fusion", "stream1 stream2 stream3")) as runner:
        assert runner.run(FEEDS)["fusion"].tolist() == [3.0, 6.0]
        spans = {span.stage: span for span in runner.trace(FEEDS)}
    running = [spans[f"stream{n}"] for n in (1, 2, 3)]
    assert max(span.start for span in running) <= min(span.end for span in running)
    assert spans["fusion"].start >= max(span.end for span in running)


def test_spans_of_a_chain_follow_each_other_in_order() -> None:
    with join(stage("a", "x"), stage("b", "a"), stage("c", "b")) as runner:
        assert isinstance(runner, Traces)
        spans = runner.trace(FEEDS)
    assert [span.stage for span in spans] == ["a", "b", "c"]
    times = [time for span in spans for time in (span.start, span.end)]
    assert times == sorted(times)
    assert all(isinstance(span, Span) and span.device == "cpu" for span in spans)


def test_tracing_a_run_that_fails_says_which_stage_failed() -> None:
    def fail(feeds: Values) -> None:
        raise MemoryError("no room")

    with (
        join(stage("a", "x"), stage("b", "a", fail)) as runner,
        pytest.raises(RunnerError, match=r"stage 'b' on cpu failed: no room"),
    ):
        runner.trace(FEEDS)


def test_a_thousand_runs_from_eight_threads_equal_the_whole_engine(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    engines = {}
    for split in (False, True):
        builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=split)
        build_engine(tiny_bundle, tmp_path / str(split), builder, split=split)
        engines[split] = open_runner(open_engine_bundle(tmp_path / str(split)))
    shape = tiny_bundle.manifest.inputs[0].concrete(1)
    images = np.random.default_rng(0).standard_normal((40, *shape)).astype(np.float32)
    expected = [engines[False].run({"images": image})["logits"] for image in images]
    assert len({answer.tobytes() for answer in expected}) == len(images)  # they can be mixed up

    def ask(number: int) -> None:
        answer = engines[True].run({"images": images[number % len(images)]})["logits"]
        np.testing.assert_allclose(answer, expected[number % len(images)], rtol=0, atol=1e-5)

    with ThreadPoolExecutor(8) as callers:
        assert len(list(callers.map(ask, range(1000), timeout=600))) == 1000
    for engine in engines.values():
        engine.close()
