"""The express lane: the application's answers, sooner, and its own where anything is unusual."""

from __future__ import annotations

import gzip
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_http import (
    INFER,
    LIVE,
    Got,
    Plane,
    Running,
    get,
    is_closed,
    post,
    read_answer,
    running,
    wait_until,
)

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http import express, reading
from parnet_deploy.serve.plane import LARGE_BINARY
from parnet_deploy.serve.protocol.response import EncodedResponse
from parnet_deploy.serve.recording import Timing

ECHO = "Inference-Header-Content-Length: 7"


def prompt(**attributes: Any) -> Plane:
    """A plane that answers within the call."""
    plane = Plane()
    plane.now = lambda: None
    for name, value in attributes.items():
        setattr(plane, name, value)
    return plane


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked before does not count."""
    monkeypatch.setattr(express, "_LONE", 0.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may take as long as the test."""
    monkeypatch.setattr(express, "_PATIENCE", 60.0)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Plane, Running]]:
    plane = prompt()
    with running(plane) as server:
        yield plane, server


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def named(got: Got) -> dict[str, str]:
    """Its header, but for what no two answers share."""
    return {k: v for k, v in got.headers.items() if k not in ("x-request-id", "date")}


# --- what is answered ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(ECHO,), (), ("X-Request-Id: mine", ECHO)])
def test_the_answer_and_its_line_in_the_log_are_the_applications(
    caplog: pytest.LogCaptureFixture, fields: tuple[str, ...]
) -> None:
    caplog.set_level(logging.INFO, logger="parnet_deploy")
    answers, lines = [], []
    for plane in (Plane(), prompt()):
        caplog.clear()
        with running(plane) as server:
            answers.append(server.ask(post(INFER, noise(5000), *fields)))
            wait_until(lambda: caplog.records)
            assert server.traffic.answers == {200: 1}
        lines.append([(r.getMessage(), vars(r)["parnet_facts"]) for r in caplog.records])
        assert plane.answered_at_once == (plane.now is not None)
    assert answers[0].status == answers[1].status == 200
    assert answers[0].body == answers[1].body
    assert named(answers[0]) == named(answers[1])
    assert "date" in answers[1].headers
    ids = [got.headers["x-request-id"] for got in answers]
    assert ids == ["mine"] * 2 if len(fields) == 2 else ids[0] != ids[1]
    ((first, said), (second, also)) = lines[0] + lines[1]
    assert first == second == f"POST {INFER} 200"
    assert also["id"] == ids[1]
    apart = ("id", "ms", "client")
    assert {k: v for k, v in said.items() if k not in apart} == {
        k: v for k, v in also.items() if k not in apart
    }
    assert said.keys() == also.keys()


CUTS = st.lists(st.integers(0, 10**6), max_size=4)
SIZES = st.one_of(
    st.integers(1, 100),
    st.integers(-200, 3).map(lambda n: reading.PARSED + n),
    st.integers(1, 1_000_000),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(SIZES, min_size=1, max_size=3), cuts=CUTS, seed=st.integers(0, 2**32 - 1))
def test_bodies_of_any_size_in_any_pieces_come_back_on_one_connection(
    served: tuple[Plane, Running], patient: None, sizes: list[int], cuts: list[int], seed: int
) -> None:
    plane, server = served
    before = plane.answered_at_once
    client = server.connect()
    for number, size in enumerate(sizes):
        body = noise(size, seed + number)
        data = post(INFER, body, ECHO if size >= 7 else "Inference-Header-Content-Length: 1")
        marks = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
        for start, end in itertools.pairwise(marks):
            client.sendall(data[start:end])
            time.sleep(0.001)
        assert read_answer(client).body == body
    client.close()
    assert plane.answered_at_once == before + len(sizes)


