"""Connections that are too slow: headers, bodies, silence, answers that nobody takes."""

from __future__ import annotations

import socket

import pytest
from serve_http import INFER, LIVE, Plane, get, is_closed, post, read_answer, running, wait_until

SHORT = 0.15
"""Seconds of the deadlines that a test waits for."""

LONG = 600.0


def test_a_slow_header() -> None:
    with running(Plane(), header_timeout=SHORT, idle_timeout=LONG) as server:
        client = server.say(b"GET /v2 HT")
        got = read_answer(client)
        assert (got.status, got.headers["connection"]) == (408, "close")
        assert is_closed(client)


def test_a_header_byte_by_byte() -> None:
    """Each byte comes soon after the one before, and all of them too late."""
    with running(Plane(), header_timeout=SHORT, idle_timeout=LONG) as server:
        client = server.connect()
        client.settimeout(SHORT / 5)
        got = b""
        for byte in b"GET /v2 HTTP/1.1\r\nA: " + b"a" * 10_000:
            try:
                client.sendall(bytes([byte]))
                got = client.recv(100)
                break
            except TimeoutError:
                continue
        assert got.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("said", [b"", b"\r\n\r\n"])
def test_a_connection_that_asks_nothing(said: bytes) -> None:
    with running(Plane(), header_timeout=SHORT, idle_timeout=LONG) as server:
        assert is_closed(server.say(said))


@pytest.mark.parametrize("said", [b"", b"\r\n"])
def test_a_connection_that_asks_nothing_more(said: bytes) -> None:
    with running(Plane(), header_timeout=LONG, idle_timeout=SHORT) as server:
        client = server.say(get(LIVE))
        read_answer(client)
        client.sendall(said)
        assert is_closed(client)


def test_the_header_of_a_second_request_has_its_deadline_too() -> None:
    with running(Plane(), header_timeout=SHORT, idle_timeout=LONG) as server:
        client = server.say(get(LIVE) + b"GET")
        assert read_answer(client).status == 200
        assert read_answer(client).status == 408


def test_a_slow_body() -> None:
    plane = Plane()
    with running(plane, body_timeout=SHORT) as server:
        client = server.say(post(INFER, b"0123456789")[:-5])
        got = read_answer(client)
        assert (got.status, got.headers["connection"]) == (408, "close")
        assert is_closed(client)
        assert not plane.asked


def test_a_client_that_does_not_take_its_answer() -> None:
    plane = Plane()
    body = bytes(8_000_000)
    with running(plane, max_body=len(body), body_timeout=1.0) as server:
        client = server.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(INFER, body, "Inference-Header-Content-Length: 2"))
        wait_until(lambda: plane.asked)
        wait_until(lambda: server.traffic.connections == 0)
