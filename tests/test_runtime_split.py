"""SplitRunner: any plan of stages, several threads, stages that fail, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime import FunctionRunner, SplitRunner, StageRunner
from parnet_deploy.spec import Array, TensorSpec

PATIENCE = 20.0  # seconds; a run that takes longer hangs

Values = Mapping[str, Array]


def tensor(name: str) -> TensorSpec:
    return TensorSpec(name=name, shape=(2,), dtype="float32")


X, Y = tensor("x"), tensor("y")
FEEDS = {"x": np.array([1.0, 2.0], dtype=np.float32)}


def stage(
    name: str,
    function: Callable[[Values], Values],
    reads: tuple[str, ...] = ("x",),
    gives: tuple[str, ...] = ("y",),
    device: str = "cpu",
) -> StageRunner:
    runner = FunctionRunner(
        function, inputs=tuple(map(tensor, reads)), outputs=tuple(map(tensor, gives))
    )
    return StageRunner(name=name, device=device, runner=runner)


def add(amount: float, reads: str, gives: str) -> Callable[[Values], Values]:
    return lambda feeds: {gives: feeds[reads] + np.float32(amount)}


def within(call: Callable[[], object]) -> object:
    """The call's result; it fails where the call does not end."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=PATIENCE)


@dataclass(frozen=True)
class Plan:
    """Random stages: which values each reads, how many it gives, how long it takes."""

    reads: tuple[tuple[str, ...], ...]
    gives: tuple[int, ...]
    delays: tuple[float, ...]

    def names(self, index: int) -> tuple[str, ...]:
        return tuple(f"v{index}_{k}" for k in range(self.gives[index]))

    def compute(self, index: int, feeds: Values) -> dict[str, Array]:
        total = np.sum([feeds[name] for name in self.reads[index]], axis=0, dtype=np.float32)
        scale = np.float32(0.5)
        return {name: total * scale + k + index for k, name in enumerate(self.names(index))}

    def expected(self, x: Array) -> dict[str, Array]:
        values = {"x": x}
        for index in range(len(self.reads)):
            values |= self.compute(index, values)
        del values["x"]
        return values

    def runner(self) -> SplitRunner:
        def slowly(index: int) -> Callable[[Values], Values]:
            def function(feeds: Values) -> Values:
                time.sleep(self.delays[index])
                return self.compute(index, feeds)

            return function

        stages = [
            stage(f"s{index}", slowly(index), self.reads[index], self.names(index))
            for index in range(len(self.reads))
        ]
        every = [name for index in range(len(stages)) for name in self.names(index)]
        return SplitRunner(stages, inputs=(X,), outputs=tuple(map(tensor, every)))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    reads, gives, delays, there = [], [], [], ["x"]
    for index in range(draw(st.integers(1, 7))):
        reads.append(tuple(draw(st.sets(st.sampled_from(there), min_size=1, max_size=3))))
        gives.append(draw(st.integers(1, 2)))
        delays.append(draw(st.sampled_from([0.0, 0.0005, 0.002])))
        there += [f"v{index}_{k}" for k in range(gives[-1])]
    return Plan(reads=tuple(reads), gives=tuple(gives), delays=tuple(delays))


@given(plan=plans())
def test_any_plan_gives_what_its_stages_give_one_after_the_other(plan: Plan) -> None:
    with plan.runner() as runner:
        given_back = within(lambda: runner.run(FEEDS))
    expected = plan.expected(FEEDS["x"])
    assert given_back.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(given_back[name], value)


@settings(max_examples=10)
@given(plan=plans(), threads=st.integers(2, 6))
def test_several_threads_each_get_their_own_answers(plan: Plan, threads: int) -> None:
    inputs = [np.array([n, -n], dtype=np.float32) for n in range(4 * threads)]
    with plan.runner() as runner, ThreadPoolExecutor(threads) as callers:
        futures = [callers.submit(runner.run, {"x": x}) for x in inputs]
        results = [future.result(timeout=PATIENCE) for future in futures]
    for x, result in zip(inputs, results, strict=True):
        for name, value in plan.expected(x).items():
            np.testing.assert_array_equal(result[name], value)


def test_stages_that_do_not_need_each_other_run_side_by_side() -> None:
    both = threading.Barrier(2)

    def meet(gives: str) -> Callable[[Values], Values]:
        def function(feeds: Values) -> Values:
            both.wait(timeout=PATIENCE)  # it breaks where one runs after the other
            return {gives: feeds["x"]}

        return function

    stages = [stage("a", meet("y"), gives=("y",)), stage("b", meet("z"), gives=("z",))]
    with SplitRunner(stages, inputs=(X,), outputs=(Y, tensor("z"))) as runner:
        assert set(runner.run(FEEDS)) == {"y", "z"}