def test_requests_behind_each_other_are_answered_in_order() -> None:
    plane = prompt()
    bodies = [noise(size, size) for size in (10, 3000, 300_000, 20, 400_000)]
    data = b"".join(get(LIVE) + post(INFER, body, ECHO) for body in bodies)
    with running(plane) as server:
        client = server.connect()
        sending = threading.Thread(target=client.sendall, args=(data,))
        sending.start()
        for body in bodies:
            assert read_answer(client).status == 200
            assert read_answer(client).body == body
        sending.join()
        assert plane.answered_at_once + len(plane.asked) == len(bodies)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (RequestError(400, "no such thing"), 400, "no such thing"),
        (RequestError(503, "later", retry_after=3), 503, "later"),
        (ValueError("secret"), 500, "the server failed"),
    ],
)
def test_a_refusal_is_an_answer_and_the_connection_goes_on(
    caplog: pytest.LogCaptureFixture, error: Exception, status: int, sentence: str
) -> None:
    def fail() -> None:
        raise error

    plane = prompt(now=fail)
    with running(plane) as server:
        client = server.say(post(INFER, noise(300_000), ECHO))
        got = read_answer(client)
        assert (got.status, sentence in got.error) == (status, True)
        assert "secret" not in got.error
        assert got.headers.get("retry-after") == ("3" if status == 503 else None)
        plane.now = lambda: None
        client.sendall(post(INFER, b"{}here", "Inference-Header-Content-Length: 2"))
        assert read_answer(client).body == b"{}here"
        wait_until(lambda: sum(server.traffic.answers.values()) == 2)
        assert server.traffic.answers == {status: 1, 200: 1}
    assert ("foresaw" in caplog.text) == (status == 500)


def test_with_the_key_it_is_on_the_lane_and_without_refused() -> None:
    plane = prompt()
    with running(plane, api_key="open sesame".replace(" ", "-")) as server:
        assert server.ask(post(INFER, b"{}", ECHO)).status == 401
        assert server.ask(post(INFER, noise(9), ECHO, "Authorization: Bearer no")).status == 401
        assert plane.answered_at_once == 0
        key = "Authorization: Bearer open-sesame"
        assert server.ask(post(INFER, noise(9), ECHO, key)).status == 200
    assert plane.answered_at_once == 1


# --- what is left to the application ------------------------------------------------------------


def without_length(body: bytes) -> bytes:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{ECHO}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


BODY = noise(600)


@pytest.mark.parametrize(
    "data",
    [
        without_length(BODY),
        post(INFER, gzip.compress(BODY), ECHO, "Content-Encoding: gzip"),
        post(INFER, BODY, ECHO, "Connection: close"),
        post(INFER, BODY, ECHO, "Upgrade: h2c", "Connection: Upgrade"),
        post(INFER, BODY, ECHO).replace(b"HTTP/1.1", b"HTTP/1.0"),
        post(INFER.replace("tiny", "%74iny"), BODY, ECHO),
        post(f"{INFER}?x=1", BODY, ECHO),
    ],
    ids=["chunked", "gzip", "close", "upgrade", "1.0", "encoded path", "query"],
)
def test_what_is_not_plain_is_left_to_the_application(data: bytes) -> None:
    plane = prompt()
    with running(plane) as server:
        assert server.ask(data).body == BODY
    assert (plane.answered_at_once, len(plane.asked)) == (0, 1)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get(INFER), 405),
        (post("/v2/models/other/infer", BODY, ECHO), 404),
        (post(INFER, BODY, "Inference-Header-Content-Length: x"), 400),
        (post(INFER, b"", ECHO), 200),
        (post(INFER, bytes(LARGE_BINARY + 1), ECHO), 200),
    ],
)
def test_so_is_what_it_does_not_know(data: bytes, status: int) -> None:
    plane = prompt()
    with running(plane, max_body=LARGE_BINARY + 1) as server:
        assert server.ask(data).status == status
    assert plane.answered_at_once == 0


def test_who_expects_to_be_told_to_go_on_is_told() -> None:
    plane = prompt()
    with running(plane) as server:
        head, _, body = post(INFER, BODY, ECHO, "Expect: 100-continue").partition(b"\r\n\r\n")
        client = server.say(head + b"\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_answer(client).body == BODY
    assert plane.answered_at_once == 0


def test_with_other_clients_about_nobody_is_on_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "_LONE", 60.0)
    plane = prompt()
    with running(plane) as server:
        first, second = server.connect(), server.connect()
        for client, on_it in ((first, 1), (first, 2), (second, 2), (second, 2), (first, 2)):
            client.sendall(post(INFER, BODY, ECHO))
            assert read_answer(client).body == BODY
            assert plane.answered_at_once == on_it


class Hesitant(Plane):
    """A plane that looks idle, and is not when the body is there."""

    @property
    def is_idle(self) -> bool:
        return True


@pytest.mark.parametrize("size", [600, 700_000])
def test_what_cannot_be_answered_at_once_is_the_applications(size: int) -> None:
    plane = Hesitant()
    with running(plane) as server:
        client = server.connect()
        for number in range(3):
            client.sendall(post(INFER, noise(size, number), ECHO))
            assert read_answer(client).body == noise(size, number)
    assert [body for _, _, body, _ in plane.asked] == [noise(size, n) for n in range(3)]


