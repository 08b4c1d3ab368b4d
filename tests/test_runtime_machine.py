"""What a machine has: drivers and GPUs by a double of the driver's library, packages, trials."""
# ruff: noqa: N802 - the doubles have the driver's own names

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime import trial
from parnet_deploy.runtime.cpu import cpu_flags, read_cpu
from parnet_deploy.runtime.machine import (
    LIBCUDA,
    CudaDriver,
    Gpu,
    ask_driver,
    cuda_driver,
    cuda_required,
    import_problem,
    installed,
    nvidia_devices,
    onnxruntime_package,
    provider_problem,
    try_python,
)

RTX_3090 = Gpu(index=0, name="NVIDIA GeForce RTX 3090", compute_capability="8.6", memory=25_438)
H200 = Gpu(index=1, name="NVIDIA H200", compute_capability="9.0", memory=150_000_000_000)


class FakeLibcuda:
    """The driver's library, as far as it is asked. Arguments are what ctypes would pass."""

    def __init__(self, gpus: tuple[Gpu, ...] = (), *, version: int = 13000, init: int = 0) -> None:
        self.gpus, self.version, self.init = gpus, version, init
        self.initialised = False

    def cuDriverGetVersion(self, number: object) -> int:
        number._obj.value = self.version  # type: ignore[attr-defined]
        return 0

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        self.initialised = self.init == 0
        return self.init

    def cuGetErrorString(self, status: int, text: object) -> int:
        known = {100: b"no CUDA-capable device is detected", 803: b"driver mismatch"}
        if status not in known:
            return 1
        text._obj.value = known[status]  # type: ignore[attr-defined]
        return 0

    def cuDeviceGetCount(self, count: object) -> int:
        if not self.initialised:
            return 3
        count._obj.value = len(self.gpus)  # type: ignore[attr-defined]
        return 0

    def cuDeviceGet(self, device: object, index: int) -> int:
        device._obj.value = index + 40  # type: ignore[attr-defined]
        return 0

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, device: object) -> int:
        text = self._gpu(device).name.encode()
        assert len(text) < size
        name.value = text
        return 0

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: object) -> int:
        part = {75: 0, 76: 1}[attribute]
        value._obj.value = int(self._gpu(device).compute_capability.split(".")[part])  # type: ignore[attr-defined]
        return 0

    def cuDeviceTotalMem_v2(self, memory: object, device: object) -> int:
        memory._obj.value = self._gpu(device).memory  # type: ignore[attr-defined]
        return 0

    def _gpu(self, device: object) -> Gpu:
        return self.gpus[device.value - 40]  # type: ignore[attr-defined]


class FakeNvml:
    def __init__(self, *, works: bool = True) -> None:
        self.works = works

    def nvmlInit_v2(self) -> int:
        return 0 if self.works else 9

    def nvmlSystemGetDriverVersion(self, text: ctypes.Array[ctypes.c_char], size: int) -> int:
        text.value = b"580.95.05"
        return 0

    def nvmlShutdown(self) -> int:
        return 0


def loader(cuda: object | None, nvml: object | None = None) -> Callable[[str], object]:
    """Gives those libraries, and OSError for one that is not there, as ctypes.CDLL does."""

    def load(name: str) -> object:
        found = cuda if name == LIBCUDA else nvml
        if found is None:
            raise OSError(f"{name}: cannot open shared object file")
        return found

    return load


@pytest.fixture(autouse=True)
def _all_devices_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_no_driver_is_a_normal_answer() -> None:
    driver = ask_driver(loader(None))
    assert driver == CudaDriver(problem=driver.problem)
    assert LIBCUDA in str(driver.problem)


def test_two_gpus() -> None:
    driver = ask_driver(loader(FakeLibcuda((RTX_3090, H200)), FakeNvml()))
    assert driver == CudaDriver(version="580.95.05", cuda="13.0", gpus=(RTX_3090, H200))


@pytest.mark.parametrize("nvml", [None, FakeNvml(works=False), object()])
def test_without_the_management_library_only_the_version_is_unknown(nvml: object) -> None:
    driver = ask_driver(loader(FakeLibcuda((RTX_3090,), version=12080), nvml))
    assert driver == CudaDriver(version=None, cuda="12.8", gpus=(RTX_3090,))


