"""Figures as people read them, the same in the table and on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from parnet_deploy.verify.probes import UNOPENED
from parnet_deploy.verify.result import Against, ProbeResult, RungResult, Verification

NONE = "-"

RELATIVE = (
    "Relative errors are relative to the greatest magnitude in the reference's output. "
    "A block's values may differ four times as much as a rung's outputs."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One comparison of a rung, as words.

    Attributes:
        rung: the rung; empty where the line above is of the same one.
        against: the reference.
        max_abs: greatest absolute error.
        max_rel: greatest relative error.
        cosine: least cosine.
        top1: top-1 agreement.
        allowed: the tolerance.
        margin: how many times the error fits into the tolerance.
        verdict: the rung's verdict; empty where the line above is of the same rung.
    """

    rung: str
    against: str
    max_abs: str = NONE
    max_rel: str = NONE
    cosine: str = NONE
    top1: str = NONE
    allowed: str = NONE
    margin: str = NONE
    verdict: str = ""


def lines(rung: RungResult) -> tuple[Line, ...]:
    """A rung's lines: against the rung before it, and against the first."""
    others = [rung.before, rung.first]
    if rung.before is not None and rung.first is not None and rung.before.rung == rung.first.rung:
        others = [rung.first]
    known = [other for other in others if other is not None]
    if not known:
        against = NONE if rung.verdict == "not verified" else "(the reference)"
        if rung.before is None and rung.verdict == "failed":
            against = NONE
        return (Line(rung=rung.name, against=against, verdict=rung.verdict),)
    return tuple(
        _line(other, rung.name if index == 0 else "", rung.verdict if index == 0 else "")
        for index, other in enumerate(known)
    )


def headline(verification: Verification) -> str:
    """The verdict in a word or two; ``passed`` only where the engine itself was verified."""
    if not verification.passed:
        return "FAILED"
    probed = {probe.rung for probe in verification.probes}
    unseen = any(
        rung.verdict == "not verified" and rung.name in probed for rung in verification.rungs
    )
    return "NOT VERIFIED" if unseen else "passed"


def unjudged(verification: Verification) -> str:
    """Why numbers were not judged although their rungs ran; empty where they were.

    A rung that does not run here is none of these.
    """
    return next(
        (
            rung.reason or ""
            for rung in verification.rungs
            if rung.verdict == "not verified" and rung.first is not None
        ),
        "",
    )


def summary(verification: Verification) -> str:
    """The verdict in one line."""
    counts = [
        (sum(rung.verdict == verdict for rung in verification.rungs), verdict)
        for verdict in ("passed", "failed", "not verified")
    ]
    rungs = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    probes = [probe.verdict for probe in verification.probes]
    asked = sum(verdict in ("passed", "failed") for verdict in probes)
    return f"rungs: {rungs}; probes: {probes.count('passed')} of {asked} asked passed"


def probes(verification: Verification) -> tuple[ProbeResult, ...]:
    """The probes as they are shown: those of an engine that does not open as one."""
    found: list[ProbeResult] = []
    for rung in dict.fromkeys(probe.rung for probe in verification.probes):
        own = [probe for probe in verification.probes if probe.rung == rung]
        if all(probe.detail == UNOPENED for probe in own):
            own = [replace(own[0], name=f"all {len(own)}")]
        found += own
    return tuple(found)


def figure(value: float | None) -> str:
    """An error: ``3.1e-07``, and 0 where there is none."""
    if value is None:
        return NONE
    return "0" if value == 0.0 else f"{value:.1e}"


def agreement(rung: RungResult) -> str:
    """How many images keep their class, in a sentence; empty where that is not known."""
    counted = None if rung.first is None else rung.first.agreement
    if counted is None or rung.first is None:
        return ""
    said = f"{rung.name}: {counted.alike} of {counted.images} images keep their class"
    if rung.verdict == "not verified":
        return f"{said}; they are not judged"
    further = (
        f"whose best two answers in {rung.first.rung} are further apart than "
        f"{figure(2 * rung.first.comparison.tolerance)} of its greatest"
    )
    if not counted.judged:
        few = "" if counted.share is None else f", and {counted.images} are too few for a share"
        return f"{said}; top-1 is NOT JUDGED: there is none {further}{few}"
    parts = []
    if counted.needed and counted.share is not None:
        parts.append(f"{counted.needed} are needed ({100 * counted.share:g} % of all must)")
    if counted.decided:
        parts.append(f"{counted.kept} of the {counted.decided} {further}")
    return "; ".join((said, *parts))


def steps(rung: RungResult) -> str:
    """The block that differs most by itself, in a sentence; empty where none was looked at."""
    known = [error for error in rung.alone if error.steps is not None]
    if not known:
        return ""
    worst = max(known, key=lambda error: error.steps or 0.0)
    return (
        f"{rung.name}: each of {len(rung.alone)} blocks on this engine's own values, against the "
        f"graph: {worst.block} differs most, by {worst.steps:.2g} steps (root mean square of a "
        f"channel; {worst.allowed:g} allowed)"
    )


def cosine(value: float | None) -> str:
    """A cosine; near 1 by its distance from 1, which is what tells."""
    if value is None:
        return NONE
    distance = 1.0 - value
    if distance < 1e-15:  # a few roundings in float64
        return "1"
    return f"1 - {distance:.0e}" if distance < 1e-3 else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share: ``100 %`` only where it is all of them."""
    if value is None:
        return NONE
    if value in (0.0, 1.0):
        return f"{100 * value:.0f} %"
    return f"{math.floor(1000 * value) / 10:.1f} %"


def _line(against: Against, rung: str, verdict: str) -> Line:
    comparison = against.comparison
    error, tolerance = comparison.max_rel, comparison.tolerance
    return Line(
        rung=rung,
        against=against.rung,
        max_abs=figure(comparison.max_abs),
        max_rel=figure(error),
        cosine=cosine(comparison.cosine),
        top1=percent(comparison.top1),
        allowed=figure(tolerance),
        margin=NONE if not error else _times(tolerance / error),
        verdict=verdict,
    )


def _times(factor: float) -> str:
    """A factor: two digits below 10, whole numbers above, and no margin below 1."""
    if factor < 1:
        return "none"
    return f"{factor:.1f}x" if factor < 10 else f"{factor:,.0f}x"
