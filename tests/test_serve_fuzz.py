"""Whatever arrives on its port, a server answers in HTTP, stays what it is, and answers others.

``PARNET_FUZZ_EXAMPLES=3000`` looks longer than a test has time for.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import serve_fuzz  # noqa: E402
from serve_fuzz import Conversation, answer_problem, conversations, hold  # noqa: E402
from serving_faults.model import Model, open_model  # noqa: E402
from serving_faults.servers import Server, ours, wait  # noqa: E402
from serving_faults.wire import Answer, request  # noqa: E402

sys.path.remove(str(SCRIPTS))

EXAMPLES = int(os.environ.get("PARNET_FUZZ_EXAMPLES", "15"))
AT_ONCE = 6
SHORT = ("--header-timeout", 1, "--body-timeout", 1, "--idle-timeout", 1)
MOST_GROWTH = 48 << 20


@pytest.fixture(scope="module")
def model(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=False)
    folder = tmp_path_factory.mktemp("engines") / "tiny"
    model = open_model(build_engine(tiny_bundle_dynamic, folder, builder, split=False).path)
    yield model
    model.close()


def settled(server: Server) -> int:
    """Files that are open when nobody is connected any more but who asks."""
    assert wait(lambda: server.metric("parnet_http_connections") == 1)
    assert server.metric("parnet_requests_in_flight") == 0
    assert server.metric("parnet_buffered_bytes") == 0
    return server.files()


def test_whatever_arrives(model: Model) -> None:
    """Answers are legal and no failures; the server lives, is ready, and gives everything back."""
    with ours(model.bundle.path, *SHORT) as server:
        for good in serve_fuzz.good_ones(model):
            talk = Conversation(parts=(good,), begins_well=False, leaves=False)
            assert hold(server.port, model, [talk]) == ""
        files, memory = settled(server), server.memory()

        @settings(
            max_examples=EXAMPLES,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        @given(st.lists(conversations(model), min_size=AT_ONCE, max_size=AT_ONCE))
        def talk_to_it(talk: list[Conversation]) -> None:
            assert hold(server.port, model, talk) == ""
            assert server.status_of("/v2/health/ready") == 200
            assert model.good_problem(server.port) == ""

        talk_to_it()
        assert server.metric("parnet_requests_rejected_total") > 0, "some were read, and refused"
        assert wait(lambda: settled(server) <= files)
        assert server.memory() - memory < MOST_GROWTH
        assert not any("Traceback" in line or "nobody foresaw" in line for line in server.log)
        server.stop()
        assert server.end() == 0


# --- what looks can fail ------------------------------------------------------------------------


def heard(model: Model, said: bytes, *, begins_well: bool = False) -> str:
    """What is wrong with a server that says this, whatever it is asked, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(65536)
                client.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        talk = Conversation(
            parts=(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",), begins_well=begins_well, leaves=False
        )
        problem = hold(listening.getsockname()[1], model, [talk])
        thread.join(10)
        return problem


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"", ""),
        (GOOD, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", "after 0 answers"),
        (GOOD + b"something", "after 1 answers"),
        (GOOD + b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "500 is not an error in JSON"),
        (b"<html>", "not legal HTTP"),
    ],
)
def test_a_server_that_says_what_it_should_not(model: Model, said: bytes, found: str) -> None:
    problem = heard(model, said)
    assert found in problem
    assert bool(found) == bool(problem)


def test_a_good_request_that_is_not_answered(model: Model) -> None:
    assert "not answered" in heard(model, b"", begins_well=True)
    assert "holds no scores" in heard(model, GOOD, begins_well=True)


@pytest.mark.parametrize(
    ("status", "error", "found"),
    [
        (400, "the shape is wrong", ""),
        (500, "the engine gave values that are not finite", ""),
        (503, "later", ""),
        (500, "the engine failed", "the engine failed"),
        (501, "no", "501"),
        (302, "no", "302"),
    ],
)
def test_statuses(status: int, error: str, found: str) -> None:
    answer = Answer(
        status=status,
        headers={"content-type": "application/json"},
        body=f'{{"error":"{error}"}}'.encode(),
    )
    problem = answer_problem(answer)
    assert found in problem
    assert bool(found) == bool(problem)


# --- what is sent -------------------------------------------------------------------------------


def test_all_of_a_conversation_is_sent(model: Model) -> None:
    """However it is cut; and not all of them are good requests."""
    strange = []

    @settings(max_examples=30)
    @given(conversations(model))
    def look(talk: Conversation) -> None:
        data = b"".join(talk.parts)
        assert data.startswith(model.good()) or not talk.begins_well
        assert all(talk.parts)
        strange.append(data not in serve_fuzz.good_ones(model))

    look()
    assert np.mean(strange) > 0.5


def test_composed_requests_are_framed_as_they_say() -> None:
    """So that some of what is sent gets beyond the parser."""
    made = serve_fuzz._compose("POST", "/classify", [], b"abcdef", "chunks", [4])
    assert made.endswith(b"\r\n\r\n4;e=1\r\nabcd\r\n2\r\nef\r\n0\r\nX: y\r\n\r\n")
    made = serve_fuzz._compose("POST", "/classify", [], b"abcdef", "length", [])
    assert made == request("POST", "/classify", b"abcdef")
