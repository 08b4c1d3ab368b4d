"""What a stage is on a GPU: a program that is loaded once, and executions of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from parnet_deploy.bundle import BatchRange
from parnet_deploy.runtime.cuda.device import CudaDevice, Stream
from parnet_deploy.spec import TensorSpec


class Execution(Protocol):
    """A program with memory and a stream of its own; one run at a time.

    Its calls come with the GPU current, from one thread at a time, but not always the same.
    """

    def set_batch(self, batch: int) -> None:
        """Images of every run from now on.

        Raises:
            RunnerError: it refuses.
        """
        ...

    def enqueue(self) -> None:
        """Put one run on the stream; nobody waits for it here.

        Raises:
            RunnerError: it could not be started.
        """
        ...

    def recordable(self) -> bool:
        """Whether a run can be recorded in a CUDA graph, once one of the same batch has ended."""
        ...


class Program(Protocol):
    """A stage's engine, loaded onto a GPU; its weights stand there once."""

    @property
    def batch(self) -> BatchRange:
        """Images per run that it takes."""
        ...

    def execution(self, stream: Stream, addresses: Mapping[str, int]) -> Execution:
        """Get ready to run.

        Args:
            stream: where runs go.
            addresses: memory of every input and output, large enough for the largest batch.

        Raises:
            RunnerError: there is too little memory, or what runs it refuses.
            EngineError: the engine is damaged.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaStage:
    """A stage that is to run on a GPU.

    Attributes:
        name: its name.
        device: number of the GPU.
        inputs: what it reads.
        outputs: what it gives.
        load: loads its engine onto that GPU, which is current.
    """

    name: str
    device: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    load: Callable[[CudaDevice], Program]
