"""ONNX Runtime as a runner. Reference: https://onnxruntime.ai/docs/api/python/api_summary.html."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.spec import Array, TensorSpec, check_feeds

Provider = Literal["cpu", "cuda"]

PROVIDERS: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}

_CUDA_REFUSES = "CUDA failure"  # its words where a GPU is missing or cannot be used
_FATAL = 4  # the highest of its log levels
_ERROR_NUMBER = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class OnnxRuntimeRunner(ClosingRunner):
    """A session on one execution provider. Safe to run from several threads."""

    def __init__(
        self,
        path: Path,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        provider: Provider = "cpu",
        device_id: int = 0,
        threads: int = 0,
        spin: bool = False,
        optimise: bool = True,
    ) -> None:
        """Load a graph.

        Args:
            path: ONNX file.
            inputs: its inputs.
            outputs: those of its outputs that are wanted.
            provider: what runs it.
            device_id: which GPU, for ``cuda``.
            threads: threads of one operator; 0 leaves it to ONNX Runtime (one a core).
            spin: whether threads spin while they wait within a run; see `session_options`.
            optimise: off for a graph that was saved optimised.

        Raises:
            TargetError: the provider is not available, or fell back to the CPU.
            EngineError: the file does not load.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._device = (provider, device_id)
        options = session_options(threads=threads, optimise=optimise, spin=spin)
        self._session: Any = open_session(path, options, provider, device_id)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the arrays given back are new.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the run failed, or the runner is closed.
        """
        check_feeds(self.inputs, feeds)
        session = self._opened()
        names = [spec.name for spec in self.outputs]
        try:
            results = session.run(names, dict(feeds))
        except Exception as exc:  # its exceptions share no base class
            raise run_error(exc) from exc
        return dict(zip(names, results, strict=True))

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        """Run once with arrays that lie on the device already. Seconds of the run alone.

        Raises:
            RunnerError: as `run`.
        """
        check_feeds(self.inputs, feeds)
        session = self._opened()
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            binding = self._bind(session, arrays)
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return time.perf_counter() - start
        except Exception as exc:  # its exceptions share no base class
            raise run_error(exc) from exc

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def _opened(self) -> Any:
        """The session, which stays open for a run when another thread closes the runner."""
        session = self._session
        if session is None:
            raise RunnerError("this runner is closed; open it again")
        return session

    def _bind(self, session: Any, arrays: Mapping[str, Array]) -> Any:
        """Inputs and outputs in the device's own memory; on the CPU these are the arrays."""
        binding = session.io_binding()
        for name, array in arrays.items():
            value = load_onnxruntime().OrtValue.ortvalue_from_numpy(array, *self._device)
            binding.bind_ortvalue_input(name, value)
        for spec in self.outputs:
            binding.bind_output(spec.name, *self._device)
        binding.synchronize_inputs()
        return binding


def load_onnxruntime() -> Any:
    """The module, imported when it is first needed: 'doctor' must run where it is broken.

    Its telemetry is switched off: a device that runs an engine reports to nobody.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingDependencyError(
            f"ONNX Runtime cannot be imported ({exc}): pip install onnxruntime-gpu "
            "(onnxruntime on machines other than Linux x86-64)"
        ) from exc
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def has_half_kernels(architecture: str | None = None) -> bool:
    """Whether ONNX Runtime has kernels in float16 for a kind of CPU.

    Source: ``MLAS_F16VEC_INTRINSICS_SUPPORTED`` in its ``core/mlas/inc/mlas.h``.

    Args:
        architecture: by the system's name, such as ``x86_64``; None for this machine's.
    """
    return (architecture or platform.machine()).lower() in ("aarch64", "arm64")


def session_options(*, threads: int, optimise: bool, spin: bool = False) -> Any:
    """Options of a session that shares the machine with others.

    Between runs its threads sleep. ONNX Runtime by itself lets them spin for some 50 ms after each
    run, in which they take the cores from whoever runs next.

    Args:
        threads: threads of one operator; 0 leaves it to ONNX Runtime (one a core).
        optimise: off for a graph that was saved optimised.
        spin: whether they spin within a run, from one operator to the next, and so start each
            without having to be woken; otherwise they sleep there, too. Reference:
            https://onnxruntime.ai/docs/performance/tune-performance/threading.html.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL  # what goes wrong comes as an exception, too
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when a run ends
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return options


def open_session(
    path: Path,
    options: Any,
    provider: Provider,
    device_id: int = 0,
    more: Mapping[str, str] | None = None,
    *,
    whole: bool = True,
) -> Any:
    """A session on exactly that provider.

    ONNX Runtime by itself goes on on the CPU when a GPU cannot be used: for the whole graph, for
    some of its nodes, or later, when a run fails. All three are errors here.

    Args:
        path: ONNX file.
        options: what `session_options` gave.
        provider: what runs it.
        device_id: which GPU, for ``cuda``.
        more: further options of the provider, for ``cuda``.
        whole: off where ONNX Runtime may place some nodes on the CPU, as it does by itself.

    Raises:
        TargetError: the provider is not available, or fell back to the CPU.
        EngineError: the file does not load.
    """
    if provider not in PROVIDERS:
        raise EngineError(f"a provider is one of {', '.join(PROVIDERS)}; not '{provider}'")
    onnxruntime = load_onnxruntime()
    name = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise TargetError(
            f"ONNX Runtime's {name} is not available here; there are {', '.join(available)}"
        )
    settings: dict[str, str] = {}
    if provider == "cuda":
        settings = {"device_id": str(device_id), "use_tf32": "0", **(more or {})}
        if whole:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        _preload_cuda(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=[(name, settings)], enable_fallback=0
        )
    except Exception as exc:  # its exceptions share no base class
        if "fallback to CPU EP" in str(exc):
            raise _fell_back(onnxruntime, name) from exc
        kind = TargetError if _CUDA_REFUSES in str(exc) else EngineError
        raise kind(f"ONNX Runtime cannot load {path}: {_message(exc)}") from exc
    if session.get_providers()[0] != name:
        raise _fell_back(onnxruntime, name)
    return session


def run_error(exc: Exception) -> RunnerError:
    """What an exception of a run is here."""
    return RunnerError(f"ONNX Runtime failed: {_message(exc)}")


def _preload_cuda(onnxruntime: Any) -> None:
    """Load CUDA's and cuDNN's libraries from NVIDIA's own packages, where they are installed.

    The loader does not look there by itself. What fails is printed to standard output, where
    results stand, and logged before a session's own level counts; both say less than
    `_fell_back` does.
    """
    onnxruntime.set_default_logger_severity(_FATAL)
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _fell_back(onnxruntime: Any, name: str) -> TargetError:
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    reason = "its libraries or a GPU are missing, or it has no kernel for some of the operators"
    try:
        ctypes.CDLL(str(library))
    except OSError as exc:
        if "cannot open shared object file" in str(exc):  # and not: symbols its loader provides
            reason = str(exc)
    return TargetError(
        f"{name} was asked for, and ONNX Runtime fell back to the CPU: {reason}; "
        "'parnet-deploy doctor' says what to install"
    )


def _message(exc: Exception) -> str:
    """The first line, without ONNX Runtime's own error number in front."""
    text = str(exc).strip()
    line = text.splitlines()[0] if text else type(exc).__name__
    return _ERROR_NUMBER.sub("", line)
