"""Small networks and images to quantise them on."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
from conftest import randomise, tiny_spec

from parnet_deploy.export.graph import ExportOptions, float_graph
from parnet_deploy.lowering import observed
from parnet_deploy.net import ParNet, fuse, initialise
from parnet_deploy.quantise.calibrate import calibrate
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.trial import Trial, make_trial
from parnet_deploy.spec import Array, DeployForm, ParNetSpec, Preprocessing
from parnet_deploy.spec.quantisation import Quantisation, Scheme, scheme_of

INT8 = scheme_of("int8", "onnxruntime")
SYMMETRIC = scheme_of("int8", "tensorrt")
FP8 = scheme_of("fp8", "tensorrt")


def scenes(
    spec: ParNetSpec, count: int = 8, seed: int = 0, labels: Array | None = None
) -> CalibrationImages:
    """Images of smooth noise, as the network reads them."""
    rng = np.random.default_rng(seed)
    height, width = spec.image_size
    coarse = rng.integers(0, 256, (count, 3, height // 4, width // 4), dtype=np.uint8)
    fine = rng.integers(0, 64, (count, 3, height, width), dtype=np.uint8)
    values = np.minimum(coarse.repeat(4, axis=2).repeat(4, axis=3), 190) + fine
    return CalibrationImages(
        values=values,
        preprocessing=Preprocessing(size=spec.image_size),
        sha256="0" * 64,
        source=f"{count} scenes",
        labels=labels,
    )


def network(spec: ParNetSpec, seed: int = 0) -> ParNet:
    """In inference mode, its batch normalisations as after training."""
    model = initialise(spec, seed=seed)
    randomise(model, seed)
    return model


def graph_of(model: ParNet, form: DeployForm | None = None) -> gs.Graph:
    """In float32, as `export` has it before it is lowered."""
    form = form or DeployForm(squeeze="gemm")
    options = ExportOptions(
        name="tiny", preprocessing=Preprocessing(size=model.spec.image_size), form=form
    )
    return float_graph(fuse(model, form), options)


@functools.cache
def tiny(activation: str = "silu") -> Trial:
    """The tests' network on eight images. Read only."""
    spec = tiny_spec(activation=activation)
    return make_trial(graph_of(network(spec)), scenes(spec))


def quantised(trial: Trial, scheme: Scheme | None = INT8, method: str = "minmax") -> Quantisation:
    """Ranges of the trial's own images."""
    assert scheme is not None
    names = observed(trial.graph, scheme)
    return calibrate(trial.graph, scheme, trial.images, tensors=names, method=method)  # type: ignore[arg-type]


def labelled(trial: Trial, wrong: int = 0) -> Trial:
    """The same with labels: the network's own answers, but for the first images."""
    labels = trial.expected.argmax(axis=1)
    labels[:wrong] += 1
    labels %= trial.expected.shape[1]
    return replace(trial, images=replace(trial.images, labels=labels))


def weight(graph: gs.Graph, name: str) -> gs.Constant:
    """One of a graph's constants."""
    constant = graph.tensors()[name]
    assert isinstance(constant, gs.Constant)
    return constant
