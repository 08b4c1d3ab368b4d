"""Adding up losses where they arise, and looking at them now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from parnet_deploy.train.processes import Processes
from parnet_deploy.train.state import Sums

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What all processes have added up to since the last look.

    Attributes:
        sums: losses, right answers and time.
        bad: number of the first batch whose loss was not finite, or None.
        stop: whether somebody wants to stop.
    """

    sums: Sums
    bad: int | None
    stop: bool


class Tally:
    """Losses and right answers since the last look, on the device: looking means waiting for it."""

    def __init__(self, device: torch.device) -> None:
        """Begin at nothing."""
        self._device = device
        self.begin()

    def begin(self) -> None:
        """Begin at nothing, from now on."""
        self._loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._right = torch.zeros((), dtype=torch.int64, device=self._device)
        self._first_bad = torch.full((), _NEVER, dtype=torch.int64, device=self._device)
        self._batches = self._images = 0
        self._since = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, number: int) -> None:
        """Add a batch.

        Args:
            loss: () mean of the batch.
            logits: (N, classes).
            labels: (N,).
            number: by which the batch is found again, among those of all processes.
        """
        with torch.no_grad():
            self._loss += loss
            self._right += (logits.argmax(1) == labels).sum()
            here = torch.where(torch.isfinite(loss), _NEVER, number)
            self._first_bad = torch.minimum(self._first_bad, here)
        self._batches += 1
        self._images += len(labels)

    def look(self, processes: Processes, *, stop: bool) -> Look:
        """Add up over all processes, and begin anew.

        Args:
            processes: all of them look at the same step.
            stop: whether this one wants to stop.
        """
        counted = torch.tensor(
            [self._batches, self._images, stop], dtype=torch.float64, device=self._device
        )
        sums = torch.cat((torch.stack((self._loss, self._right.double())), counted))
        loss, right, batches, images, stops = processes.sum(sums).tolist()
        bad = int(processes.least(self._first_bad))
        seconds = time.perf_counter() - self._since
        self.begin()
        return Look(
            sums=Sums(
                loss=loss,
                batches=round(batches),
                right=round(right),
                images=round(images),
                seconds=seconds,
            ),
            bad=None if bad == _NEVER else bad,
            stop=stops > 0,
        )
