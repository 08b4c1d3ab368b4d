"""A training as people see it: what stands on the terminal, and in a log."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from rich.console import Console

from parnet_deploy.cli import training_progress as module
from parnet_deploy.cli.training_progress import TrainingBar, TrainingLines, training_progress
from parnet_deploy.train.metrics import EpochMetrics, StepMetrics

STEPS = 100
"""Of an epoch."""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def step_of(step: int) -> StepMetrics:
    return StepMetrics(
        epoch=(step - 1) // STEPS + 1,
        step=step,
        learning_rate=0.1,
        loss=0.5,
        top1=0.875,
        images_per_second=12345.4,
    )


def epoch_of(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        step=epoch * STEPS,
        learning_rate=0.1,
        train_loss=1.23456,
        train_top1=0.5,
        test_loss=0.98765,
        test_top1=0.87654,
        test_top5=0.99,
        test_images=10,
        seconds=2.0,
        images_per_second=12345.4,
    )


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


def terminal(clock: Callable[[], float] | None = None, width: int = 80) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        force_interactive=True,
        width=width,
        color_system=None,
        get_time=clock,
        legacy_windows=False,
    )


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_drawn(console: Console) -> str:
    """The bar as it was drawn last."""
    drawn = [line for line in re.split(r"[\r\n]", CONTROL.sub("", written(console))) if line]
    return drawn[-1].rstrip()


# Which of them


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(training_progress(terminal()), TrainingBar)
    assert isinstance(training_progress(pipe()), TrainingLines)
    monkeypatch.setenv("TERM", "dumb")  # a terminal on which nothing can be drawn again
    assert isinstance(
        training_progress(Console(file=io.StringIO(), force_terminal=True)), TrainingLines
    )


@pytest.mark.parametrize("make", [terminal, pipe])
def test_nothing_is_on_standard_output(
    make: Callable[[], Console], capsys: pytest.CaptureFixture[str]
) -> None:
    console = make()
    with closing(training_progress(console)) as progress:
        progress.begin(step=0, steps=STEPS, epochs=1)
        print("a result")  # what others print there stays there
        progress.on_step(step_of(1))
        progress.on_epoch(epoch_of(1))
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in written(console)
    assert "epoch 1/1" in written(console)


# Lines


def test_a_line_per_epoch_with_the_time_left(clock: Clock) -> None:
    console = pipe()
    progress = TrainingLines(console)
    progress.begin(step=0, steps=3 * STEPS, epochs=3)
    for epoch in (1, 2, 3):
        clock.now += 60
        progress.on_step(step_of(epoch * STEPS))
        progress.on_epoch(epoch_of(epoch))
    progress.close()
    numbers = "train loss 1.2346, test loss 0.9877, top-1 87.65%, top-5 99.00%, 12,345 images/s"
    assert written(console).splitlines() == [
        f"  epoch 1/3: {numbers}, 0:02:00 left",
        f"  epoch 2/3: {numbers}, 0:01:00 left",
        f"  epoch 3/3: {numbers}",
    ]


def test_lines_of_a_resumed_training_count_its_own_time(clock: Clock) -> None:
    console = pipe()
    progress = TrainingLines(console)
    progress.begin(step=8 * STEPS + STEPS // 2, steps=10 * STEPS, epochs=10)
    clock.now += 30  # half an epoch
    progress.on_epoch(epoch_of(9))
    assert written(console).startswith("  epoch  9/10: train loss")
    assert written(console).endswith(", 0:01:00 left\n")


def test_a_training_that_was_resumed_before_a_test(clock: Clock) -> None:
    console = pipe()
    progress = TrainingLines(console)
    progress.begin(step=STEPS, steps=2 * STEPS, epochs=2)
    progress.on_epoch(epoch_of(1))  # no step of this run was before it
    assert written(console).endswith("images/s\n")


def test_lines_are_not_broken_nor_marked_up() -> None:
    console = Console(file=io.StringIO(), width=20)
    progress = TrainingLines(console)
    progress.begin(step=0, steps=STEPS, epochs=1)
    progress.on_epoch(epoch_of(1))
    assert written(console).count("\n") == 1


# The bar


def test_the_bar_says_where_the_training_is(clock: Clock) -> None:
    console = terminal(clock)
    with closing(TrainingBar(console)) as progress:
        progress.begin(step=0, steps=2 * STEPS, epochs=2)
        assert re.fullmatch(r"  epoch 1/2 [━╺╸ ]+ +0% -:--:--", last_drawn(console))
        for step in range(1, STEPS + 2):
            clock.now += 1
            progress.on_step(step_of(step))
        assert re.fullmatch(
            r"  epoch 2/2 [━╺╸]+ +50% 0:01:39 loss 0.500  top-1 87.5%  12,345 images/s",
            last_drawn(console),
        )


def test_the_bar_of_a_resumed_training(clock: Clock) -> None:
    console = terminal(clock)
    with closing(TrainingBar(console)) as progress:
        progress.begin(step=9 * STEPS + 10, steps=10 * STEPS, epochs=10)
        assert re.fullmatch(r"  epoch 10/10 [━╺╸]+ +91% -:--:--", last_drawn(console))
        for step in range(9 * STEPS + 11, 9 * STEPS + 31):
            clock.now += 2
            progress.on_step(step_of(step))
        # 70 steps of 2 s; the 910 that another process did say nothing of the speed.
        assert " 93% 0:02:20 " in last_drawn(console)


def test_the_time_left_has_the_tests_in_it(clock: Clock) -> None:
    console = terminal(clock)
    with closing(TrainingBar(console)) as progress:
        progress.begin(step=0, steps=3 * STEPS, epochs=3)
        for step in range(1, 2 * STEPS + 1):
            clock.now += 1
            progress.on_step(step_of(step))
            if step % STEPS == 0:
                clock.now += 100  # a test as long as the epoch
                progress.on_epoch(epoch_of(step // STEPS))
        clock.now += 1
        progress.on_step(step_of(2 * STEPS + 1))
        (left,) = re.findall(r"(\d+):(\d\d):(\d\d) loss", last_drawn(console))
    assert 190 <= int(left[0]) * 3600 + int(left[1]) * 60 + int(left[2]) <= 202


def test_epochs_stand_above_the_bar(clock: Clock) -> None:
    console = terminal(clock, width=120)
    with closing(TrainingBar(console)) as progress:
        progress.begin(step=0, steps=2 * STEPS, epochs=2)
        for epoch in (1, 2):
            clock.now += 60
            progress.on_step(step_of(epoch * STEPS))
            progress.on_epoch(epoch_of(epoch))
    text = CONTROL.sub("", written(console))
    for epoch in (1, 2):
        line = f"  epoch {epoch}/2: train loss 1.2346, test loss 0.9877, top-1 87.65%, top-5 99.00%"
        assert text.count(line) == 1
    assert "100% 0:02:00 loss" in last_drawn(console), "at the end: how long it took"
    assert text.endswith("\n"), "what is printed next has a line of its own"


@pytest.mark.parametrize(("width", "shown"), [(60, False), (80, True)])
def test_a_narrow_terminal_leaves_the_speed_out(clock: Clock, width: int, shown: bool) -> None:
    console = terminal(clock, width=width)
    with closing(TrainingBar(console)) as progress:
        progress.begin(step=0, steps=1_000 * STEPS, epochs=1_000)
        for step in (1, 2):
            clock.now += 1
            progress.on_step(step_of(step))
        line = last_drawn(console)
    assert len(line) <= width
    assert "loss 0.500  top-1 87.5%" in line
    assert ("images/s" in line) is shown
    assert "…" not in line


def test_the_bar_is_not_drawn_for_every_step(clock: Clock) -> None:
    console = terminal(clock)
    with closing(TrainingBar(console)) as progress:
        progress.begin(step=0, steps=10 * STEPS, epochs=10)
        clock.now += 1
        progress.on_step(step_of(1))
        before = len(written(console))
        for step in range(2, 500):  # 0.05 s in all
            clock.now += 0.0001
            progress.on_step(step_of(step))
        assert len(written(console)) == before
        clock.now += module._REDRAW_SECONDS
        progress.on_step(step_of(500))
        assert " 50% " in last_drawn(console)


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_left_as_it_was(exception: type[BaseException]) -> None:
    console = terminal()

    def interrupted() -> Any:
        with closing(training_progress(console)) as progress:
            progress.begin(step=0, steps=STEPS, epochs=1)
            progress.on_step(step_of(1))
            assert written(console).rfind(HIDE) > written(console).rfind(SHOW)
            raise exception

    with pytest.raises(exception):
        interrupted()
    assert written(console).rfind(SHOW) > written(console).rfind(HIDE), "the cursor is back"
    assert CONTROL.sub("", written(console)).endswith("\n")


def test_closing_is_possible_at_any_time() -> None:
    for console in (terminal(), pipe()):
        progress = training_progress(console)
        progress.close()
        progress.begin(step=0, steps=1, epochs=1)
        progress.close()
        progress.close()


def test_no_thread_is_left_to_draw() -> None:
    """Decoding processes are forked while the bar is there: a thread's locks would go with them."""
    before = threading.active_count()
    with closing(TrainingBar(terminal())) as progress:
        progress.begin(step=0, steps=STEPS, epochs=1)
        progress.on_step(step_of(1))
        assert threading.active_count() == before
