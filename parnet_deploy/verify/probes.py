"""What an engine must keep to whatever its weights are.

These need no reference, and find what a comparison on a few inputs may miss: an engine that answers
with old data, mixes up the rows of a batch, or goes by the place of an image in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import ParnetDeployError
from parnet_deploy.runtime import Runner
from parnet_deploy.spec import IMAGES, Array
from parnet_deploy.verify.compare import Comparison, compare
from parnet_deploy.verify.result import ProbeResult, ProbeVerdict
from parnet_deploy.verify.tolerances import RungName

Outputs = dict[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subject:
    """What is probed, and with what.

    Attributes:
        runner: the engine.
        images: (M, 3, H, W) different images, at least two and at least ``batch.max``.
        batch: images per run that it takes.
        tolerance: greatest relative error that passes.
    """

    runner: Runner
    images: Array
    batch: BatchRange
    tolerance: float

    def run(self, images: Array) -> Outputs:
        """Run a batch."""
        return self.runner.run({IMAGES: images})

    def full(self, start: int = 0) -> Array:
        """The largest batch, of different images where there are enough, from `start` on."""
        return np.roll(self.images, -start, axis=0)[: self.batch.max]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a probe found."""

    verdict: ProbeVerdict
    detail: str
    error: float | None = None


def probe(subject: Subject, rung: RungName) -> tuple[ProbeResult, ...]:
    """Ask an engine for every property.

    Args:
        subject: the engine and what to feed it.
        rung: which rung it is.

    Returns:
        One result a probe; a run that fails is a probe that failed.
    """
    results = []
    for name, ask in PROBES.items():
        try:
            found = ask(subject)
        except ParnetDeployError as exc:
            found = Finding(verdict="failed", detail=f"the run failed: {exc}")
        results.append(
            ProbeResult(
                rung=rung, name=name, verdict=found.verdict, detail=found.detail, error=found.error
            )
        )
    return tuple(results)


UNOPENED = "it does not open: its rung says why"


def not_probed(rung: RungName) -> tuple[ProbeResult, ...]:
    """Every probe of an engine that does not open as not verified; the rung has the reason."""
    return tuple(
        ProbeResult(rung=rung, name=name, verdict="not verified", detail=UNOPENED)
        for name in PROBES
    )


def _finite(subject: Subject) -> Finding:
    outputs = subject.run(subject.full())
    bad = [name for name, value in outputs.items() if not np.isfinite(value).all()]
    if bad or not outputs:
        return Finding(verdict="failed", detail=f"not finite: {', '.join(bad) or 'no output'}")
    return Finding(verdict="passed", detail="no NaN, no infinity")


def _repeatable(subject: Subject) -> Finding:
    """The same input twice, with another in between."""
    images = subject.full()
    once = subject.run(images)
    subject.run(subject.full(1))
    return _finding(compare(once, subject.run(images), subject.tolerance))


def _keeps_answers(subject: Subject) -> Finding:
    """An answer stays what it was when the engine runs again."""
    answer = subject.run(subject.full())
    copy = {name: value.copy() for name, value in answer.items()}
    subject.run(subject.full(1))
    return _finding(compare(copy, answer, 0.0))


def _sensitive(subject: Subject) -> Finding:
    """Different images have different answers, and none is that of the run before."""
    here, there = subject.run(subject.full()), subject.run(subject.full(1))
    same = [name for name, value in here.items() if np.array_equal(value, there[name])]
    if same or not here:
        return Finding(
            verdict="failed",
            detail=f"different images, the same {', '.join(same) or 'nothing'}, bit for bit",
        )
    return Finding(verdict="passed", detail="different images have different answers")


def _same_rows(subject: Subject) -> Finding:
    """One image in every row of a batch."""
    if subject.batch.max == 1:
        return _not_applicable("the batch is fixed at 1")
    outputs = subject.run(np.repeat(subject.images[:1], subject.batch.max, axis=0))
    first = {name: np.repeat(value[:1], len(value), axis=0) for name, value in outputs.items()}
    return _finding(compare(first, outputs, subject.tolerance))


def _permuted_rows(subject: Subject) -> Finding:
    """The rows of a batch in another order."""
    if subject.batch.max == 1:
        return _not_applicable("the batch is fixed at 1")
    images = subject.full()
    straight, rolled = subject.run(images), subject.run(np.roll(images, 1, axis=0))
    expected = {name: np.roll(value, 1, axis=0) for name, value in straight.items()}
    return _finding(compare(expected, rolled, subject.tolerance))


def _batch_size(subject: Subject) -> Finding:
    """Small batches, one after the other, against the largest one."""
    batch = subject.batch
    if not batch.dynamic:
        return _not_applicable(f"the batch is fixed at {batch.max}")
    images = subject.full()
    together, pieces = subject.run(images), _in_small_batches(subject, images)
    found = _finding(compare(together, pieces, subject.tolerance))
    detail = f"batch {batch.min} against batch {batch.max}: {found.detail}"
    return Finding(verdict=found.verdict, detail=detail, error=found.error)


def _in_small_batches(subject: Subject, images: Array) -> Outputs:
    """Run images in batches of the smallest size; the last is filled up with others."""
    size = subject.batch.min
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate([part, images[: size - len(part)]])
        outputs = subject.run(filled)
        parts.append({name: value[: len(part)] for name, value in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


PROBES: dict[str, Callable[[Subject], Finding]] = {
    "finite outputs": _finite,
    "same input twice, same answer": _repeatable,
    "an answer stays as it was": _keeps_answers,
    "different images, different answers": _sensitive,
    "same image in every row, same row": _same_rows,
    "permuted rows, permuted answers": _permuted_rows,
    "small batch equals large batch": _batch_size,
}


def _finding(comparison: Comparison) -> Finding:
    error = comparison.max_rel
    if not comparison.passed:
        return Finding(verdict="failed", detail="; ".join(comparison.problems), error=error)
    equal = "bit for bit" if error == 0.0 else f"within {comparison.tolerance:.0e}"
    return Finding(verdict="passed", detail=f"equal {equal}", error=error)


def _not_applicable(reason: str) -> Finding:
    return Finding(verdict="not applicable", detail=reason)
