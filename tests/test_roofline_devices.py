"""Peak figures: where they are from, how they are found, and what is said where there are none."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest

from parnet_deploy.bench.floor import floor_on
from parnet_deploy.engine import figures
from parnet_deploy.errors import TargetError, UsageError
from parnet_deploy.roofline import GPUS, Device, Link, between, gpu_kind, known_gpu, probe_cpu
from parnet_deploy.roofline.cpu import PROBE, THREAD_VARIABLES, ask_probe, measured_cpu
from parnet_deploy.roofline.probe import probe
from parnet_deploy.runtime.machine import CudaDriver, Gpu
from parnet_deploy.spec import variant


def driver(*names: str) -> Callable[[], CudaDriver]:
    found = tuple(
        Gpu(index=index, name=name, compute_capability="9.0", memory=2**30)
        for index, name in enumerate(names)
    )
    problem = None if names else "there is no NVIDIA driver here"
    return lambda: CudaDriver(gpus=found, problem=problem)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_every_row_names_its_vendors_page_and_holds_together(gpu: Device) -> None:
    assert re.match(r"https://(www|images)\.nvidia\.com/\S+$", gpu.source)
    assert not gpu.measured
    assert gpu.source in gpu.origin
    rates = gpu.rates
    assert 0 < rates["fp32"] <= rates.get("tf32", rates["fp32"])
    for slow, fast in (("tf32", "fp16"), ("fp16", "fp8"), ("fp16", "int8")):
        if slow in rates and fast in rates:
            assert rates[slow] < rates[fast]  # type: ignore[index]
    assert rates.get("fp16") == rates.get("bf16")
    assert 1e11 < gpu.bandwidth < 1e13
    assert gpu.host.bandwidth <= gpu.link.bandwidth <= gpu.bandwidth


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_the_drivers_names_are_known(name: str, kind: str) -> None:
    found = known_gpu(name)
    assert found is not None
    assert found.name == kind
    assert gpu_kind(kind.lower()) == gpu_kind(name) == found


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H200 NVL", "Orin"],
)
def test_a_gpu_that_only_looks_like_another_has_no_figures(name: str) -> None:
    assert known_gpu(name) is None


def test_an_unknown_kind_names_those_known() -> None:
    with pytest.raises(UsageError, match=r"'RTX 3091'; did you mean 'rtx 3090'\? Known: .*h200"):
        gpu_kind("RTX 3091")


def test_a_rate_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(UsageError, match="RTX 3090 in fp8 is known, only in fp32, tf32, fp16"):
        gpu_kind("RTX 3090").rate("fp8")


def test_a_copy_costs_a_start_and_its_bytes() -> None:
    link = Link(bandwidth=1e9, latency=2e-6)
    assert link.seconds(1000) == pytest.approx(3e-6)
    pair = between(gpu_kind("RTX 3090"), gpu_kind("H200"))
    assert pair == between(gpu_kind("H200"), gpu_kind("RTX 3090"))
    assert pair.bandwidth == gpu_kind("RTX 3090").link.bandwidth


def test_a_cpus_figures_are_what_the_clock_said() -> None:
    """A copy of 64 MiB is read and written; a product of 1024 square matrices is 2 * 1024**3."""
    times = iter([0.01, 0.1])

    def clock(run: Callable[[], object]) -> float:
        run()
        return next(times)

    copying, multiplying = probe(clock)
    found = measured_cpu("A CPU", 2, copying=copying, multiplying=multiplying)
    assert found.bandwidth == pytest.approx(2 * 64 * 2**20 / 0.01)
    assert found.rates == {"fp32": pytest.approx(2 * 1024**3 / 0.1)}
    assert found.measured
    assert found.name == "A CPU, 2 cores"
    assert found.origin.startswith("measured here")
    assert found.link.seconds(10**9) == 0.0


def test_a_cpu_is_probed_once() -> None:
    first = probe_cpu("this", 1)
    assert first.bandwidth > 1e7
    assert first.rate("fp32") > 1e7
    assert probe_cpu("this", 1) is first


def test_what_limits_threads_does_not_reach_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor of one thread would be too high for who runs with all."""
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "7")
    code = (
        "import os; "
        f"limits = sum(name in os.environ for name in {THREAD_VARIABLES}); "
        "print([limits, int(os.environ['KEPT'])])"
    )
    command = (sys.executable, "-c", code)
    assert ask_probe(command) == (0.0, 7.0)
    assert PROBE[1:] == ("-m", "parnet_deploy.roofline.probe")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise MemoryError('64 MiB')", "ended with status 1: MemoryError: 64 MiB"),
        ("print('quick')", "cannot be measured: Expecting value"),
        ("print([1])", "cannot be measured: not enough values"),
        ("print(1)", "cannot be measured"),
    ],
)
def test_a_probe_that_fails_says_why(code: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        ask_probe((sys.executable, "-c", code))


def test_devices_here_are_found_by_the_drivers_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "cuda_driver", driver("NVIDIA H200", "A GPU of tomorrow"))
    assert figures.figures_of("cuda:0") == GPUS["h200"]
    assert figures.figures_of("cuda:1") is None
    with pytest.raises(UsageError, match="no cuda:2 here: there are cuda:0, cuda:1"):
        figures.figures_of("cuda:2")
    with pytest.raises(UsageError, match="not 'gpu'"):
        figures.figures_of("gpu")
    monkeypatch.setattr(figures, "cuda_driver", driver())
    with pytest.raises(UsageError, match="no cuda:0 here: there is no NVIDIA driver"):
        figures.figures_of("cuda:0")


def test_a_benchmarks_floor_is_in_milliseconds_and_names_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "cuda_driver", driver("NVIDIA H200", "A GPU of tomorrow"))
    spec = variant("l").spec
    found = floor_on(spec, "cuda:0", precision="fp16")
    assert found is not None
    assert found.total == pytest.approx(0.071, abs=5e-4)
    assert found.launches == pytest.approx(0.036)
    assert "H200" in found.device
    assert "https://www.nvidia.com" in found.device
    assert floor_on(spec, "cuda:1", precision="fp16") is None

    monkeypatch.setattr(figures, "probe_cpu", lambda name, cores: GPUS["l4"])
    assert floor_on(spec, "cpu") is not None
    monkeypatch.setattr(figures, "cuda_driver", driver("NVIDIA GeForce RTX 3090"))
    assert floor_on(spec, "cuda:0", precision="fp8") is None, "Ampere has no rate in it"
