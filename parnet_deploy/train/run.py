"""A training run's folder: the checkpoint, the metrics, and what was done."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from parnet_deploy.bundle import staged, versions
from parnet_deploy.net import TrainingFacts, initialise, save_checkpoint
from parnet_deploy.spec import ParNetSpec, count, encode
from parnet_deploy.train.data import DataSet, save_images
from parnet_deploy.train.loop import EpochMetrics, count_correct, train
from parnet_deploy.train.recipe import Recipe

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.csv"
IMAGES = "images"
SUMMARY = "run.json"

TOOLS = ("parnet-deploy", "torch", "numpy", "scikit-learn")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What was trained, how, and how well: the content of ``run.json``.

    Attributes:
        spec: the network.
        parameters: its number of parameters, in training form.
        data: name of the data set.
        recipe: how it was trained.
        seed: of the weights, the order, the augmentation and dropout.
        train_images: images of the training split.
        test_images: images of the test split.
        test_correct: how many of those the trained network gets right.
        seconds: duration of the training.
        tools: versions.
    """

    spec: ParNetSpec
    parameters: int
    data: str
    recipe: Recipe
    seed: int
    train_images: int
    test_images: int
    test_correct: int
    seconds: float
    tools: dict[str, str]

    @property
    def test_accuracy(self) -> float:
        """Part of the test split that is right."""
        return self.test_correct / self.test_images


def train_run(
    final: Path,
    spec: ParNetSpec,
    data: DataSet,
    recipe: Recipe,
    *,
    seed: int,
    export_test_images: bool = False,
    force: bool = False,
    progress: Callable[[EpochMetrics], None] = lambda metrics: None,
) -> RunSummary:
    """Train a network and write the run's folder, all of it or nothing.

    The folder holds ``checkpoint.safetensors`` (weights, spec, labels and preprocessing),
    ``metrics.csv`` (a row per epoch), ``run.json`` (the summary), and on request the test split in
    ``images/LABEL/NNNN.png``. The test split is looked at once, at the end.

    Args:
        final: where the folder is to stand.
        spec: the network; its number of classes is taken from the data.
        data: what to learn from.
        recipe: how.
        seed: of everything random.
        export_test_images: write the test split as image files.
        force: replace an older run that stands there.
        progress: called after every epoch.

    Raises:
        OutputExistsError: something stands at `final` and `force` is off.
        TrainingError: the loss is no longer finite.
        BundleError: the folder cannot be written.
    """
    spec = replace(spec, classes=len(data.labels))
    with staged(final, force=force, marker=SUMMARY) as work:
        model = initialise(spec, seed=seed)
        history = train(model, data.train, data.preprocessing, recipe, seed=seed, progress=progress)
        summary = RunSummary(
            spec=spec,
            parameters=count(spec).parameters_training,
            data=data.name,
            recipe=recipe,
            seed=seed,
            train_images=len(data.train),
            test_images=len(data.test),
            test_correct=count_correct(model, data.test, data.preprocessing),
            seconds=sum(epoch.seconds for epoch in history),
            tools=versions(*TOOLS),
        )
        facts = TrainingFacts(labels=data.labels, preprocessing=data.preprocessing)
        save_checkpoint(model, work / CHECKPOINT, facts)
        write_metrics(history, work / METRICS)
        if export_test_images:
            save_images(data.test, data.labels, work / IMAGES)
        (work / SUMMARY).write_bytes(encode(summary))
    return summary


def write_metrics(history: tuple[EpochMetrics, ...], path: Path) -> None:
    """Write a CSV with a row per epoch."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(EpochMetrics)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)
