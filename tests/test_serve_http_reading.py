"""A large body goes straight to its place, and the connection goes on behind it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_http import (
    INFER,
    LIVE,
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
from parnet_deploy.serve.http import gathering
from parnet_deploy.serve.http.exchange import Exchange
from parnet_deploy.serve.http.sockets import reading
from parnet_deploy.serve.http.sockets.connection import Connection
from parnet_deploy.serve.transport.budget import Budget

ECHO = "Inference-Header-Content-Length: 7"
LIMIT = 6_000_000
STRAIGHT = 1 << 22
"""Announced bytes beyond which a body is gathered part by part."""


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(Plane(), max_body=LIMIT) as server:
        yield server


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def test_little_of_a_large_body_passes_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    straight: list[int] = []
    on_body, body_received = Connection.on_body, Connection.body_received

    def seen(self: Connection, body: bytes) -> None:
        parsed.append(len(body))
        on_body(self, body)

    def written(self: Connection, count: int) -> None:
        straight.append(count)
        body_received(self, count)

    monkeypatch.setattr(Connection, "on_body", seen)
    monkeypatch.setattr(Connection, "body_received", written)
    body = noise(2_000_000)
    with running(Plane()) as server:
        assert server.ask(post(INFER, body, ECHO)).body == body
    assert sum(parsed) + sum(straight) == len(body)
    assert 0 < sum(parsed) <= 2 * reading.PARSED


SIZES = st.one_of(
    st.integers(0, 100),
    st.integers(-3, 3).map(lambda n: reading.PARSED + n),
    st.integers(100, 700_000),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=4), st.lists(st.floats(0, 1), max_size=6))
def test_bodies_of_all_sizes_cut_anywhere(
    served: Running, sizes: list[int], cuts: list[float]
) -> None:
    """On one connection, behind each other, whether or not anybody waits for the answers."""
    bodies = [noise(size, seed) for seed, size in enumerate(sizes)]
    wire = b"".join(post(INFER, body, ECHO) for body in bodies) + get(LIVE)
    places = [0, *sorted(int(cut * len(wire)) for cut in cuts), len(wire)]
    client = served.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for first, end in itertools.pairwise(places):
        client.sendall(wire[first:end])
        time.sleep(0.001)
    for body in bodies:
        assert read_answer(client).body == body
    assert read_answer(client).status == 200


@pytest.mark.parametrize("size", [STRAIGHT, STRAIGHT + 1, LIMIT])
def test_the_largest_bodies(served: Running, size: int) -> None:
    body = noise(size)
    client = served.connect()
    for _ in range(2):
        client.sendall(post(INFER, body, ECHO))
        assert read_answer(client).body == body


def test_what_follows_a_body_is_parsed_like_anything_else(served: Running) -> None:
    client = served.say(post(INFER, noise(900_000), ECHO) + b"NONSENSE\r\n\r\n")
    assert read_answer(client).status == 200
    assert read_answer(client).status == 400
    assert is_closed(client)


@pytest.mark.parametrize(
    "lengths", ["900000\r\nContent-Length: 900001", "900000, 900000", "+900000"]
)
def test_a_length_that_could_be_two_is_refused(served: Running, lengths: str) -> None:
    """Else what one reader takes for a body is a request for another (RFC 9112, section 6.3)."""
    wire = post(INFER, b"", ECHO).replace(b"Length: 0", f"Length: {lengths}".encode(), 1)
    assert served.ask(wire + noise(1000)).status == 400


@pytest.mark.parametrize("size", [1, 1000, 900_000])
@pytest.mark.parametrize("coding", ["whole", "chunked"])
@pytest.mark.parametrize("first", [0, 1, 300])
def test_an_upgrade_that_is_passed_over_takes_no_body_away(
    served: Running, size: int, coding: str, first: int
) -> None:
    """Java's client offers one with its first request, and so does curl with --http2."""
    body = noise(size)
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x", ECHO)
    wire = post(INFER, body, *upgrade)
    if coding == "chunked":
        head = wire[: -len(body)].replace(
            b"Content-Length: %d" % size, b"Transfer-Encoding: chunked"
        )
        wire = head + b"%x\r\n" % size + body + b"\r\n0\r\n\r\n"
    head_length = wire.index(b"\r\n\r\n") + 4
    client = served.say(wire[: head_length + first])
    time.sleep(0.01)
    client.sendall(wire[head_length + first :] + post(INFER, b"not asked", ECHO))
    assert read_answer(client).body == body
    assert is_closed(client)


