"""What failed, in sentences: the clearest cause first, what may follow from it after that.

A wrong file makes numbers wrong, and what numbers show is harder to read. So it goes from the
cause to what it brings about: what an engine was built from, the torch rungs, what the files say
(types before scales, scales before what compares stages with the whole), ranges, the rungs of
graphs and engines, and the probes. What whole graph and stages have alike is said once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from parnet_deploy.verify.built import (
    ALIKE,
    CONSTANTS,
    KERNELS,
    QUANTISERS,
    READABLE,
    TYPES,
    ZERO_POINTS,
)
from parnet_deploy.verify.built_engine import BUILT, COMPUTES
from parnet_deploy.verify.ranges import RANGES, READS, SAME, SINGLE
from parnet_deploy.verify.result import CheckResult, ProbeResult, RungResult
from parnet_deploy.verify.tolerances import ROUNDED_RUNGS, RungName

_CLEAREST = (
    READABLE,
    TYPES,
    BUILT,
    COMPUTES,
    QUANTISERS,
    ZERO_POINTS,
    KERNELS,
    CONSTANTS,
    ALIKE,
    READS,
    SAME,
    RANGES,
    SINGLE,
)
"""Names of checks, causes before what they bring about."""

_FILE = re.compile(r"\S+\.onnx(?:(?:,| and) \S+\.onnx)*")


def failures_of(
    rungs: Sequence[RungResult],
    checks: Sequence[CheckResult],
    probes: Sequence[ProbeResult],
    required: Sequence[RungName],
) -> tuple[str, ...]:
    """What failed, a sentence each.

    Args:
        rungs: the ladder.
        checks: what was built against what was asked for.
        probes: what an engine must keep to.
        required: rungs that must be verified.
    """
    failed = [rung for rung in rungs if rung.verdict == "failed"]
    # One that was compared with nothing has its cause in what it is of, unless its graph is bad.
    foreign = [rung for rung in failed if rung.foreign]
    torch = [rung for rung in failed if rung.name not in ROUNDED_RUNGS]
    rest = [rung for rung in failed if rung not in foreign and rung not in torch]
    return (
        *(f"{rung.name}: {rung.reason}" for rung in (*foreign, *torch)),
        *_checks([check for check in checks if check.verdict == "failed"]),
        *(f"{rung.name}: {rung.reason}" for rung in rest),
        *(
            f"{rung.name} is required and not verified: {rung.reason}"
            for rung in rungs
            if rung.verdict == "not verified" and rung.name in required
        ),
        *(f"{p.rung}, {p.name}: {p.detail}" for p in probes if p.verdict == "failed"),
    )


def _checks(failed: Sequence[CheckResult]) -> Iterator[str]:
    """Checks, the clearest first; those of whole graph and stages that say the same as one."""
    said: dict[tuple[str, str], list[CheckResult]] = {}
    for check in sorted(failed, key=lambda one: _CLEAREST.index(one.name)):
        graphs = check.rung in ("onnx-whole", "onnx-stages")
        first = _FILE.sub("", check.detail.partition("; ")[0]) if graphs else check.rung
        said.setdefault((check.name, first), []).append(check)
    for alike in said.values():
        where = " and ".join(check.rung for check in alike)
        yield f"{where}, {alike[0].name}: {alike[0].detail}"
