"""What ``doctor`` finds out, and what follows from it: nothing here prints."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.cli.packages import NEEDS, module_of
from parnet_deploy.runtime.cpu import Cpu, read_cpu
from parnet_deploy.runtime.machine import (
    CudaDriver,
    cuda_driver,
    cuda_required,
    driver_problem,
    gpu_problem,
    import_problem,
    installed,
    nvidia_devices,
    onnxruntime_package,
    provider_problem,
)

PACKAGES: Mapping[str, bool] = {
    "numpy": False,
    "pillow": False,
    "torch": True,
    "torchvision": True,
    "timm": False,
    "tensorboard": False,
    "onnx": False,
    "onnx-graphsurgeon": True,
    "safetensors": True,
    "matplotlib": False,
    "jinja2": False,
    "scikit-learn": True,
    "polygraphy": False,
    "starlette": False,
    "uvicorn": False,
    "httptools": True,
    "uvloop": True,
    "prometheus-client": False,
    "tritonclient": False,
    "openvino": True,
    "ncnn": True,
    "tensorrt": True,
    "tensorrt-rtx": True,
    "cuda-bindings": True,
}
"""Packages by their names in the registry, and whether one is imported to try it."""

PROVIDERS = ("cpu", "cuda")
PREDICT = "predict, ONNX Runtime on the CPU"

_SOURCES = {"tensorrt": ", from NVIDIA's own package index"}
_ADVICE_OF_RUNNER = "; 'parnet-deploy doctor' says what to install"


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package.

    Attributes:
        version: None where it is not installed.
        problem: why it cannot be imported although it is installed, or None.
    """

    version: str | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What there is.

    Attributes:
        python: version of Python.
        system: operating system, in words.
        cpu: the CPU.
        driver: the NVIDIA driver and its GPUs.
        nvidia_devices: NVIDIA GPUs that are plugged in, with a driver or without.
        onnxruntime: name and version of its package, or None.
        providers: for each execution provider why it does not run here, None where it does.
        packages: the others.
        cuda_required: major version of CUDA that a TensorRT package was built for, where known.
        disk_free: bytes that are free in the working folder.
    """

    python: str
    system: str
    cpu: Cpu
    driver: CudaDriver
    nvidia_devices: int
    onnxruntime: tuple[str, str] | None
    providers: Mapping[str, str | None]
    packages: Mapping[str, Package]
    cuda_required: Mapping[str, int | None]
    disk_free: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Obstacle:
    """Why something does not work, and what to do about it."""

    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Something that people do with parnet-deploy; it works where nothing is in its way."""

    name: str
    obstacles: tuple[Obstacle, ...]

    @property
    def works(self) -> bool:
        """Whether it works here."""
        return not self.obstacles


def examine(folder: Path = Path()) -> Machine:
    """Look at this machine. What may crash is tried in processes of its own, side by side."""
    versions = {name: installed(name) for name in PACKAGES}
    trials = {
        name: module_of(name)
        for name, tried in PACKAGES.items()
        if tried and versions[name] is not None
    }
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        providers = pool.map(provider_problem, PROVIDERS)
        problems = pool.map(import_problem, trials.values())
        provider_problems = dict(zip(PROVIDERS, providers, strict=True))
        import_problems = dict(zip(trials, problems, strict=True))
    return Machine(
        python=platform.python_version(),
        system=platform.platform(terse=True),
        cpu=read_cpu(),
        driver=cuda_driver(),
        nvidia_devices=nvidia_devices(),
        onnxruntime=onnxruntime_package(),
        providers=provider_problems,
        packages={
            name: Package(version=version, problem=import_problems.get(name))
            for name, version in versions.items()
        },
        cuda_required={name: cuda_required(name) for name in ("tensorrt", "tensorrt-rtx")},
        disk_free=shutil.disk_usage(folder).free,
    )


