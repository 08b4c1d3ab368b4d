"""A network trained to be quantised computes what its exported int8 graph computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import randomise, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FORMS, SHAPES, specs
from torch import Tensor, nn
from torch.nn import functional

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import SpecError
from parnet_deploy.export import ExportOptions
from parnet_deploy.export.graph import float_graph
from parnet_deploy.export.model import export_onnx
from parnet_deploy.lowering import emulate, layers, lower, observed
from parnet_deploy.net import ParNet, folds, fuse, initialise
from parnet_deploy.spec import (
    IMAGES,
    LOGITS,
    PREPROCESSED,
    Array,
    DeployForm,
    ParNetSpec,
    Preprocessing,
)
from parnet_deploy.spec.learned import quantisable_tensors, quantisation_of
from parnet_deploy.spec.quantisation import Calibration, QuantisedType, Scheme, scheme_of
from parnet_deploy.train.qat import network as qat_network
from parnet_deploy.train.qat import ranges as qat_ranges
from parnet_deploy.train.qat import rounding
from parnet_deploy.train.qat.network import FakeQuantisedParNet
from parnet_deploy.train.qat.rounding import fake_quantise, fake_quantise_kernel, kernel_scale

CALIBRATION = Calibration(method="qat", images=2, sha256="0" * 64, source="noise")

TENSORRT = scheme_of("int8", "tensorrt")
ONNX_RUNTIME = scheme_of("int8", "onnxruntime")
FP8 = scheme_of("fp8", "tensorrt")
assert TENSORRT is not None
assert ONNX_RUNTIME is not None
assert FP8 is not None

Fault = Callable[[pytest.MonkeyPatch, Scheme], None]

# What is between in float32, as the training computes it: then only sums differ.
EXACT = [replace(scheme, base="fp32") for scheme in (TENSORRT, ONNX_RUNTIME, FP8)]


def images(spec: ParNetSpec, count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *spec.image_size, generator=generator)


def quantised(model: ParNet, scheme: Scheme, shown: Tensor | None = None) -> FakeQuantisedParNet:
    """The network with ranges of some images, in inference mode."""
    result = FakeQuantisedParNet(model, scheme)
    result.ranges.train()
    with torch.no_grad():
        result(images(model.spec) if shown is None else shown)
    return result.eval()


def deployed(network: FakeQuantisedParNet, form: DeployForm | None = None) -> Callable[..., Array]:
    """The quantised graph of a network, in ONNX Runtime as it stands: images -> logits."""
    spec = network.network.spec
    options = ExportOptions(
        name="qat",
        preprocessing=Preprocessing(size=spec.image_size),
        form=form or DeployForm(),
        batch=BatchRange(min=1, opt=2, max=4),
    )
    graph = float_graph(fuse(network.network, options.form), options)
    scheme = network.scheme
    precision = "fp8" if scheme == EXACT[2] else "int8"
    names = observed(graph, scheme)
    found = quantisation_of(network.learned(CALIBRATION), scheme, names)
    lowered = lower(graph, precision, first=IMAGES, last=LOGITS, quantisation=found)
    model = export_onnx(lowered)
    return run(emulate(model) if precision == "fp8" else model)


def session_options() -> Any:
    """The graph as it stands, in one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return options


def run(model: Any) -> Callable[..., Array]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )

    def call(shown: Tensor) -> Array:
        logits: Array = session.run(None, {IMAGES: shown.numpy()})[0]
        return logits

    return call


def apart(logits: Tensor, others: Array) -> float:
    """Greatest difference of each image's logits, in parts of the greatest logit: the median."""
    found = np.abs(logits.detach().numpy() - others).max(1) / np.abs(others).max()
    return float(np.median(found))


SAME = 1e-5
"""Sums in another order. Now and then one takes a value over the edge between two steps, which
shows in all that comes after: hence medians over images."""


# -- the same as the exported graph