def test_run_all_gives_the_values_that_cross_a_cut_and_run_only_the_outputs() -> None:
    stages = [
        stage("a", add(1, "x", "cut"), gives=("cut",)),
        stage("b", add(1, "cut", "y"), reads=("cut",)),
    ]
    with SplitRunner(stages, inputs=(X,), outputs=(Y,)) as runner:
        assert set(runner.run(FEEDS)) == {"y"}
        everything = runner.run_all(FEEDS)
    np.testing.assert_array_equal(everything["cut"], [2.0, 3.0])
    np.testing.assert_array_equal(everything["y"], [3.0, 4.0])


class Fickle:
    """A stage's function that fails while `broken` is set."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.broken = False

    def __call__(self, feeds: Values) -> Values:
        if self.broken:
            raise self.error
        return {"cut": feeds["x"]}


@pytest.mark.parametrize(
    "error",
    [RunnerError("out of memory"), EngineError("gone"), ValueError("bad"), MemoryError("no")],
    ids=lambda error: type(error).__name__,
)
def test_a_stage_that_fails_is_named_once_and_the_runner_goes_on(error: Exception) -> None:
    fickle = Fickle(error)
    ended = threading.Event()

    def slow(feeds: Values) -> Values:
        time.sleep(0.05)
        ended.set()
        return {"side": feeds["x"]}

    stages = [
        stage("stream1", fickle, gives=("cut",), device="cuda:1"),
        stage("stream2", slow, gives=("side",)),
        stage("fusion", add(1, "cut", "y"), reads=("cut", "side"), device="cuda:0"),
    ]
    with SplitRunner(stages, inputs=(X,), outputs=(Y,)) as runner:
        fickle.broken = True
        with pytest.raises(RunnerError) as caught:
            within(lambda: runner.run(FEEDS))
        message = str(caught.value)
        assert message == f"stage 'stream1' on cuda:1 failed: {error}"
        assert caught.value.__cause__ is error
        assert ended.is_set()  # nothing runs on behind the caller's back
        fickle.broken = False
        np.testing.assert_array_equal(runner.run(FEEDS)["y"], [2.0, 3.0])


def test_runs_that_fail_do_not_disturb_those_of_other_threads() -> None:
    def picky(feeds: Values) -> Values:
        if feeds["x"][0] % 3 == 0:
            raise RunnerError("not this one")
        return {"cut": feeds["x"]}

    stages = [
        stage("a", picky, gives=("cut",)),
        stage("b", add(1, "cut", "y"), reads=("cut",)),
    ]
    with (
        SplitRunner(stages, inputs=(X,), outputs=(Y,)) as runner,
        ThreadPoolExecutor(6) as callers,
    ):
        futures = {
            n: callers.submit(runner.run, {"x": np.full(2, n, dtype=np.float32)}) for n in range(60)
        }
        for n, future in futures.items():
            if n % 3 == 0:
                with pytest.raises(RunnerError, match="stage 'a' on cpu failed: not this one"):
                    future.result(timeout=PATIENCE)
            else:
                assert future.result(timeout=PATIENCE)["y"].tolist() == [n + 1, n + 1]


class Careless:
    """A runner that does not look at what it gives."""

    inputs = (X,)
    outputs = (Y,)

    def __init__(self, given: dict[str, Array]) -> None:
        self.given = given

    def run(self, feeds: Values) -> dict[str, Array]:
        return self.given

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "given_back",
    [{}, {"y": np.zeros(3, dtype=np.float32)}, {"y": np.zeros(2, dtype=np.float64)}],
    ids=["missing", "another shape", "another dtype"],
)
def test_a_stage_that_gives_the_wrong_thing_is_named(given_back: dict[str, Array]) -> None:
    stages = [StageRunner(name="odd", device="cpu", runner=Careless(given_back))]
    with (
        SplitRunner(stages, inputs=(X,), outputs=(Y,)) as runner,
        pytest.raises(RunnerError, match="stage 'odd' on cpu failed"),
    ):
        within(lambda: runner.run(FEEDS))


@pytest.mark.parametrize(
    "feeds",
    [{}, {"x": np.zeros(3, dtype=np.float32)}, {**FEEDS, "z": np.zeros(1)}],
    ids=["missing", "misshapen", "extra"],
)
def test_wrong_feeds_are_refused_before_any_stage_runs(feeds: dict[str, Array]) -> None:
    def never(feeds: Values) -> Values:
        raise AssertionError("a stage ran")

    with (
        SplitRunner([stage("a", never)], inputs=(X,), outputs=(Y,)) as runner,
        pytest.raises(RunnerError, match=r"is expected|the inputs are"),
    ):
        runner.run(feeds)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stage"),
        ([stage("b", add(1, "cut", "y"), reads=("cut",))], "stage 'b' reads 'cut'.*nothing"),
        (
            [
                stage("b", add(1, "cut", "y"), reads=("cut",)),
                stage("a", add(1, "x", "cut"), gives=("cut",)),
            ],
            "stage 'b' reads 'cut'",
        ),
        ([stage("a", add(1, "x", "z"), gives=("z",))], "'y'.* is wanted"),
        ([stage("a", add(1, "x", "y")), stage("b", add(1, "x", "y"))], "stage 'b' gives.*already"),
        ([stage("a", add(1, "x", "x"), gives=("x", "y"))], "stage 'a' gives.*already"),
    ],
    ids=["none", "unmade input", "wrong order", "unmade output", "made twice", "made over"],
)
def test_a_plan_that_cannot_run_is_refused(stages: list[StageRunner], message: str) -> None:
    with pytest.raises(RunnerError, match=message):
        SplitRunner(stages, inputs=(X,), outputs=(Y,))


def test_a_cut_of_another_dtype_than_its_reader_expects_is_refused() -> None:
    half = TensorSpec(name="cut", shape=(2,), dtype="float16")
    maker = FunctionRunner(lambda feeds: {"cut": feeds["x"]}, inputs=(X,), outputs=(half,))
    stages = [
        StageRunner(name="a", device="cpu", runner=maker),
        stage("b", add(1, "cut", "y"), reads=("cut",)),
    ]
    with pytest.raises(RunnerError, match=r"reads 'cut', float32\[2\].*float16\[2\]"):
        SplitRunner(stages, inputs=(X,), outputs=(Y,))


class Closing(FunctionRunner):
    """Counts how often it is closed, and may fail to."""

    def __init__(self, gives: str, *, fails: bool = False) -> None:
        super().__init__(add(1, "x", gives), inputs=(X,), outputs=(tensor(gives),))
        self.fails = fails
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        if self.fails:
            raise RunnerError("stuck")


def test_closing_closes_every_stage_once_and_a_closed_runner_says_so() -> None:
    runners = [Closing("y"), Closing("z")]
    stages = [StageRunner(name="s", device="cpu", runner=runner) for runner in runners]
    split = SplitRunner(stages, inputs=(X,), outputs=(Y,))
    split.close()
    split.close()
    assert [runner.closed for runner in runners] == [1, 1]
    with pytest.raises(RunnerError, match="closed; open it again"):
        split.run(FEEDS)


def test_a_stage_that_fails_to_close_does_not_keep_the_others_open() -> None:
    runners = [Closing("y", fails=True), Closing("z", fails=True), Closing("w")]
    stages = [StageRunner(name="s", device="cpu", runner=runner) for runner in runners]
    split = SplitRunner(stages, inputs=(X,), outputs=(Y,))
    with pytest.raises(RunnerError, match="stuck"):
        split.close()
    assert [runner.closed for runner in runners] == [1, 1, 1]


def test_closing_waits_for_a_run_and_later_runs_are_refused() -> None:
    running, go_on = threading.Event(), threading.Event()

    def slow(feeds: Values) -> Values:
        running.set()
        assert go_on.wait(PATIENCE)
        return {"y": feeds["x"]}

    split = SplitRunner([stage("a", slow)], inputs=(X,), outputs=(Y,))
    with ThreadPoolExecutor(2) as callers:
        run = callers.submit(split.run, FEEDS)
        assert running.wait(PATIENCE)
        close = callers.submit(split.close)
        time.sleep(0.05)
        assert not close.done()
        go_on.set()
        close.result(timeout=PATIENCE)
        np.testing.assert_array_equal(run.result(timeout=PATIENCE)["y"], FEEDS["x"])
    with pytest.raises(RunnerError, match="closed"):
        split.run(FEEDS)


def test_closing_among_many_runs_ends_each_with_its_answer_or_an_error() -> None:
    stages = [
        stage("a", add(1, "x", "cut"), gives=("cut",)),
        stage("b", add(1, "cut", "y"), reads=("cut",)),
    ]
    for _ in range(20):
        split = SplitRunner(stages, inputs=(X,), outputs=(Y,))
        with ThreadPoolExecutor(4) as callers:
            runs = [callers.submit(split.run, FEEDS) for _ in range(12)]
            split.close()
            for run in runs:
                error = run.exception(timeout=PATIENCE)
                if error is None:
                    assert run.result()["y"].tolist() == [3.0, 4.0]
                else:
                    assert isinstance(error, RunnerError)
                    assert "closed" in str(error)
