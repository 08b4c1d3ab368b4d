"""Faults that take more than one request, against ``parnet-deploy serve`` as its users start it.

Slow clients, clients that go, too many of them, engines that fail, SIGTERM under load, and what
keeps a server from starting. And what looks at them, looking at servers that do everything wrong.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.bundle import ModelBundle, open_engine_bundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime import open_runner
from parnet_deploy.serve.http.watchdog import HELD

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
from serving_faults import starts  # noqa: E402
from serving_faults.deadlines import deadline_scenarios  # noqa: E402
from serving_faults.loads import CLIENTS, load_scenarios  # noqa: E402
from serving_faults.model import Model, open_model  # noqa: E402
from serving_faults.scenario import NotHereError, Ours, Scenario, WrongError  # noqa: E402
from serving_faults.servers import Server, StartError, begun, wait  # noqa: E402
from serving_faults.starts import start_scenarios  # noqa: E402
from serving_faults.trick import FAILS, make_trick, spin  # noqa: E402
from serving_faults.wire import Connection, ask  # noqa: E402

sys.path.remove(str(SCRIPTS))

LONG = ("a request waits too long", "SIGTERM under load", "the engine fails in a request")
QUICK = ("the port in use", "a byte of the engine's graph altered")


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
def side(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    folder = tmp_path_factory.mktemp("side")
    side = Ours(model=model, engine=make_trick(model.bundle.path, folder / "trick"), folder=folder)
    yield side
    side.close()


def named(scenarios: tuple[Scenario, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda each: each.title)


@named(tuple(each for each in (*deadline_scenarios(), *load_scenarios()) if each.title not in LONG))
def test_a_fault(side: Ours, scenario: Scenario) -> None:
    assert not scenario.check(side).wrong


@pytest.mark.slow
@named(tuple(each for each in load_scenarios() if each.title in LONG))
def test_a_fault_that_takes_a_server_of_its_own(side: Ours, scenario: Scenario) -> None:
    assert not scenario.check(side).wrong


@pytest.mark.parametrize("inline", [0.005, 0])
def test_a_run_that_hangs_is_noticed_whichever_thread_it_is_on(side: Ours, inline: float) -> None:
    """On the event loop's it holds everything up: then the process ends."""
    image = side.model.image.copy()
    options = ("--stall", 1, "--inline-below", inline)
    with side.fresh(*options) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            answer = ask(server.port, side.model.good())
            assert answer is not None
            assert answer.status == 200
        image[0, 0, 0, 0] = spin(300_000)
        stack.enter_context(Connection(server.port)).send(side.model.good(image))
        if not inline:
            assert wait(lambda: server.status_of("/v2/health/live") == 503)
            return
        assert server.process is not None
        assert server.process.wait(60) == HELD
        assert wait(lambda: any("nothing else can" in line for line in server.log))


@named(tuple(each for each in start_scenarios() if each.title in QUICK))
def test_what_keeps_a_server_from_starting(side: Ours, scenario: Scenario) -> None:
    assert not scenario.check(side).wrong


@pytest.mark.slow
@named(tuple(each for each in start_scenarios() if each.title not in QUICK))
def test_what_else_keeps_a_server_from_starting(side: Ours, scenario: Scenario) -> None:
    try:
        found = scenario.check(side)
    except NotHereError as exc:
        pytest.skip(str(exc))
    assert not found.wrong


def test_every_fault_has_a_name_of_its_own() -> None:
    every = (*deadline_scenarios(), *load_scenarios(), *start_scenarios())
    assert max(Counter(each.title for each in every).values()) == 1


# --- engines that do as they are told -----------------------------------------------------------


def test_an_engine_that_does_as_its_images_tell_it(side: Ours) -> None:
    """The same answers to ordinary images; longer runs, and failures, where they are asked for."""
    image = side.model.image
    with open_runner(open_engine_bundle(side.engine)) as runner:
        (plain,) = runner.run({"images": image}).values()
        np.testing.assert_array_equal(plain, side.model.scores)
        told = image.copy()
        told[0, 0, 0, 0] = spin(3)
        assert np.isfinite(runner.run({"images": told})["logits"]).all()
        told[0, 0, 0, 0] = 2 * FAILS
        with pytest.raises(RunnerError, match="out of data bounds"):
            runner.run({"images": told})


# --- what looks at servers can fail -------------------------------------------------------------


class Worst:
    """A server that takes everything, says one thing, and never hangs up.

    Attributes:
        is_well: what it says when it is asked whether it is: that it is.
    """

    def __init__(self, answer: bytes) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.is_well = False
        self._answer = answer
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                self._clients.append(client)
                asked = self.is_well and client.recv(65536).startswith(b"GET /v2/health")
                client.sendall(OK if asked else self._answer)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(10)
        for client in self._clients:
            client.close()


class BadSide(Ours):
    """Its servers are the worst."""

    def told(self, answer: bytes) -> BadSide:
        self.worst = Worst(answer)
        return self

    def serve(self, *options: object) -> Server:
        return Server(port=self.worst.socket.getsockname()[1], pids=(os.getpid(),))

    @contextlib.contextmanager
    def fresh(self, *options: object) -> Iterator[Server]:
        yield self.serve()


