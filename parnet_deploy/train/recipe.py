"""How to train, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from parnet_deploy.errors import UsageError
from parnet_deploy.spec import ParNetSpec

Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step"]
Crop = Literal["whole", "shift", "random-resized"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train a network: everything that decides what it learns, but the data and the seed.

    Every field but the name is an option of ``parnet-deploy train``; its words there are those
    that stand beside it here.
    """

    name: str
    epochs: Annotated[int, "Passes over the training split."]
    batch_size: Annotated[int, "Images per optimiser step, over all processes."]
    optimiser: Annotated[Optimiser, "SGD with momentum, or AdamW."]
    learning_rate: Annotated[float, "Highest learning rate, for this batch size."]
    schedule: Annotated[Schedule, "A cosine that ends at 0, or steps."]
    warmup_epochs: Annotated[float, "Epochs in which the learning rate rises to its highest."] = 0.0
    decay_at: Annotated[
        tuple[float, ...], "Where a schedule of steps goes down, in parts of the training."
    ] = ()
    decay_rate: Annotated[float, "What the learning rate is multiplied by at a step."] = 0.1
    momentum: Annotated[float, "Momentum of SGD; the first beta of AdamW."] = 0.9
    nesterov: Annotated[bool, "Nesterov's form of the momentum."] = False
    weight_decay: Annotated[float, "Weight decay of kernels; norms and biases have none."]
    label_smoothing: Annotated[float, "Part of the target spread over all classes."] = 0.0
    dropout: Annotated[float | None, "Dropout before the classifier, if not the network's own."] = (
        None
    )
    conv_dropout: Annotated[
        float | None, "Dropout of the convolutions, if not the network's own."
    ] = None
    crop: Annotated[Crop, "The whole image; it, shifted; or a random part of random size."] = (
        "whole"
    )
    crop_scale: Annotated[tuple[float, float], "Least and greatest area of a random part."] = (
        0.08,
        1.0,
    )
    shift: Annotated[float, "Greatest shift, in parts of the image's side."] = 0.0
    rotation: Annotated[float, "Greatest turn either way, in degrees."] = 0.0
    zoom: Annotated[float, "Greatest change of size either way, in parts of 1."] = 0.0
    flip: Annotated[float, "Probability of a mirror image."] = 0.0
    colour_jitter: Annotated[
        float, "Greatest change of brightness, contrast and saturation, in parts of 1."
    ] = 0.0
    rand_augment: Annotated[int, "Operations of RandAugment per image."] = 0
    rand_augment_magnitude: Annotated[float, "Strength of RandAugment, 0 to 10."] = 9.0
    rand_augment_noise: Annotated[float, "Standard deviation of that strength."] = 0.5
    erasing: Annotated[float, "Probability of a random rectangle of noise."] = 0.0
    ema_decay: Annotated[float, "Decay of the weights' moving average; 0 keeps none."] = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out.

        Raises:
            UsageError: a field has a value that no training can have; the message names it.
        """
        for name, fits, expected in self._expectations():
            if not fits:
                raise UsageError(f"a recipe's {name} is {expected}, not {getattr(self, name)}")

    def _expectations(self) -> tuple[tuple[str, bool, str], ...]:
        def part(value: float) -> bool:
            return 0.0 <= value < 1.0

        def chance(value: float) -> bool:
            return 0.0 <= value <= 1.0

        def amount(value: float) -> bool:
            return 0.0 <= value < math.inf

        rising = all(
            a < b for a, b in zip((0.0, *self.decay_at), (*self.decay_at, 1.0), strict=True)
        )
        low, high = self.crop_scale
        return (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2, for batch normalisation"),
            ("optimiser", self.optimiser in get_args(Optimiser), _one_of(Optimiser)),
            ("learning_rate", 0.0 < self.learning_rate < math.inf, "positive"),
            ("schedule", self.schedule in get_args(Schedule), _one_of(Schedule)),
            ("warmup_epochs", 0.0 <= self.warmup_epochs < self.epochs, "less than its epochs"),
            ("decay_at", rising, "rising, and between 0 and 1"),
            ("decay_rate", 0.0 < self.decay_rate <= 1.0, "in (0, 1]"),
            ("momentum", part(self.momentum), "in [0, 1)"),
            ("weight_decay", amount(self.weight_decay), "0 or more"),
            ("label_smoothing", part(self.label_smoothing), "in [0, 1)"),
            ("dropout", part(self.dropout or 0.0), "in [0, 1)"),
            ("conv_dropout", part(self.conv_dropout or 0.0), "in [0, 1)"),
            ("crop", self.crop in get_args(Crop), _one_of(Crop)),
            ("crop_scale", 0.0 < low <= high <= 1.0, "two rising parts in (0, 1]"),
            ("shift", part(self.shift), "in [0, 1)"),
            ("rotation", amount(self.rotation), "0 or more"),
            ("zoom", part(self.zoom), "in [0, 1)"),
            ("flip", chance(self.flip), "in [0, 1]"),
            ("colour_jitter", amount(self.colour_jitter), "0 or more"),
            ("rand_augment", self.rand_augment >= 0, "0 or more"),
            ("rand_augment_magnitude", 0.0 <= self.rand_augment_magnitude <= 10.0, "0 to 10"),
            ("rand_augment_noise", amount(self.rand_augment_noise), "0 or more"),
            ("erasing", chance(self.erasing), "in [0, 1]"),
            ("ema_decay", part(self.ema_decay), "in [0, 1)"),
        )

    def fit(self, spec: ParNetSpec) -> ParNetSpec:
        """The network with this recipe's dropout, where it has one."""
        return replace(
            spec,
            dropout=spec.dropout if self.dropout is None else self.dropout,
            conv_dropout=spec.conv_dropout if self.conv_dropout is None else self.conv_dropout,
        )

    def idle(self) -> dict[str, str]:
        """The fields that change nothing as the others are, and why."""
        idle: dict[str, str] = {}
        if self.schedule == "cosine":
            idle |= dict.fromkeys(("decay_at", "decay_rate"), "the schedule is a cosine")
        if self.optimiser != "sgd":
            idle["nesterov"] = f"the optimiser is {self.optimiser}"
        if self.crop == "random-resized":
            idle["shift"] = "the crop is random-resized"
        else:
            idle["crop_scale"] = f"the crop is {self.crop}"
        if not self.rand_augment:
            idle |= dict.fromkeys(
                ("rand_augment_magnitude", "rand_augment_noise"), "there is no rand-augment"
            )
        return idle

    def changed(self, **changes: Any) -> Recipe:
        """The same recipe with some fields otherwise.

        Where the batch size is changed and the learning rate is not given, the rate changes in
        proportion (paper, section 4: "we decrease the batch size and the learning rate
        proportionally"). Where there are fewer epochs and the warm-up is not given, it keeps its
        part of them.

        Raises:
            UsageError: there is no such field, or it cannot have that value.
        """
        known = {field.name for field in fields(self)}
        if unknown := set(changes) - known:
            raise UsageError(f"a recipe has no {', '.join(sorted(unknown))}")
        if "batch_size" in changes and "learning_rate" not in changes:
            ratio = changes["batch_size"] / self.batch_size
            changes["learning_rate"] = self.learning_rate * ratio
        if "epochs" in changes and "warmup_epochs" not in changes:
            fewer = min(1.0, max(0, changes["epochs"]) / self.epochs)
            changes["warmup_epochs"] = self.warmup_epochs * fewer
        return replace(self, **changes)


def _one_of(kind: object) -> str:
    return "one of " + ", ".join(get_args(kind))