def test_a_body_that_nobody_wants_any_more_is_no_request() -> None:
    """In its middle the answer comes; what looks like a request in the rest of it is none."""
    plane = Plane()
    with running(plane, max_body=LIMIT, body_timeout=0.2) as server:
        whole = post(INFER, get(INFER.replace("tiny", "other")) * 20_000, ECHO)
        client = server.say(whole[:600_000])
        wait_until(lambda: b"parnet_buffered_bytes 0.0" not in server.ask(get("/metrics")).body)
        got = read_answer(client)
        assert (got.status, got.headers["connection"]) == (408, "close")
        wait_until(lambda: _fails(client, whole[600_000:]))
        assert plane.asked == []
        assert server.ask(get(LIVE)).status == 200


def _fails(client: socket.socket, data: bytes) -> bool:
    try:
        client.sendall(data)
    except OSError:
        return True
    return False


UPGRADE = ("Connection: upgrade", "Upgrade: h2c", ECHO)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "behind", [post(INFER, b"later", *UPGRADE), post(INFER, b"later", ECHO), b"\x00 NONSENSE \r\n"]
)
def test_what_follows_an_upgrade_that_is_passed_over_is_not_read(
    caplog: pytest.LogCaptureFixture, behind: bytes, at_once: bool
) -> None:
    plane = Plane()
    with running(plane) as server:
        first = post(INFER, b"first of all", *UPGRADE)
        client = server.say(first + behind if at_once else first)
        if not at_once:
            with contextlib.suppress(OSError):  # it has hung up
                client.sendall(behind)
        assert read_answer(client).body == b"first of all"
        assert is_closed(client)
        assert len(plane.asked) == 1
        assert b'status="400"' not in server.ask(get("/metrics")).body
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("length", ["00", "0", "000012"])
@pytest.mark.parametrize("upgrade", [(), UPGRADE[:2]])
def test_a_length_may_begin_with_noughts(
    served: Running, length: str, upgrade: tuple[str, ...]
) -> None:
    body = noise(int(length))
    wire = post(INFER, b"", ECHO, *upgrade).replace(b"Length: 0", f"Length: {length}".encode(), 1)
    assert served.ask(wire + body).body == body


def test_a_length_with_very_many_noughts(served: Running) -> None:
    wire = post(INFER, b"x", ECHO).replace(b"Length: 1", b"Length: " + b"0" * 5000 + b"1", 1)
    assert served.ask(wire).body == b"x"


def test_two_servers_of_one_process_read_beside_each_other() -> None:
    """Each event loop has its own room: the system writes without Python's lock."""
    with running(Plane()) as one, running(Plane()) as other, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> bool:
            body = bytes([number]) * 200_000
            client = (one, other)[number % 2].connect()
            for _ in range(40):
                client.sendall(post(INFER, body, ECHO))
                if read_answer(client).body != body:
                    return False
            return True

        assert all(pool.map(ask, range(4)))


def test_what_was_refused_once_is_not_kept() -> None:
    """A smaller part might fit again, and would lie where it does not belong."""
    hold = Budget(100).hold()
    exchange = Exchange({"type": "http", "method": "POST", "headers": []})
    body = gathering.Buffer(200, gathering.Counter(exchange, hold, 1000), 0)
    assert body.filled(50)
    assert not body.filled(60)
    assert not body.filled(10)
    with pytest.raises(RequestError) as caught:
        body.add(b"")
    assert caught.value.status == 503
