"""The steps of the ladder, each as something that can be observed.

Whatever a rung is, it shows the network's outputs and as many of its blocks' values as can be seen,
under the same names and with channels in the same order: the training form's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from parnet_deploy.bundle import (
    MODEL_GRAPH,
    EngineBundle,
    EngineManifest,
    EngineStage,
    ModelBundle,
    ModelManifest,
)
from parnet_deploy.errors import EngineError, VerificationError
from parnet_deploy.net import BlockGraph
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner, SplitRunner, StageRunner
from parnet_deploy.runtime.base import ShowsCuts
from parnet_deploy.runtime.outputs import log_probabilities
from parnet_deploy.spec import IMAGES, LOGITS, Array, ParNetSpec, TensorSpec, layout
from parnet_deploy.spec.layout import stored_order
from parnet_deploy.spec.precision import arithmetic
from parnet_deploy.verify.expose import expose
from parnet_deploy.verify.inputs import Batch

HEAD = "head"
LOG_PROBABILITIES = "log-probabilities"

Place = tuple[str | None, str]
"""A stage (None where the network is seen as one), and a block in it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sight:
    """What a rung shows of a batch.

    Attributes:
        outputs: the network's outputs, by name.
        values: blocks' outputs, as many as can be seen.
    """

    outputs: Mapping[str, Array]
    values: Mapping[Place, Array]


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
    """

    stage: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inside: Runner | None = None


class RunnerRung:
    """A runner: of graphs or of an engine, whole or split."""

    def __init__(self, runner: Runner, parts: tuple[Part, ...], spec: ParNetSpec) -> None:
        """Take a runner and its parts; the parts' runners are closed with it."""
        self.runner = runner
        self._parts = parts
        self._orders = training_orders(spec)

    def observe(self, batch: Batch) -> Sight:
        """Run a batch, and every part whose inside can be seen on what that part was given."""
        feeds = {IMAGES: batch.images}
        everything = (
            self.runner.run_all(feeds)
            if isinstance(self.runner, ShowsCuts)
            else self.runner.run(feeds)
        )
        seen: dict[Place, Array] = {}
        for part in self._parts:
            if part.inside is not None:
                given = feeds | everything
                inside = part.inside.run({name: given[name] for name in part.inputs})
                seen |= {(part.stage, name): value for name, value in inside.items()}
            # What really left the part counts, not what its copy gives.
            seen |= {(part.stage, name): everything[name] for name in part.outputs}
        names = [spec.name for spec in self.runner.outputs]
        blocks = {
            place: value[: batch.count]
            for place, value in seen.items()
            if place[1] == LOGITS or place[1] not in names  # probabilities are no block's value
        }
        return Sight(
            outputs=with_logarithms({name: everything[name][: batch.count] for name in names}),
            values=_in_training_order(blocks, self._orders),
        )

    def close(self) -> None:
        """Close the runner and those that show its inside."""
        self.runner.close()
        for part in self._parts:
            if part.inside is not None:
                part.inside.close()


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


def open_whole(bundle: ModelBundle, scratch: Path) -> RunnerRung:
    """The bundle's whole graph in ONNX Runtime, on the CPU.

    Raises:
        EngineError: the graph does not load.
        VerificationError: the graph cannot be read.
    """
    manifest = bundle.manifest
    path = bundle.file(MODEL_GRAPH)
    runner = _as_it_stands(path, inputs=manifest.inputs, outputs=manifest.outputs)
    blocks = tuple(block.name for block in layout(manifest.spec))
    inside = _open_inside(path, blocks, manifest.inputs, manifest, scratch)
    return RunnerRung(runner, (_whole_part(manifest.outputs, inside),), manifest.spec)


def open_stages(bundle: ModelBundle, scratch: Path) -> RunnerRung:
    """The bundle's stages in ONNX Runtime, on the CPU, joined.

    Raises:
        EngineError: a graph does not load.
        VerificationError: a graph cannot be read.
    """
    manifest = bundle.manifest
    runners, parts = [], []
    for stage in manifest.stages:
        path = bundle.file(stage.file)
        runner = _as_it_stands(path, inputs=stage.inputs, outputs=stage.outputs)
        runners.append(StageRunner(name=stage.name, device="cpu", runner=runner))
        folder = scratch / stage.name
        inside = _open_inside(path, stage.blocks, stage.inputs, manifest, folder)
        parts.append(
            Part(
                stage=stage.name,
                inputs=_names(stage.inputs),
                outputs=_names(stage.outputs),
                inside=inside,
            )
        )
    joined = SplitRunner(runners, inputs=manifest.inputs, outputs=manifest.outputs)
    return RunnerRung(joined, tuple(parts), manifest.spec)


