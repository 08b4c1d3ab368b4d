"""Cores: how many of a CPU's cores each stage of a split engine is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parnet_deploy.bundle import GraphStage


def divide_cores(
    stages: Sequence[GraphStage], operations: Mapping[str, int], cores: int
) -> dict[str, int]:
    """Divide cores among stages by their work.

    Stages that can run at the same time share the cores so that the one that takes longest, its
    operations over its cores, takes as little as it can. A stage that runs alone has them all.

    Args:
        stages: each after those whose outputs it reads.
        operations: of every stage, by its name.
        cores: how many there are, at least one.

    Returns:
        Threads of every stage by its name, at least one each: more in all than there are cores
        only where more stages than cores run at the same time.
    """
    threads: dict[str, int] = {}
    for group in side_by_side(stages):
        threads |= _share({name: operations[name] for name in group}, cores)
    return threads


def side_by_side(stages: Sequence[GraphStage]) -> list[list[str]]:
    """Names of stages in groups: two that can run at the same time are in the same one.

    Args:
        stages: each after those whose outputs it reads.
    """
    before = _waits_for(stages)
    groups: list[list[str]] = []
    for stage in stages:
        meets = [g for g in groups if any(name not in before[stage.name] for name in g)]
        groups = [g for g in groups if g not in meets]
        groups.append([*(name for group in meets for name in group), stage.name])
    return groups


def _waits_for(stages: Sequence[GraphStage]) -> dict[str, set[str]]:
    """By a stage's name those that have ended when it starts."""
    makers = {spec.name: stage.name for stage in stages for spec in stage.outputs}
    before: dict[str, set[str]] = {}
    for stage in stages:
        direct = {makers[spec.name] for spec in stage.inputs if spec.name in makers}
        before[stage.name] = direct.union(*(before[name] for name in direct))
    return before


def _share(work: Mapping[str, int], cores: int) -> dict[str, int]:
    """One core each, and every further one to whoever would take longest without it."""
    threads = dict.fromkeys(work, 1)
    for _ in range(cores - len(work)):
        slowest = max(work, key=lambda name: work[name] / threads[name])
        threads[slowest] += 1
    return threads
