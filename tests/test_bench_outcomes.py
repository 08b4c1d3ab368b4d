"""From records to outcomes: who is compared with whom, and whose answers are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.bench.contest.holding import Record
from parnet_deploy.bench.contest.messages import Finished, Opened
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.outcomes import NO_ANSWER, outcomes
from parnet_deploy.bench.tolerances import UNKNOWN_DEPTH, Graph, tolerance
from parnet_deploy.spec import variant
from parnet_deploy.spec.precision import rounding_tolerance

LOGITS = np.random.default_rng(0).standard_normal((8, 5))


def record(
    folder: Path,
    name: str,
    milliseconds: float,
    *,
    network: str = "l",
    answers: np.ndarray | None = LOGITS,
    output: str = "logits",
) -> Record:
    path = folder / f"{network}-{name}.npy"
    if answers is not None:
        np.save(path, answers.astype(np.float32))
    contestant = Contestant(
        name=name, group="ours", network=network, opener="engine", path="e", images="i.npz"
    )
    return Record(
        contestant=contestant,
        answers=path,
        opened=Opened(output=output, precision="fp16", kernels=9, versions={}),
        rounds=[(milliseconds, milliseconds), (2 * milliseconds,)],
        compute=[(milliseconds / 2,)],
        first_answer=[0.5, 0.7],
        finished=Finished(timeline=(), host_memory=11, gpu_memory=12),
    )


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    np.save(tmp_path / "reference.npy", LOGITS)
    return tmp_path / "reference.npy"


def test_the_first_of_each_network_is_what_the_others_are_compared_with(tmp_path: Path) -> None:
    records = [
        record(tmp_path, "a", 10.0),
        record(tmp_path, "b", 5.0),
        record(tmp_path, "c", 3.0, network="s"),
        record(tmp_path, "d", 6.0, network="s"),
    ]
    found = outcomes(records, 4, references={}, graphs={}).outcomes
    assert [(o.contestant.name, o.ratio.median) for o in found] == [
        ("b", 0.5),
        ("a", 1.0),
        ("c", 1.0),
        ("d", 2.0),
    ]
    first = found[0]
    assert first.throughput == pytest.approx(1000 * 4 / (20 / 3))
    assert first.compute is not None
    assert first.compute.p50 == 2.5
    assert (first.precision, first.kernels, first.host_memory, first.gpu_memory) == (
        "fp16",
        9,
        11,
        12,
    )
    assert first.parity is None
    assert first.first_answer == (0.5, 0.7)


def test_parity_is_that_of_all_images(tmp_path: Path, reference: Path) -> None:
    wrong = LOGITS.copy()
    wrong[7] = np.roll(wrong[7], 1)  # only the last image
    records = [record(tmp_path, "a", 1.0), record(tmp_path, "b", 1.0, answers=wrong)]
    found = outcomes(
        records, 1, references={r.contestant.key: reference for r in records}, graphs={}
    )
    good, bad = (outcome.parity for outcome in found.outcomes)
    assert good is not None
    assert good.max_abs < 1e-6
    assert (good.same_top1, good.images) == (8, 8)
    assert bad is not None
    assert bad.same_top1 == 7
    assert bad.max_rel > 0.1


def test_probabilities_are_compared_with_probabilities(tmp_path: Path, reference: Path) -> None:
    powers = np.exp(LOGITS)
    answers = powers / powers.sum(1, keepdims=True)
    one = record(tmp_path, "a", 1.0, answers=answers, output="probabilities")
    (outcome,) = outcomes([one], 1, references={one.contestant.key: reference}, graphs={}).outcomes
    assert outcome.parity is not None
    assert outcome.parity.max_abs < 1e-6


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_one_answer_to_all_images_is_not_right_where_int8_is_allowed_as_much(
    tmp_path: Path, output: str
) -> None:
    rows = 2.0 + 0.7 * np.random.default_rng(1).uniform(-1, 1, (8, 5))
    np.save(tmp_path / "reference.npy", rows)
    blind, good = np.broadcast_to(rows.mean(axis=0), rows.shape), rows + 0.01 * LOGITS
    given = {"blind": blind, "good": good}
    if output == "probabilities":
        given = {name: np.exp(x) / np.exp(x).sum(1, keepdims=True) for name, x in given.items()}
    records = [record(tmp_path, n, 1.0, answers=x, output=output) for n, x in given.items()]
    keys = [r.contestant.key for r in records]
    graph = Graph(spec=variant("digits").spec, precision="int8")
    found = outcomes(
        records,
        1,
        references=dict.fromkeys(keys, tmp_path / "reference.npy"),
        graphs=dict.fromkeys(keys, graph),
    ).outcomes
    told = {outcome.contestant.name: outcome for outcome in found}
    for outcome in told.values():
        assert outcome.parity is not None
        assert outcome.parity.max_rel < outcome.tolerance, "the error alone passes both"
    assert told["good"].right
    assert not told["blind"].right
    assert told["blind"].parity is not None
    assert "does not follow the images" in (told["blind"].parity.blind or "")


@pytest.mark.parametrize(
    "answers", [None, LOGITS[:7], LOGITS[:, :4], np.where(LOGITS > 1, np.nan, LOGITS)]
)
def test_whose_answers_are_none_is_absent_however_fast(
    answers: np.ndarray | None, tmp_path: Path, reference: Path
) -> None:
    records = [record(tmp_path, "a", 0.001, answers=answers), record(tmp_path, "b", 8.0)]
    found = outcomes(
        records, 1, references={r.contestant.key: reference for r in records}, graphs={}
    )
    (outcome,) = found.outcomes
    assert outcome.contestant.name == "b"
    assert outcome.ratio.median == 1.0
    (absence,) = found.absent
    assert (absence.name, absence.reason) == ("a", NO_ANSWER)


L = variant("l").spec


@pytest.mark.parametrize(
    ("graph", "computes", "allowed"),
    [
        (Graph(spec=L), "fp32", 1e-4),
        (Graph(spec=L), "nobody knows", 1e-4),
        (Graph(spec=L), "tf32", rounding_tolerance("fp16", L)),
        (Graph(spec=L, precision="fp16"), "fp16", rounding_tolerance("fp16", L)),
        (Graph(spec=L, precision="fp16"), "fp32", rounding_tolerance("fp16", L)),  # its weights
        (Graph(), "fp32", 1e-4),
        (Graph(), "fp16", 4 * UNKNOWN_DEPTH * 2**-11),
    ],
)
def test_a_precision_is_allowed_what_it_rounds(graph: Graph, computes: str, allowed: float) -> None:
    assert tolerance(graph, computes) == pytest.approx(allowed)


@pytest.mark.parametrize(("off", "right"), [(1e-6, True), (1e-2, False)])
def test_an_error_that_leaves_every_class_in_place_is_an_error_all_the_same(
    off: float, right: bool, tmp_path: Path, reference: Path
) -> None:
    one = record(tmp_path, "a", 1.0, answers=LOGITS * (1 + off))
    opened = Opened(output="logits", precision="fp32", kernels=None, versions={})
    one = replace(one, opened=opened)
    found = outcomes([one], 1, references={one.contestant.key: reference}, graphs={})
    (outcome,) = found.outcomes
    assert outcome.parity is not None
    assert outcome.parity.same_top1 == outcome.parity.images
    assert outcome.right is right
    half = Graph(spec=L, precision="fp16")
    found = outcomes(
        [one], 1, references={one.contestant.key: reference}, graphs={one.contestant.key: half}
    )
    assert found.outcomes[0].right