@pytest.mark.parametrize("scheme", EXACT, ids=["tensorrt", "onnxruntime", "fp8"])
@pytest.mark.parametrize("form", [FORMS[0], FORMS[6], FORMS[-1]], ids=str)
def test_the_logits_are_those_of_the_exported_graph(scheme: Scheme, form: DeployForm) -> None:
    model = tiny_network(1)
    network = quantised(model, scheme)
    shown = images(model.spec, 4, seed=1)
    with torch.no_grad():
        logits = network(shown)
        exact = model(shown)
    assert apart(logits, deployed(network, form)(shown)) < SAME
    assert apart(logits, exact.numpy()) > 100 * SAME  # it is quantised at all


@settings(max_examples=12)
@given(spec=specs(), scheme=st.sampled_from(EXACT), seed=st.integers(0, 99))
def test_any_networks_logits_are_those_of_the_exported_graph(
    spec: ParNetSpec, scheme: Scheme, seed: int
) -> None:
    model = randomise(initialise(spec, seed=seed), seed).eval()
    assert isinstance(model, ParNet)
    network = quantised(model, scheme)
    shown = images(spec, 4, seed=1)
    with torch.no_grad():
        logits = network(shown)
    assert apart(logits, deployed(network)(shown)) < SAME


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("preprocess", [False, True])
def test_what_is_quantised_is_what_the_graph_needs(name: str, preprocess: bool) -> None:
    spec = SHAPES[name]
    options = ExportOptions(
        name="qat", preprocessing=Preprocessing(size=spec.image_size, in_graph=preprocess)
    )
    graph = float_graph(fuse(initialise(spec, seed=0), options.form), options)
    blocks = [layer.block for layer in layers(graph)]
    for scheme in EXACT:
        for kept in ((), blocks[::2], blocks[1::3]):
            read = observed(graph, scheme, kept)
            names = [IMAGES if name == PREPROCESSED else name for name in read]
            assert sorted(names) == sorted(quantisable_tensors(spec, scheme, kept))
            assert set(names) <= set(quantisable_tensors(spec))


def test_with_a_base_of_fp16_scales_are_numbers_of_fp16() -> None:
    assert TENSORRT is not None
    assert TENSORRT.base == "fp16"
    weight = torch.randn(4, 3, 3, 3)
    scale = kernel_scale(weight, TENSORRT)
    assert torch.equal(scale, scale.half().float())
    assert not torch.equal(kernel_scale(weight, EXACT[0]), scale)
    network = quantised(tiny_network(), TENSORRT)
    found, _ = network.ranges._quantiser(0)
    assert torch.equal(found, found.half().float())


# -- seeded faults: what would not be the deployed network


