"""The blocks in training form: what dropout drops, and an ensemble's head."""

from __future__ import annotations

import pytest
import torch
from conftest import randomise, tiny_spec

from parnet_deploy.net.blocks import EnsembleHead, RepBlock, make_block
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
