"""What ``plan`` finds, as values: nothing here prints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parnet_deploy.bundle import EngineManifest, ModelManifest
from parnet_deploy.engine.figures import figures_of, gpu_name
from parnet_deploy.engine.plan import Plan
from parnet_deploy.errors import UsageError
from parnet_deploy.roofline import (
    GPUS,
    PRECISIONS,
    Device,
    Precision,
    block_costs,
    gpu_kind,
    total,
)
from parnet_deploy.roofline.latency import Load, Transfer, simulate
from parnet_deploy.roofline.options import Option, StageLoads, Way, options, proposal
from parnet_deploy.roofline.predict import Assumptions, whole, work_of
from parnet_deploy.roofline.search import MAX_DEVICES
from parnet_deploy.runtime.machine import gpus
from parnet_deploy.spec import ParNetSpec, StageSpec, StemMode, stages


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What one way to run the network is expected to take.

    Attributes:
        way: whole, or split on one device, some, or as many as the streams can take.
        stem: how it is split, None where it is not.
        placement: a device for every stage.
        seconds: from the images in host memory to the answer there.
    """

    way: Way
    stem: StemMode | None
    placement: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedStage:
    """A stage of what is proposed, its times in seconds after the run began.

    Attributes:
        stage: its name.
        device: where it is to run.
        operations: two per multiply-add, for the whole batch.
        bytes: weights and activations that it reads and writes.
        start: when it is expected to start.
        end: when it is expected to end.
    """

    stage: str
    device: str
    operations: int
    bytes: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A prediction beside what was measured; ``error`` is relative to the latter."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Above 0 where the prediction was too long."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """All that is found.

    Attributes:
        spec: the network.
        cut: how the bundle's stages are cut, None where it is one engine of the whole.
        assumed: precision, batch, efficiency.
        devices: figures of each, by its name.
        predictions: of every way to run it.
        proposed: the one with the least latency.
        placed: the stages of what is proposed, in the order of their starts.
        transfers: its copies between devices and to and from host memory.
        measured: predictions beside what was measured, where it was.
        unsteady: what was measured and varied so much that its median says little.
    """

    spec: ParNetSpec
    cut: StemMode | None
    assumed: Assumptions
    devices: Mapping[str, Device]
    predictions: tuple[Prediction, ...]
    proposed: Prediction
    placed: tuple[PlacedStage, ...]
    transfers: tuple[Transfer, ...]
    measured: tuple[Comparison, ...] = ()
    unsteady: tuple[str, ...] = ()

    def plan(self, assumptions: Sequence[str]) -> Plan:
        """What is proposed, as ``build-engine --plan`` reads it."""
        return Plan(
            spec=self.spec,
            split=self.proposed.way != "whole",
            stem=self.proposed.stem,
            placement=self.proposed.placement,
            precision=self.assumed.precision,
            batch=self.assumed.batch,
            latency=self.proposed.seconds,
            assumptions=tuple(assumptions),
        )


def parse_devices(text: str) -> tuple[str, ...]:
    """``cpu``, or ``0,1,2`` as ``cuda:0``, ``cuda:1``, ``cuda:2``.

    Raises:
        UsageError: it is neither, names a GPU twice, or more than 8.
    """
    parts = [part.strip() for part in text.split(",")]
    if parts == ["cpu"]:
        return ("cpu",)
    if not all(re.fullmatch(r"\d+", part, re.ASCII) for part in parts):
        raise UsageError(f"--devices is cpu, or numbers of GPUs such as 0,1,2; not '{text}'")
    numbers = [int(part) for part in parts]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise UsageError(f"--devices names {', '.join(map(str, twice))} twice")
    if len(numbers) > MAX_DEVICES:
        raise UsageError(f"--devices names at most {MAX_DEVICES} GPUs, not {len(numbers)}")
    return tuple(f"cuda:{number}" for number in numbers)


def _devices_here() -> tuple[str, ...]:
    """All GPUs of this machine, or its CPU."""
    return tuple(f"cuda:{gpu.index}" for gpu in gpus())[:MAX_DEVICES] or ("cpu",)


def default_devices(manifest: ModelManifest | EngineManifest, kind: str | None) -> tuple[str, ...]:
    """Those that an engine was built for; for a model, all GPUs of this machine, or its CPU.

    Raises:
        UsageError: a kind of GPU is named, and not how many.
    """
    if isinstance(manifest, EngineManifest):
        return tuple(dict.fromkeys(stage.device for stage in manifest.stages))
    if kind is not None:
        raise UsageError("with --device-kind, --devices says how many there are, such as 0,1,2")
    return _devices_here()


