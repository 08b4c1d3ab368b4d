"""benchmarks/serving.py: what is sent, who takes a turn when, what is compared and what is said."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import serving
from serving_contest import client, servers
from serving_contest.client import Crew, Turn, TurnError
from serving_contest.connection import Answer, AnswerError, Connection, request_of
from serving_contest.contestants import Engines, entries_of
from serving_contest.network import Engine, photographs
from serving_contest.peers import PeerError, write_model
from serving_contest.questions import Question, body_question, infer_question
from serving_contest.report import Verdict, rows_of, table, verdicts
from serving_contest.rounds import ENGINE, Contest, Entry, Plan, Round, hold
from serving_contest.servers import Launch, Server
from serving_contest.writing import Facts, write

from parnet_deploy.bundle import BatchRange
from parnet_deploy.images import decode_bytes
from parnet_deploy.serve.protocol.request import EncodedImages, parse_request
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Preprocessing, TensorSpec

LOGITS = np.linspace(-3, 4, 8, dtype=np.float32)
PLAN = Plan(rounds=3, requests=8, warm_up=1, clients=(1, 4))


def signature(dtype: str) -> Signature:
    return Signature(
        name="small",
        inputs=(TensorSpec(name="images", shape=(1, 3, 4, 4), dtype=dtype),),
        outputs=(TensorSpec(name="logits", shape=(1, 8), dtype="float32"),),
        batch=BatchRange(min=1, opt=1, max=1),
        labels=tuple("abcdefgh"),
        preprocessing=Preprocessing(size=(4, 4)),
        softmax=False,
        backend="onnxruntime",
        precision="fp32",
    )


def engine_of(dtype: str) -> Engine:
    arrays = tuple(np.full((1, 3, 4, 4), value, dtype) for value in (1, 2))
    return Engine(
        path=Path("engines/small"),
        name="small",
        graph=Path("engines/small/whole.onnx"),
        inputs=arrays,
        logits=(LOGITS, LOGITS[::-1]),
        version="1.30.0",
    )


ENGINES = Engines(fp32=engine_of("float32"), uint8=engine_of("uint8"), files=(b"one", b"two"))


# Requests


def split(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = {"": lines[0], **dict(line.split(": ", 1) for line in lines[1:])}
    assert int(fields["Content-Length"]) == len(body)
    return fields, body


@pytest.mark.parametrize("body", ["fp32", "uint8", "jpeg"])
def test_ours_and_triton_are_sent_the_same_which_is_what_the_engine_was_asked(body: str) -> None:
    entries = {entry.name: entry for entry in entries_of(ENGINES) if entry.body == body}
    for number in range(2):
        ours, rival = (split(entries[who].questions[number].request) for who in ("ours", "triton"))
        assert ours[1] == rival[1]
        assert ours[0][""] == "POST /v2/models/small/infer HTTP/1.1"
        assert rival[0][""] == f"POST /v2/models/{body}/infer HTTP/1.1"
        length = int(ours[0]["Inference-Header-Content-Length"])
        dtype = "uint8" if body == "uint8" else "float32"
        found = parse_request(ours[1], length, signature(dtype))
        value = found.inputs["images"]
        if body == "jpeg":
            assert isinstance(value, EncodedImages)
            assert value.files == (ENGINES.files[number],)
        else:
            np.testing.assert_array_equal(value, ENGINES.by_body[body].inputs[number])
        assert found.outputs[0].binary


def test_fastapi_and_classify_are_sent_the_bare_array_and_file() -> None:
    entries = {entry.key: entry for entry in entries_of(ENGINES)}
    array = ENGINES.fp32.inputs[0].tobytes()
    assert split(entries["fp32/fastapi"].questions[0].request)[1] == array
    assert split(entries["jpeg/ours /classify"].questions[1].request)[1] == b"two"
    fields, form = split(entries["jpeg/fastapi"].questions[1].request)
    boundary = fields["Content-Type"].partition("boundary=")[2].encode()
    assert form.count(boundary) == 2
    assert b"\r\n\r\ntwo\r\n--" in form


def test_photographs_are_images_of_that_size_and_differ() -> None:
    files = photographs((32, 48))
    assert len(set(files)) == len(files) == 4
    assert all(decode_bytes(file).size == (48, 32) for file in files)


# Answers


def infer_answer(logits: np.ndarray, **changes: object) -> Answer:
    head = json.dumps({"outputs": [{"name": "logits", "datatype": "FP32"}]}).encode()
    fields = {"inference-header-content-length": str(len(head))}
    body = head + logits.astype("<f4").tobytes()
    answer = Answer(status=200, fields=fields, body=body, nanoseconds=1)
    return replace(answer, **changes)


def classes_answer(order: Sequence[int]) -> Answer:
    powers = np.exp(LOGITS.astype(float))
    found = [{"label": "x", "index": i, "probability": powers[i] / powers.sum()} for i in order]
    body = json.dumps({"predictions": found}).encode()
    return Answer(status=200, fields={}, body=body, nanoseconds=1)


INFER = infer_question("small", "FP32", (1,), b"", LOGITS)
RAW = body_question("/fp32", b"", "logits", LOGITS)
CLASSES = body_question("/classify", b"", "classes", LOGITS)


def test_right_answers_are_right() -> None:
    INFER.check(infer_answer(LOGITS))
    INFER.check(infer_answer(LOGITS * (1 + 1e-6)))
    RAW.check(replace(infer_answer(LOGITS), body=LOGITS.tobytes()))
    CLASSES.check(classes_answer([7, 6, 5, 4, 3]))


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        (INFER, infer_answer(LOGITS[::-1]), "not the engine's"),
        (INFER, infer_answer(LOGITS * np.nan), "not the engine's"),
        (INFER, infer_answer(LOGITS[:7]), "not the engine's"),
        (INFER, infer_answer(LOGITS, status=500), "is 500"),
        (INFER, infer_answer(LOGITS, fields={}), "where its JSON ends"),
        (RAW, infer_answer(LOGITS), "not the engine's"),
        (CLASSES, classes_answer([7, 6, 5, 4]), "4 classes"),
        (CLASSES, classes_answer([7, 6, 5, 4, 2]), "class 5"),
        (CLASSES, classes_answer([6, 7, 5, 4, 3]), "class 1"),
    ],
)
def test_wrong_answers_are_noticed(question: Question, answer: Answer, words: str) -> None:
    with pytest.raises(AnswerError, match=words):
        question.check(answer)


@contextlib.contextmanager
def answering(*pieces: bytes) -> Iterator[int]:
    """A server that gives every connection these pieces, one packet each, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.recv(1 << 16)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(20)


