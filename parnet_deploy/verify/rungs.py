"""The steps of the ladder, each as something that can be observed.

Whatever a rung is, it shows the network's outputs and as many of its blocks' values as can be seen,
under the same names and with channels in the same order: the training form's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from parnet_deploy.bundle import EngineManifest, ModelManifest
from parnet_deploy.net import BlockGraph
from parnet_deploy.runtime import Runner
from parnet_deploy.runtime.base import ShowsCuts
from parnet_deploy.runtime.outputs import log_probabilities
from parnet_deploy.spec import IMAGES, LOGITS, Array, ParNetSpec, layout
from parnet_deploy.spec.layout import stored_order
from parnet_deploy.verify.expose import GIVEN
from parnet_deploy.verify.inputs import Batch
from parnet_deploy.verify.values import real

HEAD = "head"
LOG_PROBABILITIES = "log-probabilities"

Place = tuple[str | None, str]
"""A stage (None where the network is seen as one), and a block in it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sight:
    """What a rung shows of a batch.

    Attributes:
        outputs: the network's outputs, by name.
        values: blocks' outputs, as many as can be seen, dequantised where they are quantised.
        alone: of a quantised engine, what the model's graph makes block by block of the engine's
            own values before each.
    """

    outputs: Mapping[str, Array]
    values: Mapping[Place, Array]
    alone: Mapping[Place, Array] = field(default_factory=dict)


class Rung(Protocol):
    """A form of the network that can be run and looked into."""

    def observe(self, batch: Batch) -> Sight:
        """Run a batch; rows that only fill it up are left out.

        Raises:
            RunnerError: the run failed.
        """
        ...

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        ...


class TorchRung:
    """A network in torch, in the dtype that it has."""

    def __init__(self, model: BlockGraph, *, output: str, deploy: bool) -> None:
        """Take a network, the name of the output it is to give, and whether it is a deploy form."""
        self._model: BlockGraph | None = model
        self._dtype = next(model.parameters()).dtype
        self._output = output
        self._orders = training_orders(model.spec) if deploy else {}

    def observe(self, batch: Batch) -> Sight:
        """Run a batch."""
        if self._model is None:
            raise ValueError("this rung is closed")
        with torch.inference_mode():
            values = self._model.values(torch.from_numpy(batch.normalised).to(self._dtype))
            logits = values[LOGITS]
            output = logits if self._output == LOGITS else logits.softmax(1)
        seen: dict[Place, Array] = {
            (None, name): value.numpy()[: batch.count] for name, value in values.items()
        }
        return Sight(
            outputs=with_logarithms({self._output: output.numpy()[: batch.count]}),
            values=_in_training_order(seen, self._orders),
        )

    def close(self) -> None:
        """Let go of the network."""
        self._model = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """A part of what a runner runs, and what shows its inside.

    Attributes:
        stage: its stage, or None for the whole network.
        inputs: names of what it reads.
        outputs: names of what it gives.
        inside: a runner of the same part that gives its blocks' values, or None.
        alone: a runner of the model's graph of this part that reads blocks' values from outside
            (as ``NAME.given``) and gives what it makes of them, or None.
    """

    stage: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inside: Runner | None = None
    alone: Runner | None = None


class RunnerRung:
    """A runner: of graphs or of an engine, whole or split."""

    def __init__(
        self, runner: Runner, parts: tuple[Part, ...], manifest: ModelManifest | EngineManifest
    ) -> None:
        """Take a runner, its parts and what says how its values are quantised.

        The parts' runners are closed with it.
        """
        self.runner = runner
        self._parts = parts
        self._manifest = manifest
        self._orders = training_orders(manifest.spec)

    def observe(self, batch: Batch) -> Sight:
        """Run a batch, and every part whose inside can be seen on what that part was given."""
        feeds = {IMAGES: batch.images}
        everything = (
            self.runner.run_all(feeds)
            if isinstance(self.runner, ShowsCuts)
            else self.runner.run(feeds)
        )
        seen: dict[Place, Array] = {}
        alone: dict[Place, Array] = {}
        for part in self._parts:
            given = feeds | everything
            shown: dict[str, Array] = {}
            if part.inside is not None:
                shown = part.inside.run({name: given[name] for name in part.inputs})
            # What really left the part counts, not what its copy gives.
            shown |= {name: everything[name] for name in part.outputs}
            seen |= {(part.stage, name): value for name, value in shown.items()}
            if part.alone is not None:
                made = _run_alone(part.alone, given, shown)
                alone |= {(part.stage, name): value for name, value in made.items()}
        names = [spec.name for spec in self.runner.outputs]
        return Sight(
            outputs=with_logarithms({name: everything[name][: batch.count] for name in names}),
            values=self._blocks(seen, names, batch.count),
            alone=self._blocks(alone, names, batch.count),
        )

    def close(self) -> None:
        """Close the runner and those that show its inside."""
        self.runner.close()
        for part in self._parts:
            for runner in (part.inside, part.alone):
                if runner is not None:
                    runner.close()

    def _blocks(
        self, seen: Mapping[Place, Array], outputs: list[str], count: int
    ) -> dict[Place, Array]:
        """What is a block's value, as the numbers that it stands for."""
        blocks = {
            place: real(place[1], value[:count], self._manifest)
            for place, value in seen.items()
            if place[1] == LOGITS or place[1] not in outputs  # probabilities are no block's value
        }
        return _in_training_order(blocks, self._orders)


def _run_alone(
    runner: Runner, given: Mapping[str, Array], shown: Mapping[str, Array]
) -> dict[str, Array]:
    """Run a graph in which every block reads what the engine gave it."""
    feeds = {}
    for spec in runner.inputs:
        name = spec.name.removesuffix(GIVEN)
        value = shown[name] if name != spec.name else given[name]
        feeds[spec.name] = value.astype(np.dtype(spec.dtype), copy=False)
    return runner.run(feeds)


def training_orders(spec: ParNetSpec) -> dict[str, list[int]]:
    """Of every block that the deploy form stores otherwise, the order that restores it."""
    orders = {block.name: stored_order(block) for block in layout(spec)}
    return {name: list(order) for name, order in orders.items() if order is not None}


def with_logarithms(outputs: dict[str, Array]) -> dict[str, Array]:
    """Outputs, and beside probabilities their logarithms."""
    result = dict(outputs)
    for name, value in outputs.items():
        if name != LOGITS:
            result[LOG_PROBABILITIES] = log_probabilities(value)
    return result


def _in_training_order(
    values: Mapping[Place, Array], orders: Mapping[str, list[int]]
) -> dict[Place, Array]:
    """Values under their blocks' names, with channels as the training form has them."""

    def ordered(name: str, value: Array) -> Array:
        order = orders.get(name)
        if order is None or value.ndim < 2 or value.shape[1] != len(order):
            return value  # a misshapen one is left as it is: the comparison tells of it
        reordered: Array = value[:, order]
        return reordered

    return {
        (stage, HEAD if name == LOGITS else name): ordered(name, value)
        for (stage, name), value in values.items()
    }
