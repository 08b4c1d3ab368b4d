"""What this machine has: GPUs, their driver, packages, and providers that really run.

Nothing beyond the standard library is needed. GPUs are asked through the driver's own library,
versions are read from the packages' metadata, and what may crash, print or take the GPU is tried
in a process of its own. Shared by ``doctor`` and by the choice of a backend (``engine.choose``).
Reference: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LoadLibrary = Callable[[str], Any]

LIBCUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
LIBNVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

TRIAL_SECONDS = 120.0
"""How long a trial in a process of its own may take; a first load from a cold disk is slow."""

_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

_OLDEST_RTX = 8
"""Major compute capability from which TensorRT RTX engines are built: Ampere and later."""

_NVIDIA, _DISPLAY = "0x10de", "0x03"
"""PCI's numbers of the vendor, and of display and 3D controllers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that CUDA programs can use.

    Attributes:
        index: its number, as in ``cuda:0``.
        name: what its maker calls it.
        compute_capability: such as ``"8.6"``.
        memory: bytes.
    """

    index: int
    name: str
    compute_capability: str
    memory: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaDriver:
    """The NVIDIA driver and the GPUs it offers.

    Attributes:
        version: the driver's own version, such as ``"580.95.05"``, where it tells.
        cuda: the newest CUDA it serves, such as ``"13.0"``, or None without a driver.
        gpus: what CUDA programs can use.
        problem: why there is no GPU, or None where there is one.
    """

    version: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


class _DriverCallError(Exception):
    """A call of the driver's library did not succeed."""


@functools.cache
def cuda_driver() -> CudaDriver:
    """Ask the driver. No driver and no GPU are normal answers; asked once per process."""
    return ask_driver(ctypes.CDLL)


def gpus() -> tuple[Gpu, ...]:
    """GPUs that CUDA programs can use here, as ``CUDA_VISIBLE_DEVICES`` numbers them."""
    return cuda_driver().gpus


def ask_driver(load: LoadLibrary) -> CudaDriver:
    """Ask the driver through its library.

    Args:
        load: gives a library by its name, or raises OSError (``ctypes.CDLL``, or a double).
    """
    try:
        library = load(LIBCUDA)
    except OSError:
        return CudaDriver(problem=f"there is no NVIDIA driver here ({LIBCUDA} is not found)")
    version, cuda = _driver_version(load), None
    try:
        cuda = _cuda_version(library)
        _call(library, "cuInit", 0)
        found = tuple(_gpu(library, index) for index in range(_gpu_count(library)))
    except _DriverCallError as exc:
        return CudaDriver(version=version, cuda=cuda, problem=f"{exc}{_visible_devices()}")
    problem = None if found else f"the driver finds no GPU{_visible_devices()}"
    return CudaDriver(version=version, cuda=cuda, gpus=found, problem=problem)


def _call(library: Any, function: str, *arguments: Any) -> None:
    try:
        status = getattr(library, function)(*arguments)
    except AttributeError as exc:
        raise _DriverCallError(f"{LIBCUDA} has no {function}: not an NVIDIA driver's?") from exc
    if status != 0:
        raise _DriverCallError(f"{function} failed: {_error_text(library, status)}")


def _error_text(library: Any, status: int) -> str:
    text = ctypes.c_char_p()
    try:
        known = library.cuGetErrorString(status, ctypes.byref(text)) == 0
    except AttributeError:
        known = False
    words = text.value.decode(errors="replace") if known and text.value else "unknown error"
    return f"{words} (CUDA error {status})"


