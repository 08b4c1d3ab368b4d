"""The climb and its verdicts, on rungs that are functions; and where values part company."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from conftest import tiny_spec

from parnet_deploy.errors import RunnerError
from parnet_deploy.spec import LOGITS, BlockSpec, layout
from parnet_deploy.verify.compare import compare
from parnet_deploy.verify.inputs import Batch
from parnet_deploy.verify.judge import judge
from parnet_deploy.verify.ladder import Step, climb
from parnet_deploy.verify.locate import BlockErrors, first_parting
from parnet_deploy.verify.result import Against, BlockError, RungResult
from parnet_deploy.verify.rungs import HEAD, Place, Sight
from parnet_deploy.verify.tolerances import BLOCK_FACTOR, RUNGS, RungName

BLOCKS = layout(tiny_spec())
NAMES = [block.name for block in BLOCKS]
TOLERANCES: dict[RungName, float] = dict.fromkeys(RUNGS, 1e-3)

Change = Callable[[dict[str, np.ndarray]], None]


class FakeRung:
    """Shows made-up values: every block's is the image plus what is behind it."""

    def __init__(self, change: Change | None = None, stage: str | None = None) -> None:
        self.change = change
        self.stage = stage
        self.closed = False

    def observe(self, batch: Batch) -> Sight:
        base = np.linspace(1, 2, 4) + batch.images.reshape(len(batch.images), -1)[:, :1]
        values = {name: base * (index + 1) for index, name in enumerate(NAMES)}
        if self.change is not None:
            self.change(values)
        seen: dict[Place, np.ndarray] = {(self.stage, n): v for n, v in values.items()}
        return Sight(outputs={LOGITS: values[HEAD]} if HEAD in values else {}, values=seen)

    def close(self) -> None:
        self.closed = True


def off(error: float, *names: str) -> Change:
    """The named blocks' values are wrong by a relative error."""

    def change(values: dict[str, np.ndarray]) -> None:
        for name in names:
            values[name] = values[name] * (1 + error)

    return change


def run(
    *changes: Change | None, tolerances: Mapping[RungName, float] = TOLERANCES
) -> tuple[RungResult, ...]:
    steps = [
        Step(name=name, what="fake", rung=FakeRung(change))
        for name, change in zip(RUNGS, changes, strict=False)
    ]
    return climb(steps, batches(), tolerances, BLOCKS)


def batches(count: int = 2) -> list[Batch]:
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0, 1, (2, 3, 4, 4)) for _ in range(count)]
    return [Batch(images=array, normalised=array, count=2) for array in arrays]


def verdicts(results: tuple[RungResult, ...]) -> list[str]:
    return [result.verdict for result in results]


def test_equal_rungs_pass_and_are_compared_with_the_first_and_the_one_before() -> None:
    results = run(None, None, None)
    assert verdicts(results) == ["passed"] * 3
    assert results[0].before is results[0].first is None
    last = results[2]
    assert last.before is not None
    assert last.first is not None
    assert (last.before.rung, last.first.rung) == ("fused-f64", "training-f64")
    assert [error.block for error in last.first.blocks] == NAMES


def test_a_fault_is_blamed_on_the_rung_that_broke_away() -> None:
    wrong = off(0.1, "last", HEAD)
    first, good, bad, same, again = run(None, None, wrong, wrong, None)
    assert verdicts((first, good, bad, same, again)) == [
        "passed",
        "passed",
        "failed",
        "failed",
        "passed",  # differs from a rung that failed, and not from the first
    ]
    assert bad.parted_at is not None
    assert bad.parted_at.startswith("last (plain block): its output differs by 1.0e-01")
    assert same.reason is not None
    assert same.reason.startswith("agrees with fused-f32 and carries on what failed there")


def test_small_steps_that_add_up_are_noticed_against_the_first_rung() -> None:
    steps = [off(0.0008 * index, HEAD) for index in range(3)]
    results = run(*steps)
    assert verdicts(results) == ["passed", "passed", "failed"]
    assert results[2].reason is not None
    assert "drifts too far: against training-f64" in results[2].reason
    assert results[2].parted_at is not None
    assert results[2].parted_at.startswith("no single block")


