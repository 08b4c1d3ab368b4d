"""Connections: what comes over real sockets, in time, too late, too long, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator

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

LONG = 600.0


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    """A server that no test waits for."""
    with running(Plane(), max_body=10_000_000, max_header=4096, body_timeout=LONG) as server:
        yield server


def reason(data: bytes) -> str:
    return str(json.loads(data)["error"])


# --- what is asked one after the other ----------------------------------------------------------


def test_one_connection_for_several_requests(served: Running) -> None:
    client = served.connect()
    for _ in range(3):
        client.sendall(post(INFER, b"{}"))
        got = read_answer(client)
        assert (got.status, "connection" in got.headers) == (200, False)


def test_a_large_body_arrives_as_it_was_sent() -> None:
    plane = Plane()
    body = bytes(range(256)) * 20_000
    with running(plane, max_body=len(body)) as server:
        server.ask(post(INFER, body, "Inference-Header-Content-Length: 2"))
        parts = [body[first : first + 100_000] for first in range(0, len(body), 100_000)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        server.ask(head + chunks + b"0\r\n\r\n")
    assert [asked[2] for asked in plane.asked] == [body, body]


def test_a_body_of_the_smallest_chunks(served: Running) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert served.ask(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n").status == 200


def test_a_body_of_too_many_small_chunks(served: Running) -> None:
    """Each costs a turn of the parser, and nobody has a reason to send so many."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    client = served.say(head)
    client.sendall(b"1\r\nx\r\n" * 66_000)
    got = read_answer(client)
    assert (got.status, got.headers["connection"]) == (400, "close")
    assert "65536 chunks" in got.error
    assert is_closed(client)


def test_many_chunks_that_are_not_small(served: Running) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"40\r\n" + bytes(64) + b"\r\n"
    assert served.ask(head + chunk * 66_000 + b"0\r\n\r\n").status == 200


def test_bodies_wait_to_be_asked_for(served: Running) -> None:
    """As curl does with bodies of more than a megabyte."""
    client = served.say(post(INFER, b"", "Expect: 100-continue").replace(b"h: 0", b"h: 2"))
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"{}")
    assert read_answer(client).status == 200


def test_nobody_is_asked_for_a_body_that_is_refused(served: Running) -> None:
    request = post(INFER, b"", "Expect: 100-continue").replace(b"h: 0", b"h: 99999999999")
    assert served.ask(request).status == 413


def test_requests_sent_behind_each_other_are_answered_in_order(served: Running) -> None:
    client = served.say(b"".join(get(LIVE, f"X-Request-Id: {number}") for number in range(5)))
    assert [read_answer(client).headers["x-request-id"] for _ in range(5)] == list("01234")


def test_too_many_requests_behind_each_other(served: Running) -> None:
    """The first of them are answered; the rest is refused as a whole."""
    client = served.say(get(LIVE) * 60)
    got = b""
    while part := client.recv(65536):
        got += part
    assert 1 <= got.count(b"HTTP/1.1 200") < 60
    assert got.count(b"HTTP/1.1 503") == 1
    assert got.count(b"retry-after: 1\r\n") == 1
    assert "requests wait on this connection" in reason(got[got.rindex(b"{") :])


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Content-Encoding", "Content-Type", "Inference-Header-Content-Length"],
)
def test_a_field_of_which_there_is_one_came_twice(served: Running, name: str) -> None:
    """Whoever looks at it next may go by the other one."""
    got = served.ask(post(INFER, b"{}", f"{name}: 2", "X-Request-Id: 7", f"{name.lower()}: 2"))
    assert got.status == 400
    assert reason(got.body) == f"the header has more than one '{name.lower()}'"
    assert got.headers["x-request-id"] == "7"


TRAILED = (
    b"POST %s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n%s\r\n2\r\n{}\r\n0\r\n%s\r\n"
)


