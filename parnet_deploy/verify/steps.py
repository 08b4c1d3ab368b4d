"""Blocks of a quantised engine, each by itself, in steps of its quantiser.

Two right implementations round a value that lies between two steps to either of them, ONNX
Runtime's fused kernels among others. That is one step in a few values of a thousand, and is
measured so: the root mean square over a channel. A channel that is wrong is so in most values.

What was measured of ONNX Runtime's engines (the tests' network on noise and images, one trained
digits network on images): 0 to 0.13 steps, and 0.3 where its kernel for uint8 with int8 saturates,
as it may on a CPU without VNNI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from parnet_deploy.bundle import EngineManifest
from parnet_deploy.spec import IMAGES, LOGITS, Array, BlockSpec
from parnet_deploy.spec.learned import convolved
from parnet_deploy.spec.precision import ROUNDINGS, arithmetic
from parnet_deploy.verify.compare import find_problem
from parnet_deploy.verify.result import StepError
from parnet_deploy.verify.rungs import HEAD, Place
from parnet_deploy.verify.tolerances import FLOAT32
from parnet_deploy.verify.values import step_of

STEP = 1.0
"""Root mean square, in steps, that a channel may differ by; for every block that was computed
since values were last the engine's own."""


@dataclass(slots=True, eq=False)
class _Sums:
    """What is known of one block so far: by channel, but for the last two."""

    squares: Array
    count: int
    greatest: float
    scale: float
    broken: bool = False


class StepErrors:
    """Gathers blocks' differences, batch by batch; the values themselves are not kept."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: dict[Place, _Sums] = {}

    def add(self, expected: Mapping[Place, Array], actual: Mapping[Place, Array]) -> None:
        """Compare every value that both sides show, (N, C, ...) each."""
        for place, want in expected.items():
            if place not in actual:
                continue
            got = actual[place]
            channels = want.shape[1] if want.ndim > 1 else 1
            empty = _Sums(squares=np.zeros(channels), count=0, greatest=0.0, scale=0.0)
            sums = self._sums.setdefault(place, empty)
            if find_problem(want, got) is not None:
                sums.broken = True
                continue
            error = np.subtract(got, want, dtype=np.float64)
            axes = (0, *range(2, error.ndim))
            sums.squares += (error * error).sum(axis=axes)
            sums.count += error.size // channels
            sums.greatest = max(sums.greatest, float(np.abs(error).max()))
            sums.scale = max(sums.scale, float(np.abs(want).max()))

    def result(
        self, blocks: Iterable[BlockSpec], manifest: EngineManifest
    ) -> tuple[StepError, ...]:
        """All blocks seen: stage by stage, in the order in which they are computed.

        Args:
            blocks: the network's layout.
            manifest: of the engine.
        """
        known = {block.name: block for block in blocks}
        order = {name: index for index, name in enumerate(known)}
        stages = list(dict.fromkeys(stage for stage, _ in self._sums))
        places = sorted(self._sums, key=lambda p: (stages.index(p[0]), order.get(p[1], -1)))
        names = {block for _, block in places}
        return tuple(
            _error(place, self._sums[place], manifest, _computed(place[1], known, names))
            for place in places
        )


def too_far(error: StepError) -> bool:
    """Whether a block by itself is not what the graph makes of the same values."""
    return error.steps is None or not error.steps <= error.allowed


def _error(place: Place, sums: _Sums, manifest: EngineManifest, blocks: int) -> StepError:
    stage, block = place
    allowed = STEP * blocks
    if sums.broken or not sums.count:
        return StepError(stage=stage, block=block, steps=None, allowed=allowed, greatest=None)
    unit = _unit(block, manifest, sums.scale)
    root = float(np.sqrt(sums.squares.max() / sums.count))
    if root == 0.0:
        return StepError(stage=stage, block=block, steps=0.0, allowed=allowed, greatest=0.0)
    return StepError(
        stage=stage,
        block=block,
        steps=root / unit if unit > 0 else np.inf,
        allowed=allowed,
        greatest=sums.greatest / unit if unit > 0 else np.inf,
    )


def _unit(block: str, manifest: EngineManifest, scale: float) -> float:
    """A step: the greater one of the block's value and of its convolution's output.

    Where neither is quantised, what floats are allowed: the base's roundings in a block.
    """
    name = LOGITS if block == HEAD else block
    steps = [step_of(name, manifest), step_of(convolved(name), manifest)]
    known = [step for step in steps if step is not None]
    if known:
        return max(known)
    return scale * max(FLOAT32, ROUNDINGS * arithmetic(manifest.base).roundoff)


def _computed(block: str, blocks: Mapping[str, BlockSpec], seen: set[str]) -> int:
    """How many blocks were computed, one after the other, since values were the engine's own."""
    before = [name for name in blocks[block].inputs if name != IMAGES and name not in seen]
    return 1 + max((_computed(name, blocks, seen) for name in before), default=0)
