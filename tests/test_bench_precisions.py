"""Precisions beside each other: what a lower one gains in time and loses of the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_results as made
import evaluated
import numpy as np
import pytest
from commands import call
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.benchmark import Labelled, Programme, check_engines
from parnet_deploy.bench.entries.images import read_images, read_labels, write_labelled
from parnet_deploy.bench.entries.reference import compare_answers
from parnet_deploy.bench.report import precision_words, table, wording
from parnet_deploy.bench.report.page import render
from parnet_deploy.bench.report.plots_precision import precisions
from parnet_deploy.bench.result import Outcome, Parity, Settings
from parnet_deploy.bench.tolerances import Graph, tolerance
from parnet_deploy.data import Split, match_labels
from parnet_deploy.errors import UsageError
from parnet_deploy.images import preprocess
from parnet_deploy.spec import variant
from parnet_deploy.spec.precision import PRECISIONS

Capture = pytest.CaptureFixture[str]

COMPUTED = ("fp32", "tf32", *PRECISIONS[1:])


def engine(
    precision: str,
    centre: float,
    *,
    backend: str = "openvino",
    graph: str | None = None,
    same: int = 1000,
    right: int | None = None,
    **others: Any,
) -> Outcome:
    """An engine; `same` of 1000 images have the training form's class."""
    parity = Parity(
        max_abs=0.1,
        max_rel=1e-5 if precision == "fp32" else 1e-2,
        same_top1=same,
        images=1000,
        right=right,
        reference_right=None if right is None else 970,
    )
    return made.outcome(
        f"{backend} {graph or precision} whole",
        centre,
        schedule="whole",
        settings={"backend": backend, "precision": graph or precision},
        precision=precision,
        parity=parity,
        tolerance=1e-4 if precision == "fp32" else 0.2,
        **others,
    )


def said(*outcomes: Outcome) -> str:
    return "\n".join(wording.sentences(made.result(*outcomes)))


def test_what_a_lower_precision_gains_and_loses_stands_in_one_sentence() -> None:
    text = said(engine("fp32", 10.0), engine("int8", 5.0, same=992))
    assert "l: of openvino on a CPU, int8 is 2.00 times as fast as fp32 (quartiles " in text
    assert "in 12 of 12 rounds) and has another top-1 class for 1 % (8 of 1000 images)." in text
    assert "SLOWER" not in text


def test_with_labels_the_price_is_in_points_of_accuracy() -> None:
    exact = engine("fp32", 10.0, right=970)
    text = said(exact, engine("int8", 5.0, same=960, right=961))
    assert "loses 0.9 points of accuracy (961 of 1000 recognised)" in text
    text = said(exact, engine("int8", 5.0, right=970))
    assert "keeps the accuracy (970 of 1000 recognised)" in text
    text = said(exact, engine("int8", 5.0, right=972))
    assert "gains 0.2 points of accuracy" in text


def test_a_lower_precision_that_is_slower_is_said_to_be() -> None:
    text = said(engine("fp32", 10.0), engine("bf16", 12.0))
    assert "of openvino on a CPU, bf16 IS SLOWER: it takes 1.20 times as long as fp32" in text
    assert "for all 1000 images" in text
    text = said(
        engine("fp32", 10.0, spread=0.5, seed=1), engine("int8", 10.001, spread=0.5, seed=2)
    )
    assert "int8 cannot be told from fp32 in time" in text
    assert "SLOWER" not in text


def test_a_higher_precision_of_another_backend_that_is_as_fast_is_named() -> None:
    text = said(
        engine("fp32", 10.0, backend="onnxruntime"),
        engine("int8", 6.0, backend="onnxruntime"),
        engine("fp32", 12.0),
        engine("int8", 7.0),
        engine("fp32", 5.0, backend="ncnn"),
    )
    assert (
        "the fastest in fp32, 'ncnn fp32 whole', beats the fastest in int8, 'onnxruntime int8 "
        "whole': 1.20 times as fast" in text
    )


def test_float32_sold_as_less_is_no_lower_precision() -> None:
    text = said(engine("fp32", 10.0), engine("fp32", 11.0, graph="bf16"))
    assert "'openvino bf16 whole' computes its bf16 graph in fp32 ('parnet-deploy verify'" in text
    assert "and IS SLOWER: it takes 1.10 times as long as fp32 (" in text
    assert "bf16 is" not in text
    result = made.result(engine("fp32", 10.0), engine("fp32", 11.0, graph="bf16"))
    assert [row[2] for row in table.latency_sheet(result, "l").rows] == ["fp32", "bf16 as fp32"]