@pytest.mark.parametrize("path", [INFER, "/classify"])
@pytest.mark.parametrize("others", [False, True])
def test_a_trailer_is_no_field(path: str, others: bool) -> None:
    """Neither a key, nor what a body is; with others about no express lane stands before."""
    key = b"Authorization: Bearer right\r\n"
    length = b"Inference-Header-Content-Length: 1\r\n"
    plane = Plane()
    with running(plane, api_key="right") as server:
        if others:
            other = server.connect()
            other.sendall(get(LIVE))
            assert read_answer(other).status == 200
        assert server.ask(TRAILED % (path.encode(), b"", key)).status == 401
        assert not plane.asked
        assert server.ask(TRAILED % (path.encode(), key, key + length)).status == 200
    ((*_, last),) = plane.asked
    assert last in (None, False)  # no length of a header, nor anything but the default


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"x", b"X: yyyy"])
def test_trailers_without_end(served: Running, piece: bytes) -> None:
    client = served.say(TRAILED[:-4] % (INFER.encode(), b""))
    with contextlib.suppress(ConnectionError):  # it is told so, and not listened to any more
        for _ in range(40):
            client.sendall(piece * (16_384 // len(piece)))
    assert read_answer(client).status == 431


def test_chunks_may_be_slow_and_their_signs_many(served: Running) -> None:
    """What is beside a body counts from one part of it to the next."""
    client = served.say((TRAILED % (INFER.encode(), b"", b"")).partition(b"2\r\n")[0])
    for _ in range(3000):
        client.sendall(b"1\r\n ")
        client.sendall(b"\r\n")
    client.sendall(b"2\r\n{}\r\n0\r\n\r\n")
    assert read_answer(client).status == 200


def test_fields_that_may_come_twice(served: Running) -> None:
    got = served.ask(post(INFER, b"{}", "X-Request-Id: 7", "A: b", "X-Request-Id: 8", "A: c"))
    assert got.status == 200


def test_head_has_no_body(served: Running) -> None:
    client = served.say(get(LIVE, "Connection: close").replace(b"GET", b"HEAD"))
    got = b""
    while part := client.recv(65536):
        got += part
    assert got.startswith(b"HTTP/1.1 200")
    assert got.endswith(b"\r\n\r\n")


def test_http_1_0(served: Running) -> None:
    got = served.ask(b"GET /v2 HTTP/1.0\r\n\r\n")
    assert (got.status, got.headers["connection"]) == (200, "close")


# --- what is not HTTP ---------------------------------------------------------------------------

NOT_HTTP = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "words": b"hello, is anybody there?\r\n\r\n",
    "method": b"FROBNICATE / HTTP/1.1\r\nHost: x\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "space in a name": b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n",
    "zero in a value": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
    "length that is none": b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    "length below zero": b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": (
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"
    ),
    "length and chunks": (
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    ),
    "overflowing length": (
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"
    ),
    "tunnel": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "path that is no ASCII": "GET /v2/models/tïny HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "chunk of no size": (
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n"
    ),
    "endless chunk size": (
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40
    ),
}