def test_a_wrong_block_fails_even_where_the_outputs_agree() -> None:
    results = run(None, off(2 * BLOCK_FACTOR * 1e-3, "stream1_block2"))
    assert results[1].verdict == "failed"
    assert results[1].reason is not None
    assert "the outputs agree, but the values of stream1_block2 differ" in results[1].reason
    assert run(None, off(0.9 * BLOCK_FACTOR * 1e-3, "stream1_block2"))[1].verdict == "passed"


def test_a_fault_that_one_image_shows_is_enough() -> None:
    seen = []

    def second_batch_only(values: dict[str, np.ndarray]) -> None:
        seen.append(1)
        if len(seen) == 2:
            off(0.1, "merge1", HEAD)(values)

    results = run(None, second_batch_only)
    assert results[1].verdict == "failed"
    assert results[1].parted_at is not None
    assert results[1].parted_at.startswith("merge1")


def test_a_rung_that_cannot_be_climbed_is_not_verified_and_is_stepped_over() -> None:
    steps = [
        Step(name="training-f64", what="fake", rung=FakeRung()),
        Step(name="engine", what="fake", reason="no GPU"),
        Step(name="split-engine", what="fake", rung=FakeRung()),
    ]
    results = climb(steps, batches(), TOLERANCES, BLOCKS)
    assert verdicts(results) == ["passed", "not verified", "passed"]
    assert results[1].reason == "no GPU"
    assert results[2].before is not None
    assert results[2].before.rung == "training-f64"


def test_a_rung_at_fault_that_cannot_be_climbed_fails() -> None:
    steps = [
        Step(name="training-f64", what="fake", rung=FakeRung()),
        Step(name="engine", what="fake", reason="of another bundle", fault=True),
    ]
    assert verdicts(climb(steps, batches(), TOLERANCES, BLOCKS)) == ["passed", "failed"]


def test_a_run_that_fails_is_a_rung_that_failed() -> None:
    calls = []

    def breaks(values: dict[str, np.ndarray]) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RunnerError("out of memory")

    results = run(None, breaks, None)
    assert verdicts(results) == ["passed", "failed", "passed"]
    assert results[1].reason == "it does not run: out of memory"


def test_an_output_that_is_missing_fails() -> None:
    def without(values: dict[str, np.ndarray]) -> None:
        del values[HEAD]

    results = run(None, without)
    assert results[1].verdict == "failed"
    assert results[1].reason is not None
    assert "'logits' is missing" in results[1].reason


def test_a_reference_that_is_not_finite_fails_and_so_does_all_above() -> None:
    def broken(values: dict[str, np.ndarray]) -> None:
        for name in NAMES[NAMES.index("merge2") :]:
            values[name] = values[name] * np.nan

    results = run(broken, broken)
    assert verdicts(results) == ["failed", "failed"]
    assert results[0].parted_at is not None
    assert results[0].parted_at.startswith("merge2 (fusion block): its output is not finite")


def test_the_tolerance_of_each_rung_is_its_own() -> None:
    tolerances = {**TOLERANCES, "fused-f64": 1e-6}
    results = run(None, off(1e-4, HEAD), tolerances=tolerances)
    assert results[1].verdict == "failed"
    assert run(None, off(1e-4, HEAD))[1].verdict == "passed"


def errors(stage: str | None = None, **relative: float | None) -> tuple[BlockError, ...]:
    return tuple(
        BlockError(stage=stage, block=name, max_abs=value, max_rel=value)
        for name, value in relative.items()
    )


def kind(name: str) -> BlockSpec:
    return next(block for block in BLOCKS if block.name == name)


def test_no_parting_where_all_agree() -> None:
    assert first_parting(errors(stem1=1e-9, stem2=1e-9), BLOCKS, 1e-6) is None
    assert first_parting((), BLOCKS, 1e-6) is None