def open_engine(
    engine: EngineBundle,
    model: ModelBundle,
    scratch: Path,
    opener: Callable[[EngineBundle], Runner],
) -> RunnerRung:
    """An engine, and where its files are ONNX graphs what they show of their inside.

    Raises:
        EngineError: it cannot run on this machine.
    """
    runner = opener(engine)
    manifest = engine.manifest
    blocks_of = {stage.name: stage.blocks for stage in model.manifest.stages}
    everything = tuple(block.name for block in layout(manifest.spec))
    parts = []
    for stage in manifest.stages:
        blocks = blocks_of.get(stage.name, ()) if manifest.split else everything
        parts.append(
            Part(
                stage=stage.name if manifest.split else None,
                inputs=_names(stage.inputs),
                outputs=_names(stage.outputs),
                inside=_engine_inside(engine, stage, blocks, scratch / stage.name),
            )
        )
    return RunnerRung(runner, tuple(parts), manifest.spec)


def _whole_part(outputs: tuple[TensorSpec, ...], inside: Runner | None) -> Part:
    return Part(stage=None, inputs=(IMAGES,), outputs=_names(outputs), inside=inside)


def _open_inside(
    path: Path,
    blocks: tuple[str, ...],
    inputs: tuple[TensorSpec, ...],
    manifest: ModelManifest,
    scratch: Path,
) -> Runner | None:
    """A graph's copy that gives its blocks' values, on the CPU; None where it has none."""
    copy, found = expose(path, _values_of(blocks, manifest), scratch)
    if not found:
        return None
    outputs = _contracts(found, inputs[0].shape[0], manifest)
    return _as_it_stands(copy, inputs=inputs, outputs=outputs)


def _as_it_stands(
    path: Path, *, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Runner:
    """A graph run operator by operator, as it was written.

    ONNX Runtime's rewrites are what its engines are made of: with them here, too, an engine would
    be compared with itself.
    """
    return OnnxRuntimeRunner(path, inputs=inputs, outputs=outputs, optimise=False)


def _engine_inside(
    engine: EngineBundle, stage: EngineStage, blocks: tuple[str, ...], scratch: Path
) -> Runner | None:
    """What shows an engine's blocks on the engine's own device, where that can be had."""
    manifest = engine.manifest
    if manifest.backend != "onnxruntime":
        return None
    try:
        copy, found = expose(engine.file(stage.file), _values_of(blocks, manifest), scratch)
        if not found:
            return None
        return OnnxRuntimeRunner(
            copy,
            inputs=stage.inputs,
            outputs=_contracts(found, stage.inputs[0].shape[0], manifest),
            provider=manifest.target.get("provider", "cpu"),
            device_id=int(stage.device.partition(":")[2] or 0),
            optimise=False,
        )
    except (EngineError, VerificationError):
        return None  # the engine itself runs: that its inside stays unseen is no fault of it


def _values_of(blocks: Iterable[str], manifest: ModelManifest | EngineManifest) -> dict[str, str]:
    """The types of blocks' values, by the tensors' names."""
    inner = arithmetic(manifest.precision).dtype
    return {
        LOGITS if name == HEAD else name: "float32" if name == HEAD else inner for name in blocks
    }


def _contracts(
    names: Iterable[str], batch: int | str, manifest: ModelManifest | EngineManifest
) -> tuple[TensorSpec, ...]:
    """The contracts of blocks' values."""
    spec = manifest.spec
    blocks = {LOGITS if block.kind == "head" else block.name: block for block in layout(spec)}
    dtypes = _values_of((block.name for block in blocks.values()), manifest)
    specs = []
    for name in names:
        block = blocks[name]
        size = tuple(side // block.scale for side in spec.image_size) if block.scale else ()
        shape = (batch, block.out_channels, *size)
        specs.append(TensorSpec(name=name, shape=shape, dtype=dtypes[name]))
    return tuple(specs)


def _names(specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs)


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
