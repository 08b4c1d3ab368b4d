"""OpenVINO as a runner. Reference: https://docs.openvino.ai/2026/api/ie_python_api/api.html."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.runtime.cpu import check_int8
from parnet_deploy.spec import Array, TensorSpec, check_feeds

DEVICE = "CPU"

PROPERTIES: Mapping[str, str] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
"""How a model is compiled, by OpenVINO's own names: by itself it takes as many streams as it
likes."""

PRECISION = "INFERENCE_PRECISION_HINT"

_HINTS = {"bf16": "bf16"}
"""What is asked for by what an engine computes in; otherwise f32, also around what is in int8. By
itself it reckons in bfloat16 where the CPU can."""

_WHERE = re.compile(r"^(Exception from |Check ')|failed at src/")  # of its sources, not of a model
_LETTERS = re.compile("[^0-9.].*")


class OpenVinoRunner(ClosingRunner):
    """A model compiled for the CPU. Safe to run from several threads.

    Every run has an infer request of its own, which is used again when the run has ended; runs at
    the same time wait for each other, since each of them uses all threads.
    """

    def __init__(
        self,
        path: Path,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        threads: int = 0,
        pin: bool | None = None,
        computes: str = "fp32",
    ) -> None:
        """Compile a model; its weights are laid out for this CPU now, not when it was built.

        Args:
            path: OpenVINO IR (``.xml``, its ``.bin`` beside it) or an ONNX file.
            inputs: its inputs.
            outputs: those of its outputs that are wanted.
            threads: threads of one operator; 0 leaves it to OpenVINO (one a core).
            pin: whether each thread keeps to one core; None leaves it to OpenVINO.
            computes: what it is to compute in; see `compile_model`.

        Raises:
            EngineError: the file does not load, has other inputs and outputs, or is not computed
                in what it is to be.
            MissingDependencyError: OpenVINO cannot be imported.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._openvino = load_openvino()
        compiled = compile_model(path, threads=threads, pin=pin, computes=computes)
        _check_names(path, compiled, inputs, outputs)
        self._compiled: Any = compiled
        self._idle: list[Any] = []

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the arrays given back are new, and OpenVINO wrote right into them.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the run failed, or the runner is closed.
        """
        return self._run(feeds)[0]

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        """Run once. Seconds of OpenVINO's own inference alone.

        Raises:
            RunnerError: as `run`.
        """
        return self._run(feeds)[1]

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._compiled = None
        self._idle = []

    def _run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        check_feeds(self.inputs, feeds)
        compiled, idle = self._compiled, self._idle  # they last when another thread closes these
        if compiled is None:
            raise RunnerError("this runner is closed; open it again")
        batch = _batch(self.inputs, feeds)
        results = {
            spec.name: np.empty(spec.concrete(batch), np.dtype(spec.dtype)) for spec in self.outputs
        }
        arrays = {name: _in_place(array) for name, array in feeds.items()} | results
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            for name, array in arrays.items():
                request.set_tensor(name, self._openvino.Tensor(array, shared_memory=True))
            start = time.perf_counter()
            request.infer(share_outputs=True)
            seconds = time.perf_counter() - start
        except RuntimeError as exc:  # the request is not used again
            raise RunnerError(f"OpenVINO failed: {_message(exc)}") from exc
        idle.append(request)
        return results, seconds


def load_openvino() -> Any:
    """The module, imported when it is first needed: what serves other engines lacks it.

    Its telemetry is switched off: by itself it reports every import, and numbers the user in a
    file below the home, without having asked. Without the package that does so it goes on.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
    try:
        import openvino
    except ImportError as exc:
        raise MissingDependencyError(
            f"OpenVINO cannot be imported ({exc}): pip install 'parnet-deploy[openvino]'"
        ) from exc
    return openvino


