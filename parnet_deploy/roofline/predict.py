"""Stages as tasks: their times from the roofline, or from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline.costs import BlockCost, Precision, block_costs, value_bytes
from parnet_deploy.roofline.devices import Device
from parnet_deploy.roofline.floor import roofline_seconds
from parnet_deploy.roofline.latency import Load, Task, Work
from parnet_deploy.spec import IMAGES, LOGITS, ParNetSpec, StageSpec, layout

EFFICIENCY = 0.5
"""Part of a device's peak rates that kernels reach: assumed, until stages are measured."""

_MOST_IDLE = 0.9
"""Of a measured stage: more than that is not from launches."""

WHOLE = "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What the model takes as given.

    Attributes:
        precision: of weights and activations.
        batch: images per run.
        efficiency: part of the peak rates that kernels reach, above 0 and up to 1 (but above 1
            where an algorithm needs fewer operations than are counted, as Winograd's).
    """

    precision: Precision = "fp32"
    batch: int = 1
    efficiency: float = EFFICIENCY

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: an efficiency that is not above 0, or above 1.
        """
        if not 0 < self.efficiency <= 1:
            raise UsageError(f"an efficiency is above 0 and at most 1, not {self.efficiency}")


def whole(spec: ParNetSpec) -> StageSpec:
    """The whole network as one stage."""
    return StageSpec(
        name=WHOLE,
        blocks=tuple(block.name for block in layout(spec)),
        inputs=(IMAGES,),
        outputs=(LOGITS,),
    )


def stage_load(costs: Iterable[BlockCost], device: Device, assumed: Assumptions) -> Load:
    """A stage's load from the roofline.

    Its kernels run one after the other: each layer takes the greater of its operations and bytes
    over what the device reaches, and a launch besides, in which the device is free for others.

    Raises:
        UsageError: the device's rate in that precision is not known.
    """
    blocks = tuple(costs)
    layers = (layer for block in blocks for layer in block.layers)
    working = roofline_seconds(layers, device, assumed.precision) / assumed.efficiency
    seconds = working + device.launch * sum(block.kernels for block in blocks)
    return Load(seconds=seconds, share=working / seconds)


def work_of(
    spec: ParNetSpec,
    stages: Sequence[StageSpec],
    devices: Mapping[str, Device],
    assumed: Assumptions,
    *,
    measured: Mapping[str, Load] | None = None,
) -> Work:
    """What there is to place.

    Args:
        spec: the network.
        stages: its stages, or the whole as one.
        devices: figures of each device, by its name.
        assumed: precision, batch, efficiency.
        measured: loads of stages that were measured, which then count on every device.

    Raises:
        UsageError: a device's rate in that precision is not known.
    """
    costs = block_costs(spec, precision=assumed.precision, batch=assumed.batch)
    known = measured or {}

    def loads(stage: StageSpec) -> dict[str, Load]:
        if stage.name in known:
            return dict.fromkeys(devices, known[stage.name])
        blocks = [costs[name] for name in stage.blocks]
        return {name: stage_load(blocks, device, assumed) for name, device in devices.items()}

    return Work(
        tasks=tuple(
            Task(name=stage.name, reads=stage.inputs, gives=stage.outputs, loads=loads(stage))
            for stage in stages
        ),
        sizes=value_bytes(spec, precision=assumed.precision, batch=assumed.batch),
        inputs=(IMAGES,),
        outputs=(LOGITS,),
        devices=devices,
    )


def measured_load(seconds: float, costs: Iterable[BlockCost], device: Device) -> Load:
    """The load of a stage that was timed alone on the whole device: its launches leave it idle."""
    launching = device.launch * sum(block.kernels for block in costs)
    return Load(seconds=seconds, share=1 - min(launching / seconds, _MOST_IDLE))


def reached_efficiency(
    spec: ParNetSpec,
    stages: Sequence[StageSpec],
    device: Device,
    assumed: Assumptions,
    measured: Mapping[str, Load],
) -> float:
    """What part of the peak rates the measured stages reach while they keep the device busy.

    Args:
        spec: the network.
        stages: its stages.
        device: what they were measured on.
        assumed: precision and batch.
        measured: the load of each stage.
    """
    costs = block_costs(spec, precision=assumed.precision, batch=assumed.batch)
    layers = (layer for stage in stages for name in stage.blocks for layer in costs[name].layers)
    least = roofline_seconds(layers, device, assumed.precision)
    return least / sum(measured[stage.name].work for stage in stages)
