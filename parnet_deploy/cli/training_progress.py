"""A training as people watch it: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from parnet_deploy.cli.console import errors
from parnet_deploy.train.metrics import EpochMetrics, Observer, StepMetrics

_REDRAW_SECONDS = 0.1

_WIDE = 76
"""Columns of a terminal that has room for the speed beside the bar."""

# The time left follows from the mean speed of this long: an epoch's test takes its time, too, and
# is seen only over more than an epoch.
_SPEED_SECONDS = 24 * 3600.0


def training_progress(console: Console = errors) -> Observer:
    """What tells people how a training goes; nothing of it is on standard output.

    Args:
        console: where it is told.
    """
    return TrainingBar(console) if console.is_interactive else TrainingLines(console)


class TrainingLines:
    """An observer that prints a line per epoch: for logs."""

    def __init__(self, console: Console) -> None:
        """Tell on `console`."""
        self._console = console
        self._first = self._steps = self._epochs = 0
        self._start = 0.0

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        """Take the time."""
        self._first, self._steps, self._epochs = step, steps, epochs
        self._start = time.perf_counter()

    def on_step(self, metrics: StepMetrics) -> None:
        """Say nothing: there are thousands of them."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print the epoch's line, and how long the rest will take."""
        line = epoch_line(metrics, self._epochs)
        done, left = metrics.step - self._first, self._steps - metrics.step
        if done > 0 and left > 0:
            seconds = (time.perf_counter() - self._start) / done * left
            line += f", {timedelta(seconds=round(seconds))} left"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is open."""


class TrainingBar:
    """An observer that draws a bar over all the training's steps, and prints epochs above it.

    The bar is drawn when there is something new, by the thread that trains: processes that decode
    images are forked from this one, and would inherit the locks of another thread as they happen
    to be.
    """

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self._console = console
        self._epochs = 0
        self._task = TaskID(0)
        self._drawn = 0.0
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            console=console,
            auto_refresh=False,
            expand=True,
            redirect_stdout=False,
            speed_estimate_period=_SPEED_SECONDS,
        )

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        """Draw the bar, as far as the training is."""
        self._epochs = epochs
        first = min(epochs, step * epochs // steps + 1)
        self._task = self._bar.add_task(
            self._describe(first), total=steps, completed=step, numbers=""
        )
        self._bar.start()
        self._bar.refresh()

    def on_step(self, metrics: StepMetrics) -> None:
        """Move the bar."""
        numbers = f"loss {metrics.loss:.3f}  top-1 {metrics.top1:.1%}"
        if self._console.width >= _WIDE:
            numbers += f"  {metrics.images_per_second:,.0f} images/s"
        self._bar.update(
            self._task,
            completed=metrics.step,
            description=self._describe(metrics.epoch),
            numbers=numbers,
        )
        now = time.perf_counter()
        if now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._bar.refresh()

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print the epoch's line above the bar."""
        self._bar.update(self._task, completed=metrics.step)
        line = epoch_line(metrics, self._epochs)
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is, and the terminal as it was."""
        self._bar.stop()

    def _describe(self, epoch: int) -> str:
        return f"epoch {epoch}/{self._epochs}"


def epoch_line(metrics: EpochMetrics, epochs: int) -> str:
    """An epoch in a line."""
    number = str(metrics.epoch).rjust(len(str(epochs)))
    return (
        f"  epoch {number}/{epochs}: train loss {metrics.train_loss:.4f}, "
        f"test loss {metrics.test_loss:.4f}, top-1 {metrics.test_top1:.2%}, "
        f"top-5 {metrics.test_top5:.2%}, {metrics.images_per_second:,.0f} images/s"
    )