def test_what_is_said_of_float32_in_place_of_less_is_not_said_of_what_stands_beside_it() -> None:
    text = said(
        engine("fp32", 10.0, backend="onnxruntime", graph="fp16"),
        engine("int8", 12.0, backend="onnxruntime", same=990),
    )
    assert "no kernels" not in text
    assert text.count("computes its fp16 graph in fp32") == 1
    assert (
        "of onnxruntime on a CPU, int8 IS SLOWER: it takes 1.20 times as long as fp16 computed in "
        "fp32 (" in text
    )
    assert "and has another top-1 class for 1 % (10 of 1000 images)" in text


def test_engines_of_different_backends_are_compared_across_precisions() -> None:
    text = said(engine("fp32", 10.0, backend="onnxruntime"), engine("int8", 12.0, right=960))
    assert (
        "of openvino on a CPU, int8 IS SLOWER: it takes 1.20 times as long as fp32 of onnxruntime "
        "on a CPU (" in text
    )
    assert "loses 1.0 points of accuracy" in text
    text = said(engine("fp32", 10.0, backend="onnxruntime"), engine("int8", 5.0))
    assert "int8 is 2.00 times as fast as fp32 of onnxruntime on a CPU" in text
    assert "as fast as the next" not in text, "said once"


def test_slower_than_a_precision_between_is_said_beside_faster_than_the_highest() -> None:
    text = said(engine("fp32", 10.0), engine("bf16", 5.0), engine("int8", 6.0))
    assert "int8 is 1.67 times as fast as fp32 (" in text
    assert "; beside bf16 it IS SLOWER: it takes 1.20 times as long as bf16 (" in text


def test_what_answers_otherwise_is_still_said_to_be_slower_and_how_it_is_judged() -> None:
    far = engine("int8", 12.0)
    assert far.parity is not None
    far = replace(far, parity=replace(far.parity, max_rel=6.7))
    text = said(engine("fp32", 10.0), far)
    assert "is compared with nobody" in text
    assert "'openvino int8 whole' IS SLOWER, too: it takes 1.20 times as long as fp32 (" in text
    assert "without --data everybody answers noise" in text
    assert "IS SLOWER" not in said(engine("fp32", 20.0), far)


def test_classes_lost_are_a_price_below_float32_and_a_fault_in_it() -> None:
    assert engine("int8", 5.0, same=900).right
    assert engine("fp32", 5.0, graph="bf16", same=900).right
    assert not engine("fp32", 5.0, same=999).right
    far = engine("int8", 5.0)
    assert far.parity is not None
    far = replace(far, parity=replace(far.parity, max_rel=6.7))  # as where products overflow
    assert not far.right
    text = said(engine("fp32", 10.0), far)
    assert "relative error 6.7e+00 where 2.0e-01 is allowed" in text
    assert "is compared with nobody" in text
    assert "as fast as fp32" not in text


def test_one_answer_to_all_images_is_ranked_with_nobody_however_near_it_is() -> None:
    blind = engine("int8", 5.0, same=100)
    assert blind.right
    assert blind.parity is not None
    blind = replace(blind, parity=replace(blind.parity, blind="does not follow the images: ..."))
    assert not blind.right
    text = said(engine("fp32", 10.0), blind)
    assert "does not follow the images" in text
    assert "is compared with nobody" in text
    assert "as fast as fp32" not in text


@given(
    latencies=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(COMPUTED), min_size=6, max_size=6),
    same=st.integers(0, 1000),
)
def test_every_lower_precision_is_compared_once_with_the_highest(
    latencies: list[float], kinds: list[str], same: int
) -> None:
    given_ = [engine(k, t, same=same) for k, t in zip(kinds, latencies, strict=False)]
    given_.sort(key=lambda outcome: outcome.latency.p50)
    found = precision_words.by_kind(given_)
    several = len({outcome.precision for outcome in given_}) > 1
    assert bool(found) == several
    text = list(precision_words.sentences(given_))
    assert len(text) == (len(found["openvino on a CPU"]) - 1 if several else 0)
    for precisions_ in found.values():
        ranks = [precision_words.ORDER.index(name) for name in precisions_]
        assert ranks == sorted(ranks)


def test_the_picture_has_every_precision_and_says_what_its_axis_is() -> None:
    outcomes = (
        engine("fp32", 10.0, right=970),
        engine("bf16", 6.0, right=969),
        engine("int8", 4.0, right=960),
        made.outcome("a peer", 8.0, group="peer"),
    )
    drawing = precisions("l", outcomes)
    assert drawing is not None
    for word in ("fp32", "bf16", "int8", "accuracy, %", "openvino int8 whole", "a peer"):
        assert f">{word}<" in drawing
    without = precisions("l", (engine("fp32", 10.0), engine("int8", 4.0)))
    assert without is not None
    assert "top-1 class, %" in without
    assert precisions("l", (engine("fp32", 10.0), engine("fp32", 9.0, backend="x"))) is None
    assert precisions("l", (engine("fp32", 10.0),)) is None


