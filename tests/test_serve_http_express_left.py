"""What the express lane leaves to the application, and hands over to it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import threading
import time

import pytest
from express_lane import ECHO, budget_of, noise, prompt
from serve_http import (
    INFER,
    Plane,
    Running,
    get,
    is_closed,
    post,
    read_answer,
    running,
    wait_until,
)

from parnet_deploy.serve.http import express
from parnet_deploy.serve.http.gate import Gate
from parnet_deploy.serve.http.gathering import STRAIGHT
from parnet_deploy.serve.http.sockets import express_connection
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.traffic import Traffic

RIDES = express_connection._RIDES

pytestmark = pytest.mark.usefixtures("lone_clients")


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
        (post(INFER, BODY, ECHO, ECHO), 400),
        (post(INFER, b"", ECHO), 200),
        (post(INFER, bytes(STRAIGHT + 1), ECHO), 200),
    ],
)
def test_so_is_what_it_does_not_know(data: bytes, status: int) -> None:
    plane = prompt()
    with running(plane, max_body=STRAIGHT + 1) as server:
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


def test_a_request_that_is_under_way_elsewhere_is_another_clients_too() -> None:
    going_on = threading.Event()

    async def work() -> None:
        while not going_on.is_set():
            await asyncio.sleep(0.001)

    plane = prompt(work=work)
    with running(plane) as server:
        other = server.say(post("/classify", b"x"))
        wait_until(lambda: server.traffic.active == 1)
        client = server.say(post(INFER, BODY, ECHO))
        wait_until(lambda: server.traffic.active == 2)
        going_on.set()
        assert read_answer(client).body == BODY
        read_answer(other)
        assert plane.answered_at_once == 0
        wait_until(lambda: not server.traffic.tasks)
        client.sendall(post(INFER, BODY, ECHO))
        assert read_answer(client).body == BODY
    assert plane.answered_at_once == 1


def test_few_are_answered_in_a_turn_of_the_loop_and_the_others_wait_as_ever() -> None:
    plane = prompt()
    with running(plane) as server:
        client = server.say(post(INFER, b"{}", "Inference-Header-Content-Length: 2") * 60)
        statuses = [read_answer(client).status for _ in range(RIDES + 18)]
        assert is_closed(client)
    assert statuses == [200] * (RIDES + 17) + [503]
    assert plane.answered_at_once == RIDES


def test_a_path_that_has_to_be_encoded_is_the_applications() -> None:
    gate = Gate(traffic=Traffic(), limit=100, api_key=None)
    plain, coded = "/v2/models/tiny/infer", "/v2/models/caf\xe9/infer"
    paths: dict[str, tuple[str, str | None]] = {plain: ("tiny", None), coded: ("caf\xe9", None)}
    lane = express.Express(prompt(), gate, budget=Budget(100), limit=100, paths=paths)  # type: ignore[arg-type]
    fields = [(b"content-length", b"5")]
    for path, taken in ((plain, True), (coded, False), ("/v2/models/caf%C3%A9/infer", False)):
        assert bool(lane.enter(path.encode(), {"headers": fields})) == taken


class Hesitant(Plane):
    """A plane that looks idle, and is not when the body is there."""

    def takes_at_once(self, size: int, header_length: int | None) -> bool:
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
            wait_until(lambda: len(server.traffic.tasks) == 1)
            client.sendall(data[len(data) - size + came :])
            assert read_answer(client).body == body
    assert (plane.answered_at_once, len(plane.asked)) == (0, 2)


def test_a_body_that_never_ends_is_refused_at_the_applications_deadline() -> None:
    with running(prompt(), body_timeout=0.2) as server:
        got = server.ask(post(INFER, BODY, ECHO)[:-1])
    assert (got.status, got.headers["connection"]) == (408, "close")


def test_nothing_is_kept_of_a_client_that_goes(
    patient_lane: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="parnet_deploy")
    plane = prompt()
    with running(plane) as server:
        budget = budget_of(server)
        client = server.say(post(INFER, noise(600_000), ECHO)[:-1])
        wait_until(lambda: budget.used == 599_999)
        assert server.traffic.active == 1
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
        budget = budget_of(server)
        budget.used += budget.size - 500
        assert server.ask(post(INFER, BODY, ECHO)).status == 503
        assert server.ask(post(INFER, BODY[:400], ECHO)).status == 200
    assert plane.answered_at_once == 1


# --- the end ------------------------------------------------------------------------------------


def test_a_server_that_drains_meanwhile_has_the_application_answer(patient_lane: None) -> None:
    plane = prompt()
    data = post(INFER, noise(600_000), ECHO)
    with running(plane) as server:
        client = server.say(data[:-5])
        wait_until(lambda: budget_of(server).used)
        assert server.loop is not None
        server.loop.call_soon_threadsafe(server.traffic.drain)
        wait_until(lambda: server.traffic.draining)
        client.sendall(data[-5:])
        got = read_answer(client)
        assert (got.body, got.headers["connection"]) == (noise(600_000), "close")
        wait_until(lambda: not server.traffic.active)
        assert budget_of(server).used == 0
    assert plane.answered_at_once == 0


def test_what_is_on_its_way_when_the_server_ends_is_answered(patient_lane: None) -> None:
    plane = prompt()
    data = post(INFER, noise(600_000), ECHO)
    with running(plane) as server:
        budget = budget_of(server)
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


def listens(server: Running) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.listener.port), timeout=0.2).close()
    except OSError:
        return False
    return True
