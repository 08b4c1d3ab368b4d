"""Fusing: the deploy form equals the training form in float64, and a wrong fold is noticed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import randomise, tiny_network, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import greatest_error
from strategies import FORMS, SHAPES, small_size, specs
from torch import Tensor, nn

from parnet_deploy.net import ParNet, folds, fuse
from parnet_deploy.net.deploy import DeployBlock, DeployFusion
from parnet_deploy.spec import BlockSpec, DeployForm, ParNetSpec, variant
from parnet_deploy.spec.layout import stored_order

EXACT = 1e-9
"""What the agreement must be within, in float64, relative."""


def random_network(spec: ParNetSpec, seed: int = 0) -> ParNet:
    """A network in float64 whose batch normalisations all have random statistics."""
    torch.manual_seed(seed)
    model = ParNet(spec).double().eval()
    randomise(model, seed)
    return model


def images(spec: ParNetSpec, seed: int = 1, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *spec.image_size, generator=generator, dtype=torch.float64)


@settings(max_examples=40)
@given(spec=specs(), form=st.sampled_from(FORMS), seed=st.integers(0, 1000))
def test_any_network_in_any_form_equals_its_training_form(
    spec: ParNetSpec, form: DeployForm, seed: int
) -> None:
    model = random_network(spec, seed)
    assert greatest_error(fuse(model, form), model, images(spec)) < EXACT


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_every_form_for_every_number_of_streams(form: DeployForm, streams: int) -> None:
    spec = tiny_spec(stream_blocks=(3, 3, 3)).with_streams(streams)
    model = random_network(spec)
    assert greatest_error(fuse(model, form), model, images(spec)) < EXACT


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("squeeze", [True, False], ids=["squeeze", "no-squeeze"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_variants_shape(name: str, squeeze: bool, activation: str) -> None:
    spec = SHAPES[name]
    size = small_size(spec)
    model = random_network(replace(spec, image_size=size, activation=activation, squeeze=squeeze))
    assert greatest_error(fuse(model), model, images(model.spec)) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s", "m", "l", "xl", "cifar-s", "cifar-m", "digits"])
def test_a_variant_in_its_own_widths(name: str) -> None:
    spec = replace(variant(name).spec, image_size=(32, 32))
    model = random_network(spec)
    assert greatest_error(fuse(model), model, images(spec, count=1)) < EXACT


def test_deploy_form_is_one_convolution_a_block() -> None:
    fused = fuse(tiny_network())
    for block in fused.layout:
        module = fused.blocks[block.name]
        convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == (0 if block.kind == "head" else 1)
        assert all(conv.bias is not None and conv.kernel_size == (3, 3) for conv in convolutions)
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        assert norms == {"skip": 1, "fusion": 2}.get(block.kind, 0)


def test_forms_differ_in_what_they_keep() -> None:
    model = tiny_network()
    kept = fuse(model, DeployForm(identity_bn="keep")).blocks["stream1_block1"]
    folded = fuse(model, DeployForm(identity_bn="fold")).blocks["stream1_block1"]
    assert isinstance(kept, DeployBlock)
    assert isinstance(folded, DeployBlock)
    assert kept.identity is not None
    assert kept.scale is None
    assert folded.identity is None
    assert folded.scale is not None
    assert folded.squeeze is not None
    assert folded.squeeze.bias is not None, "W gap(scale x + shift) has a constant part"


def test_fusing_leaves_the_network_alone() -> None:
    model = tiny_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = fuse(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())

    owned = {value.untyped_storage().data_ptr() for value in after.values()}
    assert not any(v.untyped_storage().data_ptr() in owned for v in fused.state_dict().values())
    for value in fused.state_dict().values():
        value.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_fused_network_is_for_inference_and_of_the_same_type() -> None:
    for dtype in (torch.float32, torch.float64):
        fused = fuse(tiny_network().to(dtype).train())
        assert not any(module.training for module in fused.modules())
        assert not any(parameter.requires_grad for parameter in fused.parameters())
        assert {p.dtype for p in fused.parameters()} == {dtype}
        assert {b.dtype for b in fused.buffers() if b.is_floating_point()} == {dtype}


def test_float32_stays_within_its_precision() -> None:
    model = tiny_network()
    x = images(model.spec).float()
    assert greatest_error(fuse(model), model, x) < 1e-5


def wrong_eps(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + 1e-3)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def no_shift(weight: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    folded, shift = folds.fold_conv_bn(weight, bn)
    return folded, torch.zeros_like(shift)


def no_mean(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, _ = folds.bn_affine(bn)
    return scale, bn.bias.double()


def pool_not_averaged(weight: Tensor) -> Tensor:
    return 4 * folds.pad_pooled_1x1(weight)


def pool_at_the_wrong_corner(weight: Tensor) -> Tensor:
    return nn.functional.pad((weight.double() / 4).expand(-1, -1, 2, 2), (0, 1, 0, 1))


def pointwise_off_centre(weight: Tensor) -> Tensor:
    return nn.functional.pad(weight.double(), (0, 2, 1, 1))


def not_permuted(weight: Tensor, order: Tensor, groups: int = 1) -> Tensor:
    return weight


def groups_swapped(weight: Tensor, groups: int) -> Tensor:
    return folds.ungroup_1x1(weight, groups).roll(weight.shape[1], dims=1)


def order_not_inverted(block: BlockSpec) -> tuple[int, ...] | None:
    order = stored_order(block)
    return None if order is None else tuple(sorted(order, key=order.__getitem__))


FAULTS: list[tuple[str, Callable[..., Any]]] = [
    ("fold_conv_bn", no_shift),
    ("bn_affine", wrong_eps),
    ("bn_affine", no_mean),
    ("pad_pooled_1x1", pool_not_averaged),
    ("pad_pooled_1x1", pool_at_the_wrong_corner),
    ("pad_1x1", pointwise_off_centre),
    ("permute_inputs", not_permuted),
    ("ungroup_1x1", groups_swapped),
    ("stored_order", order_not_inverted),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_a_wrong_fold_is_noticed(
    name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_network(tiny_spec())
    form = DeployForm(identity_bn="fold")  # the form that folds most
    assert greatest_error(fuse(model, form), model, images(model.spec)) < EXACT
    monkeypatch.setattr(importlib.import_module("parnet_deploy.net.fuse"), name, fault)
    assert greatest_error(fuse(model, form), model, images(model.spec)) > 1e-6


def test_a_missing_factor_of_two_is_noticed() -> None:
    model = random_network(tiny_spec())
    fused = fuse(model)
    for kind, name in (("plain", "stem1"), ("fusion", "merge2")):
        conv = fused.blocks[name].conv
        assert isinstance(fused.blocks[name], (DeployBlock, DeployFusion)), kind
        conv.weight.data /= 2
        conv.bias.data /= 2
        assert greatest_error(fused, model, images(model.spec)) > 1e-3
        conv.weight.data *= 2
        conv.bias.data *= 2
    assert greatest_error(fused, model, images(model.spec)) < EXACT


def test_a_fusions_shift_does_not_fold_into_its_convolution() -> None:
    """Why the norms stay: the zero padding does not see the shift (docs/architecture.md)."""
    model = random_network(tiny_spec(squeeze=False))
    fused = fuse(model)
    fusion = fused.blocks["merge2"]
    assert isinstance(fusion, DeployFusion)
    affine = [folds.bn_affine(norm) for norm in fusion.norms]
    scale, shift = (
        torch.cat([affine[p.input][part][p.start : p.stop] for p in fusion.pieces])
        for part in range(2)
    )
    with torch.no_grad():
        for rows, scales, shifts in zip(
            fusion.conv.weight.chunk(2), scale.chunk(2), shift.chunk(2), strict=True
        ):
            start = rows.storage_offset() // fusion.conv.weight.stride(0)
            fusion.conv.bias[start : start + len(rows)] += rows.sum((2, 3)) @ shifts
            rows *= scales[:, None, None]
        for norm in fusion.norms:
            norm.reset_parameters()
            norm.eps = 0.0
        got, want = (m.values(images(model.spec))["merge2"] for m in (fused, fuse(model)))
    assert (got - want)[:, :, 1:, 1:].abs().max() < EXACT, "equal where there is no padding"
    assert (got - want).abs().max() > 1e-3
