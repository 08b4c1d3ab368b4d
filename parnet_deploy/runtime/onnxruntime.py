"""ONNX Runtime as a runner. Reference: https://onnxruntime.ai/docs/api/python/api_summary.html."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.spec import Array, TensorSpec, check_feeds

Provider = Literal["cpu", "cuda"]

PROVIDERS: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}


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
            optimise: off for a graph that was saved optimised.

        Raises:
            EngineError: the provider is not available, fell back to the CPU, or the file does not
                load.
        """
        self.inputs = inputs
        self.outputs = outputs
        self._session: Any = _open_session(
            path, session_options(threads=threads, optimise=optimise), provider, device_id
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the arrays given back are new.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the run failed, or the runner is closed.
        """
        check_feeds(self.inputs, feeds)
        if self._session is None:
            raise RunnerError("this runner is closed; open it again")
        names = [spec.name for spec in self.outputs]
        try:
            results = self._session.run(names, dict(feeds))
        except Exception as exc:  # its exceptions share no base class
            raise RunnerError(f"ONNX Runtime failed: {_first_line(exc)}") from exc
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None


def load_onnxruntime() -> Any:
    """The module, imported when it is first needed: 'doctor' must run where it is broken.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingDependencyError(
            f"ONNX Runtime cannot be imported ({exc}): pip install onnxruntime-gpu "
            "(onnxruntime on machines other than Linux x86-64)"
        ) from exc
    return onnxruntime


def session_options(*, threads: int, optimise: bool) -> Any:
    """Options of a session that shares the machine with others.

    Idle threads sleep at once instead of spinning: one session's spinning takes the cores that
    the next stage's session needs.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return options


def _open_session(path: Path, options: Any, provider: Provider, device_id: int) -> Any:
    if provider not in get_args(Provider):
        raise EngineError(f"a provider is one of {', '.join(PROVIDERS)}; not '{provider}'")
    onnxruntime = load_onnxruntime()
    name = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise EngineError(
            f"ONNX Runtime's {name} is not available here; there are {', '.join(available)}"
        )
    settings: dict[str, str] = {}
    if provider == "cuda":
        settings = {"device_id": str(device_id), "use_tf32": "0"}
        _preload_cuda(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[(name, settings)])
    except Exception as exc:  # its exceptions share no base class
        raise EngineError(f"ONNX Runtime cannot load {path}: {_first_line(exc)}") from exc
    if session.get_providers()[0] != name:
        raise EngineError(
            f"{name} was asked for, and ONNX Runtime fell back to {session.get_providers()[0]}: "
            "its libraries or a GPU are missing; 'parnet-deploy doctor' says what to install"
        )
    return session


def _preload_cuda(onnxruntime: Any) -> None:
    """Load CUDA's and cuDNN's libraries from NVIDIA's own packages, where they are installed.

    The loader does not look there by itself. What fails is printed to standard output, where
    results stand; what is missing shows as a fallback, which the caller refuses.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _first_line(exc: Exception) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__