def _cuda_version(library: Any) -> str:
    number = ctypes.c_int()
    _call(library, "cuDriverGetVersion", ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _gpu_count(library: Any) -> int:
    count = ctypes.c_int()
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    return count.value


def _gpu(library: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _call(library, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory=memory.value,
    )


def _driver_version(load: LoadLibrary) -> str | None:
    """The driver's own version, which only its management library tells."""
    text = ctypes.create_string_buffer(_NAME_BYTES)
    try:
        library = load(LIBNVML)
        if library.nvmlInit_v2() != 0:
            return None
        told = library.nvmlSystemGetDriverVersion(text, _NAME_BYTES) == 0
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace") if told and text.value else None


def _visible_devices() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f"; CUDA_VISIBLE_DEVICES is set to '{visible}'"


def nvidia_devices(pci: Path = Path("/sys/bus/pci/devices")) -> int:
    """How many NVIDIA GPUs are plugged in, with a driver or without; 0 where that is not told."""
    return sum(_is_nvidia_gpu(device) for device in pci.glob("*"))


def _is_nvidia_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def installed(package: str) -> str | None:
    """Version of an installed package, by its name in the registry; it is not imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def onnxruntime_package() -> tuple[str, str] | None:
    """Name and version of the ONNX Runtime package, whichever of the two it is, or None."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        if version := installed(name):
            return name, version
    return None


def cuda_required(package: str) -> int | None:
    """The major version of CUDA that a TensorRT package was built for, or None.

    Its libraries come in a package of their own whose name ends in it (``..._cu13_libs``).
    """
    try:
        needed = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [int(match[1]) for line in needed if (match := re.match(r"[\w.-]+?_cu(\d+)", line))]
    return max(found, default=None)


def driver_problem(package: str, driver: CudaDriver, required: int | None) -> str | None:
    """Why the driver does not serve a TensorRT package, or None.

    Args:
        package: its name in the registry.
        driver: what there is.
        required: what `cuda_required` says of the package.
    """
    if required and driver.cuda and int(driver.cuda.split(".")[0]) < required:
        return f"the driver serves CUDA {driver.cuda}, {package} needs CUDA {required}"
    return None


def gpu_problem(package: str, driver: CudaDriver) -> str | None:
    """Why none of the driver's GPUs serves a TensorRT package, or None."""
    majors = [int(gpu.compute_capability.split(".")[0]) for gpu in driver.gpus]
    if package == "tensorrt-rtx" and max(majors, default=0) < _OLDEST_RTX:
        return "no GPU of compute capability 8.0 (Ampere) or later"
    return None


def try_python(code: str, *arguments: str, seconds: float = TRIAL_SECONDS) -> str | None:
    """Run a piece of Python in a process of its own.

    Returns:
        None where it ended well, otherwise why not, in one line.
    """
    command: Sequence[str] = (sys.executable, "-c", code, *arguments)
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} seconds"
    except OSError as exc:
        return f"cannot start {sys.executable}: {exc.strerror or exc}"
    if result.returncode == 0:
        return None
    if result.returncode < 0:
        return f"it crashed with signal {-result.returncode}"
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with status {result.returncode}"


@functools.cache
def import_problem(module: str) -> str | None:
    """Why a module cannot be imported, or None where it can; tried once, in another process.

    OpenVINO is tried without what would report that it was imported.
    """
    return try_python(
        "import importlib, sys; sys.modules['openvino_telemetry'] = None; "
        "importlib.import_module(sys.argv[1])",
        module,
    )


_PROVIDER_TRIAL = """
import sys
from parnet_deploy.errors import ParnetDeployError
from parnet_deploy.runtime.trial import try_provider
try:
    try_provider(sys.argv[1])
except ParnetDeployError as exc:
    sys.exit(str(exc))
"""


@functools.cache
def provider_problem(provider: str) -> str | None:
    """Why ONNX Runtime cannot run on ``cpu`` or ``cuda`` here, or None where it can.

    onnxruntime-gpu lists the CUDA provider on every machine, and falls back to the CPU without an
    error: so a small graph is run, through the runner that engines use.
    """
    if onnxruntime_package() is None and (problem := import_problem("onnxruntime")):
        return problem
    if provider == "cuda" and (problem := cuda_driver().problem):
        return problem
    return try_python(_PROVIDER_TRIAL, provider)
