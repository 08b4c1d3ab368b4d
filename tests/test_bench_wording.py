"""What is said of a benchmark: who won, by how much, and nothing that the spread does not allow."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import bench_results as made
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.report import figures, schedule_words, wording
from parnet_deploy.bench.report.duel import FEWEST_ROUNDS, Duel, duel, sign_test
from parnet_deploy.bench.result import Absence, Floor, Outcome, Parity
from parnet_deploy.bench.statistics import Ratio, describe


def said(*outcomes: Outcome) -> str:
    return "\n".join(wording.sentences(made.result(*outcomes)))


def schedules(**medians: float) -> list[Outcome]:
    """One engine's schedules by name, ``-`` written as ``_``."""
    return [
        made.outcome(name, median, schedule=name.replace("_", "-"))
        for name, median in medians.items()
    ]


def test_a_winner_is_named_with_its_lead_and_what_it_rests_on() -> None:
    text = said(*schedules(whole=10.0, split_one_device=12.0))
    assert "l: 'whole' (ours, fp32) is the fastest: median 10.0" in text
    assert "splitting loses: split on one device takes 1.20 times as long as whole" in text
    assert text.count("in 12 of 12 rounds") == 1  # told once


def test_splitting_that_wins_is_said_to_pay() -> None:
    text = said(*schedules(whole=10.0, whole_one_stream=10.5, split_one_device=9.0, split=5.0))
    assert "splitting pays: split is 2.00 times as fast as whole with auxiliary streams" in text
    assert "; split is 1.80 times as fast as split on one device" in text
    assert "2.10 times as fast as whole without auxiliary streams" in text
    assert len(text.splitlines()) == 2


def test_whole_schedules_alone_are_compared() -> None:
    text = said(*schedules(whole=10.0, whole_one_stream=12.0))
    assert (
        "whole with auxiliary streams is 1.20 times as fast as whole without auxiliary streams"
        in text
    )
    assert "splitting" not in text


def test_a_difference_within_the_spread_has_no_winner() -> None:
    text = said(
        made.outcome("whole", 10.0, schedule="whole", spread=0.5, seed=1),
        made.outcome("split", 10.001, schedule="split", spread=0.5, seed=2),
    )
    assert "no single fastest" in text
    assert "within the spread" in text
    assert "splitting neither pays nor loses for certain" in text
    assert "splitting pays" not in text
    assert "splitting loses" not in text


def test_a_tie_at_the_top_still_names_what_lies_behind() -> None:
    text = said(
        made.outcome("a", 10.0, schedule="whole", spread=0.5, seed=1),
        made.outcome("b", 10.001, schedule="whole-one-stream", spread=0.5, seed=2),
        made.outcome("c", 30.0, schedule="split"),
    )
    assert "no single fastest: 'a'" in text
    assert "splitting loses: split takes" in text
    assert "whole with auxiliary streams is 1.08 times as fast as whole without" in text
    assert "within the spread" in text


def test_too_few_rounds_decide_nothing() -> None:
    rounds = made.latencies(10.0, rounds=FEWEST_ROUNDS - 1)
    slower = made.latencies(20.0, rounds=FEWEST_ROUNDS - 1, seed=1)
    text = said(
        made.outcome("whole", rounds=rounds, schedule="whole"),
        made.outcome("split", rounds=slower, schedule="split"),
    )
    assert "too few rounds to tell: it takes 6" in text
    assert "within the spread" not in text
    assert "is the fastest" not in text
    assert "splitting loses" not in text


def test_one_contestant_alone_is_compared_with_nothing() -> None:
    (sentence, schedule) = wording.sentences(made.result(*schedules(whole=10.0)))
    assert "nothing to be compared with" in sentence
    assert "of the schedules only 'whole' is known" in schedule


def test_schedules_are_compared_with_their_equals_only() -> None:
    half = made.outcome("half", 3.0, schedule="split", precision="fp16")
    text = said(made.outcome("single", 10.0, schedule="whole"), half)
    assert "in fp32 on a CPU, of the schedules only 'whole' is known" in text
    assert "in fp16 on a CPU, of the schedules only 'split' is known" in text
    assert "splitting" not in text
    names = schedule_words.by_engine(
        [made.outcome("x", schedule="whole", settings={"backend": "openvino"})]
    )
    assert list(names) == ["of openvino in fp32 on a CPU"]