def test_the_page_begins_with_it_and_says_on_which_images() -> None:
    result = made.result(
        engine("fp32", 10.0, right=970),
        engine("int8", 4.0, right=960),
        images="the test images of digits",
    )
    page = render(result)
    assert "What is right of the test images of digits, beside the median latency" in page
    assert page.index("<b>Precisions</b>") < page.index("<b>Latency</b>")
    columns = [column.head for column in table.cost_sheet(result, "l").columns]
    assert columns[-1] == "accu-\nracy %"
    assert [row[-1] for row in table.cost_sheet(result, "l").rows] == ["96.0", "97.0"]


@pytest.mark.parametrize("name", ["s", "l", "digits"])
def test_what_is_quantised_is_allowed_more_than_a_rounding_and_less_than_an_overflow(
    name: str,
) -> None:
    spec = variant(name).spec
    allowed = [tolerance(Graph(spec=spec, precision=p), p) for p in ("fp32", "fp16", "int8")]
    assert allowed == sorted(allowed)
    assert allowed[-1] < 1.0
    assert tolerance(Graph(precision="fp8"), "fp8") < 3.0


def trees() -> Split:
    return Split(
        name="trees",
        labels=evaluated.LABELS[::-1],
        samples=evaluated.samples(3, seed=2),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )


def test_labelled_images_are_those_of_evaluate_with_the_networks_classes(tmp_path: Path) -> None:
    split = trees()
    logits = match_labels(split.labels, evaluated.LABELS).logits
    path = tmp_path / "images.npz"
    write_labelled(path, evaluated.PREPROCESSING, split, logits, count=7)
    labels = read_labels(path)
    assert labels is not None
    places = [n * 21 // 7 for n in range(7)]
    assert labels.tolist() == [6 - split.samples.label(n) for n in places]
    wanted = np.concatenate(
        [preprocess(split.samples.image(n), evaluated.PREPROCESSING) for n in places]
    )
    np.testing.assert_array_equal(read_images(path, "float32"), wanted)
    assert read_images(path, "uint8").dtype == np.uint8


def test_answers_are_judged_by_labels_and_by_the_reference() -> None:
    reference = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    answer = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [np.nan, 1.0]], np.float32)
    found = compare_answers(answer, reference, labels=np.array([0, 1, 1, 1]))
    assert (found.same_top1, found.right, found.reference_right) == (2, 3, 3)
    assert compare_answers(answer, reference).right is None


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in float32 and one in int8, and images."""
    from parnet_deploy.cli.main import run

    room = tmp_path_factory.mktemp("room")
    checkpoint = evaluated.write_checkpoint(room / "checkpoint.safetensors")
    images = evaluated.write_images(room / "images")
    for precision in ("fp32", "int8"):
        command = ["export", "--checkpoint", str(checkpoint), "--for", "onnxruntime"]
        command += ["--precision", precision, "--output", str(room / precision)]
        command += ["--calibrate", str(images)] * (precision == "int8")
        assert run(command) == 0
    return room


def test_a_real_contest_of_two_precisions_on_labelled_images(room: Path, capsys: Capture) -> None:
    data = f"imagefolder:{room / 'images'}"
    result = call(
        capsys,
        *("bench", room / "fp32", room / "int8", "--backends", "onnxruntime", "--no-schedules"),
        *("--data", data, "--rounds", 1, "--processes", 1, "--iterations", 1, "--seconds", 0),
        *("--data-images", 20, "--json"),
    )
    assert result.status == 0, result
    found = json.loads(result.out)
    assert found["images"] == f"the test images of {data}"
    assert {o["precision"] for o in found["outcomes"]} == {"fp32", "int8"}
    parities = {o["precision"]: o["parity"] for o in found["outcomes"]}
    for parity in parities.values():
        assert parity["images"] == 20
        assert parity["reference_right"] == parities["fp32"]["right"] > 10
    told = call(capsys, "evaluate", room / "fp32", "--data", data, "--limit", 20, "--json")
    assert json.loads(told.out)["measures"]["top1"]["right"] == parities["fp32"]["right"]
    assert any(
        words.startswith(f"{found['outcomes'][0]['contestant']['network']}: of onnxruntime")
        for words in found["verdict"]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--hold-out", "0.2"), "without --data everybody answers noise, so leave out --hold-out"),
        (("--variants", "s", "--precisions", "int8"), "name some with --calibrate"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_built(
    room: Path, capsys: Capture, options: tuple[str, ...], words: str
) -> None:
    result = call(capsys, "bench", *([] if "--variants" in options else [room / "fp32"]), *options)
    assert result.status != 0
    assert words in result.err
    assert "build" not in result.err


def test_fewer_images_than_a_run_takes_are_refused() -> None:
    programme = Programme(
        title="few",
        command="",
        engines=(),
        labelled=Labelled(split=trees(), count=2),
        settings=Settings(batch=3),
    )
    with pytest.raises(UsageError, match="a run takes 3 images, and there are 2 with labels"):
        check_engines(programme)
