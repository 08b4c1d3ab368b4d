"""What NVIDIA's management library tells of GPUs: clocks, temperature, power, memory.

Reference: https://docs.nvidia.com/deploy/nvml-api/. Where the library, its bindings or a GPU are
missing, nothing is told, and nothing fails.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_THROTTLED = {
    "nvmlClocksEventReasonSwPowerCap": "power limit",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "temperature",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "temperature",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}
"""Reasons for lower clocks that make a measurement doubtful, by NVML's names of their bits."""

Load = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuState:
    """A GPU at one moment; a number that is not told is 0.

    Attributes:
        name: its maker's, or its number where that is not told.
        sm_mhz: clock of its multiprocessors, and the highest that it may have.
        sm_max_mhz: the highest that this may be.
        memory_mhz: clock of its memory.
        celsius: temperature.
        watts: power drawn.
        throttled: why its clocks are lower than they could be, where that disturbs.
        processes: how many processes compute on it.
    """

    name: str
    sm_mhz: int
    sm_max_mhz: int
    memory_mhz: int
    celsius: int
    watts: float
    throttled: tuple[str, ...]
    processes: int

    def __str__(self) -> str:
        """One line."""
        text = (
            f"{self.name}: {self.sm_mhz} of {self.sm_max_mhz} MHz, memory {self.memory_mhz} MHz, "
            f"{self.celsius} C, {self.watts:.0f} W"
        )
        return text + (f"; clocks lowered: {', '.join(self.throttled)}" if self.throttled else "")


def gpu_states(load: Load = importlib.import_module) -> tuple[GpuState, ...]:
    """Every GPU's state; none where there is nothing that tells.

    Args:
        load: imports a module by its name.
    """
    with _library(load) as nvml:
        if nvml is None:
            return ()
        return tuple(_state(nvml, index) for index in range(_count(nvml)))


def process_memory(pid: int, load: Load = importlib.import_module) -> int | None:
    """Memory of a process on all GPUs in bytes at this moment, or None where that is not told.

    Inside a container NVML names the processes by their numbers outside of it, and tells nothing
    of this one.
    """
    with _library(load) as nvml:
        if nvml is None:
            return None
        found = [
            process.usedGpuMemory
            for index in range(_count(nvml))
            for process in _processes(nvml, _handle(nvml, index))
            if process.pid == pid and process.usedGpuMemory is not None
        ]
    return sum(found) if found else None


@contextlib.contextmanager
def _library(load: Load) -> Iterator[Any]:
    """NVML, started and at the end shut down, or None."""
    try:
        nvml = load("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - not installed, no driver, no GPU: all the same here
        yield None
        return
    try:
        yield nvml
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _told(nvml: Any, function: str, *arguments: Any) -> Any:
    """What a function gives, or None.

    Not every GPU tells everything: one that is partitioned (MIG), virtual (vGPU) or lent to WSL
    tells little, and an older library lacks functions.
    """
    try:
        return getattr(nvml, function)(*arguments)
    except Exception:  # noqa: BLE001 - whatever the reason, it is not told
        return None


def _count(nvml: Any) -> int:
    return int(_told(nvml, "nvmlDeviceGetCount") or 0)


def _handle(nvml: Any, index: int) -> Any:
    return _told(nvml, "nvmlDeviceGetHandleByIndex", index)


def _processes(nvml: Any, handle: Any) -> Sequence[Any]:
    return _told(nvml, "nvmlDeviceGetComputeRunningProcesses", handle) or ()


def _state(nvml: Any, index: int) -> GpuState:
    handle = _handle(nvml, index)

    def told(function: str, *arguments: Any) -> int:
        return int(_told(nvml, function, handle, *arguments) or 0)

    reasons = told("nvmlDeviceGetCurrentClocksEventReasons")
    names = {text for bit, text in _THROTTLED.items() if reasons & int(getattr(nvml, bit, 0))}
    return GpuState(
        name=_text(_told(nvml, "nvmlDeviceGetName", handle) or f"GPU {index}"),
        sm_mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        sm_max_mhz=told("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        memory_mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        celsius=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        watts=told("nvmlDeviceGetPowerUsage") / 1000,
        throttled=tuple(sorted(names)),
        processes=len(_processes(nvml, handle)),
    )


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
