"""Range equalisation: the float32 network stays the same to the bit, and int8 has less noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantised import INT8, SYMMETRIC, graph_of, network, quantised, scenes, tiny, weight
from strategies import FORMS, SHAPES, small_size

from parnet_deploy.errors import ExportError
from parnet_deploy.lowering import layers
from parnet_deploy.quantise import equalise as equalising
from parnet_deploy.quantise import scaling
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.equalise import OCTAVES, balanced, column_ranges, equalise, spread
from parnet_deploy.quantise.trial import Trial, make_trial, run
from parnet_deploy.spec import DeployForm
from parnet_deploy.spec.quantisation import Scheme


def made(shape: str, form: DeployForm, **changes: object) -> Trial:
    spec = replace(SHAPES[shape], image_size=small_size(SHAPES[shape]), **changes)  # type: ignore[arg-type]
    return make_trial(graph_of(network(spec), form), scenes(spec, 2))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", ["xl", "m-relu"])
def test_every_form_stays_the_same_to_the_bit(shape: str, form: DeployForm) -> None:
    trial = made(shape, form, stream_blocks=(2, 2, 2))  # in full depth below
    found = equalise(trial, trial.images, INT8)
    assert found.moved == 0.0
    names = {each.tensor for each in found.scaled}
    assert {name for name in names if name.startswith("merge")} >= {"merge2.join", "merge3.join"}
    if shape == "xl":
        assert len(names) == 2
        assert "silu(s x) != s silu(x)" in found.verdict
    else:
        assert {"stem1", "stream1_block1", "merge3"} <= names
    assert any((each.factors != 1).any() for each in found.scaled)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_network_stays_the_same_to_the_bit(shape: str) -> None:
    trial = made(shape, DeployForm(squeeze="gemm"))
    assert equalise(trial, trial.images, INT8).moved == 0.0


def test_the_graph_it_was_made_from_is_left_as_it_is() -> None:
    trial = tiny("relu")
    found = equalise(trial, trial.images, INT8)
    assert any((each.factors != 1).any() for each in found.scaled)
    again = run(trial.graph, ("logits",), trial.images)["logits"]
    assert (again == trial.expected).all()


def _stretched(trial: Trial, factors: np.ndarray) -> Trial:
    """A fusion whose joined channels are stretched, and taken back by what reads them."""
    graph = trial.graph.copy()
    found = scaling.find_scaling(graph, "merge3.join")
    assert found is not None
    found.apply(factors)
    return make_trial(graph, trial.images)


def test_ranges_that_were_stretched_are_brought_back() -> None:
    factors = np.exp2(np.arange(48) % 8 - 3.0).astype(np.float32)
    plain = tiny()
    trial = _stretched(plain, factors)
    found = equalise(trial, trial.images, INT8)
    (joined,) = (each for each in found.scaled if each.tensor == "merge3.join")
    assert joined.spread_before > 8
    assert joined.spread_after < 5
    before = trial.effect_of_kept(quantised(trial), [b for b in trial.blocks if b != "merge3"])
    even = replace(trial, graph=found.graph)
    after = even.effect_of_kept(quantised(even), [b for b in trial.blocks if b != "merge3"])
    assert before.snr is not None
    assert after.snr is not None
    assert after.snr > before.snr + 3


def test_what_a_naive_run_loses_is_brought_back() -> None:
    """The same function to the bit, its channels' ranges up to 64 times apart."""
    plain = tiny("relu")
    graph, rng = plain.graph.copy(), np.random.default_rng(0)
    for name in dict.fromkeys(layer.input for layer in layers(graph)):
        if found := scaling.find_scaling(graph, name):
            kernel = found.kernel.inputs[1].values
            channels = kernel.shape[1] * found.kernel.attrs["group"]
            found.apply(np.exp2(rng.integers(-3, 4, channels)).astype(np.float32))
    trial = make_trial(graph, plain.images)
    assert (trial.expected == plain.expected).all()
    for scheme in (INT8, SYMMETRIC):
        before, naive, after = (
            found.snr
            for found in (
                plain.effect(quantised(plain, scheme)),
                trial.effect(replace(quantised(trial, scheme), per_channel=False)),
                _equalised_effect(trial, scheme),
            )
        )
        assert before is not None
        assert naive is not None
        assert after is not None
        assert naive < 5
        assert after > before - 6


def _equalised_effect(trial: Trial, scheme: Scheme) -> Effect:
    even = replace(trial, graph=equalise(trial, trial.images, scheme).graph)
    return even.effect(quantised(even, scheme))


@pytest.mark.parametrize("change", ["_over", "_times", "_columns_over"])
def test_a_reader_that_is_forgotten_is_noticed(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny("relu")
    monkeypatch.setattr(scaling, change, lambda axis: lambda old, factors: old)
    with pytest.raises(ExportError, match="equalising ranges moved the answers by"):
        equalise(trial, trial.images, INT8)


def test_factors_of_the_wrong_channels_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny()
    right = scaling._places
    monkeypatch.setattr(scaling, "_places", lambda *args: [np.roll(own, 1) for own in right(*args)])
    with pytest.raises(ExportError, match="equalising ranges moved the answers by"):
        equalise(trial, trial.images, INT8)


def test_a_weight_that_two_read_is_not_scaled() -> None:
    graph = tiny().graph.copy()
    shared = weight(graph, "merge3.norm0.weight")
    (other,) = (node for node in graph.nodes if node.name == "merge3.norm1")
    other.inputs[1] = shared
    assert scaling.find_scaling(graph, "merge3.join") is None
    assert scaling.find_scaling(graph, "merge2.join") is not None


def test_what_comes_from_a_silu_or_from_outside_is_not_scaled() -> None:
    graph = tiny().graph
    for name in ("images", "stem1", "stream1_block1", "merge3"):
        assert scaling.find_scaling(graph, name) is None


magnitudes = st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=12)


@given(st.data(), magnitudes)
def test_factors_are_powers_of_two(data: st.DataObject, activations: list[float]) -> None:
    size = len(activations)
    columns = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    factors = balanced(np.array(activations), np.array(columns))
    mantissas, exponents = np.frexp(factors)
    assert (mantissas == 0.5).all()
    assert (np.abs(exponents - 1) <= OCTAVES).all()
    nothing = (np.array(activations) == 0) | (np.array(columns) == 0)
    assert (factors[nothing] == 1).all()


def test_a_wide_channel_with_small_weights_gets_narrower() -> None:
    factors = balanced(np.array([16.0, 1.0, 1.0]), np.array([1.0, 1.0, 16.0]))
    assert factors.tolist() == [0.25, 1.0, 4.0]


def test_columns_count_by_their_output_channels_and_groups() -> None:
    kernel = np.zeros((4, 2, 3, 3))
    kernel[0, 0, 1, 1], kernel[0, 1, 0, 0] = 4, -1  # group 0: relative to 4
    kernel[1, 1, 2, 2] = 0.5  # relative to itself
    kernel[2, 0], kernel[3, 0] = 2, 2
    assert column_ranges(kernel, 2).tolist() == [1, 1, 1, 0]
    assert column_ranges(np.zeros((2, 3, 1, 1)), 1).tolist() == [0, 0, 0]


def test_spread_leaves_dead_channels_out() -> None:
    assert spread(np.array([0.0, 0.0])) == 1
    assert spread(np.array([0.0, 1.0, 2.0, 8.0])) == 4
    assert equalising.TOLERANCE < 1e-4
