"""auto_keep: as few layers as possible are left in the base precision to stay within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from parnet_deploy.errors import UsageError
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.sensitivity import Sensitivity, noise
from parnet_deploy.quantise.trial import Progress, Trial
from parnet_deploy.spec.quantisation import Quantisation


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What is kept, and what it comes to.

    Attributes:
        budget: what may be lost, in points of 100.
        labelled: whether the loss is of accuracy; otherwise of top-1 agreement with float32.
        blocks: blocks whose convolution is not quantised, in the graph's order; those that had to
            be kept anyway among them.
        loss: what is lost so, in points; below 0 where there are more right than in float32.
        effect: the answers; None where nothing is left to quantise.
        runs: how often the network was run on all images to find them.
        verdict: what was found, in a sentence.
    """

    budget: float
    labelled: bool
    blocks: tuple[str, ...]
    loss: float
    effect: Effect | None
    runs: int
    verdict: str


def loss_of(effect: Effect, accuracy: float | None) -> float:
    """What is lost, in points of 100.

    Args:
        effect: the quantised network's answers.
        accuracy: the float32 network's, where there are labels: then it is accuracy that is lost,
            otherwise agreement.
    """
    if accuracy is None or effect.accuracy is None:
        return 100 * (1 - effect.agreement)
    return 100 * (accuracy - effect.accuracy)


def auto_keep(
    trial: Trial,
    quantisation: Quantisation,
    costs: Sensitivity,
    budget: float,
    *,
    progress: Progress = lambda *step: None,
) -> Kept:
    """Find layers to keep so that no more than a budget is lost.

    The layers that cost most alone are kept first. How many of them it takes is found by halving,
    and then each of these is tried to be given back, the cheapest first. So none of the kept
    layers can be quantised, too, within the budget. That there is no smaller set at all is not
    proven: that would take a run for every set.

    Args:
        trial: the network, and the images on which it is judged.
        quantisation: of the whole network, with a quantiser for every tensor. Blocks that it keeps
            stay kept.
        costs: what `sensitivity` found of it.
        budget: what may be lost, in points of 100: of accuracy where the trial has labels,
            otherwise of top-1 agreement with float32.
        progress: called behind each run.

    Raises:
        UsageError: the budget is below 0 or no number.
        RunnerError: a run failed, or an answer is not finite.
    """
    check_budget(budget)
    search = _Search(trial=trial, quantisation=quantisation, budget=budget, progress=progress)
    dearest = sorted(costs.layers, key=lambda cost: -noise(cost.alone))
    blocks = [cost.block for cost in dearest]
    search.known[frozenset()] = costs.whole
    fewest = _fewest(search, blocks)
    return search.result(_given_back(search, blocks[:fewest]))


def check_budget(budget: float | None) -> None:
    """Refuse what is no budget; None, which asks for nothing, is fine.

    Raises:
        UsageError: it is below 0 or no number.
    """
    if budget is not None and not 0 <= budget < float("inf"):  # so written, NaN is refused, too
        raise UsageError(f"a budget is a number of points from 0 on, not {budget}")


def _fewest(search: _Search, blocks: Sequence[str]) -> int:
    """How many of the first blocks it takes; with all of them nothing is quantised."""
    if search.suffices(()):
        return 0
    too_few, enough = 0, len(blocks)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if search.suffices(blocks[:middle]):
            enough = middle
        else:
            too_few = middle
    return enough


def _given_back(search: _Search, blocks: Sequence[str]) -> list[str]:
    """Without those that need not be kept: the last first, until none of the others can go."""
    kept = list(blocks)
    while True:
        before = list(kept)
        for block in reversed(before):
            fewer = [other for other in kept if other != block]
            if search.suffices(fewer):
                kept = fewer
        if kept == before:
            return kept


@dataclass(kw_only=True)
class _Search:
    """Runs the network with some blocks kept, once each."""

    trial: Trial
    quantisation: Quantisation
    budget: float
    progress: Progress
    known: dict[frozenset[str], Effect] = field(default_factory=dict)
    runs: int = 0

    def suffices(self, kept: Sequence[str]) -> bool:
        """Whether no more than the budget is lost with these blocks kept."""
        return loss_of(self._effect(kept), self.trial.accuracy) <= self.budget + 1e-9

    def result(self, kept: Sequence[str]) -> Kept:
        trial = self.trial
        all_kept = {*kept, *self.quantisation.kept}
        nothing = all_kept.issuperset(trial.blocks)
        effect = None if nothing else self._effect(kept)
        loss = 0.0 if effect is None else loss_of(effect, trial.accuracy)
        blocks = tuple(block for block in trial.blocks if block in all_kept)
        return Kept(
            budget=self.budget,
            labelled=trial.accuracy is not None,
            blocks=blocks,
            loss=loss,
            effect=effect,
            runs=self.runs,
            verdict=self._verdict(blocks, loss, nothing=nothing),
        )

    def _effect(self, kept: Sequence[str]) -> Effect:
        key = frozenset(kept)
        if key not in self.known:
            both = {*kept, *self.quantisation.kept}
            in_order = [block for block in self.trial.blocks if block in both]
            self.known[key] = self.trial.effect_of_kept(self.quantisation, in_order)
            self.runs += 1
            loss = loss_of(self.known[key], self.trial.accuracy)
            self.progress(
                f"{len(in_order)} layers kept: {loss:.2f} points lost", self.runs, self.runs
            )
        return self.known[key]

    def _verdict(self, blocks: Sequence[str], loss: float, *, nothing: bool) -> str:
        trial, base = self.trial, self.quantisation.scheme.base
        what = "top-1 agreement" if trial.accuracy is None else "accuracy"
        allowed = f"{self.budget:g} points of {what}"
        step = 100 / trial.images.count
        coarse = (
            f"; on {trial.images.count} images one counts {step:.2g} points, so not one may be lost"
            if self.budget < step
            else ""
        )
        if nothing:
            return (
                f"no layer can be quantised within {allowed}: all {len(trial.blocks)} are kept in "
                f"{base}, so that nothing is quantised{coarse}"
            )
        verb = "is" if len(blocks) == 1 else "are"
        kept = f"{len(blocks)} of {len(trial.blocks)} layers {verb} kept in {base}"
        which = f" ({', '.join(blocks)})" if blocks else ""
        return (
            f"{kept}{which}: {loss:.2f} points of {what} are lost, {self.budget:g} may be{coarse}"
        )
