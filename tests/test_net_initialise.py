"""Seeded, untrained networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import sklearn
import torch
from conftest import tiny_spec
from strategies import SHAPES
from torch import nn

from parnet_deploy.images import find_images, load_images
from parnet_deploy.net import ParNet, calibrate, initialise
from parnet_deploy.spec import Preprocessing, variant


@pytest.mark.parametrize("name", SHAPES)
def test_activations_stay_sane(name: str) -> None:
    spec = SHAPES[name]
    model = initialise(spec, seed=3)
    noise = torch.randn(4, 3, *spec.image_size, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        spreads = {k: float(v.std()) for k, v in model.values(noise).items()}
    assert all(0.05 < spread < 20 for spread in spreads.values()), spreads


@pytest.mark.parametrize("name", ["s", "m"])
def test_activations_stay_sane_on_photographs(name: str) -> None:
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    spec = variant(name).spec
    photographs = load_images(find_images(folder), Preprocessing(size=spec.image_size))
    model = initialise(spec, seed=0)
    with torch.inference_mode():
        spreads = {k: float(v.std()) for k, v in model.values(torch.tensor(photographs)).items()}
    assert all(0.05 < spread < 50 for spread in spreads.values()), spreads


def test_without_calibration_they_do_not() -> None:
    """So that the check above can fail."""
    torch.manual_seed(3)
    spec = variant("s").spec.with_widths((16, 32, 64, 64))
    model = ParNet(spec).eval()
    noise = torch.randn(4, 3, *spec.image_size)
    with torch.inference_mode():
        spreads = [float(v.std()) for v in model.values(noise).values()]
    assert not all(0.05 < spread < 20 for spread in spreads)


def test_the_seed_says_it_all_and_the_global_state_is_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (initialise(tiny_spec(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights, again, different = (model.state_dict() for model in (one, same, other))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    name = "blocks.stem1.dense.conv.weight"
    assert not torch.equal(weights[name], different[name])
    assert not one.training


def test_calibration_sets_the_statistics_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    images = 5 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    calibrate(model, images)
    norm = model[0]
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, images.var((0, 2, 3)))
    assert norm.momentum == 0.1, "as it was"
    assert not model.training


def test_an_ensembles_members_differ() -> None:
    model = initialise(
        tiny_spec(stream_widths=(8,), stream_blocks=(2,), members=3, conv_dropout=0.5), seed=0
    )
    weights = model.state_dict()
    alike = [
        (name, other)
        for name in weights
        for other in (name.replace("stream1_", "stream2_"), name.replace("stream1_", "stream3_"))
        if other != name and "conv" in name and torch.equal(weights[name], weights[other])
    ]
    assert not alike
    first, second, _ = model.blocks["head"].classifiers
    assert not torch.equal(first.weight, second.weight)


def test_dropout_is_not_in_the_statistics() -> None:
    plain, dropped = (
        initialise(tiny_spec(conv_dropout=p, dropout=p), seed=0).state_dict() for p in (0.0, 0.5)
    )
    assert plain.keys() == dropped.keys(), "dropout has no weights"
    assert all(torch.equal(plain[name], dropped[name]) for name in plain)
