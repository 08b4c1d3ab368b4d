"""What a run was asked for and what came of it: the content of ``run.json``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from parnet_deploy.bundle import Source
from parnet_deploy.data import DataSet
from parnet_deploy.errors import DataError, SpecError, TrainingError, UsageError
from parnet_deploy.spec import ParNetSpec, Preprocessing, decode, default_crop_ratio
from parnet_deploy.spec.quantisation import Calibration
from parnet_deploy.train.metrics import EpochMetrics
from parnet_deploy.train.qat_options import QatOptions, check_settings
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.settings import Settings

RECORD = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What is trained, on what and how: all that `resume` needs to know.

    Attributes:
        spec: the network; its classes are the data's, its dropout the recipe's.
        data: the data set, as ``--data`` takes it.
        hold_out: part of each class that is the test split, where the data were not split.
        samples_sha256: of the names of all images and their labels, in order.
        train_images: images of the training split.
        test_images: images of the test split.
        preprocessing: how an image becomes what the network reads, in deployment too.
        recipe: how it is trained.
        settings: how that is carried out.
        start: the checkpoint that fine-tuning began with, or None.
        qat: what the network is trained to be quantised to, or None.
    """

    spec: ParNetSpec
    data: str
    hold_out: float | None
    samples_sha256: str
    train_images: int
    test_images: int
    preprocessing: Preprocessing
    recipe: Recipe
    settings: Settings
    start: Source | None = None
    qat: QatOptions | None = None

    @property
    def data_kind(self) -> str:
        """The data set, without a path that may be in its name."""
        return self.data.partition(":")[0]

    @property
    def calibration(self) -> Calibration:
        """What a training for quantisation finds activations' ranges on."""
        return Calibration(
            method="qat",
            images=self.train_images,
            sha256=self.samples_sha256,
            source=f"training on {self.data_kind}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of it.

    Attributes:
        parameters: of the network, in training form.
        last: the last epoch; its test is that of ``checkpoint.safetensors``.
        best: the epoch with the highest top-1 accuracy: that of ``best.safetensors``.
        seconds: spent in training steps.
        failed: images that could not be decoded and were skipped, and why.
    """

    parameters: int
    last: EpochMetrics
    best: EpochMetrics
    seconds: float
    failed: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The content of ``run.json``; `result` is None until the training has ended."""

    config: RunConfig
    tools: dict[str, str]
    result: RunResult | None = None


def configure(
    spec: ParNetSpec,
    data: DataSet,
    recipe: Recipe,
    settings: Settings,
    *,
    hold_out: float | None = None,
    start: Source | None = None,
    qat: QatOptions | None = None,
) -> RunConfig:
    """A run's configuration: the network fitted to the data and the recipe.

    Raises:
        UsageError: settings that a training for quantisation cannot have.
        SpecError: the network has several members: each is trained by itself.
        DataError: there is nothing to tell apart.
    """
    if len(data.labels) < 2:
        raise DataError(f"{data.name} has one class, '{data.labels[0]}': nothing to tell apart")
    if spec.members > 1:
        raise SpecError(
            f"'{spec.name}' is an ensemble, whose members are trained one by one: train one of "
            "them with several --seed, then join the checkpoints with 'parnet-deploy ensemble'"
        )
    if qat is not None:
        check_settings(settings)
    return RunConfig(
        spec=replace(recipe.fit(spec), classes=len(data.labels)),
        data=data.name,
        hold_out=hold_out,
        samples_sha256=fingerprint(data),
        train_images=len(data.train),
        test_images=len(data.test),
        preprocessing=Preprocessing(
            size=spec.image_size,
            crop_ratio=default_crop_ratio(spec.image_size),
            interpolation=data.interpolation,
            mean=data.mean,
            std=data.std,
        ),
        recipe=recipe,
        settings=settings,
        start=start,
        qat=qat,
    )


def read_run(folder: Path) -> RunRecord:
    """What ``run.json`` says.

    Raises:
        TrainingError: there is no run in that folder, or it cannot be read.
    """
    path = folder / RECORD
    try:
        return decode(path.read_bytes(), RunRecord)
    except OSError as exc:
        hint = f"; did you mean {folder.parent}?" if (folder.parent / RECORD).is_file() else ""
        raise TrainingError(f"there is no training run in {folder}{hint}") from exc
    except UsageError as exc:
        raise TrainingError(f"{path} is damaged, or not of this version: {exc}") from exc


def fingerprint(data: DataSet) -> str:
    """A hash of what the images are called and labelled, in order."""
    digest = hashlib.sha256()
    for part in (data.train, data.test):
        for index in range(len(part)):
            digest.update(f"{part.name(index)}\0{part.label(index)}\n".encode(errors="replace"))
        digest.update(b"\n")
    digest.update("\0".join(data.labels).encode(errors="replace"))
    return digest.hexdigest()
