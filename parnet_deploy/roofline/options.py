"""The ways in which a network can be run on some devices, and the one that is proposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.roofline.devices import Device
from parnet_deploy.roofline.latency import Load, Work
from parnet_deploy.roofline.predict import Assumptions, whole, work_of
from parnet_deploy.roofline.search import Placed, best_placement
from parnet_deploy.spec import ParNetSpec, StageSpec, StemMode, stages

Way = Literal["whole", "split-one-device", "split-some-devices", "split"]

AS_GOOD = 0.005
"""Part of a latency that decides nothing."""

StageLoads = Mapping[StemMode, Mapping[str, Load]]
"""Loads of measured stages, by how they were cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A way to run a network, in its best placement.

    Attributes:
        way: ``whole`` on one device, split on one, on some of them (where the best placement
            leaves some unused), or with the streams on as many as they can take.
        stem: how it is split, None where it is not.
        placed: on which devices, and what a run is expected to be.
    """

    way: Way
    stem: StemMode | None
    placed: Placed

    @property
    def latency(self) -> float:
        """Seconds."""
        return self.placed.schedule.latency


def stem_modes(spec: ParNetSpec) -> tuple[StemMode, ...]:
    """The ways in which a network can be split: an ensemble's members share no stem."""
    return ("replicate", "share") if spec.members == 1 else ("replicate",)


def options(
    spec: ParNetSpec,
    devices: Mapping[str, Device],
    assumed: Assumptions,
    *,
    measured: StageLoads | None = None,
) -> tuple[Option, ...]:
    """Every way to run a network on these devices, each in its best placement.

    Args:
        spec: the network.
        devices: figures of each, by its name.
        assumed: precision, batch, efficiency.
        measured: loads of stages that were measured.

    Raises:
        UsageError: there are no devices or too many, or a device's rate is not known.
    """
    found = [_on_one("whole", None, spec, [whole(spec)], devices, assumed, {})]
    for stem in stem_modes(spec):
        cut, loads = stages(spec, stem), (measured or {}).get(stem, {})
        found.append(_on_one("split-one-device", stem, spec, cut, devices, assumed, loads))
        if len(devices) > 1:
            work = work_of(spec, cut, devices, assumed, measured=loads)
            found += _on_several(stem, work, streams_of(cut))
    return tuple(found)


def proposal(found: Sequence[Option]) -> Option:
    """The one with the least latency; of those that are as good, the first: the simplest."""
    least = min(option.latency for option in found)
    return next(option for option in found if option.latency <= (1 + AS_GOOD) * least)


def streams_of(cut: Sequence[StageSpec]) -> list[str]:
    """The stages that run side by side."""
    return [stage.name for stage in cut if stage.name.startswith("stream")]


def _on_one(
    way: Way,
    stem: StemMode | None,
    spec: ParNetSpec,
    cut: Sequence[StageSpec],
    devices: Mapping[str, Device],
    assumed: Assumptions,
    measured: Mapping[str, Load],
) -> Option:
    """On the one of the devices that is fastest."""
    alone = [
        best_placement(work_of(spec, cut, {name: device}, assumed, measured=measured))
        for name, device in devices.items()
    ]
    best = min(alone, key=lambda placed: placed.schedule.latency)
    return Option(way=way, stem=stem, placed=best)


def _on_several(stem: StemMode, work: Work, streams: Sequence[str]) -> list[Option]:
    spread = best_placement(work, spread=streams)
    free = best_placement(work)
    found = [Option(way="split", stem=stem, placed=spread)]
    if len(free.devices) > 1 and free.schedule.latency < spread.schedule.latency:
        found.append(Option(way="split-some-devices", stem=stem, placed=free))
    return found
