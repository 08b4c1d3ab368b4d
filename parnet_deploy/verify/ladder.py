"""The climb: every rung against the one before it and against the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from parnet_deploy.errors import ParnetDeployError
from parnet_deploy.spec import Array, BlockSpec
from parnet_deploy.verify.agreement import agreement_of
from parnet_deploy.verify.compare import compare
from parnet_deploy.verify.inputs import Batch
from parnet_deploy.verify.judge import Ruling, judge, judge_first
from parnet_deploy.verify.locate import BlockErrors
from parnet_deploy.verify.result import Against, RungResult
from parnet_deploy.verify.rungs import HEAD, Place, Rung, Sight
from parnet_deploy.verify.steps import StepErrors
from parnet_deploy.verify.tolerances import RungName


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """A rung that can be climbed, or the reason why it cannot.

    Attributes:
        name: its name.
        what: what is run, in a few words.
        rung: the rung, or None.
        reason: why there is none.
        fault: the reason is a fault of what is verified, not of this machine.
        foreign: that fault is that it is of another model.
    """

    name: RungName
    what: str
    rung: Rung | None = None
    reason: str | None = None
    fault: bool = False
    foreign: bool = False


@dataclass(slots=True, eq=False)
class _Climbed:
    """What a rung has shown so far."""

    step: Step
    outputs: list[Mapping[str, Array]] = field(default_factory=list)
    before: _Climbed | None = None
    errors_before: BlockErrors = field(default_factory=BlockErrors)
    errors_first: BlockErrors = field(default_factory=BlockErrors)
    alone: StepErrors = field(default_factory=StepErrors)
    broken: str | None = None

    def stacked(self) -> dict[str, Array]:
        """The outputs of all batches, row below row."""
        names = dict.fromkeys(name for outputs in self.outputs for name in outputs)
        return {
            name: np.concatenate([outputs[name] for outputs in self.outputs if name in outputs])
            for name in names
        }


def climb(
    steps: Sequence[Step],
    batches: Iterable[Batch],
    tolerances: Mapping[RungName, float],
    blocks: Sequence[BlockSpec],
    ruling: Ruling | None = None,
) -> tuple[RungResult, ...]:
    """Run every rung on every batch, and compare.

    Args:
        steps: the ladder, the reference first.
        batches: what to feed.
        tolerances: greatest relative error of each rung.
        blocks: the network's layout.
        ruling: what differs in how rungs are judged.

    Returns:
        One result a step, in their order.
    """
    ruling = ruling or Ruling()
    climbed = [_Climbed(step=step) for step in steps]
    for batch in batches:
        _observe(climbed, batch, scaled=ruling.scaled)
    root = next((one for one in climbed if one.before is None and one.outputs), None)
    results: dict[RungName, RungResult] = {}
    for one in climbed:
        tolerance = tolerances[one.step.name]
        results[one.step.name] = _result(one, root, results, tolerance, blocks, ruling)
    return tuple(results.values())


def _observe(climbed: Sequence[_Climbed], batch: Batch, *, scaled: bool) -> None:
    """Show a batch to every rung that still runs."""
    first: Sight | None = None
    last: tuple[_Climbed, Sight] | None = None
    for one in climbed:
        if one.step.rung is None or one.broken is not None:
            continue
        try:
            sight = one.step.rung.observe(batch)
        except ParnetDeployError as exc:
            one.broken = f"it does not run: {exc}"
            continue
        one.outputs.append(sight.outputs)
        one.alone.add(sight.alone, sight.values)
        if scaled:
            sight = replace(sight, values=_heads(sight.values))
        if first is None or last is None:
            first = sight
            one.errors_first.add(sight.values, sight.values)  # finds what is not finite
        else:
            one.before = last[0]
            one.errors_before.add(last[1].values, sight.values)
            one.errors_first.add(first.values, sight.values)
        last = one, sight


def _heads(values: Mapping[Place, Array]) -> dict[Place, Array]:
    return {place: value for place, value in values.items() if place[1] == HEAD}


def _result(
    one: _Climbed,
    root: _Climbed | None,
    results: Mapping[RungName, RungResult],
    tolerance: float,
    blocks: Sequence[BlockSpec],
    ruling: Ruling,
) -> RungResult:
    step = one.step
    stopped = step.reason if step.rung is None else one.broken
    if stopped is not None or root is None:
        fault = step.fault or step.rung is not None
        return RungResult(
            name=step.name,
            what=step.what,
            verdict="failed" if fault else "not verified",
            tolerance=tolerance,
            reason=stopped,
            foreign=step.foreign,
        )
    if one.before is None:
        itself = _against(one, one, one.errors_first, tolerance, blocks, None)
        return judge_first(step.name, step.what, itself, blocks)
    name, before = step.name, one.before.step.name
    near, share = ruling.near.get(name, tolerance), ruling.shares.get(name)
    manifest = ruling.engines.get(name)
    return judge(
        name,
        step.what,
        before=_against(one.before, one, one.errors_before, near, blocks, share),
        first=_against(root, one, one.errors_first, tolerance, blocks, share),
        trusted=results[before].verdict != "failed",
        blocks=blocks,
        alone=() if manifest is None else one.alone.result(blocks, manifest),
        unlike=ruling.unlike.get(name),
        both=before in ruling.unlike,
    )


def _against(
    reference: _Climbed,
    one: _Climbed,
    errors: BlockErrors,
    tolerance: float,
    blocks: Sequence[BlockSpec],
    share: float | None,
) -> Against:
    expected, actual = reference.stacked(), one.stacked()
    return Against(
        rung=reference.step.name,
        comparison=compare(expected, actual, tolerance),
        blocks=errors.result(blocks),
        agreement=agreement_of(expected, actual, tolerance, share),
    )