def test_hidden_blocks_before_the_first_wrong_one_are_suspects_too() -> None:
    seen = errors(stem1=0.0, stream1_block2=0.5, head=0.5)
    place = first_parting(seen, BLOCKS, 1e-6)
    assert place is not None
    assert place.startswith(f"stream1_block2 ({kind('stream1_block2').kind} block), or a block")
    assert "stem2" in place
    assert "stream1_block1" in place
    assert "stem1" not in place


def test_cuts_of_a_split_engine_name_the_stage() -> None:
    cuts = (
        *errors("stream1", merge1=1e-9),
        *errors("stream2", stream2_block2=0.3),
        *errors("stream3", stream3_block2=1e-9),
        *errors("fusion", head=0.2),
    )
    place = first_parting(cuts, BLOCKS, 1e-6)
    assert place is not None
    assert place.startswith("stream2_block2 (skip block in stage stream2)")
    assert "independently" not in place  # the head is wrong because stream 2 is


def test_two_faults_are_two() -> None:
    seen = errors(**{name: 1.0 if name in ("stem3", "stem4", "merge1") else 0.0 for name in NAMES})
    place = first_parting(seen, BLOCKS, 1e-6)
    assert place is not None
    assert place.startswith("stem3 (plain block)")
    assert "independently of it at merge1 (plain block)" in place


@pytest.mark.parametrize("count", [5, 13, 14])
def test_all_faults_are_named_or_counted(count: int) -> None:
    stages = [f"stage{number:02}" for number in range(count)]
    place = first_parting(sum((errors(stage, stem1=1.0) for stage in stages), ()), BLOCKS, 1e-6)
    assert place is not None
    assert [stage for stage in stages if f"in stage {stage})" in place] == stages[:13]
    assert ("and 1 more (all are in verify.json)" in place) == (count > 13)


def test_all_blocks_that_cannot_be_seen_are_named() -> None:
    """The report does not have them."""
    place = first_parting(errors(head=1.0), BLOCKS, 1e-6)
    assert place is not None
    assert all(name in place for name in NAMES)


def test_block_errors_are_the_greatest_of_all_batches() -> None:
    gathered = BlockErrors()
    for factor in (1.01, 1.3, 1.02):
        gathered.add({(None, "stem1"): np.ones(3)}, {(None, "stem1"): factor * np.ones(3)})
    (error,) = gathered.result(BLOCKS)
    assert error.max_abs == pytest.approx(0.3)
    gathered.add({(None, "stem1"): np.ones(3)}, {(None, "stem1"): np.array([1, np.nan, 1])})
    (error,) = gathered.result(BLOCKS)
    assert error.max_rel is None
    assert error.problem is not None


def test_a_stage_finds_its_reference_in_a_network_seen_as_one_and_back() -> None:
    whole = {(None, "stem1"): np.ones(3)}
    stages = {("stream1", "stem1"): np.ones(3), ("stream2", "stem1"): 2 * np.ones(3)}
    gathered = BlockErrors()
    gathered.add(whole, stages)
    assert [(e.stage, e.max_rel) for e in gathered.result(BLOCKS)] == [
        ("stream1", 0.0),
        ("stream2", 1.0),
    ]
    back = BlockErrors()
    back.add(stages, whole)
    assert [(e.stage, e.max_rel) for e in back.result(BLOCKS)] == [(None, 0.0)]


@pytest.mark.parametrize("blind", [True, False])
def test_what_follows_no_image_fails_on_images_that_nobody_can_be_right_on(blind: bool) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    given = {LOGITS: np.zeros_like(rows) if blind else rows[:, ::-1]}
    first = Against(rung=RUNGS[0], comparison=compare({LOGITS: rows}, given, 0.76), blocks=())
    same = Against(rung=RUNGS[1], comparison=compare(given, given, 0.76), blocks=())
    found = judge(
        RUNGS[2],
        "a graph",
        before=same,
        first=first,
        trusted=True,
        blocks=BLOCKS,
        unlike="noise is nothing that it was calibrated for",
        both=True,
    )
    assert found.verdict == ("failed" if blind else "not verified")
    assert ("'logits' does not follow the images" in (found.reason or "")) == blind
