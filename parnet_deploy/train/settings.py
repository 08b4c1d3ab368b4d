"""How a training is carried out: what changes its speed and its rounding, and not its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from parnet_deploy.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a training is carried out.

    Attributes:
        seed: of the weights, the order of the images, their augmentation and dropout.
        precision: of the operators that bear it (torch.autocast); fp16 scales the loss, too.
        channels_last: keep feature maps as (N, H, W, C) in memory.
        micro_batch: images that one process takes at once; None takes its whole share of the
            batch. Gradients are accumulated until the batch is full; batch normalisation sees a
            micro-batch at a time.
        sync_bn: batch normalisation over the micro-batches of all processes.
        deterministic: on a GPU, only operators that give the same bits every time.
        save_every: optimiser steps between two states to resume from; every epoch ends with one
            anyway. None saves at the ends of epochs only.
        workers: processes that decode and augment images; 0 does it in this one; None: one per
            core, 8 at most, where a GPU does the rest, and otherwise 0.
        skip_bad: take another image where one cannot be decoded.
    """

    seed: int = 0
    precision: Precision = "fp32"
    channels_last: bool = True
    micro_batch: int | None = None
    sync_bn: bool = False
    deterministic: bool = False
    save_every: int | None = None
    workers: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a field has a value that no training can have; the message names it.
        """
        for name, fits, expected in (
            ("seed", self.seed >= 0, "0 or more"),
            ("precision", self.precision in get_args(Precision), "fp32, bf16 or fp16"),
            ("micro_batch", self.micro_batch is None or self.micro_batch >= 2, "at least 2"),
            ("save_every", self.save_every is None or self.save_every >= 1, "at least 1"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"a training's {name} is {expected}, not {getattr(self, name)}")
