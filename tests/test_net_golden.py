"""Answers of the authors' own implementation (tests/data), block by block."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import DATA
from parity import relative_error, training_values
from strategies import FORMS
from torch import Tensor

from parnet_deploy.net import fuse, load_checkpoint
from parnet_deploy.net.checkpoint import Checkpoint
from parnet_deploy.spec import Activation, DeployForm

TOLERANCE = 1e-4

# Name in the authors' implementation -> block here.
NAMES = {
    "init0": "stem2",
    "init1": "stem3",
    "init2": "stem4",
    "stream0": "stream1_block4",
    "stream1": "stream2_block5",
    "stream2": "stream3_block5",
    "downsample2_0": "merge1",
    "downsample2_1": "merge2",
    "combine": "last",
    "logits": "logits",
}


def golden(activation: str) -> dict[str, Tensor]:
    with np.load(DATA / f"official_tiny_{activation}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@functools.cache
def checkpoint(
    trained: str, activation: Activation | None = None, *, ema: bool = True
) -> Checkpoint:
    path = DATA / f"official_tiny_{trained}.pth.tar"
    return load_checkpoint(path, activation=activation, ema=ema, image_size=(64, 96))


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_training_form(activation: Activation) -> None:
    answers = golden(activation)
    model = checkpoint(activation, activation).model
    values = training_values(model, answers["input"])
    assert answers.keys() == {*NAMES, "input"}
    errors = {name: relative_error(values[NAMES[name]], answers[name]) for name in NAMES}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_deploy_form(activation: Activation, form: DeployForm) -> None:
    answers = golden(activation)
    fused = fuse(checkpoint(activation, activation).model, form)
    values = training_values(fused, answers["input"])
    errors = {name: relative_error(values[NAMES[name]], answers[name]) for name in NAMES}
    assert max(errors.values()) < TOLERANCE, errors


def test_a_fusions_stored_output_is_in_another_order() -> None:
    """So that the comparison above can fail: without reordering it does."""
    answers = golden("silu")
    fused = fuse(checkpoint("silu").model)
    with torch.inference_mode():
        stored = fused.values(answers["input"])["merge2"]
    assert relative_error(stored, answers["downsample2_1"]) > 0.1


@pytest.mark.parametrize(("trained", "other"), [("silu", "relu"), ("relu", "silu")])
def test_the_other_activation_does_not_match(trained: str, other: Activation) -> None:
    answers = golden(trained)
    values = training_values(checkpoint(trained, other).model, answers["input"])
    errors = [relative_error(values[NAMES[name]], answers[name]) for name in NAMES]
    assert min(errors) > 100 * TOLERANCE


def test_silu_is_taken_where_nothing_is_said() -> None:
    assert checkpoint("silu").model.spec.activation == "silu"


def test_the_moving_average_is_taken_unless_told_otherwise() -> None:
    """The plain weights of these files are zeroed."""
    averaged, plain = checkpoint("silu"), checkpoint("silu", ema=False)
    assert averaged.source.ema is True
    assert plain.source.ema is False
    weight = "blocks.stem1.dense.conv.weight"
    assert plain.model.state_dict()[weight].abs().max() == 0
    assert averaged.model.state_dict()[weight].abs().max() > 0
