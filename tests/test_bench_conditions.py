"""What disturbed a measurement is noticed: other programs, lowered clocks."""

# ruff: noqa: N802, N815 - the double has the names of the library

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parnet_deploy.bench.conditions import BUSY_SHARE, Moment, conditions, look
from parnet_deploy.bench.nvml import GpuState, gpu_states, process_memory
from parnet_deploy.runtime.cpu import usable_cores

GPU = GpuState(
    name="NVIDIA H200",
    sm_mhz=1900,
    sm_max_mhz=1980,
    memory_mhz=3201,
    celsius=41,
    watts=300.0,
    throttled=(),
    processes=0,
)
BEFORE = Moment(wall=100.0, own=10.0, busy=50.0, stolen=0.0, gpus=())


def after(others: float, *, stolen: float = 0.0, seconds: float = 100.0) -> Moment:
    """A moment later, in which this program took a second, and others a share of the machine."""
    total = seconds * usable_cores()
    return Moment(
        wall=100.0 + seconds,
        own=11.0,
        busy=50.0 + 1.0 + others * total,
        stolen=stolen * total,
        gpus=(),
    )


def test_a_quiet_machine_is_not_complained_of() -> None:
    found = conditions(BEFORE, after(BUSY_SHARE / 2), {})
    assert found.warnings == ()
    assert found.observations == ("other programs took 2 % of the processor time",)
    assert "cores" in found.hardware[0]
    assert found.versions["parnet-deploy"]


def test_other_programs_are_noticed() -> None:
    (warning,) = conditions(BEFORE, after(0.4)).warnings
    assert warning.startswith("other programs took 40 % of the processor time")


def test_time_given_to_other_virtual_machines_is_noticed() -> None:
    (warning,) = conditions(BEFORE, after(0.0, stolen=0.2)).warnings
    assert "20 % of the processor time to other virtual machines" in warning


def test_where_the_system_does_not_tell_nothing_is_said() -> None:
    untold = replace(BEFORE, busy=None, stolen=None)
    found = conditions(untold, replace(untold, wall=200.0), {})
    assert found.observations == ()
    assert found.warnings == ()


def test_processor_time_is_read_as_linux_writes_it(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9000 9000 9000 99999 88 9000 9000 9000 0 0\n"
        "cpu0 7000 0 0 99 0 0 0 900 0 0\n"
        "cpu1 600 200 100 99 80 10 0 100 0 0\n"
        "cpu11 400 0 200 99 8 0 20 300 0 0\n"
        "intr 1 2 3\n"
    )
    moment = look(stat, gpus=lambda: (GPU,), cores=lambda: (1, 11))
    assert (moment.busy, moment.stolen) == (15.3, 4.0)
    assert moment.gpus == (GPU,)
    assert look(stat, gpus=tuple, cores=lambda: (1, 2)).busy is None
    assert look(tmp_path / "missing", gpus=tuple).busy is None


@pytest.mark.parametrize("text", ["", "cpu0", "cpu0 a b c d e f g h", "cpu0 1 2", "cpu 1 2 3 4"])
def test_a_stat_file_that_cannot_be_read_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    assert look(tmp_path / "stat", gpus=tuple, cores=lambda: (0,)).busy is None


def test_what_the_shell_has_set_and_contestants_did_not_get_is_told() -> None:
    quiet = after(0.0)
    plain = conditions(BEFORE, quiet, {"OMP_WAIT_POLICY": "PASSIVE", "HOME": "/"})
    found = conditions(BEFORE, quiet, {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1"})
    more = found.observations[len(plain.observations) :]
    assert [line.partition(" is set")[0] for line in more] == [
        "OMP_NUM_THREADS=1",
        "OMP_WAIT_POLICY=active",
    ]
    assert found.warnings == plain.warnings == ()


def test_this_machine_counts_processor_time() -> None:
    first = look()
    assert sum(number * number for number in range(300_000)) > 0
    last = look()
    assert first.busy is not None
    assert last.busy is not None
    assert last.wall > first.wall
    assert last.own > first.own


def test_gpus_that_were_slowed_or_shared_are_noticed() -> None:
    before = replace(BEFORE, gpus=(replace(GPU, processes=2),))
    late = replace(after(0.0), gpus=(replace(GPU, throttled=("temperature",)),))
    found = conditions(before, late)
    assert "NVIDIA H200" in found.hardware
    assert any(
        line.startswith("before: NVIDIA H200: 1900 of 1980 MHz") for line in found.observations
    )
    assert found.warnings == (
        "NVIDIA H200: its clocks are lowered: temperature",
        "NVIDIA H200: 2 other processes compute on it",
    )


class Nvml:
    """The double of pynvml, for two GPUs; the second does not tell its power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonSwPowerCap = 0x4

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return b"old GPU" if handle else "NVIDIA H200"

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return 1000 * clock

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 40

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle:
            raise self.NVMLError
        return 250_000

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return 0 if handle else 0x24 | 0x1  # 0x1: idle, which disturbs nobody

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8, usedGpuMemory=5)]


def test_gpus_tell_their_state() -> None:
    nvml = Nvml()
    first, second = gpu_states(lambda name: nvml)
    assert (first.name, first.sm_mhz, first.memory_mhz, first.watts) == (
        "NVIDIA H200",
        1000,
        2000,
        250.0,
    )
    assert first.throttled == ("power limit", "temperature")
    assert (second.name, second.watts, second.throttled) == ("old GPU", 0.0, ())
    assert second.processes == 2
    assert nvml.open == 0


def test_memory_of_a_process_is_that_on_all_gpus() -> None:
    nvml = Nvml()
    assert process_memory(7, lambda name: nvml) == 200
    assert process_memory(99, lambda name: nvml) is None
    assert nvml.open == 0


def test_without_nvml_nothing_is_told_and_nothing_fails() -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    assert gpu_states(missing) == ()
    assert process_memory(1, missing) is None


CALLS = [name for name in vars(Nvml) if name.startswith("nvml") and callable(getattr(Nvml, name))]


@pytest.mark.parametrize("how", ["refuses", "breaks", "lacks"])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_is_not_told_nothing_fails(
    call: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs that are partitioned or virtual, and with a library that is older."""

    def refuse(*arguments: Any) -> Any:
        raise Nvml.NVMLError("Not Supported") if how == "refuses" else OSError("lost")

    if how == "lacks":
        monkeypatch.delattr(Nvml, call)
    else:
        monkeypatch.setattr(Nvml, call, refuse)
    nvml = Nvml()
    states = gpu_states(lambda name: nvml)
    memory = process_memory(7, lambda name: nvml)
    nobody = call in {"nvmlInit", "nvmlDeviceGetCount"}
    assert len(states) == (0 if nobody else 2)
    assert (memory is None) == (nobody or call == "nvmlDeviceGetComputeRunningProcesses")
    if not nobody:
        before = replace(BEFORE, gpus=states)
        assert conditions(before, replace(after(0.0), gpus=states)).hardware[1:]
        assert (states[1].name == "GPU 1") == (call == "nvmlDeviceGetName")


def test_the_double_has_only_names_that_nvml_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(Nvml) if name.lower().startswith("nvml")]
    assert len(names) > 15
    assert [name for name in names if not hasattr(pynvml, name)] == []
