"""Where stages are to run, as ``build-engine`` is told: devices, a placement, or a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.bundle import ModelManifest
from parnet_deploy.engine.placement import gpu_numbers, parse_placement
from parnet_deploy.engine.plan import read_plan
from parnet_deploy.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Placing:
    """What follows from these options.

    Attributes:
        split: whether there is an engine per stage.
        devices: numbers of the GPUs to build for; none leaves it to the backend.
        placement: a device for every stage, None where it is to be found.
    """

    split: bool
    devices: tuple[int, ...]
    placement: Mapping[str, str] | None = None


def settle_placing(
    manifest: ModelManifest,
    *,
    split: bool,
    devices: tuple[int, ...],
    place: str | None,
    plan: Path | None,
) -> Placing:
    """Settle on one of the three ways.

    Args:
        manifest: the model's.
        split: ``--split-streams``.
        devices: ``--devices``.
        place: ``--place``.
        plan: ``--plan``.

    Raises:
        UsageError: two of them are given, or one that does not fit the model or the others.
    """
    given = {"--devices": bool(devices), "--place": place is not None, "--plan": plan is not None}
    named = [name for name, is_given in given.items() if is_given]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} both say where stages run; give one of them")
    if place is not None:
        if not split:
            raise UsageError("--place names stages, and the whole is one; add --split-streams")
        placement = parse_placement(place)
        return Placing(split=True, devices=gpu_numbers(placement), placement=placement)
    if plan is None:
        return Placing(split=split, devices=devices)
    made = read_plan(plan)
    made.check(manifest)
    if split and not made.split:
        raise UsageError(
            f"{plan} proposes one engine of the whole network; leave out --split-streams"
        )
    return Placing(split=made.split, devices=gpu_numbers(made.placement), placement=made.placement)
