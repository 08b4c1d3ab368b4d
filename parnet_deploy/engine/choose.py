"""Which backend: the fastest that builds and runs on this machine, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from parnet_deploy.engine.base import Builder, BuildOptions, flag
from parnet_deploy.errors import EngineError, UsageError
from parnet_deploy.runtime.machine import (
    cuda_driver,
    cuda_required,
    driver_problem,
    gpu_problem,
    import_problem,
    installed,
    provider_problem,
)
from parnet_deploy.spec import Backend

_OF_TENSORRT = frozenset(
    {
        "devices",
        "tf32",
        "optimization_level",
        "workspace_mib",
        "aux_streams",
        "version_compatible",
        "hardware_compatible",
        "weight_stripped",
        "timing_cache",
    }
)

APPLICABLE: Mapping[Backend, frozenset[str]] = {
    "onnxruntime": frozenset({"provider", "devices", "threads", "spin", "narrow_weights"}),
    "tensorrt": _OF_TENSORRT,
    "tensorrt-rtx": _OF_TENSORRT | {"compute_capabilities"},
    "openvino": frozenset({"threads"}),
    "ncnn": frozenset({"threads"}),
}
"""Fields of `BuildOptions` that mean something to a backend; a builder may know fewer still."""


class Choice(NamedTuple):
    """A backend, and a line about each one that was looked at; the last is about the one taken."""

    backend: Backend
    reasons: tuple[str, ...]


class _TensorRT(NamedTuple):
    backend: Backend
    module: str
    extra: str


_TENSORRT = (
    _TensorRT("tensorrt", "tensorrt", "tensorrt"),
    _TensorRT("tensorrt-rtx", "tensorrt_rtx", "rtx"),
)


class _OnCpu(NamedTuple):
    backend: Backend
    package: str | None  # None: what is always there
    precisions: frozenset[str]


_CPU_ORDER = (
    _OnCpu("onnxruntime", None, frozenset({"fp32", "fp16", "int8"})),
    _OnCpu("openvino", "openvino", frozenset({"fp32", "fp16", "bf16", "int8"})),
    _OnCpu("ncnn", "ncnn", frozenset({"fp32"})),
)
"""Backends on the CPU in the order in which they are preferred; an extra is named like its package.
docs/engines.md says what each is for."""


def choose_backend(precision: str = "fp32") -> Choice:
    """The fastest backend whose engines run here: TensorRT, TensorRT RTX, CUDA, the CPU.

    Args:
        precision: that of the graphs that are to be built.

    Returns:
        The backend and the reason, and why it is none of the others. Where a GPU is used, nothing
        is said of backends on the CPU.

    Raises:
        EngineError: nothing that works here runs graphs of that precision.
    """
    reasons = []
    for kind in _TENSORRT:
        problem = _tensorrt_problem(kind)
        if problem is None:
            reasons.append(f"{kind.backend}: taken, the fastest that works here")
            return Choice(kind.backend, tuple(reasons))
        reasons.append(f"{kind.backend}: not taken, {problem}")
    problem = _no_convolutions(precision) or provider_problem("cuda")
    if problem is None:
        reasons.append("onnxruntime on cuda: taken, the fastest that works here")
        return Choice("onnxruntime", tuple(reasons))
    reasons.append(f"onnxruntime on cuda: not taken, {problem}")
    on_cpu = _choose_on_cpu(precision)
    return Choice(on_cpu.backend, (*reasons, *on_cpu.reasons))


def _choose_on_cpu(precision: str) -> Choice:
    """The first of `_CPU_ORDER` that works here. Those behind it are not tried."""
    problems: dict[_OnCpu, str | None] = {}
    for kind in _CPU_ORDER:
        problems[kind] = _cpu_problem(kind, precision, tried=None not in problems.values())
    taken = next((kind for kind, problem in problems.items() if problem is None), None)
    if taken is None:
        why = "; ".join(f"{kind.backend}: {problem}" for kind, problem in problems.items())
        gpus = " --compute-capability 8.9" if precision == "fp8" else ""  # not all of its own
        raise EngineError(
            f"nothing that works here runs graphs in {precision} ({why}); build it for a GPU with "
            f"--backend tensorrt-rtx{gpus}, which takes none, or export it with --precision fp32"
        )
    before = f"{taken.backend} on cpu comes before it"
    others = (
        f"{kind.backend}: not taken, {problem or before}"
        for kind, problem in problems.items()
        if kind is not taken
    )
    why = "it works on every machine" if taken.package is None else "the first that works here"
    return Choice(taken.backend, (*others, f"{taken.backend} on cpu: taken, {why}"))


def make_builder(backend: Backend, options: BuildOptions, *, split: bool) -> Builder:
    """A builder of engines of one kind.

    Args:
        backend: which kind.
        options: how to build.
        split: whether one engine per stage is to be built.

    Raises:
        UsageError: an option does not apply to the backend, or several devices were named for
            one engine of the whole network.
        EngineError: the provider that was asked for does not run here.
        MissingDependencyError: the backend's package is not installed.
    """
    _check_applicable(backend, options)
    if len(options.devices) > 1 and not split:
        raise UsageError(
            f"--devices names {len(options.devices)} devices, and the whole network is one engine "
            "on one device; add --split-streams"
        )
    if backend == "onnxruntime":
        from parnet_deploy.engine.onnxruntime import OnnxRuntimeBuilder

        return OnnxRuntimeBuilder(options, split=split)
    if backend == "openvino":
        from parnet_deploy.engine.openvino import OpenVinoBuilder

        return OpenVinoBuilder(options, split=split)
    if backend == "ncnn":
        from parnet_deploy.engine.ncnn.builder import NcnnBuilder

        return NcnnBuilder(options)
    from parnet_deploy.engine.tensorrt.builder import TensorRTBuilder

    return TensorRTBuilder(backend, options)


def _check_applicable(backend: Backend, options: BuildOptions) -> None:
    for field in sorted(options.given() - APPLICABLE[backend]):
        others = [name for name, fields in APPLICABLE.items() if field in fields]
        raise UsageError(
            f"{flag(field)} does not apply to {backend} engines; "
            f"it is for --backend {' or '.join(others)}"
        )


def _cpu_problem(kind: _OnCpu, precision: str, *, tried: bool) -> str | None:
    """Why engines of a backend cannot be built and run on this CPU, or None."""
    if precision not in kind.precisions:
        return f"it reads no {precision} graphs"
    if kind.package is None:
        return None
    if installed(kind.package) is None:
        return _not_installed(kind.package, kind.package)
    return import_problem(kind.package) if tried else None


def _no_convolutions(precision: str) -> str | None:
    """Why ONNX Runtime does not run graphs of a precision on GPUs, or None."""
    return None if precision in ("fp32", "fp16") else f"it has no convolutions in {precision} there"


def _not_installed(package: str, extra: str) -> str:
    return f"{package} is not installed (pip install 'parnet-deploy[{extra}]')"


def _tensorrt_problem(kind: _TensorRT) -> str | None:
    """Why engines of one flavour of TensorRT cannot be built and run here, or None."""
    package = kind.module.replace("_", "-")
    if installed(package) is None:
        return _not_installed(package, kind.extra)
    driver = cuda_driver()
    unfit = (
        driver.problem
        or driver_problem(package, driver, cuda_required(package))
        or gpu_problem(package, driver)
    )
    if unfit is None:
        return import_problem(kind.module)
    if kind.backend == "tensorrt-rtx":
        return f"it builds here, with --backend {kind.backend}, but does not run: {unfit}"
    return unfit