def read_model(path: Path) -> Any:
    """A model, not yet compiled.

    Raises:
        EngineError: the file does not load.
        MissingDependencyError: OpenVINO cannot be imported.
    """
    try:
        return load_openvino().Core().read_model(os.fspath(path))
    except RuntimeError as exc:
        raise EngineError(f"OpenVINO cannot load {path}: {_message(exc)}") from exc


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU, when it is asked to.

    Where it does not, it computes in float32 and does not say so.

    Raises:
        MissingDependencyError: OpenVINO cannot be imported.
    """
    return "BF16" in load_openvino().Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


def compile_model(path: Path, *, threads: int, pin: bool | None, computes: str = "fp32") -> Any:
    """A model compiled for the CPU. See `OpenVinoRunner`.

    Args:
        path: OpenVINO IR, or an ONNX file.
        threads: threads of one operator; 0 leaves it to OpenVINO.
        pin: whether each thread keeps to one core; None leaves it to OpenVINO.
        computes: ``bf16``, ``int8`` or ``fp32``, which is float32 exactly. What a graph has in
            int8 is computed in int8, and the rest of it in float32.

    Raises:
        EngineError: the file does not load, or is not compiled as it was asked for.
        MissingDependencyError: OpenVINO cannot be imported.
    """
    openvino = load_openvino()
    hint = _HINTS.get(computes, "f32")
    asked: dict[str, Any] = {PRECISION: hint, **PROPERTIES, "INFERENCE_NUM_THREADS": threads}
    if pin is not None:
        asked["ENABLE_CPU_PINNING"] = pin
    model = read_model(path)
    try:
        compiled = openvino.Core().compile_model(model, DEVICE, asked)
        precision = compiled.get_property(PRECISION)
    except RuntimeError as exc:
        raise EngineError(f"OpenVINO cannot compile {path}: {_message(exc)}") from exc
    if precision != getattr(openvino.Type, hint):
        found = precision.get_type_name()
        lacks = "; this CPU has no bfloat16" if hint == "bf16" else ""
        raise EngineError(
            f"OpenVINO compiled {path} for {found}, not for the {hint} asked for{lacks}"
        )
    return compiled


def openvino_target() -> dict[str, str]:
    """What an engine depends on: the version that wrote it, which later ones read. No CPU.

    Raises:
        MissingDependencyError: OpenVINO cannot be imported.
    """
    return {"openvino": openvino_version()}


def check_openvino_target(recorded: Mapping[str, object]) -> None:
    """Compare an engine's target with the version that is installed.

    Raises:
        TargetError: an older one is installed than it was written by.
        MissingDependencyError: OpenVINO cannot be imported.
    """
    check_int8(recorded)
    wrote, here = str(recorded.get("openvino", "unknown")), openvino_version()
    if not wrote[:1].isdigit() or _numbers(here) < _numbers(wrote):
        raise TargetError(
            f"it was written by OpenVINO {wrote}, and an older one may not read it (here: {here})"
        )


def openvino_version() -> str:
    """The version that is installed, such as ``2026.4.1``, without its build.

    Raises:
        MissingDependencyError: OpenVINO cannot be imported.
    """
    return str(load_openvino().__version__).partition("-")[0]


def _check_names(
    path: Path, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """A port may have several names: those of casts that OpenVINO has merged with it."""
    reads = [port.get_names() for port in compiled.inputs]
    gives = {name for port in compiled.outputs for name in port.get_names()}
    wanted = {spec.name for spec in inputs}
    each_wanted_once = sorted(name for names in reads for name in names & wanted) == sorted(wanted)
    if (
        len(reads) != len(wanted)
        or not each_wanted_once
        or not gives >= {spec.name for spec in outputs}
    ):
        raise EngineError(
            f"{path} reads {[sorted(names) for names in reads]} and gives {sorted(gives)}; "
            f"expected are the inputs {sorted(wanted)} and outputs "
            f"{sorted(spec.name for spec in outputs)}"
        )


def _batch(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> int:
    """Size of the symbolic axis, which all inputs share; 1 where there is none."""
    sizes = {
        size
        for spec in inputs
        for want, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(want, str)
    }
    if len(sizes) > 1 or 0 in sizes:
        raise RunnerError(f"every input holds the same images, at least one; not {sorted(sizes)}")
    return sizes.pop() if sizes else 1


def _in_place(array: Array) -> Array:
    """The array itself, where OpenVINO can read it where it lies: in C order, and not read-only."""
    return np.require(array, requirements=("C", "A", "W"))


def _message(exc: Exception) -> str:
    """What it says of the model, without the lines that say where in its sources."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return "; ".join(line for line in lines if not _WHERE.search(line)) or type(exc).__name__


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(_LETTERS.sub("", part) or 0) for part in version.split("."))
