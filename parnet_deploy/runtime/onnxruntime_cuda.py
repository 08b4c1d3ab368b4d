"""ONNX Runtime's CUDA provider as stages on GPUs, which `cuda.runner.CudaRunner` runs.

A session computes on the stream that it is given, reads and writes memory that was bound once, and
is not waited for; so stages on one GPU overlap, and cuts stay there. Reference:
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parnet_deploy.bundle import BatchRange
from parnet_deploy.runtime.cuda.device import CudaDevice, Stream, find_gpu
from parnet_deploy.runtime.cuda.stage import CudaStage
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.onnxruntime import (
    load_onnxruntime,
    open_session,
    run_error,
    session_options,
)
from parnet_deploy.spec import TensorSpec

_RUNS_TO_SETTLE = 2
"""The first run of a batch on a thread allocates, the second one records a CUDA graph."""

_SETTLING = threading.Lock()
"""ONNX Runtime records in the mode in which no thread of the process may allocate meanwhile."""


def onnxruntime_stage(
    path: Path,
    *,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: BatchRange,
    device: int = 0,
    graphs: bool = True,
    find: Callable[[int], Gpu] = find_gpu,
) -> CudaStage:
    """A graph as a stage.

    Args:
        path: ONNX file, as it was saved optimised for the CUDA provider.
        name: the stage's name.
        inputs: its inputs.
        outputs: its outputs.
        batch: images per run that it takes.
        device: number of the GPU.
        graphs: whether ONNX Runtime records CUDA graphs, one for each batch and calling thread.
        find: gives the GPU of a number.

    Raises:
        TargetError: there is no such GPU.
    """
    find(device)

    def load(_: CudaDevice) -> SessionProgram:
        return SessionProgram(
            path=path, inputs=inputs, outputs=outputs, batch=batch, device=device, graphs=graphs
        )

    return CudaStage(name=name, device=device, inputs=inputs, outputs=outputs, load=load)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionProgram:
    """A graph: a `cuda.stage.Program`. A session has one stream, so each execution opens its own.

    Attributes:
        path: ONNX file.
        inputs: its inputs.
        outputs: its outputs.
        batch: images per run that it takes.
        device: number of the GPU.
        graphs: whether ONNX Runtime records CUDA graphs.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    device: int
    graphs: bool

    def execution(self, stream: Stream, addresses: Mapping[str, int]) -> SessionExecution:
        """Open a session that computes on a stream.

        Raises:
            TargetError: the provider is not available, or fell back to the CPU.
            EngineError: the file does not load.
        """
        settings = {
            "user_compute_stream": str(int(stream)),
            "enable_cuda_graph": str(int(self.graphs)),
        }
        options = session_options(threads=1, optimise=False)
        session = open_session(self.path, options, "cuda", self.device, settings)
        return SessionExecution(program=self, session=session, addresses=dict(addresses))


class SessionExecution:
    """A session and what is bound to it: a `cuda.stage.Execution`."""

    def __init__(
        self, *, program: SessionProgram, session: Any, addresses: Mapping[str, int]
    ) -> None:
        """Not ready before `set_batch`."""
        self._program = program
        self._session = session
        self._addresses = addresses
        self._binding: Any = None
        self._options: Any = None
        self._runs = threading.local()  # ONNX Runtime keeps a graph for every thread
        self._batch = 0

    def set_batch(self, batch: int) -> None:
        """Bind all memory, in the shapes of the runs to come.

        Raises:
            RunnerError: ONNX Runtime refuses.
        """
        self._batch = batch
        try:
            self._binding = self._session.io_binding()
            for spec in self._program.inputs:
                self._binding.bind_input(*self._bound(spec))
            for spec in self._program.outputs:
                self._binding.bind_output(*self._bound(spec))
        except Exception as exc:  # its exceptions share no base class
            raise run_error(exc) from exc
        self._options = load_onnxruntime().RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._options.add_run_config_entry("gpu_graph_id", str(batch))

    def enqueue(self) -> None:
        """Put one run on the stream.

        Raises:
            RunnerError: it failed.
        """
        with self._settling():
            try:
                self._session.run_with_iobinding(self._binding, self._options)
            except Exception as exc:  # its exceptions share no base class
                raise run_error(exc) from exc

    def recordable(self) -> bool:
        """ONNX Runtime records by itself, and is not to be recorded by others."""
        return False

    def _bound(self, spec: TensorSpec) -> tuple[Any, ...]:
        program = self._program
        kind, shape = np.dtype(spec.dtype).type, spec.concrete(self._batch)
        return spec.name, "cuda", program.device, kind, shape, self._addresses[spec.name]

    @contextlib.contextmanager
    def _settling(self) -> Iterator[None]:
        """One at a time in this process until this thread's graph of this batch is recorded."""
        counts: Counter[int] = vars(self._runs).setdefault("counts", Counter())
        if not self._program.graphs or counts[self._batch] >= _RUNS_TO_SETTLE:
            yield
            return
        with _SETTLING:
            yield
        counts[self._batch] += 1
