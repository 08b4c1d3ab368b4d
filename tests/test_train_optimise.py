"""Optimiser and schedule: the paper's learning rates, step by step."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from parnet_deploy.net import ParNet
from parnet_deploy.train.optimise import make_optimiser, make_schedule
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES
from tests.training import SMALL


def rates(recipe: Recipe, per_epoch: int) -> list[float]:
    """The learning rate of every step."""
    optimiser = make_optimiser(nn.Linear(2, 2), recipe)
    steps = recipe.epochs * per_epoch
    schedule = make_schedule(optimiser, recipe, steps=steps, steps_per_epoch=per_epoch)
    result = []
    for step in range(steps):
        schedule.step_update(step)
        (rate,) = {group["lr"] for group in optimiser.param_groups}
        result.append(rate)
    return result


def test_the_papers_120_epochs() -> None:
    """Warm-up for 5 epochs, 0.8, a tenth of it at every 30th epoch (section 4)."""
    per_epoch = 10
    by_step = rates(RECIPES["imagenet-120"], per_epoch)
    assert by_step[0] == pytest.approx(0.8 / 50)
    assert all(a < b for a, b in itertools.pairwise(by_step[:51]))
    for first, last, expected in ((5, 30, 0.8), (30, 60, 0.08), (60, 90, 8e-3), (90, 120, 8e-4)):
        part = by_step[first * per_epoch : last * per_epoch]
        assert part == pytest.approx([expected] * len(part))


def test_the_papers_200_epochs_are_a_cosine() -> None:
    by_step = rates(RECIPES["imagenet-200"], 5)
    after = by_step[25:]
    assert all(a > b for a, b in itertools.pairwise(after))
    assert by_step[500] == pytest.approx(0.4)
    assert 0 < by_step[-1] < 1e-4


def test_the_papers_cifar_steps() -> None:
    """0.1, divided by 5 at 30, 60 and 80 % of 400 epochs."""
    by_step = rates(RECIPES["cifar-400"], 3)
    for first, last, expected in (
        (0, 120, 0.1), (120, 240, 0.02), (240, 320, 4e-3), (320, 400, 8e-4),
    ):  # fmt: skip
        part = by_step[first * 3 : last * 3]
        assert part == pytest.approx([expected] * len(part))


@given(
    name=st.sampled_from(sorted(RECIPES)),
    epochs=st.integers(1, 30),
    per_epoch=st.integers(1, 7),
    warmup=st.floats(0, 0.9),
)
def test_rates_are_positive_and_never_above_the_highest(
    name: str, epochs: int, per_epoch: int, warmup: float
) -> None:
    recipe = RECIPES[name].changed(epochs=epochs, warmup_epochs=warmup * epochs)
    by_step = rates(recipe, per_epoch)
    assert all(0 < rate <= recipe.learning_rate * (1 + 1e-9) for rate in by_step)


def test_kernels_decay_and_norms_and_biases_do_not() -> None:
    model = ParNet(SMALL)
    recipe = RECIPES["cifar-400"]
    optimiser = make_optimiser(model, recipe)
    decays = {
        id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]
    }
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        is_kernel = name.endswith("weight") and "bn" not in name and "norm" not in name
        is_kernel = is_kernel and "identity" not in name
        assert decays[id(parameter)] == (3e-4 if is_kernel else 0.0), name


def test_the_recipe_names_the_optimiser() -> None:
    sgd = make_optimiser(nn.Linear(2, 2), RECIPES["cifar-400"])
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    adamw = make_optimiser(nn.Linear(2, 2), RECIPES["quick"])
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("name", ["cifar-400", "quick"])
def test_a_first_step_that_is_left_out_leaves_nothing_behind(name: str) -> None:
    """In fp16 the loss's scale is too high at first; the step after it is as if it was the first.

    With deterministic algorithms torch fills unset memory with NaN: what is read of it is seen.
    """

    def stepped(*factors: float) -> torch.Tensor:
        """The weight after a step for each factor of the loss."""
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.fill_(0.5)
        optimiser = make_optimiser(layer, RECIPES[name])
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        for factor in factors:
            scaler.scale(factor * layer(torch.ones(1, 2)).sum()).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
        return layer.weight.detach()

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(stepped(torch.inf, 1.0), stepped(1.0))
        assert torch.equal(stepped(torch.inf), torch.full((2, 2), 0.5))
        assert not torch.equal(stepped(1.0), torch.full((2, 2), 0.5))
    finally:
        torch.use_deterministic_algorithms(before)
