"""How a training is carried out: what changes its speed and its rounding, and not its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from parnet_deploy.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a training is carried out.

    Every field is an option of ``parnet-deploy train``; its words there are those that stand
    beside it here, where None is what the words after "default" say.
    """

    seed: Annotated[int, "Seed of weights, order, augmentation and dropout [default: 0]."] = 0
    precision: Annotated[
        Precision, "Of the operators that bear it; fp16 scales the loss [default: fp32]."
    ] = "fp32"
    channels_last: Annotated[bool, "Feature maps as (N, H, W, C) in memory [default: yes]."] = True
    micro_batch: Annotated[
        int | None,
        "Images that a process takes at once; gradients add up to the batch, batch normalisation "
        "sees them apart [default: its share of the batch].",
    ] = None
    sync_bn: Annotated[bool, "Batch normalisation over all processes' images."] = False
    deterministic: Annotated[bool, "On a GPU: only what gives the same bits every time."] = False
    save_every: Annotated[
        int | None,
        "Steps between two states to resume from, beside those at the ends of epochs.",
    ] = None
    workers: Annotated[
        int | None,
        "Processes that decode images [default: none on a CPU; else one per core, 8 at most].",
    ] = None
    skip_bad: Annotated[bool, "Take other images where one cannot be decoded; count them."] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a field has a value that no training can have; the message names it.
        """
        for name, fits, expected in (
            ("seed", 0 <= self.seed < 1 << 63, "0 or more, and less than 2^63"),
            ("precision", self.precision in get_args(Precision), "fp32, bf16 or fp16"),
            ("micro_batch", self.micro_batch is None or self.micro_batch >= 2, "at least 2"),
            ("save_every", self.save_every is None or self.save_every >= 1, "at least 1"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
        ):
            if not fits:
                raise UsageError(f"a training's {name} is {expected}, not {getattr(self, name)}")
