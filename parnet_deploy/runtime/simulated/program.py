"""A Python function as a program on a simulated GPU: the double that stands in for an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from parnet_deploy.bundle import BatchRange
from parnet_deploy.runtime.cuda.device import CudaDevice, Stream
from parnet_deploy.runtime.cuda.stage import CudaStage
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.simulated.machine import KERNEL_SECONDS
from parnet_deploy.runtime.simulated.work import MisuseError
from parnet_deploy.spec import Array, TensorSpec, check_feeds

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def _never() -> Exception | None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionProgram:
    """A function that takes and gives arrays by name. See `cuda.stage.Program`.

    Attributes:
        driver: the GPUs it runs on.
        name: its label in `SimulatedDriver.history`.
        device: number of its GPU.
        function: what it computes, when its turn on the GPU has come.
        inputs: what it reads.
        outputs: what it gives.
        batch: images per run that it takes.
        seconds: how long it takes on the simulated clock.
        recordable: whether a CUDA graph can hold it.
        refuses: gives the error with which a run does not start, or None where it does.
    """

    driver: SimulatedDriver
    name: str
    device: int
    function: Function
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange = field(default_factory=BatchRange)
    seconds: float = KERNEL_SECONDS
    recordable: bool = True
    refuses: Callable[[], Exception | None] = _never

    def stage(self) -> CudaStage:
        """As a stage of a runner."""
        return CudaStage(
            name=self.name,
            device=self.device,
            inputs=self.inputs,
            outputs=self.outputs,
            load=self._load,
        )

    def execution(self, stream: Stream, addresses: Mapping[str, int]) -> FunctionExecution:
        """Get ready to run."""
        return FunctionExecution(program=self, stream=stream, addresses=dict(addresses))

    def _load(self, device: CudaDevice) -> FunctionProgram:
        self.driver.check_current(device.index)
        return self


@dataclass(kw_only=True, slots=True)
class FunctionExecution:
    """A function with memory of its own. As TensorRT RTX, it compiles in the first run of a batch.

    See `cuda.stage.Execution`.
    """

    program: FunctionProgram
    stream: Stream
    addresses: dict[str, int]
    batch: int = 0
    compiled: bool = False

    def set_batch(self, batch: int) -> None:
        """Images of every run from now on."""
        self.batch, self.compiled = batch, False

    def enqueue(self) -> None:
        """Put one run on the stream."""
        program = self.program
        if program.driver.recording(self.stream) and not (program.recordable and self.compiled):
            raise MisuseError(f"'{program.name}' cannot be recorded now")
        if (error := program.refuses()) is not None:
            raise error
        self.compiled = True
        program.driver.kernel(
            self.stream,
            partial(self._run, self.batch),
            label=program.name,
            reads=self._spans(program.inputs),
            writes=self._spans(program.outputs),
            seconds=program.seconds,
        )

    def recordable(self) -> bool:
        """Whether a CUDA graph can hold it."""
        return self.program.recordable

    def _spans(self, specs: tuple[TensorSpec, ...]) -> list[tuple[int, int]]:
        return [(self.addresses[spec.name], spec.nbytes(self.batch)) for spec in specs]

    def _run(self, batch: int) -> None:
        program = self.program
        feeds = {spec.name: self._view(spec, batch).copy() for spec in program.inputs}
        results = program.function(feeds)
        check_feeds(program.outputs, results)
        for spec in program.outputs:
            self._view(spec, batch)[...] = results[spec.name]

    def _view(self, spec: TensorSpec, batch: int) -> Array:
        nbytes = spec.nbytes(batch)
        block = self.program.driver.memory.at(self.addresses[spec.name], nbytes)
        return block.data[:nbytes].view(np.dtype(spec.dtype)).reshape(spec.concrete(batch))