@pytest.mark.parametrize("request_", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_a_request(served: Running, request_: bytes) -> None:
    client = served.say(request_)
    got = read_answer(client)
    assert (got.status, got.headers["connection"]) == (400, "close")
    assert got.error
    assert is_closed(client)


@settings(max_examples=60)
@given(
    data=st.one_of(
        st.binary(min_size=1, max_size=200),
        st.text(alphabet="GETPOS /\r\nHost: x0123HTTP.%\t\0", max_size=200).map(str.encode),
        st.binary(max_size=60).map(lambda tail: post(INFER, b"{}")[:-20] + tail),
        st.binary(max_size=60).map(lambda tail: get(LIVE) + tail),
    )
)
def test_no_bytes_take_the_server_down(served: Running, data: bytes) -> None:
    client = served.say(data)
    client.shutdown(socket.SHUT_WR)
    try:
        answered = client.recv(65536)
    except ConnectionResetError:
        answered = b""
    assert answered == b"" or answered.startswith(b"HTTP/1.1 ")
    client.close()
    assert served.ask(get(LIVE)).status == 200


def test_an_upgrade_is_not_made(served: Running) -> None:
    request = get("/v2", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x")
    assert served.ask(request).status == 200
    websocket = get("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    assert served.ask(websocket).status == 200


# --- what is too long ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        get(LIVE, "A: " + "a" * 5000),
        get(LIVE, *(f"A{number}: a" for number in range(1000))),
        get("/" + "a" * 5000),
        b"GET /" + b"a" * 5000,
        b"GET /v2 HTTP/1.1\r\nA: " + b"a" * 500_000,
    ],
    ids=["value", "lines", "path", "endless path", "endless value"],
)
def test_a_header_that_is_too_long(served: Running, header: bytes) -> None:
    client = served.say(header)
    got = read_answer(client)
    assert (got.status, got.headers["connection"]) == (431, "close")
    assert "4096 bytes" in got.error
    assert is_closed(client)


@pytest.mark.parametrize(
    "first",
    [
        post(INFER, bytes(8000)),
        post(INFER, b"\r\n\r\n" * 2000),
        get(LIVE, "A: " + "a" * 3000) * 3,
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"1\r\nx\r\n" * 2000
        + b"0\r\n\r\n",
    ],
    ids=["body", "empty lines", "headers", "chunks"],
)
def test_what_comes_before_a_header_does_not_make_it_too_long(
    served: Running, first: bytes
) -> None:
    """It comes in the same piece as the beginning of the next request."""
    second = get(LIVE, "X-Request-Id: second")
    client = served.say(first + second[:-10])
    answers = 3 if first.startswith(b"GET") else 1
    assert [read_answer(client).status for _ in range(answers)] == [200] * answers
    client.sendall(second[-10:])
    got = read_answer(client)
    assert (got.status, got.headers["x-request-id"]) == (200, "second")


def test_a_second_header_that_is_too_long(served: Running) -> None:
    client = served.say(get(LIVE) + b"GET /v2 HTTP/1.1\r\nA: " + b"a" * 5000)
    assert [read_answer(client).status for _ in range(2)] == [200, 431]


def test_an_endless_body_is_refused_and_the_client_can_read_why(served: Running) -> None:
    """It goes on sending: its socket is not reset before it has read the answer."""
    client = served.connect()
    client.sendall(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    for _ in range(16):
        client.sendall(chunk)
    got = read_answer(client)
    assert (got.status, got.headers["connection"]) == (413, "close")
    assert is_closed(client)


def test_a_body_that_was_announced_is_let_go(served: Running) -> None:
    client = served.say(post(INFER, bytes(12_000_000)))
    assert read_answer(client).status == 413
    assert is_closed(client)


def test_an_endless_body_where_none_is_wanted(served: Running) -> None:
    """The answer goes out, and nobody reads on."""
    head = f"GET {LIVE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    client = served.say(head)
    assert read_answer(client).status == 200
    assert is_closed(client)


# --- too many, and gone -------------------------------------------------------------------------


def test_too_many_connections() -> None:
    with running(Plane(), max_connections=2, header_timeout=LONG) as server:
        first = server.say(get(LIVE))
        read_answer(first)
        second = server.connect()
        wait_until(lambda: server.traffic.connections == 2)
        third = server.say(get(LIVE))
        got = read_answer(third)
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert "2 connections" in got.error
        assert is_closed(third)
        first.close()
        third.close()
        wait_until(lambda: server.traffic.connections == 1)
        second.sendall(get(LIVE))
        assert read_answer(second).status == 200
        assert server.ask(get(LIVE)).status == 200


def test_very_many_connections_are_not_even_told() -> None:
    with running(Plane(), max_connections=1, header_timeout=LONG) as server:
        server.connect()
        wait_until(lambda: server.traffic.connections == 1)
        others = [server.connect() for _ in range(100)]
        got = []
        for other in others:
            try:
                got.append(other.recv(12))
            except ConnectionResetError:
                got.append(b"")
        assert 1 <= got.count(b"HTTP/1.1 503") <= 100
        assert set(got) <= {b"HTTP/1.1 503", b""}
        for other in others:
            other.close()
        wait_until(lambda: server.traffic.connections == 1)
        assert server.traffic.turned_away == 0


async def for_ever() -> None:
    await asyncio.Event().wait()


def test_a_client_that_hangs_up_while_it_is_worked_for() -> None:
    plane = Plane()
    plane.work = for_ever
    with running(plane) as server:
        client = server.say(post(INFER, b"{}"))
        assert plane.begun.wait(20)
        client.close()
        wait_until(lambda: plane.cancelled == 1)
        wait_until(lambda: server.traffic.active == 0)
        assert server.traffic.answers == {499: 1}


def test_one_that_hangs_up_with_more_requests_on_the_way() -> None:
    """The one that is worked on is told, and not only the newest."""
    plane = Plane()
    plane.work = for_ever
    with running(plane) as server:
        client = server.say(post(INFER, b"{}") * 3)
        assert plane.begun.wait(20)
        client.close()
        wait_until(lambda: plane.cancelled == 1)
        wait_until(lambda: server.traffic.active == 0)
        assert len(plane.asked) == 1, "the others were never begun"


def test_one_that_hangs_up_in_the_middle_of_its_body() -> None:
    plane = Plane()
    with running(plane, body_timeout=LONG) as server:
        client = server.say(post(INFER, b"0123456789")[:-5])
        wait_until(lambda: server.traffic.active == 1)
        client.close()
        wait_until(lambda: server.traffic.active == 0)
        wait_until(lambda: server.traffic.connections == 0)
        assert not plane.asked
        assert server.traffic.answers == {499: 1}


def test_what_breaks_behind_a_request_waits_for_its_answer() -> None:
    plane = Plane()
    go = threading.Event()

    async def wait() -> None:
        while not go.is_set():
            await asyncio.sleep(0.01)

    plane.work = wait
    with running(plane) as server:
        client = server.say(post(INFER, b"{}") + b"nonsense\r\n\r\n")
        assert plane.begun.wait(20)
        go.set()
        assert read_answer(client).status == 200
        assert read_answer(client).status == 400
        assert is_closed(client)
