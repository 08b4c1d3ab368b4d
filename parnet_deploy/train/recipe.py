"""How to train, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from parnet_deploy.errors import UsageError
from parnet_deploy.spec.lookup import lookup

Optimiser = Literal["sgd", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of every training image, drawn anew in every epoch, uniformly.

    Attributes:
        shift: greatest shift either way, in parts of the image's side.
        rotation: greatest turn either way, in degrees.
        zoom: greatest change of size either way, in parts of 1.
    """

    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what would turn images inside out.

        Raises:
            UsageError: a negative or non-finite amount, or a zoom of 1 or more.
        """
        amounts = (self.shift, self.rotation, self.zoom)
        if not all(math.isfinite(a) and a >= 0.0 for a in amounts) or self.zoom >= 1.0:
            raise UsageError(f"amounts of augmentation are 0 or more, and a zoom below 1: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train a network.

    Attributes:
        name: what people call it.
        epochs: passes over the training split.
        batch_size: images per step.
        optimiser: SGD with Nesterov momentum, or AdamW.
        peak_rate: the learning rate after the warm-up; from there it falls to 0 as a cosine.
        warmup: part of all steps in which the rate rises to its peak.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: of convolution and linear weights; normalisations and biases have none.
        label_smoothing: part of the target that is spread over all classes.
        augmentation: random changes of the images.
    """

    name: str
    epochs: int
    batch_size: int
    optimiser: Optimiser
    peak_rate: float
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float
    label_smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out.

        Raises:
            UsageError: a field has a value that no training can have; the message names it.
        """
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2, for batch normalisation"),
            ("peak_rate", math.isfinite(self.peak_rate) and self.peak_rate > 0, "positive"),
            ("warmup", 0.0 <= self.warmup < 1.0, "in [0, 1)"),
            ("momentum", 0.0 <= self.momentum < 1.0, "in [0, 1)"),
            ("weight_decay", 0.0 <= self.weight_decay < math.inf, "0 or more"),
            ("label_smoothing", 0.0 <= self.label_smoothing < 1.0, "in [0, 1)"),
        ):
            if not fits:
                raise UsageError(f"a recipe's {name} is {expected}, not {getattr(self, name)}")

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a linear warm-up, then half a cosine that ends at 0.

        Args:
            step: from 0.
            steps: all of them.
        """
        warm = min(round(self.warmup * steps), steps - 1)
        if step < warm:
            return self.peak_rate * (step + 1) / warm
        done = (step - warm) / (steps - warm)
        return self.peak_rate * (1 + math.cos(math.pi * done)) / 2


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # For small images and small networks, on a laptop's CPU, in about a minute.
        Recipe(
            name="quick",
            epochs=10,
            batch_size=64,
            optimiser="adamw",
            peak_rate=6e-3,
            weight_decay=0.05,
            label_smoothing=0.05,
            augmentation=Augmentation(shift=0.08, rotation=12.0, zoom=0.1),
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    return lookup("recipe", name, RECIPES)
