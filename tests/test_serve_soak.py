"""``scripts/soak``: its rules by themselves, short runs of a sound server and of faulty ones."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol.request import EncodedImages, parse_request
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Preprocessing, TensorSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from serving_soak.asking import HANG_UP, Reply, WrongError, draw
from serving_soak.client import Tally
from serving_soak.judging import MEMORY, Counts, Growth, faults_of, growth_of
from serving_soak.network import Picture, build
from serving_soak.report import markdown
from serving_soak.running import Outcome, Plan, SoakError, soak
from serving_soak.watching import Sample

if TYPE_CHECKING:
    from serving_soak.asking import Request

FAULTY = Path(__file__).with_name("soak_program.py")

CALM = Sample(requests=0, memory=100 << 20, files=20, threads=6)
RIGHT = Counter({"classify": 50, "tensor in bytes": 30, "wrong request": 15, HANG_UP: 5})
SOUND = Tally(asked=RIGHT, right=RIGHT, left_whole=1, milliseconds=[1.0, 2.0])
COUNTS = Counts(answered=80, in_flight=0, before=CALM, after=CALM, status=0)

SIGNATURE = Signature(
    name="soak",
    inputs=(TensorSpec(name="images", shape=("N", 3, 32, 32), dtype="float32"),),
    outputs=(TensorSpec(name="logits", shape=("N", 3), dtype="float32"),),
    batch=BatchRange(min=1, opt=1, max=8),
    labels=("a", "b", "c"),
    preprocessing=Preprocessing(size=(32, 32)),
    softmax=False,
    backend="onnxruntime",
    precision="fp32",
)
PICTURE = Picture(
    file=b"the file",
    array=np.arange(3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32) / 7,
    logits=np.array([1.0, 2.0, 3.0], np.float32),
)


def drawn(kind: str, count: int) -> list[Request]:
    """Requests of one kind, and no other."""
    rng = random.Random(kind)
    found: list[Request] = []
    while len(found) < count:
        request = draw(rng, "soak", [PICTURE], "me")
        found += [request] * (request.kind == kind)
    return found


def samples(memory: list[int], **changes: list[int]) -> list[Sample]:
    """A hundred samples of a run of 1000 requests."""
    rest = [{name: values[i] for name, values in changes.items()} for i in range(100)]
    return [replace(CALM, requests=10 * i, memory=memory[i], **rest[i]) for i in range(100)]


# What is asked


@pytest.mark.parametrize(
    ("kind", "encoded"),
    [("tensor in bytes", False), ("tensor in JSON", False), ("image file as a tensor", True)],
)
def test_tensors_are_those_of_the_picture(kind: str, encoded: bool) -> None:
    (request,) = drawn(kind, 1)
    length = request.fields.get("Inference-Header-Content-Length")
    found = parse_request(request.body, None if length is None else int(length), SIGNATURE)
    assert found.id == "me"
    value = found.inputs["images"]
    if encoded:
        assert isinstance(value, EncodedImages)
        assert value.files == (PICTURE.file,)
    else:
        np.testing.assert_array_equal(value, PICTURE.array)


def test_wrong_requests_are_wrong_in_many_ways_and_refused() -> None:
    requests = drawn("wrong request", 200)
    infers = [r for r in requests if r.method == "POST" and r.path == "/v2/models/soak/infer"]
    assert len({r.body for r in requests}) >= 8
    for request in infers:
        length = request.fields.get("Inference-Header-Content-Length")
        with pytest.raises(RequestError):
            parse_request(request.body, None if length is None else int(length), SIGNATURE)


def test_every_kind_is_drawn_and_most_are_answered() -> None:
    rng = random.Random(1)
    kinds = Counter(draw(rng, "soak", [PICTURE], "me").kind for _ in range(2000))
    assert len(kinds) == 6
    assert min(kinds.values()) > 50
    assert kinds[HANG_UP] + kinds["wrong request"] < 600


# What is the right answer


def tensor_answer(name: str, logits: np.ndarray) -> Reply:
    head = f'{{"id":"{name}","outputs":[{{"name":"logits"}}]}}'.encode()
    fields = {"inference-header-content-length": str(len(head))}
    return Reply(status=200, fields=fields, body=head + logits.astype("<f4").tobytes())


def test_the_right_answer_is_right() -> None:
    (request,) = drawn("tensor in bytes", 1)
    request.check(tensor_answer("me", PICTURE.logits))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (tensor_answer("you", PICTURE.logits), "is to 'you'"),
        (tensor_answer("me", PICTURE.logits[::-1]), "not those of its image"),
        (tensor_answer("me", PICTURE.logits[:2]), "not those of its image"),
        (tensor_answer("me", PICTURE.logits * np.nan), "not those of its image"),
        (replace(tensor_answer("me", PICTURE.logits), status=503), "503 came"),
    ],
    ids=["another's", "other numbers", "fewer", "NaN", "status"],
)
def test_another_answer_is_noticed(answer: Reply, words: str) -> None:
    (request,) = drawn("tensor in bytes", 1)
    with pytest.raises(WrongError, match=words):
        request.check(answer)


def test_a_classification_is_compared_class_by_class() -> None:
    (request,) = drawn("classify", 1)
    powers = np.exp(PICTURE.logits)
    guesses = [
        f'{{"label":"{i}","index":{i},"probability":{p}}}'
        for i, p in enumerate(powers / powers.sum())
    ]
    right = Reply(status=200, fields={}, body=f'{{"predictions":[{",".join(guesses)}]}}'.encode())
    request.check(right)
    swapped = right.body.replace(b'"index":0', b'"index":9').replace(b'"index":1', b'"index":0')
    swapped = swapped.replace(b'"index":9', b'"index":1')
    with pytest.raises(WrongError, match="numbers"):
        request.check(replace(right, body=swapped))
    with pytest.raises(WrongError, match="2 classes came"):
        request.check(replace(right, body=f'{{"predictions":[{",".join(guesses[1:])}]}}'.encode()))


# What must hold


def test_memory_that_rises_and_falls_and_warms_up_is_no_leak() -> None:
    memory = [CALM.memory + (i % 7) * (1 << 20) - (i < 15) * (40 << 20) for i in range(100)]
    growth = growth_of(samples(memory), 1000)
    assert faults_of(SOUND, 100, growth, COUNTS) == []


def test_a_steady_leak_is_seen_through_the_noise() -> None:
    memory = [CALM.memory + (i % 7) * (1 << 20) + i * MEMORY // 40 for i in range(100)]
    (fault,) = faults_of(SOUND, 100, growth_of(samples(memory), 1000), COUNTS)
    assert "memory grew by" in fault


@pytest.mark.parametrize(("name", "words"), [("files", "open files"), ("threads", "threads")])
def test_files_and_threads_that_stay_are_seen(name: str, words: str) -> None:
    found = samples([CALM.memory] * 100, **{name: [6 + i // 5 for i in range(100)]})
    (fault,) = faults_of(SOUND, 100, growth_of(found, 1000), COUNTS)
    assert words in fault


def test_a_run_that_is_too_short_to_be_watched_is_no_proof() -> None:
    with pytest.raises(ValueError, match="too short"):
        growth_of(samples([CALM.memory] * 100)[:70], 1000)


@pytest.mark.parametrize(
    ("tally", "counts", "words"),
    [
        ({"lost": 1}, {}, "1 requests got no answer"),
        ({"wrong": 1}, {}, "1 answers were wrong"),
        ({"asked": RIGHT - Counter("x") - Counter({"classify": 1})}, {}, "99 of 100"),
        ({}, {"answered": 79}, "the server counts 79"),
        ({}, {"answered": 82}, "the server counts 82"),
        ({}, {"in_flight": 1}, "in flight"),
        ({}, {"after": replace(CALM, files=25)}, "open files when all clients have gone"),
        ({}, {"status": -9}, "status -9"),
    ],
)
def test_each_rule_can_be_broken(
    tally: dict[str, object], counts: dict[str, object], words: str
) -> None:
    growth = Growth(first=CALM, last=CALM)
    found = faults_of(replace(SOUND, **tally), 100, growth, replace(COUNTS, **counts))
    (fault,) = found
    assert words in fault


def test_the_result_says_what_happened() -> None:
    growth = Growth(first=CALM, last=replace(CALM, memory=101 << 20))
    outcome = Outcome(tally=SOUND, growth=growth, counts=COUNTS, seconds=10.0, faults=[])
    text = markdown(Plan(requests=100), outcome, "scripts/soak")
    assert "100 requests from 8 clients in 10 s (10 a second" in text
    assert "0 lost, 0 wrong" in text
    assert "| memory, MiB | 100.0 | 100.0 | 101.0 | 100.0 |" in text
    assert "nothing grew" in text
    bad = replace(outcome, faults=["memory grew"], tally=replace(SOUND, reasons=["why"]))
    text = markdown(Plan(requests=100), bad, "scripts/soak")
    assert "FAILED: memory grew." in text
    assert "  - why" in text
    assert "nothing grew" not in text


# Servers


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("soak"))


def run(engine: Path, plan: Plan, folder: Path, faults: str = "") -> Outcome:
    if faults:
        plan = replace(plan, serve=(sys.executable, str(FAULTY), faults))
    return soak(plan, engine, folder / "log")


@pytest.mark.slow
def test_a_short_soak_of_the_server(engine: Path, tmp_path: Path) -> None:
    outcome = run(engine, Plan(requests=1200, seconds=240), tmp_path)
    assert outcome.faults == [], outcome.tally.reasons
    assert sum(outcome.tally.right.values()) == 1200
    assert min(outcome.tally.right.values()) > 50
    assert len(outcome.tally.right) == 6


@pytest.mark.slow
def test_with_batches_every_client_gets_its_own_rows(engine: Path, tmp_path: Path) -> None:
    options = ("--max-batch", "8", "--max-delay", "0.002")
    outcome = run(engine, Plan(requests=600, seconds=120, options=options), tmp_path)
    assert outcome.faults == [], outcome.tally.reasons


@pytest.mark.slow
def test_a_server_that_keeps_things_and_miscounts_fails(engine: Path, tmp_path: Path) -> None:
    faults = "leak_memory,leak_files,leak_threads,count_nothing,end_badly"
    outcome = run(engine, Plan(requests=600, clients=4, seconds=120), tmp_path, faults)
    assert (outcome.tally.lost, outcome.tally.wrong) == (0, 0)
    found = "; ".join(outcome.faults)
    for words in ("memory grew", "open files:", "threads:", "the server counts 0", "status 3"):
        assert words in found
    assert "open files when all clients have gone" in found


@pytest.mark.slow
def test_a_server_that_loses_swaps_and_repeats_answers_fails(engine: Path, tmp_path: Path) -> None:
    plan = Plan(requests=300, clients=4, seconds=60)
    outcome = run(engine, plan, tmp_path, "lose,swap,answer_twice")
    found = "; ".join(outcome.faults)
    assert "requests got no answer" in found
    assert "answers were wrong" in found
    reasons = "; ".join(outcome.tally.reasons)
    for words in ("RemoteDisconnected", "the answer is to", "X-Request-Id"):
        assert words in reasons


def test_a_server_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    plan = Plan(serve=(sys.executable, "-c", "import sys; sys.exit('error: no engine')"))
    from serving_soak.running import serving

    with (
        pytest.raises(SoakError, match="not ready: error: no engine"),
        serving(plan, tmp_path, tmp_path / "log"),
    ):
        pass