def test_a_split_on_several_devices_names_them() -> None:
    text = said(
        made.outcome("w", 10.0, schedule="whole", devices=("cuda:0",)),
        made.outcome("s", 5.0, schedule="split", devices=("cuda:0", "cuda:1", "cuda:2")),
    )
    assert "splitting pays: split on cuda:0, cuda:1 and cuda:2 is 2.00 times" in text


def test_our_best_stands_against_every_peer() -> None:
    text = said(
        made.outcome("ours", 10.0),
        made.outcome("ours, slow", 14.0),
        made.outcome("onnxruntime", 12.0, group="peer"),
        made.outcome("ncnn", 5.0, group="peer"),
        made.outcome("twin", 10.001, group="peer", spread=0.5),
    )
    assert "our best, 'ours', is 1.20 times as fast as 'onnxruntime'" in text
    assert "'ncnn' is 2.00 times as fast as our best, 'ours'" in text
    assert "our best, 'ours', and 'twin' cannot be told apart" in text


def test_precisions_are_compared_with_their_equals_where_there_are_any() -> None:
    text = said(
        made.outcome("half", 2.0, precision="fp16"),
        made.outcome("single", 10.0),
        made.outcome("torch", 12.0, group="peer"),
        made.outcome("int8", 4.0, group="peer", precision="int8"),
    )
    assert "our best, 'single', is 1.20 times as fast as 'torch' (quart" in text
    assert "our best, 'half', is 2.00 times as fast as 'int8', fp16 against int8" in text


def test_devices_are_compared_with_their_equals_where_there_are_any() -> None:
    text = said(
        made.outcome("on a GPU", 1.0, devices=("cuda:0",)),
        made.outcome("on a CPU", 10.0),
        made.outcome("torch", 12.0, group="peer"),
    )
    assert "our best, 'on a CPU', is 1.20 times as fast as 'torch' (quart" in text
    text = said(
        made.outcome("on a GPU", 1.0, devices=("cuda:0",)),
        made.outcome("torch", 12.0, group="peer"),
    )
    assert "as fast as 'torch', cuda against cpu (quart" in text


def test_peers_among_themselves_are_not_ours() -> None:
    text = said(made.outcome("a", 1.0, group="peer"), made.outcome("b", 2.0, group="peer"))
    assert "our best" not in text


def test_instability_is_told_with_its_reasons() -> None:
    jumpy = tuple((10.0 if i % 2 else 13.0,) * 20 for i in range(12))
    assert wording.instability(describe(made.latencies(10.0))) is None
    assert "its latencies vary by" in str(
        wording.instability(describe(made.latencies(10.0, spread=0.3)))
    )
    assert "a round's median lies" in str(wording.instability(describe(jumpy)))


@pytest.mark.parametrize("field", ["variation", "drift"])
def test_exactly_the_threshold_is_stable(field: str) -> None:
    calm = describe([[10.0, 10.0]])
    assert wording.instability(calm) is None
    assert wording.instability(replace(calm, **{field: 0.1})) is None
    assert wording.instability(replace(calm, **{field: 0.101})) is not None


def test_the_floor_is_named_once_for_each_device_and_precision() -> None:
    floor = Floor(device="a CPU", roofline=2.0, launches=0.5)
    text = said(
        made.outcome("fast", 10.0, floor=floor),
        made.outcome("slow", 20.0, floor=floor),
        made.outcome("peer", 5.0, group="peer", floor=floor),
    )
    (sentence,) = (line for line in text.splitlines() if "floor" in line)
    assert "'fast' (fp32, end to end) takes " in sentence
    assert "the floor of 2.500 ms (2.000 ms of operations and bytes, 0.5000 ms of launches" in (
        sentence
    )


def test_a_floor_without_launches_does_not_name_them() -> None:
    floor = Floor(device="a CPU", roofline=2.0, launches=0.0)
    assert "(2.000 ms of operations and bytes; a CPU)" in said(made.outcome("a", floor=floor))


def test_a_lead_over_the_unstable_is_to_be_taken_with_care() -> None:
    steady = made.outcome("steady", 10.0)
    careful = said(steady, made.outcome("noisy", 40.0, spread=0.3)).splitlines()[0]
    assert careful.endswith("; with care, since latencies are unstable.")
    assert "unstable" not in said(steady, made.outcome("other", 40.0)).splitlines()[0]