REQUEST = request_of("/x", b"body", {"A": "b"})


def test_an_answer_in_pieces_is_put_together() -> None:
    pieces = (b"HTTP/1.1 201 Ma", b"de\r\nX: y\r\ncontent-LENGTH: 6\r\n", b"\r\nab", b"cdef")
    with answering(*pieces) as port, Connection(port) as connection:
        answer = connection.ask(REQUEST)
    assert (answer.status, answer.body) == (201, b"abcdef")
    assert answer.fields == {"x": "y", "content-length": "6"}
    assert answer.nanoseconds > 0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc", "cut short"),
        (b"", "cut short"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", "no Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", "behind the answer"),
    ],
)
def test_an_answer_that_is_not_whole_is_noticed(said: bytes, words: str) -> None:
    with (
        answering(said) as port,
        Connection(port) as connection,
        pytest.raises(AnswerError, match=words),
    ):
        connection.ask(REQUEST)


# Rounds


class Everything:
    """Servers and clients that note who is awake and who is asked."""

    def __init__(self, names: Sequence[str], fails: str = "", breaks_in: int = 0) -> None:
        self.names = names
        self.awake: set[int] = set()
        self.turns: list[tuple[str, int]] = []
        self.starts: list[int] = []  # how many turns had been taken before each
        self.fails = fails
        self.breaks_in = breaks_in
        self.is_running = False

    @contextlib.contextmanager
    def gather(self) -> Iterator[tuple[dict[str, ServerDouble], Everything]]:
        self.starts.append(len(self.turns))
        if len(self.starts) == self.breaks_in:
            raise PeerError("double is not ready")
        assert not self.is_running
        self.is_running = True
        ports = enumerate(self.names, start=100 * len(self.starts))
        try:
            yield {name: ServerDouble(self, port) for port, name in ports}, self
        finally:
            self.is_running = False

    def ask(self, turn: Turn, clients: int) -> list[int]:
        assert self.awake == {turn.port}
        if turn.key == self.fails:
            raise TurnError("it answered wrong")
        self.turns.append((turn.key, clients))
        return [1_000_000 * (len(self.turns) + 1)] * turn.requests

    def run_alone(self, turn: Turn) -> list[int]:
        assert not self.awake
        self.turns.append((f"{turn.key}/{ENGINE}", 0))
        return [1_000_000] * turn.requests