def check_here(devices: Sequence[str]) -> None:
    """Refuse a GPU that is not here, whatever its figures.

    Raises:
        UsageError: there is no such GPU here.
    """
    for device in devices:
        if device != "cpu":
            gpu_name(device)


def find_figures(devices: Sequence[str], kind: str | None) -> dict[str, Device]:
    """Figures of every device: of the kind that is named, or of what is here.

    Raises:
        UsageError: there is no such kind in the table, or no such device here, or no figures of
            it; or a kind of GPU is named for the CPU.
    """
    if kind is not None:
        if "cpu" in devices:
            raise UsageError("--device-kind names a kind of GPU; leave it out with --devices cpu")
        return dict.fromkeys(devices, gpu_kind(kind))
    return {device: _figures(device) for device in devices}


def _figures(device: str) -> Device:
    try:
        found = figures_of(device)
    except UsageError as exc:
        raise UsageError(
            f"{exc}; to plan for a machine elsewhere, name its GPUs' kind with --device-kind"
        ) from exc
    if found is None:
        raise UsageError(
            f"there are no peak figures of '{gpu_name(device)}', and measuring them takes kernels "
            f"that are not here; name the GPU that is most like it with --device-kind: "
            f"{', '.join(gpu.name for gpu in GPUS.values())}"
        )
    return found


def settle_precision(wanted: str | None, manifest: ModelManifest | EngineManifest) -> Precision:
    """The one that was asked for, or the bundle's own.

    Raises:
        UsageError: there is no such precision.
    """
    name = wanted or manifest.precision
    for precision in PRECISIONS:
        if precision == name:
            return precision
    raise UsageError(f"a precision is one of {', '.join(PRECISIONS)}; not '{name}'")


def stem_of(manifest: ModelManifest | EngineManifest) -> StemMode | None:
    """How a bundle's stages are cut, None for one engine of the whole network."""
    if isinstance(manifest, ModelManifest):
        return manifest.stem
    if not manifest.split:
        return None
    return "share" if any(stage.name == "stem" for stage in manifest.stages) else "replicate"


def refuse_one_stream(spec: ParNetSpec) -> None:
    """Refuse a network in which nothing runs side by side.

    Raises:
        UsageError: it has one stream.
    """
    if spec.streams == 1:
        raise UsageError(
            f"'{spec.name}' has one stream, so nothing in it can run side by side and there is "
            "nothing to place; build it whole with 'parnet-deploy build-engine'"
        )


def make_plan(
    spec: ParNetSpec,
    cut: StemMode | None,
    devices: Mapping[str, Device],
    assumed: Assumptions,
    *,
    measured: StageLoads | None = None,
) -> Planned:
    """Predict every way to run a network, and propose one.

    Args:
        spec: the network.
        cut: how the bundle's stages are cut.
        devices: figures of each, by its name.
        assumed: precision, batch, efficiency.
        measured: loads of stages that were measured.

    Raises:
        UsageError: a device's rate in that precision is not known.
    """
    found = options(spec, devices, assumed, measured=measured)
    best = proposal(found)
    return Planned(
        spec=spec,
        cut=cut,
        assumed=assumed,
        devices=devices,
        predictions=tuple(_prediction(option) for option in found),
        proposed=_prediction(best),
        placed=_placed(spec, best, assumed),
        transfers=best.placed.schedule.transfers,
    )


def _prediction(option: Option) -> Prediction:
    return Prediction(
        way=option.way,
        stem=option.stem,
        placement=option.placed.placement,
        seconds=option.latency,
    )


def cut_of(spec: ParNetSpec, stem: StemMode | None) -> tuple[StageSpec, ...]:
    """The stages of a split network, or the whole as one."""
    return (whole(spec),) if stem is None else stages(spec, stem)


def _placed(spec: ParNetSpec, best: Option, assumed: Assumptions) -> tuple[PlacedStage, ...]:
    costs = block_costs(spec, precision=assumed.precision, batch=assumed.batch)
    blocks = {stage.name: stage.blocks for stage in cut_of(spec, best.stem)}
    rows = []
    for turn in sorted(best.placed.schedule.turns, key=lambda turn: (turn.start, turn.stage)):
        cost = total(costs[name] for name in blocks[turn.stage])
        rows.append(
            PlacedStage(
                stage=turn.stage,
                device=turn.device,
                operations=cost.operations,
                bytes=cost.bytes,
                start=turn.start,
                end=turn.end,
            )
        )
    return tuple(rows)


def predict_engine(
    planned: Planned, placement: Mapping[str, str], measured: Mapping[str, Load]
) -> float:
    """Seconds that an engine with this placement is expected to take, its stages as measured."""
    work = work_of(
        planned.spec,
        cut_of(planned.spec, planned.cut),
        planned.devices,
        planned.assumed,
        measured=measured,
    )
    return simulate(work, placement).latency
