"""auto_keep: within the budget, none too many, and honest where it cannot be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantised import INT8, labelled, quantised, tiny

from parnet_deploy.errors import UsageError
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.keep import Kept, auto_keep, loss_of
from parnet_deploy.quantise.sensitivity import LayerCost, Sensitivity, sensitivity
from parnet_deploy.spec.quantisation import Calibration, Quantisation

FULL = Quantisation(
    scheme=INT8,  # type: ignore[arg-type]
    calibration=Calibration(method="minmax", images=1, sha256="", source=""),
    tensors={},
)


@dataclass
class Additive:
    """A network whose layers each lose so many points, whatever the others do."""

    losses: Sequence[float]
    right: float | None = None
    runs: list[tuple[str, ...]] = field(default_factory=list)
    images: Any = field(default_factory=lambda: SimpleNamespace(count=1000))

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"b{n}" for n in range(len(self.losses)))

    @property
    def accuracy(self) -> float | None:
        return self.right

    def effect_of_kept(self, quantisation: Quantisation, kept: Sequence[str]) -> Effect:
        self.runs.append(tuple(kept))
        names = dict(zip(self.blocks, self.losses, strict=True))
        lost = sum(loss for name, loss in names.items() if name not in kept) / 100
        accuracy = None if self.right is None else self.right - lost
        agreement = 1.0 if self.right is not None else 1 - lost
        return Effect(agreement=agreement, relative=lost, snr=-lost, accuracy=accuracy)

    def costs(self, kept: Sequence[str] = ()) -> Sensitivity:
        alone = [
            Effect(agreement=1.0, relative=loss, snr=40 - loss if loss else None, accuracy=None)
            for loss in self.losses
        ]
        layers = tuple(
            LayerCost(block=block, alone=effect)
            for block, effect in zip(self.blocks, alone, strict=True)
            if block not in kept
        )
        whole = self.effect_of_kept(FULL, kept)
        return Sensitivity(images=1000, accuracy=self.right, whole=whole, layers=layers)

    def keep(self, budget: float, kept: tuple[str, ...] = ()) -> Kept:
        quantisation = replace(FULL, kept=kept)
        return auto_keep(self, quantisation, self.costs(kept), budget)  # type: ignore[arg-type]


losses = st.lists(st.integers(0, 40).map(lambda n: n / 8), min_size=1, max_size=7)
rights = st.none() | st.just(0.9)


@given(losses, st.integers(0, 100).map(lambda n: n / 8), rights)
def test_no_smaller_set_would_do(lost: list[float], budget: float, right: float | None) -> None:
    network = Additive(lost, right)
    found = network.keep(budget)
    kept = [int(block[1:]) for block in found.blocks]
    assert kept == sorted(kept)
    assert found.loss <= budget + 1e-6
    assert found.loss == pytest.approx(sum(lost) - sum(lost[n] for n in kept))
    fewer = itertools.combinations(lost, max(len(kept) - 1, 0))
    assert not kept or all(sum(lost) - sum(kept_losses) > budget for kept_losses in fewer)
    assert (found.effect is None) == (len(kept) == len(lost))
    assert found.labelled == (right is not None)
    assert network.keep(budget) == found
    assert found.runs == len(set(network.runs)) - 1  # all of them quantised was known
    assert found.runs <= len(lost) + 4


@given(losses, st.sets(st.integers(0, 6), min_size=1))
def test_what_is_to_be_kept_anyway_is(lost: list[float], numbers: set[int]) -> None:
    anyway = tuple(f"b{n}" for n in sorted({n % len(lost) for n in numbers}))
    found = Additive(lost).keep(1.0, anyway)
    assert {*anyway} <= {*found.blocks}
    assert Additive(lost).keep(100.0, anyway).blocks == anyway


def test_layers_that_were_kept_for_others_are_given_back() -> None:
    """The dearest alone is not always the one that helps."""

    class Together(Additive):
        def effect_of_kept(self, quantisation: Quantisation, kept: Sequence[str]) -> Effect:
            found = super().effect_of_kept(quantisation, kept)
            return replace(found, agreement=1.0 if "b1" in kept else 0.5)

    assert Together([3.0, 2.0, 1.0]).keep(0.5).blocks == ("b1",)


def test_it_says_when_nothing_can_be_quantised() -> None:
    found = Additive([5.0, 5.0]).keep(0.5)
    assert found.effect is None
    assert found.verdict == (
        "no layer can be quantised within 0.5 points of top-1 agreement: all 2 are kept in fp32, "
        "so that nothing is quantised"
    )


def test_it_says_what_it_found() -> None:
    found = Additive([3.0, 0.25, 0.0], right=0.9).keep(0.5)
    assert found.verdict == (
        "1 of 3 layers is kept in fp32 (b0): 0.25 points of accuracy are lost, 0.5 may be"
    )
    few = Additive([3.0, 0.0], images=SimpleNamespace(count=8)).keep(0.5)
    assert few.verdict.endswith("; on 8 images one counts 12 points, so not one may be lost")


@pytest.mark.parametrize("budget", [-0.1, float("nan"), float("inf")])
def test_what_is_no_budget_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="a budget is a number of points from 0 on"):
        Additive([1.0]).keep(budget)


def test_a_loss_is_of_accuracy_where_there_are_labels() -> None:
    effect = Effect(agreement=0.75, relative=0.1, snr=3.0, accuracy=0.7)
    assert loss_of(effect, 0.9) == pytest.approx(20)
    assert loss_of(effect, None) == pytest.approx(25)


def test_a_real_network_is_brought_within_its_budget() -> None:
    """So coarse that images change their class: a scale is 24 times what it should be."""
    trial = labelled(tiny())
    right = quantised(trial)
    coarse = replace(
        right,
        tensors={
            name: replace(how, scale=24 * how.scale, zero_point=how.zero_point // 24)
            if name.startswith(("stem", "stream"))
            else how
            for name, how in right.tensors.items()
        },
    )
    costs = sensitivity(trial, coarse)
    assert loss_of(costs.whole, trial.accuracy) > 20
    found = auto_keep(trial, coarse, costs, 0.0)
    assert found.loss <= 0
    assert found.effect is not None
    assert 0 < len(found.blocks) < len(trial.blocks)
    for block in found.blocks:
        fewer = [other for other in found.blocks if other != block]
        assert loss_of(trial.effect_of_kept(coarse, fewer), trial.accuracy) > 0
    assert auto_keep(trial, right, sensitivity(trial, right), 50.0).blocks == ()
