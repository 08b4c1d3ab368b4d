"""The recipe's optimiser and schedule."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from parnet_deploy.train.recipe import Recipe


def make_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, with weight decay for kernels only.

    Its fused form goes over each parameter once: a step of SGD on ParNet-S takes a quarter of the
    time on a CPU (benchmarks/results/2026-11-25-train-step-notes.md).
    """
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimiser == "sgd":
        sgd = torch.optim.SGD(
            groups,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            fused=True,
        )
        if recipe.momentum:
            _begin_momenta(sgd)
        return sgd
    betas = (recipe.momentum, 0.999)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)


def _begin_momenta(sgd: torch.optim.SGD) -> None:
    """Let every momentum begin at nought, as it does without saying in the form that is not fused.

    The fused form would take unset memory and fill it in the first step, which in fp16 is left out
    when the scaled gradients overflow; the second step would then go on from whatever was there.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def make_schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, *, steps: int, steps_per_epoch: int
) -> Scheduler:
    """The recipe's learning rate as a function of the optimiser step: ``step_update(step)``.

    It rises linearly through the warm-up and then follows the schedule, whose own time began with
    the training. It has no state: the rate follows from the step alone.

    Args:
        optimiser: whose rate is set.
        recipe: which schedule.
        steps: of the whole training.
        steps_per_epoch: of an epoch.
    """
    warm = round(recipe.warmup_epochs * steps_per_epoch)
    shared: dict[str, Any] = {
        "warmup_t": warm,
        "warmup_lr_init": recipe.learning_rate / max(warm, 1),
        "warmup_prefix": False,  # the schedule's own time runs from the beginning
        "t_in_epochs": False,
    }
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimiser, t_initial=max(steps, 1), lr_min=0.0, **shared)
    # timm goes down one update before a milestone.
    milestones = [round(part * steps) + 1 for part in recipe.decay_at]
    return MultiStepLRScheduler(
        optimiser, decay_t=milestones, decay_rate=recipe.decay_rate, **shared
    )
