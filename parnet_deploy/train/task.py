"""What a training is given: the work, who shares it, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parnet_deploy.data import DataSet
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.spec import Preprocessing
from parnet_deploy.train.loader import Plan
from parnet_deploy.train.metrics import Observer
from parnet_deploy.train.processes import Processes
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.settings import Settings
from parnet_deploy.train.state import TrainingState


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Task:
    """What is trained, on what, how, and who is told.

    Attributes:
        data: what to learn from, and to test on.
        preprocessing: how an image becomes what the network reads.
        recipe: how to train.
        settings: how that is carried out.
        processes: who shares the work.
        observer: who is told, in the main process.
        save: keeps the state: called in the main process after every epoch, and as often as the
            settings say.
        stop: whether to stop after this step; what has been reached is saved first.
    """

    data: DataSet
    preprocessing: Preprocessing
    recipe: Recipe
    settings: Settings
    processes: Processes
    observer: Observer
    save: Callable[[TrainingState], None]
    stop: Callable[[], bool]

    @property
    def plan(self) -> Plan:
        """Which images every step takes."""
        return plan_for(self.data, self.recipe, self.settings, self.processes)


def plan_for(data: DataSet, recipe: Recipe, settings: Settings, processes: Processes) -> Plan:
    """Which images every step of a training takes.

    Raises:
        UsageError: the batch does not come out even, or the images do not fill one.
    """
    return Plan(
        images=len(data.train),
        batch_size=recipe.batch_size,
        micro_batch=settings.micro_batch or max(1, recipe.batch_size // processes.count),
        processes=processes.count,
        epochs=recipe.epochs,
        seed=settings.seed,
    )


def workers_for(settings: Settings, processes: Processes) -> int:
    """How many processes decode and augment images for this one."""
    if settings.workers is not None:
        return settings.workers
    if processes.device.type == "cpu":  # the cores are busy anyway
        return 0
    return min(8, max(1, usable_cores() // processes.here))
