"""The blocks in training form: what dropout drops, orders in memory, and an ensemble's head."""

from __future__ import annotations

import pytest
import torch
from conftest import randomise, tiny_spec

from parnet_deploy.net import initialise
from parnet_deploy.net.blocks import EnsembleHead, RepBlock, interleave, make_block, shuffle
from parnet_deploy.spec import BlockSpec, ParNetSpec, layout

ALMOST_ALL = 0.999999
"""So probable a dropout that nothing of a small map is left."""


def block_of(spec: ParNetSpec, name: str) -> RepBlock:
    described = next(block for block in layout(spec) if block.name == name)
    torch.manual_seed(0)
    module = make_block(described, spec)
    assert isinstance(module, RepBlock)
    randomise(module)
    return module


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_identity_of_a_skip_block_is_not_dropped() -> None:
    spec = tiny_spec(conv_dropout=ALMOST_ALL)
    module = block_of(spec, "stream1_block1").train()
    x = maps(2, 8, 4, 4)
    torch.manual_seed(0)
    actual = module(x)
    assert module.identity is not None
    assert module.squeeze is not None
    identity = module.identity(x)
    gate = torch.sigmoid(module.squeeze(identity.mean((2, 3), keepdim=True)))
    torch.testing.assert_close(actual, module.act(identity * gate))


def test_both_branches_are_dropped_together() -> None:
    """Their sum is what is dropped: a value is there from both branches or from none."""
    spec = tiny_spec(conv_dropout=0.5, activation="relu", squeeze=False)
    module = block_of(spec, "stem2").train()
    x = maps(2, 8, 8, 8)
    whole = module.dense(x) + module.pointwise(torch.nn.functional.avg_pool2d(x, 2))
    torch.manual_seed(0)
    dropped = module(x)
    twice = torch.relu(2 * whole)
    kept = torch.isclose(dropped, twice, atol=1e-6)
    assert torch.all(kept | (dropped == 0)), "dropped values are scaled, and the others are none"
    share = kept[twice > 1e-3].float().mean()
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("name", ["stem1", "stream1_block1", "merge1", "merge2", "last"])
def test_in_inference_nothing_is_dropped(name: str) -> None:
    described = next(block for block in layout(tiny_spec()) if block.name == name)
    inputs = [maps(1, described.in_channels, 8, 8) for _ in described.inputs]
    plain, dropped = (block_of(tiny_spec(conv_dropout=p), name).eval()(*inputs) for p in (0.0, 0.9))
    assert torch.equal(plain, dropped)


@pytest.mark.parametrize("members", [2, 3])
def test_an_ensembles_head_gives_the_mean_of_its_members_logits(members: int) -> None:
    spec = tiny_spec(stream_widths=(8,), stream_blocks=(1,), members=members)
    inputs = tuple(f"stream{i}_last" for i in range(1, members + 1))
    described = BlockSpec(
        name="head", kind="head", inputs=inputs, in_channels=5, out_channels=7, stride=1, scale=0
    )
    head = make_block(described, spec).double()
    assert isinstance(head, EnsembleHead)
    features = [maps(2, 5, 3, 3).double() * factor for factor in range(1, members + 1)]
    alone = [linear(x.mean((2, 3))) for linear, x in zip(head.classifiers, features, strict=True)]
    torch.testing.assert_close(head(*features), sum(alone) / members, rtol=0, atol=1e-14)


ORDERS = (torch.contiguous_format, torch.channels_last)


def test_shuffle_and_interleave_are_the_same_in_both_orders_and_keep_them() -> None:
    a, b = (torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    joined = [a0 for pair in zip(a.unbind(1), b.unbind(1), strict=True) for a0 in pair]
    for order in ORDERS:
        laid = [x.contiguous(memory_format=order) for x in (a, b)]
        mixed, shuffled = interleave(*laid), shuffle(laid[0], 3)
        assert torch.equal(mixed, torch.stack(joined, 1))
        assert torch.equal(shuffled, a[:, [0, 2, 4, 1, 3, 5]])
        assert all(x.is_contiguous(memory_format=order) for x in (mixed, shuffled))


@pytest.mark.parametrize("squeeze", [True, False])
def test_a_training_step_is_the_same_in_both_orders(squeeze: bool) -> None:
    spec = tiny_spec(squeeze=squeeze)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for order in ORDERS:
        model = initialise(spec, seed=0).double().train()
        values = model.to(memory_format=order).values(images.contiguous(memory_format=order))
        laid = [value for value in values.values() if value.ndim == 4 and value.shape[-1] > 1]
        assert all(value.is_contiguous(memory_format=order) for value in laid)
        values["logits"].square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
