"""Bias correction: the mean error of every quantised convolution goes away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quantised import FP8, INT8, SYMMETRIC, quantised, tiny, weight

from parnet_deploy.lowering import layers
from parnet_deploy.quantise.bias import channel_means, correct_bias
from parnet_deploy.quantise.trial import Trial, run
from parnet_deploy.spec import Array
from parnet_deploy.spec.quantisation import Quantisation, Scheme


def mean_errors(trial: Trial, quantisation: Quantisation, graph: object) -> dict[str, Array]:
    """How far each convolution's channels are from float32's on average, by the block."""
    found = layers(trial.graph)
    right = channel_means(trial.graph, [layer.output for layer in found], trial.images)
    lowered = trial.quantised(graph, quantisation)
    given = {node.name: node.outputs[0].name for node in lowered.nodes}
    names = [given[layer.node] for layer in found]
    now = channel_means(lowered, names, trial.images, quantisation)
    return {
        layer.block: np.abs(now[name] - right[layer.output])
        for layer, name in zip(found, names, strict=True)
    }


@pytest.mark.parametrize("scheme", [INT8, SYMMETRIC, FP8])
def test_the_mean_errors_go_away(scheme: Scheme) -> None:
    trial = tiny()
    quantisation = quantised(trial, scheme)
    steps: list[tuple[str, int, int]] = []
    found = correct_bias(
        trial, quantisation, trial.images, progress=lambda *step: steps.append(step)
    )
    before = mean_errors(trial, quantisation, trial.graph)
    after = mean_errors(trial, quantisation, found.graph)
    for block in trial.blocks:
        # A value near the middle of a step may now be rounded to the other side.
        assert after[block].max() < 0.05 * before[block].max()
    assert steps == [(block, n, 14) for n, block in enumerate(trial.blocks, 1)]
    assert found.verdict.startswith("the biases of 14 layers were corrected, most by ")


def test_a_shift_that_quantising_makes_is_taken_off() -> None:
    """A zero point that is off by 3 steps adds as much to all that is read."""
    trial = tiny()
    right = quantised(trial)
    how = right.tensors["stem3"]
    off = {**right.tensors, "stem3": replace(how, zero_point=how.zero_point + 3)}
    wrong = replace(right, tensors=off)
    found = correct_bias(trial, wrong, trial.images)
    before, after = trial.effect(wrong), trial.effect(wrong, found.graph)
    assert before.snr is not None
    assert after.snr is not None
    assert after.snr > before.snr + 1


def test_what_is_kept_is_not_corrected() -> None:
    trial = tiny()
    kept = ("stem1", "merge2")
    quantisation = replace(quantised(trial), kept=kept)
    found = correct_bias(trial, quantisation, trial.images)
    assert {*found.shifts} == {*trial.blocks} - {*kept}
    for block in trial.blocks:
        name = f"{block}.conv.bias"
        old, new = weight(trial.graph, name).values, weight(found.graph, name).values
        assert (block in kept) == (old == new).all()
    nothing = correct_bias(trial, replace(quantisation, kept=trial.blocks), trial.images)
    assert nothing.shifts == {}
    assert nothing.verdict == "no bias was corrected: nothing is quantised"


def test_the_network_itself_is_left_as_it_is() -> None:
    trial = tiny()
    correct_bias(trial, quantised(trial), trial.images)
    assert (run(trial.graph, ("logits",), trial.images)["logits"] == trial.expected).all()


def test_a_convolution_without_a_bias_gets_one() -> None:
    trial = tiny()
    graph = trial.graph.copy()
    (node,) = (node for node in graph.nodes if node.name == "last.conv")
    node.inputs = node.inputs[:2]
    bare = replace(trial, graph=graph)
    found = correct_bias(bare, quantised(bare), trial.images)
    shift = weight(found.graph, "last.conv.bias").values
    assert (shift == found.shifts["last"]).all()
    assert shift.any()