class ServerDouble:
    def __init__(self, everything: Everything, port: int) -> None:
        self.everything, self.port, self.computed = everything, port, 0.0

    def processor_seconds(self) -> float:
        return self.computed

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self.everything.awake.add(self.port)
        try:
            yield
        finally:
            self.everything.awake.discard(self.port)
        self.computed += 0.018


ENTRIES = [
    Entry(body=body, name=name, server=name, questions=())
    for body in ("fp32", "uint8")
    for name in ("ours", "triton", "fastapi")
]


def held(folder: Path, contest: Contest | None = None, **given: Any) -> tuple[Contest, Everything]:
    contest = contest or Contest(file=folder / "rounds.json")
    everything = Everything(["ours", "triton", "fastapi"], **given)
    hold(contest, PLAN, ENTRIES, everything.gather, "mark")
    return contest, everything


def test_all_take_a_turn_in_every_round_alone_and_in_changing_order(tmp_path: Path) -> None:
    contest, everything = held(tmp_path)
    each = len(everything.turns) // 3
    rounds = [everything.turns[i * each : (i + 1) * each] for i in range(3)]
    assert each == 2 * 2 * (3 + 1)
    assert [sorted(turns) for turns in rounds] == [sorted(rounds[0])] * 3
    assert rounds[0] != rounds[1] != rounds[2]
    bodies, numbers = ("fp32", "uint8"), ("1 client", "4 clients")
    assert set(contest.rounds[0]) == {f"{body}, {n}" for body in bodies for n in numbers}
    figures = contest.rounds[0]["fp32, 1 client"]
    assert set(figures) == {ENGINE, "ours", "triton", "fastapi"}
    assert figures["ours"]["processor"] == 2.0  # 18 ms for 8 requests and one that warmed up
    assert everything.starts == [0, each, 2 * each]  # all are new in every round


def test_whoever_answers_wrong_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    contest, _ = held(tmp_path, fails="uint8/triton")
    assert contest.out == {"uint8/triton": "it answered wrong"}
    assert len(contest.rounds) == 3
    assert {v.group for v in verdicts(contest.rounds)} == {"fp32, 1 client", "fp32, 4 clients"}
    assert rows_of(contest.rounds, "uint8, 1 client")[0].name == ENGINE


def test_an_interrupted_contest_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, _ = held(tmp_path)
    first = Contest(file=tmp_path / "other.json", rounds=whole.rounds[:2])
    first.save("mark")
    again = Contest(file=tmp_path / "other.json")
    again.load("mark")
    assert again.rounds == whole.rounds[:2]
    _, everything = held(tmp_path, again)
    assert len(everything.turns) == 2 * 2 * (3 + 1)
    assert json.loads((tmp_path / "other.json").read_text())["rounds"] == again.rounds
    other = Contest(file=tmp_path / "other.json")
    other.load("other conditions")
    assert other.rounds == []


def test_a_server_that_does_not_start_in_a_later_round_leaves_the_others(tmp_path: Path) -> None:
    contest = Contest(file=tmp_path / "rounds.json")
    with pytest.raises(PeerError):
        held(tmp_path, contest, breaks_in=2)
    again = Contest(file=contest.file)
    again.load("mark")
    (first,) = again.rounds
    held(tmp_path, again)
    assert len(again.rounds) == PLAN.rounds
    assert again.rounds[0] == first


class Starting(client.Process):
    """A process that is up as soon as somebody has waited for it."""

    made: ClassVar[list[Starting]] = []

    def __init__(self, *given: object) -> None:
        self.is_up = self.has_ended = False
        self.made.append(self)

    def receive(self) -> object:
        self.is_up = True
        if len(self.made) == 3 and self is self.made[1]:
            raise TurnError("its process ended")
        return "ready"

    def end(self) -> None:
        self.has_ended = True