@pytest.mark.parametrize(
    ("init", "words"),
    [(100, "no CUDA-capable device"), (803, "driver mismatch"), (999, "unknown error")],
)
def test_a_driver_that_does_not_start_says_why(init: int, words: str) -> None:
    driver = ask_driver(loader(FakeLibcuda((RTX_3090,), init=init), FakeNvml()))
    assert driver.gpus == ()
    assert driver.version == "580.95.05"
    assert driver.cuda == "13.0"
    assert words in str(driver.problem)
    assert f"CUDA error {init}" in str(driver.problem)


def test_hidden_gpus_are_told_as_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver = ask_driver(loader(FakeLibcuda()))
    assert driver.gpus == ()
    assert "CUDA_VISIBLE_DEVICES is set to ''" in str(driver.problem)


def test_a_library_that_is_not_a_drivers() -> None:
    driver = ask_driver(loader(object()))
    assert driver.gpus == ()
    assert "cuDriverGetVersion" in str(driver.problem)


def test_this_machine_answers() -> None:
    driver = cuda_driver()
    assert (driver.problem is None) == bool(driver.gpus)


def test_plugged_in_gpus_are_counted_without_a_driver(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),  # a data centre GPU
        ("b", "0x10de", "0x030000"),  # a GPU with a display
        ("c", "0x10de", "0x040300"),  # its sound
        ("d", "0x8086", "0x030000"),  # another maker's
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "unreadable").mkdir()
    assert nvidia_devices(tmp_path) == 2
    assert nvidia_devices(tmp_path / "absent") == 0


def test_versions_are_read_without_importing() -> None:
    assert installed("onnx") == onnx.__version__
    assert installed("no-such-package-at-all") is None
    package = onnxruntime_package()
    assert package is not None
    assert package[0] in ("onnxruntime", "onnxruntime-gpu")
    assert package[1] == installed(package[0])


def test_the_cuda_that_a_package_needs_is_read_from_its_metadata() -> None:
    assert cuda_required("tensorrt-rtx") == 13
    assert cuda_required("numpy") is None
    assert cuda_required("no-such-package-at-all") is None


def test_trials_tell_how_they_ended() -> None:
    assert try_python("pass") is None
    assert try_python("import sys; sys.exit('a reason')") == "a reason"
    assert try_python("raise SystemExit(3)") == "it ended with status 3"
    assert try_python("1 / 0") == "ZeroDivisionError: division by zero"
    assert try_python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)") == (
        "it crashed with signal 11"
    )
    assert try_python("import time; time.sleep(60)", seconds=0.2) == "no answer within 0 seconds"


def test_a_trial_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "cannot start" in str(try_python("pass"))


def test_a_module_is_tried_in_another_process() -> None:
    assert import_problem("json.tool") is None
    assert "no_such_module" in str(import_problem("no_such_module"))
    assert import_problem("this") is None
    assert "this" not in sys.modules


def test_the_trial_graph_is_what_it_says(tmp_path: Path) -> None:
    model = onnx.load_from_string(trial.TRIAL_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert model.opset_import[0].version == 18


def test_onnxruntime_runs_on_the_cpu_and_says_why_not_elsewhere() -> None:
    assert provider_problem("cpu") is None
    if not cuda_driver().gpus:
        assert provider_problem("cuda") == cuda_driver().problem
    assert "not 'tpu'" in str(provider_problem("tpu"))


def test_a_provider_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    negated = trial.TRIAL_GRAPH.replace(b"\x04Relu", b"\x04Sign")
    monkeypatch.setattr(trial, "TRIAL_GRAPH", negated)
    with pytest.raises(EngineError, match="says Relu"):
        trial.try_provider("cpu")


def test_cpu_is_read_from_linux_description(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nflags\t\t: fpu avx2 fma avx512f amx_int8\n"
        "\nprocessor\t: 1\nmodel name\t: Another\nflags\t\t: fpu\n"
    )
    cpu = read_cpu(cpuinfo)
    assert cpu.name == "A CPU @ 3 GHz"
    assert cpu.features == ("avx2", "fma", "avx512f", "amx_int8")
    assert cpu.cores >= 1
    assert cpu_flags(cpuinfo) == {"fpu", "avx2", "fma", "avx512f", "amx_int8"}


def test_cpu_elsewhere_is_known_by_its_architecture(tmp_path: Path) -> None:
    cpu = read_cpu(tmp_path / "absent")
    assert cpu.name
    assert cpu.features == ()
    assert cpu_flags(tmp_path / "absent") is None
