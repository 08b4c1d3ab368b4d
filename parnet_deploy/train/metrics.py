"""What a training run says of itself, step by step and epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """What one epoch was like: a row of ``metrics.csv``.

    Attributes:
        epoch: from 1.
        step: optimiser steps done since the training began.
        learning_rate: of its last step.
        train_loss: mean over its images, augmented and in training mode.
        train_top1: part of them that was right, likewise.
        test_loss: mean cross-entropy over the test split, without smoothing.
        test_top1: part of it that was right.
        test_top5: part of it whose class was among the five likeliest (or all there are).
        test_images: images of the test split; without those that were skipped.
        seconds: duration of its training, without the test.
        images_per_second: in training, over all processes.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_top1: float
    test_loss: float
    test_top1: float
    test_top5: float
    test_images: int
    seconds: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What the last steps were like.

    Attributes:
        epoch: from 1.
        step: optimiser steps done since the training began.
        learning_rate: of the last one.
        loss: mean over the steps since the report before.
        top1: part of their images that was right.
        images_per_second: over all processes.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    top1: float
    images_per_second: float


class Observer(Protocol):
    """Who is told how a training goes; all of it in the main process only."""

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        """Training starts, or goes on after `step` steps of `steps` in all."""
        ...

    def on_step(self, metrics: StepMetrics) -> None:
        """Some steps are done (on a CPU: one)."""
        ...

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """An epoch is done, and tested."""
        ...

    def close(self) -> None:
        """Training has ended, whichever way."""
        ...
