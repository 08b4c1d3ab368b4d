"""The verdict on a rung, and the block to blame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from parnet_deploy.bundle import EngineManifest
from parnet_deploy.spec import BlockSpec
from parnet_deploy.verify.locate import first_parting, parts, worst
from parnet_deploy.verify.problems import listed
from parnet_deploy.verify.result import Against, Agreement, RungResult, StepError, Verdict
from parnet_deploy.verify.steps import too_far
from parnet_deploy.verify.tolerances import BLOCK_FACTOR, RungName


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """What differs from rung to rung in how they are judged.

    Attributes:
        near: tolerances against the rung before, where they differ from those against the first.
        unlike: rungs that are not judged against float rungs, and why: what is fed is nothing
            that they can be right on.
        scaled: whether blocks' values are scaled channel by channel, so that none can be compared.
        engines: manifests of the engines, by rung.
        shares: of all images that must keep their class, by rung.
    """

    near: Mapping[RungName, float] = field(default_factory=dict)
    unlike: Mapping[RungName, str] = field(default_factory=dict)
    scaled: bool = False
    engines: Mapping[RungName, EngineManifest] = field(default_factory=dict)
    shares: Mapping[RungName, float] = field(default_factory=dict)


def judge_first(
    name: RungName, what: str, itself: Against, blocks: Sequence[BlockSpec]
) -> RungResult:
    """The verdict on the reference: it need only be finite.

    Args:
        name: the rung.
        what: what was run.
        itself: the rung against itself.
        blocks: the network's layout.
    """
    wrong = itself.comparison.problems
    return RungResult(
        name=name,
        what=what,
        verdict="failed" if wrong else "passed",
        tolerance=itself.comparison.tolerance,
        reason=f"the reference itself is no good: {'; '.join(wrong)}" if wrong else None,
        parted_at=first_parting(itself.blocks, blocks, 0.0) if wrong else None,
    )


def judge(
    name: RungName,
    what: str,
    *,
    before: Against,
    first: Against,
    trusted: bool,
    blocks: Sequence[BlockSpec],
    alone: tuple[StepError, ...] = (),
    unlike: str | None = None,
    both: bool = False,
) -> RungResult:
    """The verdict on a rung.

    It passes where it agrees with the first rung and with the one before. A difference from a rung
    that itself failed does not count: what is asked is which rung broke away.

    Args:
        name: the rung.
        what: what was run.
        before: it against the rung before.
        first: it against the first rung.
        trusted: the rung before did not fail.
        blocks: the network's layout.
        alone: each block of a quantised engine by itself.
        unlike: why it is not judged against float rungs, or None.
        both: whether the rung before is not judged against those either.
    """
    from_before, from_first = _complaints(before), _complaints(first)
    if unlike is not None:  # what `_broken` finds is wrong on anything
        from_first = _broken(first)
        from_before = from_before if both else _broken(before)
    own = bool(from_before) and trusted
    wrong = [error for error in alone if too_far(error)]
    failed = own or bool(from_first) or bool(wrong)
    reason = None
    if wrong:
        reason = _by_itself(wrong)
    elif own:
        reason = f"against {before.rung}: {'; '.join(from_before)}"
    elif from_first and not from_before:
        how = "drifts too far" if trusted else "carries on what failed there"
        reason = (
            f"agrees with {before.rung} and {how}: against {first.rung}: {'; '.join(from_first)}"
        )
    elif from_first:
        reason = f"against {first.rung}: {'; '.join(from_first)}"
    verdict: Verdict = "passed" if unlike is None else "not verified"
    return RungResult(
        name=name,
        what=what,
        verdict="failed" if failed else verdict,
        tolerance=first.comparison.tolerance,
        reason=reason or unlike,
        before=before,
        first=first,
        parted_at=_parting(before if own else first, blocks) if failed and not wrong else None,
        alone=alone,
    )


def block_limit(tolerance: float) -> float:
    """How far a block's values may differ, given the tolerance of a rung's outputs."""
    return BLOCK_FACTOR * tolerance


def _complaints(against: Against) -> tuple[str, ...]:
    """What is wrong with the outputs, and with the worst of the blocks' values."""
    limit = block_limit(against.comparison.tolerance)
    problems = list(against.comparison.problems)
    greatest = worst(against.blocks)
    if not problems and greatest is not None and parts(greatest, limit):
        how = greatest.problem or f"differ by {greatest.max_rel:.1e}, and {limit:.1e} is allowed"
        problems.append(f"the outputs agree, but the values of {greatest.block} {how}")
    counted = against.agreement
    if not problems and counted is not None and not counted.held:
        problems.append(_changed(counted))
    return tuple(problems)


def _changed(counted: Agreement) -> str:
    """Images that had to keep their class and do not, in words."""
    if counted.kept < counted.decided:
        return (
            f"{counted.decided - counted.kept} of {counted.decided} images change their class "
            "although its best two answers are further apart than the tolerance"
        )
    return (
        f"{counted.alike} of {counted.images} images keep their class, and {counted.needed} are "
        f"needed where {100 * (counted.share or 0.0):g} % of all must"
    )


def _broken(against: Against) -> tuple[str, ...]:
    """What is wrong whatever was fed.

    Outputs or values that are not finite, are missing or have another shape, and outputs that do
    not follow the images (`runtime.outputs.unresponsive`).
    """
    outputs = [
        f"'{output.name}' {output.problem}"
        for output in against.comparison.outputs
        if output.problem is not None
    ]
    blocks = [
        f"the values of {error.block} {error.problem}"
        for error in against.blocks
        if error.problem is not None
    ]
    return tuple(outputs or blocks[:1])


def _by_itself(wrong: Sequence[StepError]) -> str:
    """The first block that is wrong on the engine's own values, in words."""
    first = wrong[0]
    where = f" in stage {first.stage}" if first.stage else ""
    if first.steps is None:
        how = "cannot be compared"
    else:
        how = (
            f"differs by {first.steps:.2g} steps (root mean square of a channel), and "
            f"{first.allowed:.2g} {'is' if first.allowed == 1 else 'are'} allowed"
        )
    others = dict.fromkeys(error.block for error in wrong[1:])
    more = f"; {listed(others)} {'does' if len(others) == 1 else 'do'}, too" if others else ""
    return (
        f"against what the graph makes of this engine's own values, {first.block}{where} "
        f"{how}{more}"
    )


def _parting(against: Against, blocks: Sequence[BlockSpec]) -> str:
    """Where it and its reference part company, in words."""
    limit = block_limit(against.comparison.tolerance)
    if place := first_parting(against.blocks, blocks, limit):
        return place
    seen = [error for error in against.blocks if error.block != "head"]
    greatest = worst(tuple(seen))
    if greatest is None:
        return "somewhere before the output: no block's value can be seen in this engine"
    return (
        f"no single block: every block that can be seen is within {limit:.1e}, "
        f"{greatest.block} differs most ({greatest.max_rel:.1e})"
    )
