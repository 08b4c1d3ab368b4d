"""What a training writes for other programs, read back as they read it."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parnet_deploy.errors import MissingDependencyError, TrainingError
from parnet_deploy.train.files import replacing
from parnet_deploy.train.logs import Observers, TensorBoardLog, write_metrics
from parnet_deploy.train.metrics import EpochMetrics, StepMetrics

STEPS = 4
"""Of an epoch."""


def step_of(step: int, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "epoch": (step - 1) // STEPS + 1,
        "step": step,
        "learning_rate": 0.1 / step,
        "loss": 2.0 / step,
        "top1": 1.0 - 1.0 / step,
        "images_per_second": 100.0 + step,
    }
    return StepMetrics(**values | changes)


def epoch_of(epoch: int, **changes: Any) -> EpochMetrics:
    values: dict[str, Any] = {
        "epoch": epoch,
        "step": epoch * STEPS,
        "learning_rate": 0.1 / epoch,
        "train_loss": 1.0 / epoch,
        "train_top1": 0.7,
        "test_loss": 1.5 / epoch,
        "test_top1": 0.1 + 0.2 / 3,  # has no short decimal form
        "test_top5": 0.9,
        "test_images": 10,
        "seconds": 12.5,
        "images_per_second": 123.4,
    }
    return EpochMetrics(**values | changes)


# The CSV


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_metrics_are_a_row_per_epoch_and_keep_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    history = [epoch_of(epoch) for epoch in (1, 2, 3)]
    write_metrics(history, path)
    kinds: dict[str, Callable[[str], Any]] = {"epoch": int, "step": int, "test_images": int}
    rows = [
        EpochMetrics(**{name: kinds.get(name, float)(text) for name, text in row.items()})
        for row in read(path)
    ]
    assert rows == history
    assert list(read(path)[0])[:3] == ["epoch", "step", "learning_rate"]
    assert b"\r" not in path.read_bytes()


def test_metrics_before_the_first_epoch_are_a_head(tmp_path: Path) -> None:
    write_metrics([], tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,step,learning_rate,train_loss,")
    assert read(tmp_path / "metrics.csv") == []


def test_metrics_replace_older_ones_and_leave_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics([epoch_of(1)], path)
    write_metrics([epoch_of(1), epoch_of(2)], path)
    assert [row["epoch"] for row in read(path)] == ["1", "2"]
    assert names(tmp_path) == ["metrics.csv"]


def test_what_was_there_outlives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics([epoch_of(1)], path)
    before = path.read_bytes()

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert names(tmp_path) == ["metrics.csv"]


def test_a_writer_that_replaces_the_file_itself(tmp_path: Path) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    (tmp_path / "plain").touch()
    with replacing(path) as file:
        other.write_bytes(b"weights")
        other.chmod(0o600)
        other.rename(file.name)
    assert path.read_bytes() == b"weights"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it, too"
    assert sorted(names(tmp_path)) == ["plain", "weights"]


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot write .*metrics\.csv: No such file"):
        write_metrics([epoch_of(1)], tmp_path / "gone" / "metrics.csv")
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(TrainingError, match=r"cannot write .*metrics\.csv: Is a directory"):
        write_metrics([epoch_of(1)], tmp_path / "metrics.csv")
    assert names(tmp_path) == ["metrics.csv"]


# TensorBoard


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: of every tag its steps and values."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def log_steps(folder: Path, first: int, last: int, **changes: Any) -> None:
    """Steps `first` to `last`, and the epochs that they complete, as a training tells of them."""
    log = TensorBoardLog(folder)
    log.begin(step=first - 1, steps=3 * STEPS, epochs=3)
    for step in range(first, last + 1):
        log.on_step(step_of(step, **changes))
        if step % STEPS == 0:
            log.on_epoch(epoch_of(step // STEPS))
    log.close()


def test_tensorboard_reads_every_scalar(tmp_path: Path) -> None:
    log_steps(tmp_path / "tensorboard", 1, 2 * STEPS)
    found = logged(tmp_path / "tensorboard")
    steps = range(1, 2 * STEPS + 1)
    of_steps = {
        "train/loss": "loss",
        "train/top1": "top1",
        "train/learning_rate": "learning_rate",
        "train/images_per_second": "images_per_second",
    }
    of_epochs = {"test/loss": "test_loss", "test/top1": "test_top1", "test/top5": "test_top5"}
    expected = {
        tag: [(step, getattr(step_of(step), name)) for step in steps]
        for tag, name in of_steps.items()
    } | {
        tag: [(epoch * STEPS, getattr(epoch_of(epoch), name)) for epoch in (1, 2)]
        for tag, name in of_epochs.items()
    }
    assert found.keys() == expected.keys()
    for tag, entries in expected.items():
        assert found[tag] == [(step, pytest.approx(value)) for step, value in entries]


def test_a_resumed_run_voids_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, 2 * STEPS + 1)  # killed after step 9; the state is that of step 6
    time.sleep(1.1)  # TensorBoard reads files in the order of the seconds in their names
    log_steps(tmp_path, 7, 3 * STEPS, loss=77.0)
    found = logged(tmp_path)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 3 * STEPS + 1))
    assert [step for step, value in found["train/loss"] if value == 77.0] == list(range(7, 13))
    assert [step for step, _ in found["test/top1"]] == [4, 8, 12]


def test_a_run_resumed_at_the_end_of_an_epoch_keeps_it(tmp_path: Path) -> None:
    log_steps(tmp_path, 1, STEPS)
    time.sleep(1.1)
    log_steps(tmp_path, STEPS + 1, 2 * STEPS)
    assert [step for step, _ in logged(tmp_path)["test/loss"]] == [STEPS, 2 * STEPS]


def test_without_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[train\]'"):
        TensorBoardLog(tmp_path / "tensorboard")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    log = TensorBoardLog(tmp_path / "tensorboard")
    with pytest.raises(TrainingError, match=r"cannot write .*tensorboard: "):
        log.begin(step=0, steps=1, epochs=1)
    log.close()


def test_a_log_that_is_not_begun(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    with pytest.raises(RuntimeError, match="between begin and close"):
        log.on_step(step_of(1))
    log.close()


# Several observers


class Listener:
    def __init__(self, name: str, heard: list[Any], *, fails: bool = False) -> None:
        self.name, self.heard, self.fails = name, heard, fails

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        self.heard.append((self.name, step, steps, epochs))

    def on_step(self, metrics: StepMetrics) -> None:
        self.heard.append((self.name, metrics))

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.heard.append((self.name, metrics))

    def close(self) -> None:
        self.heard.append((self.name, "closed"))
        if self.fails:
            raise OSError("full")


def test_observers_are_told_everything_in_order() -> None:
    heard: list[Any] = []
    observers = Observers(Listener("a", heard), Listener("b", heard))
    observers.begin(step=1, steps=8, epochs=2)
    observers.on_step(step_of(2))
    observers.on_epoch(epoch_of(1))
    observers.close()
    told = ((1, 8, 2), (step_of(2),), (epoch_of(1),), ("closed",))
    assert heard == [(name, *what) for what in told for name in ("a", "b")]


def test_all_observers_are_closed_where_one_fails() -> None:
    heard: list[Any] = []
    observers = Observers(Listener("a", heard, fails=True), Listener("b", heard))
    with pytest.raises(OSError, match="full"):
        observers.close()
    assert heard == [("a", "closed"), ("b", "closed")]
