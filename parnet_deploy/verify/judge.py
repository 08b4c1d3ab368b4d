"""The verdict on a rung, and the block to blame."""

from __future__ import annotations

from collections.abc import Sequence

from parnet_deploy.spec import BlockSpec
from parnet_deploy.verify.locate import first_parting, parts, worst
from parnet_deploy.verify.result import Against, RungResult
from parnet_deploy.verify.tolerances import BLOCK_FACTOR, RungName


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
) -> RungResult:
    """The verdict on a rung.

    It passes where it agrees with the first rung and with the one before. A difference from a rung
    that itself failed does not count: what is asked is which rung broke away.

    Args:
        name: the rung.
        what: what was run.
        before: it against the rung before.
        first: it against the first rung.
        trusted: the rung before passed.
        blocks: the network's layout.
    """
    from_before, from_first = _complaints(before), _complaints(first)
    own = bool(from_before) and trusted
    failed = own or bool(from_first)
    reason = None
    if own:
        reason = f"against {before.rung}: {'; '.join(from_before)}"
    elif from_first and not from_before:
        how = "drifts too far" if trusted else "carries on what failed there"
        reason = (
            f"agrees with {before.rung} and {how}: against {first.rung}: {'; '.join(from_first)}"
        )
    elif from_first:
        reason = f"against {first.rung}: {'; '.join(from_first)}"
    return RungResult(
        name=name,
        what=what,
        verdict="failed" if failed else "passed",
        tolerance=before.comparison.tolerance,
        reason=reason,
        before=before,
        first=first,
        parted_at=_parting(before if own else first, blocks) if failed else None,
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
    return tuple(problems)


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
