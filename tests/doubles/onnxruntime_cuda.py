"""ONNX Runtime's CUDA provider without a GPU: the names of the module that engines on GPUs use.

A session computes with a Python function on a `SimulatedDriver`, on the stream it is given. Like
the real one it allocates in the first run of a thread and a batch, records in the second one in the
mode in which nobody may allocate meanwhile, and replays from then on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.simulated.work import MisuseError
from parnet_deploy.spec import Array

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass
class Onnxruntime:
    """The module, and what was asked of it.

    Attributes:
        driver: the GPUs.
        functions: what graphs compute, by their files' names.
        fails: the message with which runs fail.
        refuses: the message with which files do not load.
        providers: those that are there.
        settings: the provider's options of every session.
        runs: how many runs there were, by what became of them.
    """

    driver: SimulatedDriver
    functions: dict[str, Function]
    fails: str = ""
    refuses: str = ""
    providers: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    settings: list[dict[str, str]] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)
    recording: bool = False
    __file__: str = "/nowhere/onnxruntime/__init__.py"
    __version__: str = "1.31.1"

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def set_default_logger_severity(self, level: int) -> None:
        pass

    def preload_dlls(self) -> None:
        pass

    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0)

    def SessionOptions(self) -> SessionOptions:  # noqa: N802  # its name
        return SessionOptions()

    def RunOptions(self) -> RunOptions:  # noqa: N802  # its name
        return RunOptions()

    def InferenceSession(  # noqa: N802  # its name
        self, path: Any, options: Any, *, providers: Any, enable_fallback: int
    ) -> InferenceSession:
        if self.refuses:
            raise RuntimeError(self.refuses)
        ((name, settings),) = providers
        if name != "CUDAExecutionProvider" or enable_fallback:
            raise MisuseError(f"{name} was asked for, with a fallback: {enable_fallback}")
        if options.entries.get("session.disable_cpu_ep_fallback") != "1":
            raise MisuseError("some nodes might run on the CPU")
        self.settings.append(dict(settings))
        return InferenceSession(self, self.functions[path.stem], settings)


class SessionOptions:
    intra_op_num_threads = inter_op_num_threads = log_severity_level = 0
    graph_optimization_level: Any = None

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class IOBinding:
    """What is bound: element type, shape and address of every input and output."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self.outputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}

    def bind_input(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: Any,
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None:
        self.inputs[name] = self._bound(device_type, device_id, element_type, shape, buffer_ptr)

    def bind_output(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: Any,
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None:
        self.outputs[name] = self._bound(device_type, device_id, element_type, shape, buffer_ptr)

    def _bound(
        self, kind: str, device: int, element_type: Any, shape: tuple[int, ...], address: int
    ) -> tuple[Any, tuple[int, ...], int]:
        if (kind, device) != ("cuda", self.device) or not isinstance(element_type, type):
            raise MisuseError(f"{element_type} of {kind}:{device} was bound to cuda:{self.device}")
        return element_type, shape, address


class InferenceSession:
    def __init__(self, module: Onnxruntime, function: Function, settings: dict[str, str]) -> None:
        self.module = module
        self.function = function
        self.device = int(settings["device_id"])
        self.stream = int(settings["user_compute_stream"])
        self.graphs = settings["enable_cuda_graph"] == "1"
        self.seen: Counter[tuple[int, str]] = Counter()

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def io_binding(self) -> IOBinding:
        return IOBinding(self.device)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions) -> None:
        module = self.module
        if run_options.entries.get("disable_synchronize_execution_providers") != "1":
            raise MisuseError("the host would wait at the end of each stage")
        if module.fails:
            raise RuntimeError(module.fails)
        key = threading.get_ident(), run_options.entries["gpu_graph_id"]
        self.seen[key] += 1
        if self.seen[key] == 1 and module.recording:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        if self.seen[key] == 2 and self.graphs:
            module.recording = True
            time.sleep(0.002)
            module.recording = False
        replayed = self.graphs and self.seen[key] > 1
        module.runs["replayed" if replayed else "plain"] += 1
        views = [
            {name: (address, _nbytes(kind, shape)) for name, (kind, shape, address) in part.items()}
            for part in (iobinding.inputs, iobinding.outputs)
        ]
        module.driver.kernel(
            self.stream,
            partial(self._compute, iobinding),
            label="session",
            reads=list(views[0].values()),
            writes=list(views[1].values()),
        )

    def _compute(self, binding: IOBinding) -> None:
        feeds = {name: self._view(bound).copy() for name, bound in binding.inputs.items()}
        for name, value in self.function(feeds).items():
            self._view(binding.outputs[name])[...] = value

    def _view(self, bound: tuple[Any, tuple[int, ...], int]) -> Array:
        kind, shape, address = bound
        nbytes = _nbytes(kind, shape)
        block = self.module.driver.memory.at(address, nbytes)
        return block.data[:nbytes].view(kind).reshape(shape)


def _nbytes(kind: Any, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(kind).itemsize
