"""Probes: each double is wrong in one way, and the probe made for that way finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.spec import IMAGES, LOGITS, TensorSpec
from parnet_deploy.verify.probes import PROBES, UNOPENED, Subject, not_probed, probe

DYNAMIC = BatchRange(min=1, opt=2, max=4)
FIXED_ONE = BatchRange()
FIXED_FOUR = BatchRange(min=4, opt=4, max=4)
WEIGHTS = np.random.default_rng(1).standard_normal((12, 5))

Rows = Callable[[np.ndarray], np.ndarray]


def honest(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), -1) @ WEIGHTS).astype(np.float32)


def subject(rows: Rows, batch: BatchRange = DYNAMIC) -> Subject:
    """A subject around a function from images (N,3,2,2) to logits (N,5)."""

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {LOGITS: rows(feeds[IMAGES])}

    runner = FunctionRunner(
        run,
        inputs=(TensorSpec(name=IMAGES, shape=(batch.axis, 3, 2, 2), dtype="float32"),),
        outputs=(TensorSpec(name=LOGITS, shape=(batch.axis, 5), dtype="float32"),),
    )
    images = np.random.default_rng(0).standard_normal((max(2, batch.max), 3, 2, 2))
    return Subject(runner=runner, images=images.astype(np.float32), batch=batch, tolerance=1e-5)


def verdicts(rows: Rows, batch: BatchRange = DYNAMIC) -> dict[str, str]:
    return {found.name: found.verdict for found in probe(subject(rows, batch), "engine")}


def failed(rows: Rows, batch: BatchRange = DYNAMIC) -> set[str]:
    return {name for name, verdict in verdicts(rows, batch).items() if verdict == "failed"}


def stale() -> Rows:
    """Always answers with what it was first asked."""
    kept: dict[int, np.ndarray] = {}

    def rows(images: np.ndarray) -> np.ndarray:
        return kept.setdefault(len(images), honest(images)).copy()

    return rows


def late() -> Rows:
    """Answers with the answer to the run before."""
    kept: dict[int, np.ndarray] = {}

    def rows(images: np.ndarray) -> np.ndarray:
        answer = honest(images)
        before = kept.get(len(images), answer)
        kept[len(images)] = answer
        return before.copy()

    return rows


def reused_buffer() -> Rows:
    """Gives the same memory every time."""
    buffers: dict[int, np.ndarray] = {}

    def rows(images: np.ndarray) -> np.ndarray:
        buffer = buffers.setdefault(len(images), np.empty((len(images), 5), np.float32))
        buffer[:] = honest(images)
        return buffer

    return rows


def unstable() -> Rows:
    """Answers a little differently every time."""
    rng = np.random.default_rng(2)

    def rows(images: np.ndarray) -> np.ndarray:
        answer = honest(images)
        return answer * (1 + rng.uniform(0.001, 0.01, answer.shape)).astype(np.float32)

    return rows


def first_row_everywhere(images: np.ndarray) -> np.ndarray:
    answer = honest(images)
    return np.repeat(answer[:1], len(answer), axis=0)


def by_place(images: np.ndarray) -> np.ndarray:
    """What an image is answered depends on its place in the batch."""
    answer = honest(images)
    return answer * np.linspace(1, 1.1, len(answer), dtype=np.float32)[:, None]


def rows_exchanged(images: np.ndarray) -> np.ndarray:
    """Answers in the wrong order."""
    return honest(images)[::-1].copy()


def mixes_neighbours(images: np.ndarray) -> np.ndarray:
    """Every answer holds a little of the one below."""
    answer = honest(images)
    return answer + np.float32(0.01) * np.roll(answer, 1, axis=0)


def by_batch_size(images: np.ndarray) -> np.ndarray:
    return honest(images) * np.float32(1 + 0.01 * len(images))


def not_a_number(images: np.ndarray) -> np.ndarray:
    answer = honest(images)
    answer[-1, 3] = np.nan
    return answer


FINITE, TWICE, KEPT, SENSITIVE, SAME, PERMUTED, SIZE = PROBES


def test_an_honest_engine_passes_every_probe() -> None:
    assert set(verdicts(honest).values()) == {"passed"}
    assert list(verdicts(honest)) == list(PROBES)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (stale, {SENSITIVE, PERMUTED, SIZE}),
        (late, {TWICE}),
        (reused_buffer, {KEPT}),
        (unstable, {TWICE, SAME, PERMUTED, SIZE}),
    ],
)
def test_engines_with_a_memory(make: Callable[[], Rows], expected: set[str]) -> None:
    assert failed(make()) >= expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (first_row_everywhere, {PERMUTED, SIZE}),
        (by_place, {SAME, PERMUTED, SIZE}),
        (rows_exchanged, {PERMUTED, SIZE}),
        (mixes_neighbours, {SIZE}),
        (by_batch_size, {SIZE}),
    ],
)
def test_engines_that_mix_up_rows(rows: Rows, expected: set[str]) -> None:
    assert failed(rows) == expected


def test_values_that_are_not_finite_fail_all_comparisons() -> None:
    assert failed(not_a_number) >= {FINITE, TWICE, SAME, PERMUTED, SIZE}


def test_a_batch_fixed_at_1_leaves_no_rows_to_mix_up() -> None:
    found = verdicts(honest, FIXED_ONE)
    assert {name for name, verdict in found.items() if verdict == "not applicable"} == {
        SAME,
        PERMUTED,
        SIZE,
    }
    assert failed(stale(), FIXED_ONE) == {SENSITIVE}


def test_a_greater_fixed_batch_is_probed_for_its_rows() -> None:
    found = verdicts(honest, FIXED_FOUR)
    assert found.pop(SIZE) == "not applicable"
    assert set(found.values()) == {"passed"}
    assert failed(by_place, FIXED_FOUR) == {SAME, PERMUTED}


def test_the_smallest_batch_need_not_divide_the_largest() -> None:
    odd = BatchRange(min=3, opt=3, max=5)
    assert set(verdicts(honest, odd).values()) == {"passed"}
    assert failed(by_batch_size, odd) == {SIZE}


def test_a_run_that_fails_is_a_probe_that_failed() -> None:
    def breaks(images: np.ndarray) -> np.ndarray:
        raise RunnerError("out of memory")

    results = probe(subject(breaks), "split-engine")
    assert {found.verdict for found in results} == {"failed"}
    assert all("out of memory" in found.detail for found in results)


def test_an_engine_that_cannot_run_is_not_verified() -> None:
    results = not_probed("engine")
    assert [found.name for found in results] == list(PROBES)
    assert {(found.verdict, found.detail) for found in results} == {("not verified", UNOPENED)}
