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
from parnet_deploy.runtime.tensorrt_target import LEAST_CAPABILITY
from parnet_deploy.spec import Backend
from parnet_deploy.spec.precision import PRECISIONS
from parnet_deploy.spec.quantisation import Scheme, backends_of, takers
from parnet_deploy.spec.targets import ON_CPU, TAKES

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


class Graphs(NamedTuple):
    """What is to be built.

    Attributes:
        precision: of the graphs.
        scheme: how they are quantised; None where they are not, or where that is open.
    """

    precision: str = "fp32"
    scheme: Scheme | None = None

    def problem(self, backend: Backend) -> str | None:
        """Why a backend builds no engines of them, or None."""
        precision = next((name for name in TAKES[backend] if name == self.precision), None)
        if precision is None:
            return f"it reads no {self.precision} graphs"
        if self.scheme is None or backend in backends_of(precision, self.scheme):
            return None
        return f"these were quantised for {takers(precision, self.scheme)}"


_CPU_ORDER = ON_CPU
_BUILT_IN: Backend = "onnxruntime"
"""The one of them that is always there; an extra is named like each other's package."""


def choose_backend(precision: str = "fp32", scheme: Scheme | None = None) -> Choice:
    """The fastest backend whose engines run here: TensorRT, TensorRT RTX, CUDA, the CPU.

    Args:
        precision: that of the graphs that are to be built.
        scheme: how they are quantised; None where they are not, or where that is open.

    Returns:
        The backend and the reason, and why it is none of the others. Where a GPU is used, nothing
        is said of backends on the CPU.

    Raises:
        EngineError: nothing that works here runs graphs of that precision.
    """
    reasons = []
    graphs = Graphs(precision, scheme)
    for kind in _TENSORRT:
        problem = graphs.problem(kind.backend) or _tensorrt_problem(kind)
        if problem is None:
            reasons.append(f"{kind.backend}: taken, the fastest that works here")
            return Choice(kind.backend, tuple(reasons))
        reasons.append(f"{kind.backend}: not taken, {problem}")
    problem = _no_convolutions(precision) or provider_problem("cuda")
    if problem is None:
        reasons.append("onnxruntime on cuda: taken, the fastest that works here")
        return Choice("onnxruntime", tuple(reasons))
    reasons.append(f"onnxruntime on cuda: not taken, {problem}")
    on_cpu = _choose_on_cpu(graphs)
    return Choice(on_cpu.backend, (*reasons, *on_cpu.reasons))


def buildable_for_gpus(precision: str, target: Backend = "tensorrt") -> tuple[str, ...] | None:
    """Options of ``build-engine`` that build for GPUs here, whether that runs here or not.

    Args:
        precision: of the graphs.
        target: what they were made for: ``tensorrt``, which builds where it runs, or
            ``tensorrt-rtx``, which takes the same graphs, and builds without a GPU.

    Returns:
        The options; None where nothing here builds them.
    """
    tensorrt, rtx = _TENSORRT
    if target == tensorrt.backend and _tensorrt_problem(tensorrt) is None:
        return "--backend", tensorrt.backend
    if installed("tensorrt-rtx") is None:
        return None
    return "--backend", rtx.backend, *_gpus_of(precision)


def _gpus_of(precision: str) -> tuple[str, ...]:
    """The GPU to name to TensorRT RTX for a precision that not all have which it builds for.

    One that is here, where one has it.
    """
    if precision != "fp8":
        return ()
    least = LEAST_CAPABILITY["tensorrt-rtx"][precision]
    here = (gpu.compute_capability for gpu in cuda_driver().gpus)
    fit = (name for name in here if tuple(map(int, name.split("."))) >= least)
    return "--compute-capability", next(fit, f"{least[0]}.{least[1]}")


def _choose_on_cpu(graphs: Graphs) -> Choice:
    """The first of `_CPU_ORDER` that works here. Those behind it are not tried."""
    problems: dict[Backend, str | None] = {}
    for backend in _CPU_ORDER:
        problems[backend] = _cpu_problem(backend, graphs, tried=None not in problems.values())
    taken = next((backend for backend, problem in problems.items() if problem is None), None)
    if taken is None:
        raise EngineError(_nothing(graphs, problems))
    before = f"{taken} on cpu comes before it"
    others = (
        f"{backend}: not taken, {problem or before}"
        for backend, problem in problems.items()
        if backend != taken
    )
    why = "it works on every machine" if taken == _BUILT_IN else "the first that works here"
    return Choice(taken, (*others, f"{taken} on cpu: taken, {why}"))


def _nothing(graphs: Graphs, problems: Mapping[Backend, str | None]) -> str:
    """That nothing here runs graphs, and what to do."""
    precision, scheme = graphs
    named = next((name for name in PRECISIONS if name == precision), None)
    rtx = " ".join(("--backend tensorrt-rtx", *_gpus_of(precision)))
    for_gpu = f"build it for a GPU with {rtx}, which takes none"
    others = [name for name in ON_CPU if precision in TAKES[name]]
    if named is None or scheme is None or not others:
        why = "; ".join(f"{backend}: {problem}" for backend, problem in problems.items())
        return (
            f"nothing that works here runs graphs in {precision} ({why}); {for_gpu}, or export it "
            "with --precision fp32"
        )
    again = " or ".join(f"--for {name}" for name in others)
    return (
        f"these graphs in {precision} were quantised for {takers(named, scheme)}, which do not "
        f"run here: export the model again with --precision {precision} {again}, or {for_gpu}"
    )


def make_builder(
    backend: Backend, options: BuildOptions, *, split: bool, precision: str = "fp32"
) -> Builder:
    """A builder of engines of one kind.

    Args:
        backend: which kind.
        options: how to build.
        split: whether one engine per stage is to be built.
        precision: of the graphs, where it decides what runs them: ONNX Runtime does not run all on
            GPUs.

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

        return OnnxRuntimeBuilder(options, split=split, precision=precision)
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


def _cpu_problem(backend: Backend, graphs: Graphs, *, tried: bool) -> str | None:
    """Why engines of a backend cannot be built and run on this CPU, or None."""
    if problem := graphs.problem(backend):
        return problem
    if backend == _BUILT_IN:
        return None
    if installed(backend) is None:
        return _not_installed(backend, backend)
    return import_problem(backend) if tried else None


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
