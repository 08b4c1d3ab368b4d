"""One training in one process, or the same one in several (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor, nn

from parnet_deploy.errors import TrainingError, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among those of a training.

    Attributes:
        rank: number of this one, from 0; the first is the main one, which writes and tells.
        count: how many there are.
        here: how many of them are on this machine.
        device: what this one computes on.
    """

    rank: int = 0
    count: int = 1
    here: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and tells people."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of everyone's `values`, in place; it waits for all."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def least(self, values: Tensor) -> Tensor:
        """The least of everyone's `values`, element by element, in place; it waits for all."""
        if self.count > 1:
            torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MIN)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give everyone the main process's running statistics; it waits for all."""
        if self.count > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def merge(self, found: dict[str, str]) -> dict[str, str]:
        """Everyone's entries together; it waits for all."""
        if self.count == 1:
            return found
        everyone: list[dict[str, str]] = [{}] * self.count
        torch.distributed.all_gather_object(everyone, found)
        return {name: value for one in everyone for name, value in one.items()}

    def wait(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one. Several
            processes take the GPU of their own number on their machine.

    Raises:
        UsageError: there is no such device.
        TrainingError: the others could not be reached, or one of them went away.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local if count > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Processes(device=chosen)
        return
    try:
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as exc:
        raise TrainingError(
            f"process {rank} of {count} cannot reach the others: {exc}; start them with torchrun"
        ) from exc
    try:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", str(count)))
        yield Processes(rank=rank, count=count, here=here, device=chosen)
    except RuntimeError as exc:
        if not _is_lost(exc):
            raise
        raise TrainingError(
            f"process {rank} of {count} was left alone: another one has ended, and says why"
        ) from exc
    except (KeyboardInterrupt, SystemExit):  # all were asked to stop, and do it together
        torch.distributed.destroy_process_group()
        raise
    # Not after an error: NCCL would wait for processes that are gone.
    torch.distributed.destroy_process_group()


def _is_lost(exc: RuntimeError) -> bool:
    """Whether it is what NCCL and gloo (whose errors have no class) raise when a process ends."""
    return isinstance(exc, torch.distributed.DistError) or "/gloo/" in str(exc)


def choose_device(name: str | None, local_rank: int | None) -> torch.device:
    """The device of that name, if it is there.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU where there is one.
        local_rank: number of this process among those of its machine, None where it is alone.

    Raises:
        UsageError: it is none of these, or is not there.
    """
    found = torch.cuda.device_count()
    if name is None:
        name = "cuda" if found else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (not number or number.isdigit())):
        raise UsageError(f"a device is cpu, cuda or cuda:N, not '{name}'")
    if name == "cpu":
        return torch.device("cpu")
    index = int(number) if number else (local_rank or 0)
    if index >= found:
        raise UsageError(
            f"there is no device cuda:{index}: torch sees {found} GPUs here"
            + ("" if found else "; --device cpu trains without one")
        )
    return torch.device("cuda", index)