def test_the_floor_is_compared_with_compute_alone_where_all_can_tell_it() -> None:
    floor = Floor(device="a GPU", roofline=1.0, launches=1.0)
    found = made.outcome("fast", 10.0, floor=floor, compute=describe([[8.0]]))
    assert wording.times_floor(found, "compute alone") == 4.0
    assert "'fast' (fp32, compute alone) takes 4.00 times the floor" in said(found)
    peer = made.outcome("peer", 12.0, group="peer", floor=floor)
    assert "'fast' (fp32, end to end) takes 5.00 times the floor" in said(found, peer)
    without = replace(found, floor=None)
    for outcome, basis in ((without, "end to end"), (peer, "compute alone")):
        with pytest.raises(ValueError, match="not known"):
            wording.times_floor(outcome, basis)  # type: ignore[arg-type]


def test_other_answers_and_absent_ones_are_named() -> None:
    wrong = Parity(max_abs=6e12, max_rel=6e12, same_top1=3, images=64)
    found = made.result(
        made.outcome("a", parity=wrong),
        absent=[Absence(name="tensorrt", network="l", reason="there is no GPU")],
    )
    text = "\n".join(wording.sentences(found))
    assert "same top-1 class for 3 of 64 images, relative error 6.0e+12" in text
    assert "l: 'tensorrt' did not take part: there is no GPU." in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Parity(max_abs=0.1, max_rel=1e-5, same_top1=63, images=64), "63 of 64 images"),
        # Every class as it should be, and far off for float32.
        (
            Parity(max_abs=0.1, max_rel=1e-2, same_top1=64, images=64),
            "'quick' (relative error 1.0e-02 where 1.0e-04 is allowed)",
        ),
    ],
)
def test_who_is_wrong_wins_nothing_and_is_named_once(wrong: Parity, words: str) -> None:
    floor = Floor(device="a CPU", roofline=2.0, launches=0.5)
    quick = made.outcome("quick", 1.0, schedule="split", parity=wrong, floor=floor)
    text = said(
        quick,
        replace(made.outcome("wrong peer", 1.5, group="peer"), parity=wrong),
        made.outcome("right", 2.0, schedule="whole", floor=floor),
        made.outcome("peer", 3.0, group="peer"),
    )
    lines = text.splitlines()
    assert lines[0].startswith("l: 'right' (ours, fp32) is the fastest")
    assert "of the schedules only 'whole' is known" in text
    assert "our best, 'right', is 1.5" in text
    assert "'right' (fp32, end to end) takes 0.80 times the floor" in text
    assert words in lines[-1]
    assert lines[-1].endswith(
        "answer otherwise than the training form, and are compared with nobody."
    )
    for name in ("'quick'", "'wrong peer'"):
        assert [name in line for line in lines].count(True) == 1


def test_where_nobody_is_right_nobody_wins() -> None:
    wrong = Parity(max_abs=0.1, max_rel=0.1, same_top1=64, images=64)
    first, named = said(made.outcome("a", 1.0, parity=wrong)).splitlines()
    assert first == "l: nobody's answers are right: there is no fastest."
    assert "'a' (relative error 1.0e-01" in named


def test_what_a_precision_rounds_is_right() -> None:
    rounded = Parity(max_abs=0.1, max_rel=1e-2, same_top1=64, images=64)
    half = made.outcome("half", 1.0, precision="fp16", parity=rounded, tolerance=2.3e-2)
    assert said(half, made.outcome("single", 2.0)).startswith("l: 'half' (ours, fp16) is the fast")


def test_a_usual_verdict_is_short() -> None:
    """Two schedules, a peer, a floor: each thing once, eight lines of a terminal at most."""
    floor = Floor(device="AMD EPYC 9454, measured here", roofline=2.0, launches=0.5)
    found = made.result(
        made.outcome("onnxruntime whole", 10.0, schedule="whole", floor=floor),
        made.outcome("onnxruntime split", 12.0, schedule="split-one-device", floor=floor),
        made.outcome("ONNX Runtime, unfused export", 14.0, group="peer", floor=floor),
    )
    verdict = wording.sentences(found)
    assert len(verdict) == 4
    assert sum(len(textwrap.wrap(sentence, 120)) for sentence in verdict) < 8