def judge(machine: Machine) -> tuple[Task, ...]:
    """What the machine can do, and what is missing for the rest."""
    need = _Needs(machine)
    on_cpu, on_cuda = tuple(need.provider("cpu")), tuple(need.provider("cuda"))
    rtx = tuple(need.packages(("tensorrt-rtx",), "rtx"))
    tensorrt = (*need.packages(("tensorrt",), "tensorrt"), *need.gpu("tensorrt"))
    openvino = tuple(need.packages(("openvino",), "openvino"))
    ncnn = tuple(need.packages(("ncnn",), "ncnn"))
    tasks = {
        PREDICT: on_cpu,
        "predict, OpenVINO on the CPU": openvino,
        "predict, ncnn on the CPU": ncnn,
        "predict, ONNX Runtime on the GPU": (*on_cuda, *need.packages(("cuda-bindings",), "rtx")),
        "predict, TensorRT": (*tensorrt, *need.packages(("cuda-bindings",), "tensorrt")),
        "predict, TensorRT RTX": (
            *need.packages(("tensorrt-rtx", "cuda-bindings"), "rtx"),
            *need.gpu("tensorrt-rtx"),
        ),
        "build-engine --backend onnxruntime": on_cpu,
        "build-engine --backend openvino": openvino,
        "build-engine --backend ncnn": (*ncnn, *need.packages(("onnx",), "export")),
        "build-engine --backend tensorrt": tensorrt,
        "build-engine --backend tensorrt-rtx": rtx,
    }
    for command, needs in NEEDS.items():
        tasks[command] = (*need.packages(needs.packages, needs.extra), *on_cpu)
    return tuple(Task(name=name, obstacles=obstacles) for name, obstacles in tasks.items())


class _Needs:
    """What is in the way of a need."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def packages(self, names: Sequence[str], extra: str) -> Iterator[Obstacle]:
        """Packages that must be there and load; one of parnet-deploy's extras brings them."""
        found = {name: self._machine.packages[name] for name in names}
        if missing := [name for name, package in found.items() if package.version is None]:
            yield Obstacle(
                reason=f"not installed: {', '.join(missing)}",
                remedy=f"pip install 'parnet-deploy[{extra}]'{_SOURCES.get(extra, '')}",
            )
        for name, package in found.items():
            if package.version is not None and package.problem is not None:
                yield Obstacle(
                    reason=f"{name} {package.version} does not load: {package.problem}",
                    remedy=f"pip install --force-reinstall {name}",
                )

    def provider(self, name: str) -> Iterator[Obstacle]:
        """An execution provider of ONNX Runtime that runs."""
        machine = self._machine
        problem = machine.providers[name]
        if problem is None:
            return
        reason = problem.removesuffix(_ADVICE_OF_RUNNER)
        if machine.onnxruntime is None:
            yield Obstacle(reason="not installed: onnxruntime", remedy="pip install parnet-deploy")
        elif name == "cpu":
            package = machine.onnxruntime[0]
            remedy = f"pip install --force-reinstall {package}"
            yield Obstacle(reason=f"{package} does not run: {reason}", remedy=remedy)
        elif not machine.driver.gpus:
            yield from self.gpu(None)
        elif machine.onnxruntime[0] == "onnxruntime":
            yield Obstacle(
                reason="the package onnxruntime runs on the CPU only",
                remedy="pip uninstall onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]'",
            )
        else:
            remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            yield Obstacle(reason=reason, remedy=remedy)

    def gpu(self, package: str | None) -> Iterator[Obstacle]:
        """A GPU, with a driver and of an age that a TensorRT package serves."""
        machine, driver = self._machine, self._machine.driver
        if not driver.gpus:
            yield Obstacle(reason=driver.problem or "no GPU", remedy=self._gpu_remedy())
            return
        if package is None:
            return
        if too_old := driver_problem(package, driver, machine.cuda_required.get(package)):
            yield Obstacle(reason=too_old, remedy="install a newer NVIDIA driver")
        if too_old := gpu_problem(package, driver):
            yield Obstacle(reason=too_old, remedy="use ONNX Runtime, or another GPU")

    def _gpu_remedy(self) -> str:
        if self._machine.nvidia_devices and self._machine.driver.cuda is None:
            return (
                "a GPU is plugged in: install NVIDIA's driver; in a container, start it with "
                "'--gpus all'"
            )
        if self._machine.nvidia_devices:
            return "a GPU is plugged in: see 'nvidia-smi', and what CUDA_VISIBLE_DEVICES hides"
        return "a machine with an NVIDIA GPU"
