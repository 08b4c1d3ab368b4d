"""What an evaluation found, as values: for tables, for JSON, for pictures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parnet_deploy.bundle import versions
from parnet_deploy.evaluate.measures import Share
from parnet_deploy.evaluate.subject import Kind
from parnet_deploy.spec import Preprocessing

Crops = Literal["centre", "ten"]

Matching = Literal["name", "order"]

MATRIX_CLASSES = 50
"""Up to so many classes the confusion matrix is part of the result, and drawn."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _tools() -> dict[str, str]:
    backends = ("onnxruntime", "onnxruntime-gpu", "openvino", "ncnn")
    return versions("parnet-deploy", "numpy", *backends, "pillow", "torch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """An image that could not be used, and why."""

    image: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """The class that another is most often taken for, and how often."""

    label: str
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """One class of the network.

    Attributes:
        index: its place in the network's outputs.
        label: its name.
        images: how many images of it there are.
        right: how many of them were recognised.
        percent: their share in percent; None where there is no image.
        taken_for: what the others are most often taken for; None where all are right.
    """

    index: int
    label: str
    images: int
    right: int
    percent: float | None
    taken_for: Mistake | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """What was counted.

    Attributes:
        top1: images whose true class is the likeliest.
        k: 5, or the number of classes where there are fewer.
        topk: images whose true class is among the k likeliest.
        loss: mean cross-entropy, in nats.
        classes: every class of the network, in the order of its outputs.
        confusion: a row per true class, a column per predicted class; None where there are more
            than `MATRIX_CLASSES` classes.
    """

    top1: Share
    k: int
    topk: Share
    loss: float
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...] | None

    @property
    def worst(self) -> list[ClassResult]:
        """Classes of which an image was not recognised, the least recognised first."""
        missed = [result for result in self.classes if result.right < result.images]
        return sorted(missed, key=lambda result: result.right / result.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was evaluated, on what, and what came out.

    Attributes:
        kind: the form that the network is in.
        path: its file or folder.
        sha256: digest of the checkpoint, or of the bundle's manifest.
        network: the network's name.
        runs_on: what ran it.
        precision: what it computes in.
        data: the data set.
        split: which split of it.
        matching: how the data set's classes were found among the network's.
        preprocessing: how images were prepared.
        own_preprocessing: whether the network says so itself; otherwise it is ImageNet's. The data
            set's own mean and deviation are never used.
        crops: which crops of an image were run; the probabilities of several are averaged.
        batch: images per run.
        available: images that the split has; fewer are evaluated under a limit.
        skipped: images that were left out as they could not be used.
        measures: what was counted, over the others.
        seconds: how long it took, from the first file to the last answer.
        images_per_second: of that time; decoding is part of it.
        minimum: the share in percent that was asked for, or None.
        passed: whether it was reached, or None.
        warnings: what who reads the numbers must know.
        tools: versions of what took part.
        created: when.
    """

    format: Literal["parnet-deploy/evaluation"] = "parnet-deploy/evaluation"
    format_version: int = 1
    kind: Kind
    path: str
    sha256: str
    network: str
    runs_on: str
    precision: str
    data: str
    split: str
    matching: Matching
    preprocessing: Preprocessing
    own_preprocessing: bool
    crops: Crops
    batch: int
    available: int
    skipped: tuple[Problem, ...]
    measures: Measures
    seconds: float
    images_per_second: float
    minimum: float | None = None
    passed: bool | None = None
    warnings: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=_tools)
    created: str = field(default_factory=_now)
