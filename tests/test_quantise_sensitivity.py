"""What each layer costs alone: nothing where nothing is quantised, and the worst one is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantised import FP8, INT8, SYMMETRIC, labelled, quantised, tiny, weight

from parnet_deploy.errors import RunnerError
from parnet_deploy.quantise.effect import Effect, effect_of
from parnet_deploy.quantise.sensitivity import LayerCost, Sensitivity, noise, sensitivity, to_blame
from parnet_deploy.quantise.trial import Trial, make_trial
from parnet_deploy.spec.precision import quantised_tolerance
from parnet_deploy.spec.quantisation import Scheme


@pytest.mark.parametrize("scheme", [INT8, SYMMETRIC, FP8])
def test_every_layer_is_quantised_alone(scheme: Scheme) -> None:
    trial = tiny()
    steps: list[tuple[str, int, int]] = []
    found = sensitivity(trial, quantised(trial, scheme), progress=lambda *step: steps.append(step))
    assert tuple(cost.block for cost in found.layers) == trial.blocks
    assert [step[1:] for step in steps] == [(n, 15) for n in range(1, 16)]
    assert found.images == 8
    assert found.accuracy is None
    powers = [noise(cost.alone) for cost in found.layers]
    assert all(0 < power < noise(found.whole) for power in powers)
    # Errors of different layers are nearly independent.
    assert 0.3 * noise(found.whole) < sum(powers) < 3 * noise(found.whole)


@pytest.mark.parametrize("scheme", [INT8, SYMMETRIC, FP8])
def test_a_relu_in_front_of_a_quantiser_is_not_left_out(scheme: Scheme) -> None:
    """ONNX Runtime takes it for part of a float8 quantiser: what is below 0 would come through."""
    trial = tiny("relu")
    effect = trial.effect(quantised(trial, scheme))
    assert effect.relative < quantised_tolerance("fp8" if scheme is FP8 else "int8", 9)


def test_where_all_is_kept_nothing_changes() -> None:
    trial = tiny()
    effect = trial.effect_of_kept(quantised(trial), trial.blocks)
    assert effect == Effect(agreement=1.0, relative=0.0, snr=None, accuracy=None)


def test_what_is_kept_anyway_is_left_out() -> None:
    trial = tiny()
    kept = ("stem1", "merge2")
    found = sensitivity(trial, replace(quantised(trial), kept=kept))
    assert not {cost.block for cost in found.layers} & {*kept}
    assert found.whole == trial.effect_of_kept(quantised(trial), kept)


@pytest.mark.parametrize(("block", "before"), [("stem2", "stem1"), ("last", "merge3")])
def test_a_kernel_that_quantises_badly_is_to_blame(block: str, before: str) -> None:
    """Of each output channel one weight is 300 times the others, and what it reads is always 0."""
    graph = tiny().graph.copy()
    for name in (f"{before}.conv.weight", f"{before}.conv.bias"):
        constant = weight(graph, name)
        constant.values = constant.values.copy()
        constant.values[0] = 0
    kernel = weight(graph, f"{block}.conv.weight")
    kernel.values = kernel.values.copy()
    kernel.values[:, 0, 1, 1] = 300 * np.abs(kernel.values).max()
    trial = make_trial(graph, tiny().images)
    (first, share), *_ = to_blame(sensitivity(trial, quantised(trial)))
    assert first == block
    assert share > 0.9


def test_a_scale_that_is_too_coarse_is_to_blame() -> None:
    trial = tiny()
    right = quantised(trial)
    wide = replace(right.tensors["stream2_block1"], scale=16 * right.tensors["stem3"].scale)
    wrong = replace(right, tensors={**right.tensors, "stream2_block1": wide})
    (first, share), *_ = to_blame(sensitivity(trial, wrong))
    assert first == "stream2_block2"  # which reads it
    assert share > to_blame(sensitivity(trial, right))[0][1]


def test_labels_give_accuracy_too() -> None:
    trial = labelled(tiny(), wrong=2)
    found = sensitivity(trial, quantised(trial))
    assert found.accuracy == 0.75
    assert found.whole.accuracy is not None
    assert found.whole.accuracy == pytest.approx(found.whole.agreement - 0.25, abs=0.13)


def test_answers_are_compared_as_they_say() -> None:
    expected = np.array([[1.0, 3.0], [2.0, -4.0], [0.0, 0.0]])
    answers = np.array([[1.0, 1.0], [2.0, -4.0], [0.0, 0.4]])
    found = effect_of(expected, answers, np.array([0, 0, 0]))
    assert found.agreement == pytest.approx(1 / 3)  # of equals the first one counts
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.relative == 0.5
    assert found.snr == pytest.approx(10 * np.log10(30 / 4.16))


def test_answers_that_are_no_numbers_are_refused() -> None:
    fine = np.zeros((3, 2))
    broken = np.array([[0, 0], [np.nan, 0], [np.inf, 0]])
    with pytest.raises(RunnerError, match=r"quantised .* for 2 of 3 images, first for number 1"):
        effect_of(fine, broken)
    with pytest.raises(RunnerError, match=r"the float32 network's logits"):
        effect_of(broken, fine)


@given(st.lists(st.floats(-40, 80), min_size=1, max_size=9), st.floats(0.05, 1))
def test_the_fewest_layers_are_blamed(ratios: list[float], part: float) -> None:
    effects = [Effect(agreement=1.0, relative=0.1, snr=snr, accuracy=None) for snr in ratios]
    layers = tuple(LayerCost(block=str(n), alone=effect) for n, effect in enumerate(effects))
    costs = Sensitivity(images=1, accuracy=None, whole=effects[0], layers=layers)
    blamed = to_blame(costs, part)
    shares = [share for _, share in blamed]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) >= part - 1e-9
    assert sum(shares[:-1]) < part
    others = {str(n) for n in range(len(ratios))} - {block for block, _ in blamed}
    least = min(ratios[int(block)] for block in others) if others else 100
    assert max(ratios[int(block)] for block, _ in blamed) <= least + 1e-6


def test_nobody_is_blamed_where_nothing_changed() -> None:
    same = Effect(agreement=1.0, relative=0.0, snr=None, accuracy=None)
    layers = (LayerCost(block="a", alone=same),)
    assert to_blame(Sensitivity(images=1, accuracy=None, whole=same, layers=layers)) == ()


def test_images_need_not_fill_a_run() -> None:
    trial = tiny()
    few: Trial = make_trial(trial.graph, trial.images.take(range(3), "three"))
    np.testing.assert_allclose(few.expected, trial.expected[:3], rtol=1e-4, atol=1e-5)
