"""The list of faults, against ``parnet-deploy serve`` as its users start it.

And the checker itself, against servers that do everything wrong: it must not be possible for it
to find nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
from serving_faults.checking import Checker, all_faults  # noqa: E402
from serving_faults.fault import Fault  # noqa: E402
from serving_faults.model import Model, open_model  # noqa: E402
from serving_faults.servers import Server, ours, wait  # noqa: E402
from serving_faults.wire import Connection, WireError  # noqa: E402

sys.path.remove(str(SCRIPTS))

FAULTS = all_faults()


@pytest.fixture(scope="module")
def model(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=False)
    folder = tmp_path_factory.mktemp("engines") / "tiny"
    model = open_model(build_engine(tiny_bundle_dynamic, folder, builder, split=False).path)
    yield model
    model.close()


@pytest.fixture(scope="module")
def checker(model: Model) -> Iterator[Checker]:
    checker = Checker(lambda: ours(model.bundle.path), model, sentences=True)
    yield checker
    checker.close()


def titled(title: str) -> Fault:
    (found,) = (fault for fault in FAULTS if fault.title == title)
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.group}: {fault.title}")
def test_a_fault(checker: Checker, fault: Fault) -> None:
    """The right answer, and a server that lives, answers well and has not grown."""
    assert not checker.check(fault).wrong


@pytest.mark.slow
def test_the_list_again_and_again_leaks_nothing(checker: Checker) -> None:
    """Every fault was there once, for whatever is made only once."""
    server = checker.server
    for fault in FAULTS:
        checker.check(fault)
    memory, files = server.memory(), server.files()
    for _ in range(2):
        for fault in FAULTS:
            assert not checker.check(fault).wrong
    assert checker.server is server, "it is the same one"
    assert wait(lambda: server.files() <= files)
    assert server.memory() - memory < 24 << 20


def test_every_fault_has_a_name_of_its_own() -> None:
    names = Counter((fault.group, fault.title) for fault in FAULTS)
    assert max(names.values()) == 1
    assert all(fault.right for fault in FAULTS)


# --- the checker can fail -----------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class BadServer:
    """Answers what it is told to; alive, and good to good requests, as long as it is told to be.

    Attributes:
        answers: what it answers: to good requests, to others, and whether it then dies.
    """

    def __init__(self, model: Model, answer: bytes, *, dies: bool = False) -> None:
        self._good = model.good()
        self._answer = answer
        self._dies = dies
        self._dead = False
        self._scores = _scores(model)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            with client, contextlib.suppress(ConnectionError):
                client.settimeout(5)
                self._answer_one(client)

    def _answer_one(self, client: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(65536)
        if data.startswith(b"GET /v2/health"):
            client.sendall(OK)
            return
        while len(data) < len(self._good) and self._good.startswith(data):
            data += client.recv(65536)
        if data == self._good and not self._dead:
            client.sendall(self._scores)
        elif data != self._good:
            self._dead = self._dies
            client.sendall(self._answer)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


def _scores(model: Model) -> bytes:
    rows = ",".join(map(str, model.scores[0].tolist()))
    body = f'{{"outputs":[{{"shape":[1,{model.classes}],"data":[{rows}]}}]}}'
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def refusal(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} No\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def checked(model: Model, answer: bytes, fault: Fault, *, dies: bool = False) -> str:
    """What a checker finds wrong with a bad server."""

    @contextlib.contextmanager
    def start() -> Iterator[Server]:
        bad = BadServer(model, answer, dies=dies)
        try:
            yield Server(port=bad.socket.getsockname()[1], pids=(os.getpid(),))
        finally:
            bad.close()

    checker = Checker(start, model, sentences=True)
    try:
        wrong = checker.check(fault).wrong
        assert checker.deaths == dies
        return wrong
    finally:
        checker.close()


GOOD_REFUSAL = refusal(400, b'{"error":"the shape is wrong"}')


def test_a_good_refusal_is_right(model: Model) -> None:
    assert checked(model, GOOD_REFUSAL, titled("NHWC")) == ""


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (OK, "400 is right"),
        (refusal(500, b'{"error":"it failed"}'), "400 is right"),
        (b"", "400 is right"),
        (refusal(400, b"no"), "not an error in JSON"),
        (refusal(400, b'{"error":""}'), "not an error in JSON"),
        (refusal(400, b'{"message":"no"}'), "not an error in JSON"),
        (refusal(400, b'{"error":"no"}', "text/html"), "not an error in JSON"),
        (refusal(400, b'{"error":"Traceback: request.py"}'), "internals"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\n{}", "not legal HTTP"),
        (b"400 No\r\n\r\n", "not legal HTTP"),
    ],
)
def test_a_server_that_answers_wrongly(model: Model, answer: bytes, found: str) -> None:
    assert found in checked(model, answer, titled("NHWC"))


def test_a_server_that_does_not_answer_good_requests_any_more(model: Model) -> None:
    wrong = checked(model, GOOD_REFUSAL, titled("NHWC"), dies=True)
    assert wrong == "it does not answer a good request any more"


def test_an_answer_that_is_not_the_right_one(model: Model) -> None:
    """Two hundred is not enough: the scores are compared with the engine's."""
    (fault,) = (f for f in FAULTS if f.title == "JPEG turned by EXIF (BYTES)")
    assert checked(model, _scores(model), fault) == "the scores are not the engine's"
    assert "holds no scores" in checked(model, OK, fault)
    (fault,) = (f for f in FAULTS if f.title == "JPEG turned by EXIF (/classify)")
    assert "holds no classes" in checked(model, OK, fault)
    body = b'{"predictions":[{"label":"%b","probability":0.5}]}' % model.bundle.labels[0].encode()
    assert "not the engine's" in checked(model, refusal(200, body), fault)


def test_json_that_is_none(model: Model) -> None:
    body = b'{"outputs":[{"shape":[1],"data":[NaN]}]}'
    wrong = checked(model, refusal(200, body), titled("largest numbers of FP32"))
    assert wrong == "the answer is no legal JSON: NaN is not JSON"


def test_a_server_that_grows(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving_faults.checking.MOST_MEMORY", -1 << 30)
    assert "its memory rose by" in checked(model, GOOD_REFUSAL, titled("NHWC"))


def test_a_server_that_is_bad_from_the_beginning(model: Model) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = Server(port=silent.getsockname()[1], pids=(os.getpid(),))
        threading.Thread(target=hang_up, args=(silent,), daemon=True).start()
        checker = Checker(lambda: contextlib.nullcontext(server), model, sentences=True)
        with pytest.raises(WireError, match="before any fault"):
            checker.check(titled("NHWC"))


def hang_up(listening: socket.socket) -> None:
    listening.accept()[0].close()


def test_an_answer_that_does_not_come(model: Model) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Connection(silent.getsockname()[1]) as connection,
    ):
        connection.send(model.good())
        with pytest.raises(WireError, match="no answer within"):
            connection.answer("POST", seconds=1e-3)