@pytest.fixture
def bad(model: Model, tmp_path: Path) -> Iterator[BadSide]:
    side = BadSide(model=model, engine=tmp_path, folder=tmp_path, look=0.2)
    yield side
    side.worst.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FAILED = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}"


def of(scenarios: tuple[Scenario, ...], title: str) -> Scenario:
    (found,) = (each for each in scenarios if each.title == title)
    return found


@named(deadline_scenarios())
def test_a_server_that_waits_for_ever(bad: BadSide, scenario: Scenario) -> None:
    wrong = scenario.check(bad.told(OK)).wrong
    assert wrong.startswith("open after ")


def test_a_server_that_says_nothing(bad: BadSide) -> None:
    scenario = of(deadline_scenarios(), "a body that dribbles")
    assert scenario.check(bad.told(b"")).wrong == "open after 0.2 s; right is: closed"


@named(load_scenarios())
def test_a_server_that_says_yes_to_everything(
    bad: BadSide, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is looked for, an empty answer is not it."""
    monkeypatch.setattr(Server, "stop", lambda self: None)
    monkeypatch.setattr(Server, "end", lambda self: 0)
    monkeypatch.setattr("serving_faults.loads.ANSWERS", 1 << 60)
    monkeypatch.setattr("serving_faults.loads.ENOUGH", 0.1)
    assert scenario.check(bad.told(OK)).wrong


class Ending(Ours):
    """Its server answers until it is told to end; then it drops every connection for a while."""

    @contextlib.contextmanager
    def fresh(self, *options: object) -> Iterator[Server]:
        self.told, self.dropped = threading.Event(), threading.Semaphore(0)
        self.socket = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=self._take, daemon=True)
        thread.start()
        yield Server(port=self.socket.getsockname()[1])
        thread.join(10)

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                with client:
                    if self.told.is_set():
                        self.dropped.release()
                    else:
                        client.recv(1 << 20)
                        client.sendall(OK)

    def end(self) -> int:
        assert all(self.dropped.acquire(timeout=10) for _ in range(CLIENTS))
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        return 0


def test_a_server_that_drops_who_comes_after_sigterm(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Ending(model=model, engine=tmp_path, folder=tmp_path)
    monkeypatch.setattr(Server, "stop", lambda _: side.told.set())
    monkeypatch.setattr(Server, "end", lambda _: side.end())
    monkeypatch.setattr("serving_faults.loads.ANSWERS", 4)
    wrong = of(load_scenarios(), "SIGTERM under load").check(side).wrong
    assert wrong.startswith(f"{CLIENTS} requests are lost")


def test_an_engine_that_fails_unseen(bad: BadSide) -> None:
    """Triton's way: 500, and ready all the time."""
    scenario = of(load_scenarios(), "the engine fails in a request")
    bad.told(FAILED).worst.is_well = True
    assert scenario.check(bad).wrong == "500, and ready stays 200; right is: 503"


PROGRAMS: dict[str, tuple[str, str]] = {
    "it starts all the same": (
        "print('ready: at http://127.0.0.1:1;', file=sys.stderr); sys.exit(1)",
        "it was ready",
    ),
    "it says nothing": ("sys.exit(1)", "one sentence"),
    "it says too much": (
        "print('error: a', 'error: b', sep=chr(10), file=sys.stderr); sys.exit(1)",
        "one sentence",
    ),
    "it ends in a traceback": ("raise ValueError('file')", "one sentence"),
    "it names nothing": ("print('error: no', file=sys.stderr); sys.exit(1)", "that file is named"),
    "it ends well": ("print('error: file', file=sys.stderr)", "exit status 0"),
    "it shows a traceback": (
        "print('Traceback', 'error: file', sep=chr(10), file=sys.stderr); sys.exit(1)",
        "traceback",
    ),
}


@pytest.mark.parametrize(("program", "found"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_does_not_say_what_is_wrong(program: str, found: str) -> None:
    refused: Callable[[list[str], str], str] = starts.refused
    with pytest.raises(WrongError, match=found):
        refused([sys.executable, "-c", f"import sys; {program}"], "file")


def test_a_program_that_says_it() -> None:
    program = "import sys; print('error: file is damaged', file=sys.stderr); sys.exit(1)"
    assert starts.refused([sys.executable, "-c", program], "file") == "exit 1, one sentence"


def test_a_server_that_does_not_start() -> None:
    with (
        begun([sys.executable, "-c", "import sys; sys.exit('no')"]) as server,
        pytest.raises(StartError, match="no"),
    ):
        server.wait_until_ready()


def test_what_goes_wrong_on_the_way_is_told_of(bad: BadSide) -> None:
    def do(_: object) -> str:
        raise ConnectionRefusedError(111, "Connection refused")

    scenario = replace(load_scenarios()[0], do=do)
    bad.told(OK)
    assert "Connection refused" in scenario.check(bad).wrong
