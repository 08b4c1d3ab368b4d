"""What each layer costs when it alone is quantised."""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.trial import Progress, Trial
from parnet_deploy.spec.quantisation import Quantisation


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """What one layer costs.

    Attributes:
        block: the layer's block.
        alone: the answers where this layer alone is quantised: its weights, what it reads, and
            where the scheme has it, what its convolution gives.
    """

    block: str
    alone: Effect


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """What quantising costs.

    Attributes:
        images: how many it was measured on.
        accuracy: the float32 network's on them, 0 to 1; None where there are no labels.
        whole: the answers where all layers are quantised, but those that are kept anyway.
        layers: each of them alone, in the graph's order.
    """

    images: int
    accuracy: float | None
    whole: Effect
    layers: tuple[LayerCost, ...]


def sensitivity(
    trial: Trial, quantisation: Quantisation, *, progress: Progress = lambda *step: None
) -> Sensitivity:
    """Quantise every layer alone, and all of them together.

    Each is run in a session of its own, which is freed before the next, so that memory does not
    grow with the number of layers.

    Args:
        trial: the network and the images.
        quantisation: of the whole network; blocks that it keeps are left out.
        progress: called behind each run.

    Raises:
        RunnerError: a run failed, or an answer is not finite.
    """
    blocks = trial.blocks
    asked = [block for block in blocks if block not in quantisation.kept]
    whole = trial.effect_of_kept(quantisation, quantisation.kept)
    progress("all layers", 1, len(asked) + 1)
    costs = []
    for number, block in enumerate(asked, 2):
        others = [other for other in blocks if other != block]
        alone = trial.effect_of_kept(quantisation, others)
        costs.append(LayerCost(block=block, alone=alone))
        progress(block, number, len(asked) + 1)
    return Sensitivity(
        images=trial.images.count, accuracy=trial.accuracy, whole=whole, layers=tuple(costs)
    )


def noise(effect: Effect) -> float:
    """Power of the logits' noise, relative to that of the logits; 0 where nothing changed.

    Unlike shares of images it tells layers apart that cost no image its class, and what layers
    cost alone nearly adds up.
    """
    return 0.0 if effect.snr is None else float(10 ** (-effect.snr / 10))


def to_blame(costs: Sensitivity, part: float = 0.5) -> tuple[tuple[str, float], ...]:
    """The fewest layers from which a part of the noise comes.

    Args:
        costs: what was measured.
        part: of the sum of what all layers cost alone.

    Returns:
        Blocks and their shares of that sum, the dearest first; none where nothing changed.
    """
    powers = {cost.block: noise(cost.alone) for cost in costs.layers}
    total = sum(powers.values())
    blamed: list[tuple[str, float]] = []
    for block in sorted(powers, key=lambda name: -powers[name]):
        if not total or sum(share for _, share in blamed) >= part:
            break
        blamed.append((block, powers[block] / total))
    return tuple(blamed)