def test_over_several_networks_it_is_said_where_splitting_pays() -> None:
    outcomes = [
        made.outcome(f"{network} {schedule}", median, network=network, schedule=schedule)
        for network, medians in {"s": (5.0, 9.0), "l": (10.0, 8.0), "m": (7.0, 9.0)}.items()
        for schedule, median in zip(("whole", "split"), medians, strict=True)
    ]
    text = wording.sentences(made.result(*outcomes))[-1]
    assert text == (
        "over all networks in fp32 on a CPU: splitting loses for s and m; it pays for l."
    )


@given(won=st.integers(0, 40), lost=st.integers(0, 40))
def test_the_sign_test_is_symmetric_and_a_probability(won: int, lost: int) -> None:
    assert 0 < sign_test(won, lost) <= 1
    assert sign_test(won, lost) == sign_test(lost, won)


def test_the_sign_test_has_the_known_values() -> None:
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert sign_test(5, 5) == 1.0
    assert FEWEST_ROUNDS == 6


@pytest.mark.parametrize(
    ("low", "high", "won", "verdict"),
    [
        (1.1, 1.3, 12, "faster"),
        (0.7, 0.9, 0, "slower"),
        (0.9, 1.3, 11, "undecided"),  # quartiles on both sides
        (1.1, 1.3, 9, "undecided"),  # not enough rounds won
    ],
)
def test_a_duel_needs_quartiles_and_rounds(low: float, high: float, won: int, verdict: str) -> None:
    speed = Ratio(median=(low + high) / 2, low=low, high=high)
    assert Duel(speed=speed, won=won, lost=12 - won).verdict == verdict


@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.01, 0.2, 0.5]))
def test_a_duel_reads_the_same_from_both_sides(seed: int, spread: float) -> None:
    one = made.outcome("one", 10.0, spread=spread, seed=seed)
    other = made.outcome("other", 10.2, spread=spread, seed=seed + 1)
    turned = {"faster": "slower", "slower": "faster", "undecided": "undecided"}
    assert duel(one, other).verdict == turned[duel(other, one).verdict]


def test_a_doubt_says_what_is_missing() -> None:
    wide, clear = Ratio(median=1.1, low=0.9, high=1.3), Ratio(median=1.2, low=1.1, high=1.3)
    assert figures.doubt(Duel(speed=clear, won=5, lost=0)).startswith("too few rounds")
    assert figures.doubt(Duel(speed=wide, won=12, lost=0)) == "within the spread"
    assert "too few of the rounds" in figures.doubt(Duel(speed=clear, won=9, lost=3))


def test_figures_are_short_and_true() -> None:
    assert [figures.milliseconds(v) for v in (0.14239, 6.5031, 61.637, 131.24, 2345.6)] == [
        "0.1424",
        "6.503",
        "61.64",
        "131.2",
        "2346",
    ]
    assert [figures.times(v) for v in (1.2, 12.34)] == ["1.20 times", "12.3 times"]
    assert figures.quartiles(Ratio(median=10.0, low=9.1234, high=40.6)) == "9.123-40.6"
    assert [figures.rate(v) for v in (16.21, 7042.3)] == ["16.2", "7042"]
    assert [figures.mebibytes(v) for v in (None, 3 * 2**20)] == ["-", "3"]
    assert [figures.error(v) for v in (0.0, 1.23e-7)] == ["0", "1.2e-07"]
    assert figures.listed(["a", "b", "c"]) == "a, b and c"


def test_whose_answers_are_not_known_wins_nothing() -> None:
    """An engine whose model was replaced cannot be judged: it may be fast by being wrong."""
    text = said(
        made.outcome("a", 10.0, settings={"backend": "x", "precision": "fp32"}),
        made.outcome("b", 2.0, precision="int8", parity=None),
    )
    assert "'b' is the fastest" not in text
    assert "'a' (ours, fp32) has nothing to be compared with" in text
    assert (
        "how near the answers of 'b' are to the training form's is not known: so nothing is "
        "compared with them." in text
    )
    alone = said(made.outcome("b", 2.0, parity=None), made.outcome("c", 4.0, parity=None))
    assert "'b' (ours, fp32) is the fastest" in alone
    assert "how near the answers of 'b' and 'c' are to the training form's is not known." in alone


def test_what_is_computed_in_fp32_is_not_said_to_be_of_that_precision() -> None:
    text = said(
        made.outcome("half", 2.0, settings={"backend": "onnxruntime", "precision": "fp16"}),
        made.outcome("single", 10.0, settings={"backend": "onnxruntime", "precision": "fp32"}),
    )
    assert "'half' (ours, fp16 computed in fp32) is the fastest" in text
