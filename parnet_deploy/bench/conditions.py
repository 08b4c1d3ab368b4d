"""On what was measured, in which state it was, and who else used it meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parnet_deploy.bench.contest.environment import not_passed_on
from parnet_deploy.bench.nvml import GpuState, gpu_states
from parnet_deploy.bench.result import Conditions
from parnet_deploy.bundle import EngineBundle
from parnet_deploy.runtime.cpu import core_numbers, read_cpu

PACKAGES = (
    "parnet-deploy",
    "torch",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "ncnn",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)
"""Packages whose versions may change a result."""

BUSY_SHARE = 0.05
"""More of the machine's processor time than this, taken by others, makes results doubtful."""

STAT = Path("/proc/stat")

_BUSY, _STEAL = (0, 1, 2, 5, 6), 7  # columns of /proc/stat: user, nice, system, irq, softirq


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The machine at one moment.

    Attributes:
        wall: seconds of a clock that never goes back.
        own: processor seconds of this process and of its children that have ended.
        busy: processor seconds of everybody on the cores that this process may use, idle time
            left out; None where not told.
        stolen: processor seconds that the host gave to other virtual machines; None likewise.
        gpus: every GPU's state.
    """

    wall: float
    own: float
    busy: float | None
    stolen: float | None
    gpus: tuple[GpuState, ...]


def look(
    stat: Path = STAT,
    gpus: Callable[[], tuple[GpuState, ...]] = gpu_states,
    cores: Callable[[], Iterable[int]] = core_numbers,
) -> Moment:
    """Look at the machine now.

    Args:
        stat: where Linux counts processor time, core by core.
        gpus: gives the GPUs' states.
        cores: gives the numbers of the cores that this process may use.
    """
    busy, stolen = _processor_seconds(stat, cores())
    own = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return Moment(wall=time.monotonic(), own=own, busy=busy, stolen=stolen, gpus=gpus())


def conditions(
    before: Moment, after: Moment, environment: Mapping[str, str] = os.environ
) -> Conditions:
    """What two looks at the machine say together.

    Args:
        before: before the contest.
        after: when all its processes have ended.
        environment: variables of the benchmark itself.
    """
    cpu = read_cpu()
    features = f", {', '.join(cpu.features)}" if cpu.features else ""
    observations, warnings = _others(before, after, cpu.cores)
    observations += not_passed_on(environment)
    for first, last in zip(before.gpus, after.gpus, strict=False):
        observations += [f"before: {first}", f"after: {last}"]
        warnings += _gpu_warnings(first, last)
    return Conditions(
        hardware=(
            f"{cpu.name}, {cpu.cores} cores ({cpu.architecture}{features})",
            *(gpu.name for gpu in after.gpus),
        ),
        versions=_versions(),
        observations=tuple(observations),
        warnings=tuple(warnings),
    )


def _others(before: Moment, after: Moment, cores: int) -> tuple[list[str], list[str]]:
    """How much processor time others took, in words, and whether that disturbs."""
    total = (after.wall - before.wall) * cores
    if before.busy is None or after.busy is None or total <= 0:
        return [], []
    others = max(0.0, after.busy - before.busy - (after.own - before.own)) / total
    observations = [f"other programs took {100 * others:.0f} % of the processor time"]
    warnings = []
    if others > BUSY_SHARE:
        warnings.append(
            f"other programs took {100 * others:.0f} % of the processor time meanwhile: "
            "measure again when nothing else runs"
        )
    stolen = ((after.stolen or 0) - (before.stolen or 0)) / total
    if stolen > BUSY_SHARE:
        warnings.append(
            f"the host gave {100 * stolen:.0f} % of the processor time to other virtual machines"
        )
    return observations, warnings


def _gpu_warnings(before: GpuState, after: GpuState) -> list[str]:
    warnings = [
        f"{after.name}: its clocks are lowered: {reason}"
        for reason in sorted({*before.throttled, *after.throttled})
    ]
    if before.processes:
        warnings.append(f"{before.name}: {before.processes} other processes compute on it")
    return warnings


def _processor_seconds(stat: Path, cores: Iterable[int]) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of those cores: what others do on others' disturbs nobody here."""
    try:
        lines = dict(line.partition(" ")[::2] for line in stat.read_text("ascii").splitlines())
        ticks = [[int(number) for number in lines[f"cpu{core}"].split()] for core in cores]
        per_second = os.sysconf("SC_CLK_TCK")
        busy = sum(row[column] for row in ticks for column in _BUSY)
        return busy / per_second, sum(row[_STEAL] for row in ticks) / per_second
    except (OSError, ValueError, IndexError, KeyError):
        return None, None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def with_weights(found: Conditions, engines: Sequence[EngineBundle]) -> Conditions:
    """Conditions that say which networks are untrained: their answers are no accuracy."""
    untrained = sorted(
        {
            engine.manifest.spec.name
            for engine in engines
            if engine.manifest.source is not None and engine.manifest.source.kind == "untrained"
        }
    )
    if not untrained:
        return found
    said = f"untrained weights, whose answers mean nothing: {', '.join(untrained)}"
    return replace(found, observations=(*found.observations, said))
