"""What the tests of training share: a small network, images it can learn, a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from parnet_deploy.data import ArraySamples, DataSet
from parnet_deploy.net import initialise
from parnet_deploy.spec import Preprocessing, variant
from parnet_deploy.train.loop import begin
from parnet_deploy.train.metrics import EpochMetrics, StepMetrics
from parnet_deploy.train.processes import Processes
from parnet_deploy.train.recipes import RECIPES
from parnet_deploy.train.settings import Settings
from parnet_deploy.train.state import TrainingState
from parnet_deploy.train.task import Task

SMALL = replace(
    variant("digits").spec.with_widths((4, 8, 8, 8)),
    name="small",
    stream_blocks=(2, 1, 1),
    image_size=(8, 8),
    classes=2,
    dropout=0.1,
)
SHORT = RECIPES["quick"].changed(epochs=2, batch_size=8, learning_rate=6e-3, warmup_epochs=0)
PREPROCESSING = Preprocessing(size=(8, 8), crop_ratio=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)


def samples(n: int = 32, *, seed: int = 0, name: str = "made") -> ArraySamples:
    """Noisy images, reddish (0) or bluish (1)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 100, (n, 3, 8, 8), dtype=np.uint8)
    images[labels == 0, 0] += 100
    images[labels == 1, 2] += 100
    return ArraySamples(images=images, labels=labels.astype(np.int64), name=name)


def two_colours(train: int = 32, test: int = 10) -> DataSet:
    return DataSet(
        name="two-colours",
        labels=("red", "blue"),
        train=samples(train),
        test=samples(test, seed=1, name="unseen"),
        mean=PREPROCESSING.mean,
        std=PREPROCESSING.std,
    )


@dataclass(kw_only=True, eq=False)
class Recorder:
    """An observer that remembers."""

    began: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[StepMetrics] = field(default_factory=list)
    epochs: list[EpochMetrics] = field(default_factory=list)
    closed: int = 0

    def begin(self, *, step: int, steps: int, epochs: int) -> None:
        self.began.append((step, steps, epochs))

    def on_step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.epochs.append(metrics)

    def close(self) -> None:
        self.closed += 1


def make_task(
    *,
    recipe: object = SHORT,
    settings: Settings | None = None,
    data: DataSet | None = None,
    save: Callable[[TrainingState], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
    observer: Recorder | None = None,
) -> Task:
    return Task(
        data=data or two_colours(),
        preprocessing=PREPROCESSING,
        recipe=recipe,  # type: ignore[arg-type]
        settings=settings or Settings(),
        processes=Processes(),
        observer=observer or Recorder(),
        save=save,
        stop=stop,
    )


def begun(task: Task, model: nn.Module | None = None) -> TrainingState:
    return begin(model or initialise(SMALL, seed=0), task)