def test_a_crew_is_there_when_all_of_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What still starts would take time from whoever has the first turn."""
    monkeypatch.setattr(client, "Process", Starting)
    Starting.made.clear()
    with Crew(4, {}, {"fp32": Path(), "uint8": Path()}):
        assert [process.is_up for process in Starting.made] == [True] * 6
    assert all(process.has_ended for process in Starting.made)
    Starting.made.clear()
    with pytest.raises(TurnError):
        Crew(2, {}, {"fp32": Path()})
    assert all(process.has_ended for process in Starting.made)


# What is said


def rounds_of(*figures: tuple[float, float, float]) -> list[Round]:
    """The p50 of engine, ours and Triton, round by round; p99 are twice as high."""

    def turn(p50: float) -> dict[str, float]:
        return {"p50": p50, "p90": 1.5 * p50, "p99": 2 * p50, "max": 3 * p50, "processor": p50}

    return [
        {"fp32, 1 client": {ENGINE: turn(e), "ours": turn(o), "triton": turn(t)}}
        for e, o, t in figures
    ]


def test_ratios_are_of_what_is_added_and_of_the_same_round() -> None:
    rounds = rounds_of((1, 2, 3), (2, 3, 4), (1, 4, 3))  # added: 1 of 2, 1 of 2, 3 of 2
    engine, ours, rival = rows_of(rounds, "fp32, 1 client")
    assert (engine.name, ours.name, rival.name) == (ENGINE, "ours", "triton")
    assert (engine.ratio, engine.processor) == ({}, None)
    assert ours.added["p50"] == 1.0
    assert ours.ratio["p50"] == (0.5, 0.5, 1.0)
    assert rival.ratio["p99"] == (1.0, 1.0, 1.0)
    # p99, of which the engine's p50 is taken off: 3 of 5, 4 of 6, 7 of 5
    assert ours.ratio["p99"][1] == pytest.approx(4 / 6)
    assert ours.processor == 3
    assert "| ours | 3.00 |" in table([engine, ours, rival])[3]


@pytest.mark.parametrize(
    ("quartiles", "holds", "fails", "words"),
    [
        ((0.5, 0.6, 0.7), True, False, "at most as much as Triton: 0.60"),
        ((0.9, 1.0, 1.2), True, False, "rounds disagree"),
        ((0.8, 1.1, 1.2), False, False, "rounds disagree"),
        ((1.1, 1.2, 1.3), False, True, "MORE than Triton: 1.20"),
        (None, None, False, "UNDECIDED"),
    ],
)
def test_a_verdict_says_what_the_figures_say(
    quartiles: tuple[float, float, float] | None, holds: bool | None, fails: bool, words: str
) -> None:
    verdict = Verdict(group="fp32, 1 client", percentile="p99", quartiles=quartiles)
    assert verdict.holds is holds
    assert verdict.fails is fails
    assert words in verdict.sentence
    assert ("disagree" in verdict.sentence) == ("disagree" in words)


@pytest.mark.parametrize("triton", [1.0, 0.9])
def test_nothing_is_decided_where_triton_adds_nothing(triton: float) -> None:
    """A negative ratio would have been taken for a good one."""
    rounds = rounds_of((1, 2, 3), (1, 2, triton), (1, 2, 3))
    ours = next(row for row in rows_of(rounds, "fp32, 1 client") if row.name == "ours")
    assert ours.ratio["p50"] is None
    assert ours.ratio["p99"] is not None
    assert [verdict.holds for verdict in verdicts(rounds)] == [None, True]
    assert "| undecided |" in table([ours])[2]


@pytest.mark.parametrize(
    ("rounds", "status"),
    [
        (rounds_of((1, 2, 3), (1, 2, 3)), 0),
        (rounds_of((1, 2, 3), (1, 4, 3), (1, 4, 3), (1, 2, 3)), 0),  # rounds disagree
        (rounds_of((1, 4, 3), (1, 4, 3)), 1),
        (rounds_of((1, 2, 3), (1, 2, 1)), 1),
    ],
)
def test_the_exit_status_is_by_what_was_measured(rounds: list[Round], status: int) -> None:
    assert serving.status_of(rounds) == status
    for each in rounds:
        del each["fp32, 1 client"]["ours"]
    assert serving.status_of(rounds) == 1


@pytest.mark.parametrize(
    ("cores", "awake", "stem"),
    [(0, False, "-small"), (1, False, "-small-1-core"), (0, True, "-small-awake")],
)
def test_a_result_is_written_with_all_that_makes_it_again(
    cores: int, awake: bool, stem: str, tmp_path: Path
) -> None:
    rounds = rounds_of((1, 2, 3))
    contest = Contest(file=tmp_path / "rounds.json", rounds=rounds, out={"x/y": "why"})
    given = ["--workspace", str(tmp_path / "work"), "--rounds", "3"]
    command = serving.command_of(given, serving.parse(given).workspace)
    assert command.split()[1] == "benchmarks/serving.py"
    assert str(tmp_path) not in command
    facts = Facts(
        network="small",
        cores=cores,
        awake=awake,
        size=(224, 224),
        plan=PLAN,
        command=command,
        versions={"triton": {"tritonserver": "2.51"}},
    )
    text = write(contest, facts, tmp_path / "results")
    page, data = sorted((tmp_path / "results").iterdir(), key=lambda path: path.suffix)[::-1]
    assert page.read_text() == text
    assert page.stem == data.stem
    assert page.stem.endswith(f"-serving{stem}")
    assert ("kept awake" in text) == awake
    for words in (command, "tritonserver 2.51", "at most as much as Triton: 0.50", "Out: x/y: why"):
        assert words in text
    found = json.loads(data.read_text())
    assert found["rounds"] == contest.rounds
    assert [verdict["holds"] for verdict in found["verdicts"]] == [True, True]


# Servers


def launch(program: str, folder: Path) -> Launch:
    return Launch(
        name="double",
        command=[sys.executable, "-c", program, "{port}"],
        ready="/ready",
        environment={"SAID": "yes"},
        folder=folder,
    )


DOUBLE = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "3"); self.end_headers()
        self.wfile.write(os.environ["SAID"].encode())
    def log_message(self, *given): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def wait_until_stopped(pid: int) -> None:
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_rests_unless_it_has_a_turn(tmp_path: Path) -> None:
    server = Server(launch(DOUBLE, tmp_path), tmp_path / "log")
    pid = server._process.pid
    try:
        wait_until_stopped(pid)
        with server.awake(), Connection(server.port) as connection:
            assert connection.ask(REQUEST.replace(b"POST", b"GET")).body == b"yes"
        wait_until_stopped(pid)
        assert server.processor_seconds() > 0
    finally:
        server.end()
    assert server._process.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_END_SECONDS", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + DOUBLE
    server = Server(launch(deaf, tmp_path), tmp_path / "log")
    server.end()
    assert server._process.returncode == -signal.SIGKILL


def test_ports_stand_where_they_are_named_and_other_braces_stay() -> None:
    part = servers._with_ports("--path=/a{b}/c --ports={port},{grpc}", {"port": 1, "grpc": 2})
    assert part == "--path=/a{b}/c --ports=1,2"


def test_a_server_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    program = "import sys; sys.exit('no such engine')"
    with pytest.raises(PeerError, match=r"double is not ready; .*no such engine"):
        Server(launch(program, tmp_path), tmp_path / "log")


def test_tritons_models_are_ones_of_its_python_backend(tmp_path: Path) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    write_model(
        tmp_path,
        "jpeg",
        datatype="TYPE_STRING",
        dims=(1,),
        classes=1000,
        parameters={"graph": '/a "b"/whole.onnx', "input": "jpeg"},
    )
    text = (tmp_path / "jpeg" / "config.pbtxt").read_text()
    config = text_format.Parse(text, messages.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("jpeg", "python", 0)
    assert config.input[0].data_type == messages.TYPE_STRING
    assert list(config.output[0].dims) == [1, 1000]
    assert config.instance_group[0].count == 1
    assert config.parameters["graph"].string_value == '/a "b"/whole.onnx'
    assert (tmp_path / "jpeg" / "1" / "model.py").is_file()
