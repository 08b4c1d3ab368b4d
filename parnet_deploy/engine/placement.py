"""Placement: which stage runs on which device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from parnet_deploy.bundle import GraphStage


def place(stages: Sequence[GraphStage], devices: Sequence[str]) -> dict[str, str]:
    """Spread stages over devices.

    Streams take the devices in turn. A shared stem stands on the first one. What joins the
    streams stands where most of the bytes it reads are made, so that fewer cross.

    Args:
        stages: each after those whose outputs it reads.
        devices: at least one; fewer than there are streams are shared, more stay unused.

    Returns:
        A device for every stage.
    """
    placed: dict[str, str] = {}
    made_on: dict[str, str] = {}
    streams = [stage.name for stage in stages if stage.name.startswith("stream")]
    for stage in stages:
        if stage.name in streams:
            device = devices[streams.index(stage.name) % len(devices)]
        else:
            read: Counter[str] = Counter({devices[0]: 0})
            for spec in stage.inputs:
                if spec.name in made_on:
                    read[made_on[spec.name]] += spec.nbytes()
            device = max(read, key=read.__getitem__)
        placed[stage.name] = device
        made_on |= {spec.name: device for spec in stage.outputs}
    return placed
