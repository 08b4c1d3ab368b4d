"""The training loop, and counting right answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from parnet_deploy.errors import TrainingError, UsageError
from parnet_deploy.images import normalise
from parnet_deploy.spec import Preprocessing
from parnet_deploy.train.augment import augment
from parnet_deploy.train.data import Split
from parnet_deploy.train.recipe import Recipe

EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """What one epoch was like.

    Attributes:
        epoch: from 1.
        learning_rate: of its last step.
        loss: mean over its images, augmented and in training mode.
        accuracy: part of them that was right, likewise.
        seconds: its duration.
    """

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    seconds: float


Progress = Callable[[EpochMetrics], None]


def train(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress = lambda metrics: None,
) -> tuple[EpochMetrics, ...]:
    """Train a network in place, and leave it in inference mode.

    The same network, data, recipe, seed and number of threads give the same weights, to the bit,
    on a CPU. The global random state is untouched. A last batch that is not full is left out.

    Args:
        model: (N, 3, H, W) -> logits (N, classes).
        split: what to learn from.
        preprocessing: mean and standard deviation.
        recipe: how.
        seed: of the order, the augmentation and dropout.
        progress: called after every epoch.

    Returns:
        One entry per epoch.

    Raises:
        TrainingError: the loss is no longer finite; the message names the step.
        UsageError: there is not even one full batch.
    """
    if len(split) < recipe.batch_size:
        raise UsageError(
            f"{len(split)} images do not fill one batch of {recipe.batch_size}; "
            "a recipe with a smaller batch is needed"
        )
    optimiser = make_optimiser(model, recipe)
    history = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        for epoch in range(1, recipe.epochs + 1):
            metrics = _epoch(model, optimiser, split, preprocessing, recipe, epoch)
            history.append(metrics)
            progress(metrics)
    model.eval()
    return tuple(history)


def count_correct(model: nn.Module, split: Split, preprocessing: Preprocessing) -> int:
    """How many images of a split a network in inference mode gets right."""
    right = 0
    with torch.inference_mode():
        for first in range(0, len(split), EVALUATION_BATCH):
            chosen = slice(first, first + EVALUATION_BATCH)
            images = torch.from_numpy(normalise(split.images[chosen], preprocessing))
            labels = torch.from_numpy(split.labels[chosen])
            right += int((model(images).argmax(1) == labels).sum())
    return right


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, with weight decay for weights only."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=recipe.peak_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(recipe.momentum, 0.999))


def _epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    split: Split,
    preprocessing: Preprocessing,
    recipe: Recipe,
    epoch: int,
) -> EpochMetrics:
    """One pass over the split, in a random order."""
    start, loss_sum, right = time.perf_counter(), 0.0, 0
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    steps = len(split) // recipe.batch_size
    order = torch.randperm(len(split))[: steps * recipe.batch_size].reshape(steps, -1)
    for step, chosen in enumerate(order, start=(epoch - 1) * steps):
        rate = recipe.learning_rate(step, recipe.epochs * steps)
        batch = _prepare(images[chosen], preprocessing, recipe)
        loss, correct = _step(model, optimiser, rate, batch, labels[chosen], recipe)
        _check_finite(loss, step + 1, epoch)
        loss_sum, right = loss_sum + loss, right + correct
    return EpochMetrics(
        epoch=epoch,
        learning_rate=rate,
        loss=loss_sum / steps,
        accuracy=right / (steps * recipe.batch_size),
        seconds=time.perf_counter() - start,
    )


def _prepare(pixels: Tensor, preprocessing: Preprocessing, recipe: Recipe) -> Tensor:
    """(N, 3, H, W) uint8 -> augmented, then normalised float32."""
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]
    return (augment(pixels.float() / 255, recipe.augmentation) - mean) / std


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    rate: float,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
) -> tuple[float, int]:
    """One step; the loss and how many were right before it."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    logits = model(images)
    loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def _check_finite(loss: float, step: int, epoch: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {step} (epoch {epoch}): training has come apart and was "
            "stopped; take a recipe with a lower learning rate, or look for damaged data"
        )