def quantise_then_fold(patch: pytest.MonkeyPatch, scheme: Scheme) -> None:
    """Each branch's kernel is quantised by itself, and what comes out is folded."""

    def quantised_branch(weight: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        kernel, bias = folds.fold_conv_bn(weight, bn)
        return fake_quantise_kernel(kernel.float(), scheme).double(), bias

    patch.setattr(sys.modules["parnet_deploy.net.fuse"], "fold_conv_bn", quantised_branch)
    patch.setattr(qat_network, "fake_quantise_kernel", lambda weight, scheme: weight)


def kernel_scales(change: Callable[[Tensor], Tensor]) -> Fault:
    def fault(patch: pytest.MonkeyPatch, scheme: Scheme) -> None:
        def changed(weight: Tensor, scheme: Scheme) -> Tensor:
            return change(kernel_scale(weight, scheme))

        patch.setattr(rounding, "kernel_scale", changed)

    return fault


def activations(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Fault:
    def fault(patch: pytest.MonkeyPatch, scheme: Scheme) -> None:
        def changed(x: Tensor, scale: Tensor, zero: Tensor, kind: QuantisedType) -> Tensor:
            return fake_quantise(x, *change(scale, zero), kind)

        patch.setattr(qat_ranges, "fake_quantise", changed)

    return fault


def unquantised(name: str) -> Fault:
    def fault(patch: pytest.MonkeyPatch, scheme: Scheme) -> None:
        patch.setattr(qat_network, name, lambda block: "nothing")

    return fault


FAULTS: dict[str, Fault] = {
    "the fold after the fake quantisers": quantise_then_fold,
    "a kernel's scale off by two": kernel_scales(lambda scale: 2 * scale),
    "one scale for all channels": kernel_scales(
        lambda scale: scale.amax(0, keepdim=True).expand_as(scale)
    ),
    "an activation's scale off by two": activations(lambda scale, zero: (2 * scale, zero)),
    "a zero point off by one": activations(lambda scale, zero: (scale, zero + 1)),
    "a fusion's joined input as it is": unquantised("joined"),
    "convolutions' outputs as they are": unquantised("convolved"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_way_to_quantise_is_told_from_what_is_deployed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = EXACT[1]
    model = tiny_network(1)
    network = quantised(model, scheme)
    shown = images(model.spec, 4, seed=1)
    expected = deployed(network)(shown)
    with torch.no_grad():
        assert apart(network(shown), expected) < SAME
        FAULTS[name](monkeypatch, scheme)
        assert apart(network(shown), expected) > 100 * SAME


def test_a_range_that_was_not_found_is_named() -> None:
    network = quantised(tiny_network(), EXACT[0])
    learned = network.learned(CALIBRATION)
    assert learned.ranges.keys() == set(quantisable_tensors(network.network.spec))
    names = quantisable_tensors(network.network.spec, EXACT[0])
    found = quantisation_of(learned, EXACT[0], names)
    assert tuple(found.tensors) == names
    assert found.calibration == CALIBRATION
    named = quantisation_of(learned, EXACT[0], (PREPROCESSED, *names[1:]), first=PREPROCESSED)
    assert named.tensors[PREPROCESSED] == found.tensors[IMAGES]
    with pytest.raises(SpecError, match=r"without 'other\.conv'.*--qat again, or give --calibrate"):
        quantisation_of(learned, EXACT[0], (*names, "other.conv"))
    with pytest.raises(ValueError, match="no training step has seen"):
        FakeQuantisedParNet(tiny_network(), EXACT[0]).learned(CALIBRATION)


# -- gradients


def gradients(model: nn.Module, shown: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    functional.cross_entropy(model(shown), torch.arange(len(shown)) % 7).backward()
    return {
        name.removeprefix("network."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("squeeze", [True, False])
def test_without_quantisation_a_step_is_one_with_frozen_statistics(squeeze: bool) -> None:
    """The fold is differentiable: the branches get the gradients that they have unfolded."""
    model = tiny_network(3, squeeze=squeeze).double()
    shown = images(model.spec, 3).double()
    network = FakeQuantisedParNet(copy.deepcopy(model), EXACT[0]).train()
    network.quantising = False
    for dropout in network.modules():
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.0
    before = {name: value.clone() for name, value in network.named_buffers()}
    found, expected = gradients(network, shown), gradients(model.eval(), shown)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        assert float((found[name] - gradient).abs().max()) < 1e-9 * scale, name
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name  # statistics, and ranges


@pytest.mark.parametrize("squeeze", [True, False])
def test_dropout_is_that_of_the_training_form(squeeze: bool) -> None:
    """Dropped is the residual of a block, the identity passes whole: also where it is folded."""
    model = tiny_network(3, squeeze=squeeze, conv_dropout=0.3, dropout=0.5).double()
    shown = images(model.spec, 3).double()
    network = FakeQuantisedParNet(model, EXACT[0]).train()
    network.quantising = False
    torch.manual_seed(5)
    found = gradients(network, shown)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(5)
    expected = gradients(model, shown)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) < 1e-9 * scale, name


@pytest.mark.parametrize("scheme", EXACT, ids=["tensorrt", "onnxruntime", "fp8"])
def test_gradients_reach_all_that_is_trained(scheme: Scheme) -> None:
    model = tiny_network(3)
    network = quantised(model, scheme).train()
    exact = gradients(copy.deepcopy(model).eval(), images(model.spec, 4))
    found = gradients(network.eval(), images(model.spec, 4))
    assert found.keys() == exact.keys() == dict(model.named_parameters()).keys()
    for part in ("dense.conv", "pointwise.conv", "dense.bn", "pointwise.bn", "identity", "norms"):
        assert any(part in name for name in found)
    for name, gradient in found.items():
        both = torch.stack((gradient.flatten(), exact[name].flatten()))
        assert float(gradient.abs().max()) > 0, name
        if gradient.numel() > 8:  # roughly the same direction
            assert float(functional.cosine_similarity(*both, dim=0)) > 0.5, name
