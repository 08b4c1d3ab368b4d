"""A training's numbers for other programs: a CSV with a row per epoch, and TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from parnet_deploy.errors import MissingDependencyError, TrainingError, os_reason
from parnet_deploy.train.files import replacing
from parnet_deploy.train.metrics import EpochMetrics, Observer, StepMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10
"""Greatest age of what TensorBoard does not see yet, and of what a killed process takes with it."""


def write_metrics(history: Iterable[EpochMetrics], path: Path) -> None:
    """Write a CSV with a row per epoch, beside its place first, then renamed into it.

    Args:
        history: the epochs, in their order.
        path: where it is to stand; what stands there is replaced.

    Raises:
        TrainingError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(
        text, [field.name for field in fields(EpochMetrics)], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


class TensorBoardLog:
    """An observer that writes TensorBoard's event files.

    Of steps ``train/loss``, ``train/top1``, ``train/learning_rate`` and
    ``train/images_per_second``; of epochs ``test/loss``, ``test/top1`` and ``test/top5``. All of
    them stand over the number of optimiser steps done.
    """

    def __init__(self, folder: Path) -> None:
        """Look whether there is a TensorBoard to write for; nothing is written before `begin`.

        Args:
            folder: where the event files are to stand. A resumed run adds one, in which
                TensorBoard reads that what came after the step it went on from is void.

        Raises:
            MissingDependencyError: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise MissingDependencyError(
                "a training's log needs tensorboard, which is not installed: "
                "pip install 'parnet-deploy[train]'"
            ) from exc
        self._make = SummaryWriter
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        """Open an event file; of older ones, what comes after `step` is void.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            # The first step that is void, as torch counts.
            self._writer = self._make(
                str(self._folder), purge_step=step + 1, flush_secs=FLUSH_SECONDS
            )
        except OSError as exc:
            raise TrainingError(f"cannot write {self._folder}: {os_reason(exc)}") from exc

    def on_step(self, metrics: StepMetrics) -> None:
        """Write what the last steps were like."""
        self._write(
            metrics.step,
            {
                "train/loss": metrics.loss,
                "train/top1": metrics.top1,
                "train/learning_rate": metrics.learning_rate,
                "train/images_per_second": metrics.images_per_second,
            },
        )

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Write what the test found."""
        self._write(
            metrics.step,
            {
                "test/loss": metrics.test_loss,
                "test/top1": metrics.test_top1,
                "test/top5": metrics.test_top5,
            },
        )

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        if self._writer is None:
            raise RuntimeError("a log is written between begin and close")
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)


class Observers:
    """Several observers as one; each is told everything, in the order in which they stand."""

    def __init__(self, *observers: Observer) -> None:
        """Pass on to `observers`."""
        self._observers = observers

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.begin(step=step, steps=steps, epochs=epochs)

    def on_step(self, metrics: StepMetrics) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_step(metrics)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.on_epoch(metrics)

    def close(self) -> None:
        """Close all of them, also where closing one of them fails."""
        with ExitStack() as closing:
            for observer in reversed(self._observers):
                closing.callback(observer.close)
