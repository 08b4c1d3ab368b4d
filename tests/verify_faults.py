"""Faults that `verify` must find, planted into good bundles and sealed again.

Sealed again, so that it is the ladder that finds them, and not the hashes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from conftest import export_tiny, tiny_network
from safetensors.numpy import load_file, save_file

from parnet_deploy.bundle import (
    CHECKPOINT,
    MANIFEST,
    MANIFEST_SUM,
    MODEL_GRAPH,
    WEIGHTS,
    EngineBundle,
    ModelBundle,
    ModelReference,
    open_engine_bundle,
    open_model,
    seal,
)
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.export import ExportOptions, whole_graph
from parnet_deploy.export.model import write_graphs
from parnet_deploy.net import ParNet, fuse, load_checkpoint, save_checkpoint

Weights = dict[str, np.ndarray]


def build(model: ModelBundle, final: Path, *, split: bool) -> EngineBundle:
    """An ONNX Runtime engine."""
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=split)
    return build_engine(model, final, builder, split=split)


def copy_model(model: ModelBundle, final: Path) -> ModelBundle:
    """A model bundle's copy, to be damaged."""
    shutil.copytree(model.path, final)
    return open_model(final)


def reseal_model(path: Path) -> ModelBundle:
    """Write a changed model bundle's manifest anew."""
    manifest = open_model(path, check=False).manifest
    _unseal(path)
    seal(path, manifest)
    return open_model(path)


def reseal_engine(path: Path, **changes: Any) -> EngineBundle:
    """Write a changed engine bundle's manifest anew, some of its fields changed."""
    manifest = replace(open_engine_bundle(path, check=False).manifest, **changes)
    _unseal(path)
    seal(path, manifest)
    return open_engine_bundle(path)


def claim(path: Path, model: ModelBundle) -> EngineBundle:
    """Let an engine say that it was built from `model`."""
    reference = ModelReference(
        name=model.manifest.name,
        manifest_sha256=model.manifest_sha256,
        path=os.path.relpath(model.path, path),
    )
    return reseal_engine(path, model=reference)


def _unseal(path: Path) -> None:
    (path / MANIFEST).unlink()
    (path / MANIFEST_SUM).unlink()


def change_weights(path: Path, change: Callable[[Weights], None]) -> ModelBundle:
    """Change the weights that all graphs of a model bundle share, where they lie."""
    file = path / WEIGHTS
    size = file.stat().st_size
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "onnx-external-data"})
    assert file.stat().st_size == size, "graphs point into this file by offset"
    return reseal_model(path)


def replace_graphs(path: Path, network: ParNet) -> ModelBundle:
    """Give a model bundle the graphs of another network of the same architecture."""
    manifest = open_model(path).manifest
    options = ExportOptions(
        name=manifest.name,
        preprocessing=manifest.preprocessing,
        batch=manifest.batch,
        stem=manifest.stem,
        softmax=manifest.softmax,
        form=manifest.form,
        opset=manifest.opset,
    )
    shutil.rmtree(path / "stages")
    (path / MODEL_GRAPH).unlink()
    write_graphs(path, whole_graph(fuse(network, manifest.form), options), manifest)
    return reseal_model(path)


def wrong_eps(path: Path) -> ModelBundle:
    """The graphs were folded with 1e-3 where the network has 1e-5."""
    network = load_checkpoint(path / CHECKPOINT).model
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    return replace_graphs(path, network)


def swapped_streams(path: Path) -> ModelBundle:
    """The graphs have the weights of streams 2 and 3 exchanged; both are of the same shape."""
    network = load_checkpoint(path / CHECKPOINT).model
    state = {key: value.clone() for key, value in network.state_dict().items()}
    other = {"stream2": "stream3", "stream3": "stream2"}
    swapped = {}
    for key, value in state.items():
        stream = key.removeprefix("blocks.").partition("_")[0]
        swapped[key.replace(stream, other[stream], 1) if stream in other else key] = value
    network.load_state_dict(swapped)
    return replace_graphs(path, network)


def other_checkpoint(path: Path) -> ModelBundle:
    """The graphs have the weights of another checkpoint."""
    spec = open_model(path).manifest.spec
    return replace_graphs(path, tiny_network(seed=1, stream_widths=spec.stream_widths))


def zeroed_channel(block: str) -> Callable[[Path], ModelBundle]:
    """One input channel of one kernel of a block's convolution is zero."""

    def plant(path: Path) -> ModelBundle:
        def change(weights: Weights) -> None:
            kernel = weights[f"{block}.conv.weight"]
            strongest = np.unravel_index(np.abs(kernel).sum((2, 3)).argmax(), kernel.shape[:2])
            kernel[strongest] = 0

        return change_weights(path, change)

    return plant


def non_finite(value: float) -> Callable[[Path], ModelBundle]:
    """One weight of one block is not finite."""

    def plant(path: Path) -> ModelBundle:
        def change(weights: Weights) -> None:
            weights["stream2_block2.conv.weight"][1, 2, 0, 1] = value

        return change_weights(path, change)

    return plant


def non_finite_checkpoint(path: Path) -> ModelBundle:
    """One weight of the checkpoint itself is not finite."""
    network = load_checkpoint(path / CHECKPOINT).model
    network.state_dict()["blocks.stream3_block1.dense.conv.weight"][0, 0, 0, 0] = float("nan")
    save_checkpoint(network, path / CHECKPOINT)
    return reseal_model(path)


def old_stage(stage: str, older: ModelBundle) -> Callable[[Path], ModelBundle]:
    """One stage's graph is an older bundle's, its weights in it."""

    def plant(path: Path) -> ModelBundle:
        graph = onnx.load(older.path / "stages" / f"{stage}.onnx")
        onnx.save(graph, path / "stages" / f"{stage}.onnx")
        return reseal_model(path)

    return plant


def old_engine_stage(engine: EngineBundle, older: EngineBundle, stage: str) -> EngineBundle:
    """One stage of a split engine is an older one's."""
    for name in older.manifest.files:
        if Path(name).stem == stage:
            shutil.copyfile(older.path / name, engine.path / name)
    return reseal_engine(engine.path)


def export_even(final: Path, seed: int = 0) -> ModelBundle:
    """A tiny model whose streams 2 and 3 are of the same shape, so that they can be swapped."""
    return export_tiny(final, seed=seed, changes={"stream_widths": (8, 16, 16)})