@pytest.mark.parametrize("size", [600, 700_000])
@pytest.mark.parametrize("came", [0, 1, 300])
def test_a_body_that_takes_its_time_is_the_applications(size: int, came: int) -> None:
    plane = prompt()
    body = noise(size)
    data = post(INFER, body, ECHO)
    with running(plane) as server:
        client = server.connect()
        for _ in range(2):
            client.sendall(data[: len(data) - size + came])
            wait_until(lambda: server.traffic.active == 1)
            client.sendall(data[len(data) - size + came :])
            assert read_answer(client).body == body
    assert (plane.answered_at_once, len(plane.asked)) == (0, 2)


def test_a_body_that_never_ends_is_refused_at_the_applications_deadline() -> None:
    with running(prompt(), body_timeout=0.2) as server:
        got = server.ask(post(INFER, BODY, ECHO)[:-1])
    assert (got.status, got.headers["connection"]) == (408, "close")


def test_nothing_is_kept_of_a_client_that_goes(
    patient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="parnet_deploy")
    plane = prompt()
    with running(plane) as server:
        budget = lane_of(server)._budget
        client = server.say(post(INFER, noise(600_000), ECHO)[:-1])
        wait_until(lambda: budget.used == 600_000)
        client.close()
        wait_until(lambda: server.traffic.answers)
        assert server.traffic.answers == {499: 1}
        assert (budget.used, server.traffic.active) == (0, 0)
        assert f"POST {INFER} 499" in caplog.text
        assert server.ask(post(INFER, BODY, ECHO)).body == BODY
        wait_until(lambda: budget.used == 0)


def test_bodies_beyond_the_budget_are_the_applications_to_refuse() -> None:
    plane = prompt()
    with running(plane) as server:
        budget = lane_of(server)._budget
        budget.used += budget.size - 500
        assert server.ask(post(INFER, BODY, ECHO)).status == 503
        assert server.ask(post(INFER, BODY[:400], ECHO)).status == 200
    assert plane.answered_at_once == 1


# --- the end ------------------------------------------------------------------------------------


def test_what_is_on_its_way_when_the_server_ends_is_answered(patient: None) -> None:
    plane = prompt()
    data = post(INFER, noise(600_000), ECHO)
    with running(plane) as server:
        budget = lane_of(server)._budget
        client = server.say(data[:-5])
        wait_until(lambda: budget.used)
        server.server.should_exit = True
        wait_until(lambda: not listens(server))
        time.sleep(0.3)
        client.sendall(data[-5:])
        assert read_answer(client).body == noise(600_000)


def test_while_the_server_drains_an_answer_says_that_it_is_the_last() -> None:
    plane = prompt()
    with running(plane) as server:
        client = server.say(post(INFER, BODY, ECHO))
        assert "connection" not in read_answer(client).headers
        assert server.loop is not None
        server.loop.call_soon_threadsafe(server.traffic.drain)
        wait_until(lambda: server.traffic.draining)
        client.sendall(post(INFER, BODY, ECHO))
        assert read_answer(client).headers["connection"] == "close"
        assert is_closed(client)
    assert plane.answered_at_once == 1


def test_a_connection_that_was_answered_is_not_waited_for() -> None:
    with running(prompt()) as server:
        server.ask(post(INFER, BODY, ECHO))
        server.connect().sendall(b"POST")
        wait_until(lambda: len(server.server.server_state.connections) == 2)
        silent = {each.is_silent for each in server.server.server_state.connections}  # type: ignore[union-attr]
        assert silent == {True, False}


def test_a_plane_that_takes_no_time_has_its_times_told() -> None:
    class Timed(Plane):
        def infer_at_once(
            self, name: str, version: str | None, body: bytes, header_length: int | None
        ) -> tuple[EncodedResponse, Timing] | None:
            found = super().infer_at_once(name, version, body, header_length)
            assert found is not None
            return found[0], Timing(prepare=0.001, queue=0.002, infer=0.003, total=0.007)

    plane = Timed()
    plane.now = lambda: None
    with running(plane) as server:
        got = server.ask(post(INFER, BODY, ECHO))
    assert got.headers["server-timing"] == ("prepare;dur=1.000, queue;dur=2.000, infer;dur=3.000")


def lane_of(server: Running) -> express.Lane:
    lane: express.Lane = server.server.config.app.lane  # type: ignore[union-attr]
    return lane


def listens(server: Running) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.listener.port), timeout=0.2).close()
    except OSError:
        return False
    return True
