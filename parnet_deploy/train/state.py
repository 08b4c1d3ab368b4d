"""Everything that a training has come to: what a resumed one needs to go on bit for bit.

The random state is not among it: order, augmentation and dropout follow from the seed and the step
(`loader.mixed_seed`), and the learning rate from the step alone.
"""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from parnet_deploy.errors import TrainingError, os_reason
from parnet_deploy.train.files import replacing
from parnet_deploy.train.metrics import EpochMetrics

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What the current epoch has added up to, over all processes.

    Attributes:
        loss: sum over micro-batches of their mean loss.
        batches: how many they were.
        right: images that were right.
        images: how many they were.
        seconds: spent in training steps.
    """

    loss: float = 0.0
    batches: int = 0
    right: int = 0
    images: int = 0
    seconds: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(
            loss=self.loss + other.loss,
            batches=self.batches + other.batches,
            right=self.right + other.right,
            images=self.images + other.images,
            seconds=self.seconds + other.seconds,
        )


@dataclass(kw_only=True, slots=True, eq=False)
class TrainingState:
    """What changes while a network is trained.

    Attributes:
        model: the network, itself and not as DistributedDataParallel wraps it.
        optimiser: with its momenta.
        scaler: of the loss, in fp16.
        average: the weights' moving average, or None.
        step: optimiser steps done.
        sums: of the epoch that `step` is in, or that has just ended and is not yet in `history`.
        history: the epochs that are done and tested.
        failed: images that could not be decoded, and why.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: ModelEmaV3 | None
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    history: list[EpochMetrics] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def deployed(self) -> nn.Module:
        """The network that is tested and kept: the moving average where there is one."""
        if self.average is None:
            return self.model
        averaged: nn.Module = self.average.module
        return averaged

    @property
    def best(self) -> EpochMetrics | None:
        """The epoch with the highest top-1 accuracy on the test split, the first among equals."""
        return max(self.history, key=lambda epoch: epoch.test_top1, default=None)

    def save(self, path: Path) -> None:
        """Write it all beside `path` and rename it there.

        Raises:
            TrainingError: a weight is not finite: what is there is better; or it cannot be written.
        """
        if not all(bool(torch.isfinite(value).all()) for value in self.model.parameters()):
            raise TrainingError(
                f"a weight is no longer finite after step {self.step}; training has come apart and "
                "was stopped: take a lower --learning-rate, or look for damaged data"
            )
        content = {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "step": self.step,
            "sums": asdict(self.sums),
            "history": [asdict(epoch) for epoch in self.history],
            "failed": self.failed,
        }
        with replacing(path) as file:
            try:
                torch.save(content, file)
            except RuntimeError as exc:  # torch's writer, when the disk is full
                reason = str(exc).splitlines()[0]
                raise TrainingError(f"cannot write {path}: {reason}") from exc

    def restore(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            TrainingError: it cannot be read, or is not of such a training.
        """
        content = _read(path)
        try:
            self.model.load_state_dict(content["model"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content["scaler"])
            if self.average is not None:
                self.average.module.load_state_dict(content["average"])
            self.step = content["step"]
            self.sums = Sums(**content["sums"])
            self.history = [EpochMetrics(**epoch) for epoch in content["history"]]
            self.failed = dict(content["failed"])
        except (KeyError, TypeError, ValueError, RuntimeError) as exc:
            raise TrainingError(
                f"{path} is not the state of this training: {str(exc).splitlines()[0]}"
            ) from exc


def _read(path: Path) -> dict[str, Any]:
    damaged = (
        f"the training's state in {path} is damaged; what was trained until then is in "
        f"{path.parent}: train --finetune goes on from it, and --force begins anew"
    )
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums in it
            if archive.testzip() is not None:
                raise TrainingError(damaged)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except TrainingError:
        raise
    except OSError as exc:
        raise TrainingError(f"cannot read {path}: {os_reason(exc)}") from exc
    except Exception as exc:  # a damaged file makes its parser raise anything
        raise TrainingError(damaged) from exc
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TrainingError(f"{path} is not a state that this version can go on with")
    return content
