"""The training loop: it learns, repeats itself to the bit, and stops when it comes apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from parnet_deploy.errors import TrainingError, UsageError
from parnet_deploy.net import initialise
from parnet_deploy.spec import ParNetSpec, Preprocessing, variant
from parnet_deploy.train import RECIPES, Split, count_correct, train
from parnet_deploy.train.loop import EpochMetrics, make_optimiser

SMALL = replace(
    variant("digits").spec.with_widths((4, 8, 8, 8)),
    stream_blocks=(2, 1, 1),
    image_size=(8, 8),
    classes=2,
    dropout=0.1,
)
SHORT = replace(RECIPES["quick"], epochs=2, batch_size=8)
PREPROCESSING = Preprocessing(size=(8, 8), crop_ratio=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)


def two_classes(n: int = 32) -> Split:
    """Noisy images, reddish or bluish."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 100, (n, 3, 8, 8), dtype=np.uint8)
    images[labels == 0, 0] += 100
    images[labels == 1, 2] += 100
    return Split(images=images, labels=labels.astype(np.int64))


def trained(spec: ParNetSpec = SMALL, *, seed: int = 0) -> nn.Module:
    model = initialise(spec, seed=0)
    train(model, two_classes(), PREPROCESSING, SHORT, seed=seed)
    return model


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_train_learns(optimiser: str) -> None:
    rate = {"sgd": 0.03, "adamw": 6e-3}[optimiser]
    recipe = replace(SHORT, optimiser=optimiser, peak_rate=rate, epochs=10)
    model = initialise(SMALL, seed=0)
    seen: list[EpochMetrics] = []
    history = train(model, two_classes(), PREPROCESSING, recipe, seed=0, progress=seen.append)
    assert tuple(seen) == history
    assert [entry.epoch for entry in history] == list(range(1, 11))
    assert history[-1].loss < history[0].loss
    assert not model.training
    assert count_correct(model, two_classes(), PREPROCESSING) == 32


def test_train_repeats_itself_to_the_bit_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, other = trained(), trained(), trained(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    changed = zip(first.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in changed)


def test_train_stops_at_a_loss_that_is_no_number_and_names_the_step() -> None:
    """The damage is planted where the second epoch's second step of four meets it."""

    class Bomb(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = initialise(SMALL, seed=0), 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.model(images) * (float("nan") if self.calls == 6 else 1.0)

    with pytest.raises(TrainingError, match=r"loss is nan at step 6 \(epoch 2\)"):
        train(Bomb(), two_classes(), PREPROCESSING, SHORT, seed=0)


def test_train_comes_apart_under_an_absurd_learning_rate() -> None:
    recipe = replace(SHORT, optimiser="sgd", peak_rate=1e30, warmup=0.0)
    with pytest.raises(TrainingError, match="lower learning rate"):
        train(initialise(SMALL, seed=0), two_classes(), PREPROCESSING, recipe, seed=0)


def test_train_refuses_fewer_images_than_a_batch() -> None:
    with pytest.raises(UsageError, match="6 images do not fill one batch of 8"):
        train(initialise(SMALL, seed=0), two_classes(6), PREPROCESSING, SHORT, seed=0)


def test_weight_decay_is_for_weights_only() -> None:
    model = initialise(SMALL, seed=0)
    decayed, spared = make_optimiser(model, SHORT).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == SHORT.weight_decay
    assert spared["weight_decay"] == 0.0
    assert all("bn" not in names[id(p)] and "bias" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_count_correct_counts_beyond_one_batch() -> None:
    """A network that always says class 1 is right on exactly the images of class 1."""

    class Always(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0]]).repeat(len(images), 1)

    split = two_classes(601)
    assert count_correct(Always(), split, PREPROCESSING) == 300
