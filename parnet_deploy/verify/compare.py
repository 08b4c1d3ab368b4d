"""Named arrays against named arrays. Numpy only.

A comparison fails on a missing, extra, misshapen or non-finite output, and tells of all outputs at
once: nothing that does not match is skipped. Where much is allowed, as to int8 and fp8, it also
fails on an output that does not follow the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from parnet_deploy.runtime.outputs import unresponsive
from parnet_deploy.spec import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputComparison:
    """One output against what was expected of it.

    Figures are None where the arrays cannot be compared; `problem` then says why. Where little is
    asked of the figures, `problem` also says that an output does not follow the images.

    Attributes:
        name: the output's name.
        max_abs: greatest absolute difference of two elements.
        max_rel: that, divided by the greatest magnitude in the *expected* output. (Element by
            element, a logit near zero would make any error look great.)
        cosine: least cosine between an expected and an actual row.
        top1: share of rows whose greatest element is the same one.
        worst: index of the element that differs most.
        problem: what is wrong beside numbers, or None.
        passed: no problem, and `max_rel` within the tolerance.
    """

    name: str
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    top1: float | None = None
    worst: tuple[int, ...] | None = None
    problem: str | None = None
    passed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All outputs against what was expected of them.

    Attributes:
        tolerance: greatest relative error that passes.
        outputs: one entry for every name on either side, sorted by name.
    """

    tolerance: float
    outputs: tuple[OutputComparison, ...]

    @property
    def passed(self) -> bool:
        """Whether there is an output, and every one passed."""
        return bool(self.outputs) and all(output.passed for output in self.outputs)

    @property
    def max_abs(self) -> float | None:
        """Greatest absolute error of all outputs, None where one cannot be compared."""
        return _worst([output.max_abs for output in self.outputs], max)

    @property
    def max_rel(self) -> float | None:
        """Greatest relative error of all outputs, None where one cannot be compared."""
        return _worst([output.max_rel for output in self.outputs], max)

    @property
    def cosine(self) -> float | None:
        """Least cosine of all outputs, None where one cannot be compared."""
        return _worst([output.cosine for output in self.outputs], min)

    @property
    def top1(self) -> float | None:
        """Least top-1 agreement of all outputs, None where one cannot be compared."""
        return _worst([output.top1 for output in self.outputs], min)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one sentence an output that failed."""
        if not self.outputs:
            return ("there is no output to compare",)
        return tuple(
            f"'{output.name}' {_complaint(output, self.tolerance)}"
            for output in self.outputs
            if not output.passed
        )


def compare(
    expected: Mapping[str, Array], actual: Mapping[str, Array], tolerance: float
) -> Comparison:
    """Compare every output on either side.

    Args:
        expected: the reference, by name; rows (images) along the first axis.
        actual: what is to be judged, by name.
        tolerance: greatest error that passes, relative to the greatest magnitude in the expected
            output. NaN passes nothing.
    """
    outputs = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            outputs.append(OutputComparison(name=name, problem="is missing"))
        elif name not in expected:
            outputs.append(OutputComparison(name=name, problem="was not expected"))
        else:
            outputs.append(_compare_output(name, expected[name], actual[name], tolerance))
    return Comparison(tolerance=tolerance, outputs=tuple(outputs))


def differences(expected: Array, actual: Array) -> tuple[float, float] | None:
    """Greatest absolute difference, and greatest magnitude in `expected`.

    Returns:
        Both, or None where the arrays cannot be compared (`find_problem` says why).
    """
    if find_problem(expected, actual) is not None:
        return None
    with np.errstate(over="ignore"):
        error = np.abs(np.subtract(actual, expected, dtype=np.float64)).max()
    return float(error), float(np.abs(expected).max())


def relative(error: float, scale: float) -> float:
    """An error relative to the magnitude of what was expected: 0 where both are 0."""
    if error == 0.0:
        return 0.0
    return error / scale if scale > 0.0 else float("inf")


def find_problem(expected: Array, actual: Array) -> str | None:
    """What keeps two arrays from being compared, or None."""
    if expected.shape != actual.shape:
        return f"has shape {list(actual.shape)} instead of {list(expected.shape)}"
    if expected.size == 0:
        return f"is empty: its shape is {list(expected.shape)}"
    bad = int(np.count_nonzero(~np.isfinite(actual)))
    if bad:
        return f"is not finite: {bad} of {actual.size} elements are NaN or infinite"
    if not np.isfinite(expected).all():
        return "has a reference that is not finite"
    return None


def _compare_output(
    name: str, expected: Array, actual: Array, tolerance: float
) -> OutputComparison:
    if problem := find_problem(expected, actual):
        return OutputComparison(name=name, problem=problem)
    want = np.atleast_1d(expected).astype(np.float64)
    got = np.atleast_1d(actual).astype(np.float64)
    with np.errstate(over="ignore"):
        error = np.abs(got - want)
    worst = np.unravel_index(int(error.argmax()), error.shape)
    max_abs = float(error.max())
    max_rel = relative(max_abs, float(np.abs(want).max()))
    rows = want.reshape(_rows(want), -1), got.reshape(_rows(got), -1)
    problem = unresponsive(*rows, tolerance)
    return OutputComparison(
        name=name,
        max_abs=max_abs,
        max_rel=max_rel,
        cosine=_least_cosine(*rows),
        top1=float(np.mean(rows[0].argmax(1) == rows[1].argmax(1))),
        worst=tuple(int(index) for index in worst),
        problem=problem,
        passed=max_rel <= tolerance and problem is None,
    )


def _rows(array: Array) -> int:
    return len(array) if array.ndim > 1 else 1


def _least_cosine(expected: Array, actual: Array) -> float:
    """Least cosine of two rows. A row of zeros has cosine 1 with another, and 0 with anything else.

    Rows are scaled to a greatest magnitude of 1 first: squares of large numbers would overflow.
    """
    a, b = _unit(expected), _unit(actual)
    same = (a * b).sum(1)
    both_zero = ~a.any(1) & ~b.any(1)
    return float(np.where(both_zero, 1.0, np.clip(same, -1.0, 1.0)).min())


def _unit(rows: Array) -> Array:
    greatest = np.abs(rows).max(1, keepdims=True)
    scaled = np.divide(rows, greatest, out=np.zeros_like(rows), where=greatest > 0)
    length = np.sqrt((scaled * scaled).sum(1, keepdims=True))
    unit: Array = np.divide(scaled, length, out=np.zeros_like(rows), where=length > 0)
    return unit


def _complaint(output: OutputComparison, tolerance: float) -> str:
    if output.problem:
        return output.problem
    return (
        f"differs by {output.max_rel:.1e} of the reference's greatest magnitude, and "
        f"{tolerance:.1e} is allowed"
    )


def _worst(values: list[float | None], choose: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known and len(known) == len(values) else None
