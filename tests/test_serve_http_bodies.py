"""Bodies: their limits, their codings, the budget of all, and where tensors lie."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_http import (
    INFER,
    SIGNATURE,
    Plane,
    app_of,
    ask,
    asked,
    get,
    post,
    read_answer,
    running,
    wait_until,
)

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.coding import Coded
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.budget import Budget
from parnet_deploy.serve.transport.limits import body_limit


@pytest.fixture
def plane() -> Plane:
    return Plane()


# --- bodies ---------------------------------------------------------------------------------------


def test_a_body_in_parts(plane: Plane) -> None:
    ask(app_of(plane), "POST", INFER, [b"{", b"", b'"a":', b"1}"])
    assert plane.asked == [("tiny", None, b'{"a":1}', None)]


def test_a_body_that_is_announced_to_be_too_large_is_not_read(plane: Plane) -> None:
    headers = {"Content-Length": "101"}

    async def ask_without_a_body() -> None:
        got = await asked(app_of(plane, max_body=100), "POST", INFER, [], headers)
        assert got is not None
        assert (got.status, got.headers["connection"]) == (413, "close")
        assert "100 bytes" in got.error

    asyncio.run(asyncio.wait_for(ask_without_a_body(), 10))


def test_a_body_that_turns_out_too_large(plane: Plane) -> None:
    got = ask(app_of(plane, max_body=100), "POST", INFER, [b"x" * 60, b"x" * 60, b"x" * 10**6])
    assert (got.status, got.headers["connection"]) == (413, "close")
    assert "100 bytes" in got.error
    assert not plane.asked


def test_the_largest_body_is_taken(plane: Plane) -> None:
    assert ask(app_of(plane, max_body=100), "POST", INFER, b"x" * 100).status == 200
    assert ask(app_of(plane, max_body=100), "POST", INFER, [b"x" * 99, b"x"]).status == 200


def test_all_bodies_together_have_a_limit(plane: Plane) -> None:
    """The second of two that are in memory at once is refused; when both have gone, none is."""
    app = app_of(plane, max_body=100, max_buffered=150)

    async def two() -> list[int]:
        answers = await asyncio.gather(*(slow() for _ in range(2)))
        return sorted(got.status for got in answers if got is not None)

    async def slow():
        async def wait() -> None:
            await asyncio.sleep(0.05)

        plane.work = wait
        return await asked(app, "POST", INFER, b"x" * 100)

    assert asyncio.run(two()) == [200, 503]
    assert ask(app, "POST", INFER, b"x" * 100).status == 200
    assert b"parnet_buffered_bytes 0.0" in ask(app, "GET", "/metrics").body


def test_a_body_that_does_not_end(plane: Plane) -> None:
    """It is refused after its deadline, and the connection is not used for another request."""
    app = app_of(plane, body_timeout=0.05)
    headers = {"Content-Length": "10"}
    got = ask(app, "POST", INFER, [], headers)
    assert (got.status, got.headers["connection"]) == (408, "close")
    assert "0.05 s" in got.error


def test_a_refusal_before_the_body_was_read_ends_the_connection(plane: Plane) -> None:
    got = ask(app_of(plane), "POST", "/nothing", b"x" * 10)
    assert (got.status, got.headers["connection"]) == (404, "close")
    assert "connection" not in ask(app_of(plane), "GET", "/nothing").headers


@pytest.mark.parametrize("path", [INFER, "/classify"])
def test_work_that_nobody_takes_is_refused_before_its_body_is_read(plane: Plane, path: str) -> None:
    plane.refusal = RequestError(503, "64 requests wait already", retry_after=1)

    async def ask_without_a_body() -> None:
        got = await asked(app_of(plane), "POST", path, [], {"Content-Length": "10000000"})
        assert got is not None
        assert (got.status, got.headers["connection"]) == (503, "close")
        assert got.error == "64 requests wait already"

    asyncio.run(asyncio.wait_for(ask_without_a_body(), 10))


def test_an_unknown_model_is_refused_before_its_body_is_read(plane: Plane) -> None:
    async def ask_without_a_body() -> None:
        path = "/v2/models/other/infer"
        got = await asked(app_of(plane), "POST", path, [], {"Content-Length": "10000000"})
        assert got is not None
        assert (got.status, got.headers["connection"]) == (404, "close")

    asyncio.run(asyncio.wait_for(ask_without_a_body(), 10))


def test_transports_share_a_budget(plane: Plane) -> None:
    budget = Budget(1000)
    app = app_of(plane, budget=budget, max_body=100)
    with budget.hold() as other:
        other.take(950)
        assert ask(app, "POST", INFER, b"x" * 100).status == 503
    assert ask(app, "POST", INFER, b"x" * 100).status == 200


def test_a_body_in_its_place_counts_as_it_comes() -> None:
    """Of two that were announced, one is refused in its middle."""
    with running(Plane(), max_body=300_000, max_buffered=300_000) as server:
        first, second = server.connect(), server.connect()
        head = post(INFER, b"").replace(b"h: 0", b"h: 250000")
        first.sendall(head + bytes(200_000))
        wait_until(lambda: b"parnet_buffered_bytes 200000.0" in server.ask(get("/metrics")).body)
        second.sendall(head + bytes(1000))
        wait_until(lambda: b"parnet_buffered_bytes 201000.0" in server.ask(get("/metrics")).body)
        second.sendall(bytes(150_000))
        got = read_answer(second)
        assert (got.status, got.headers["connection"]) == (503, "close")
        first.sendall(bytes(50_000))
        assert read_answer(first).status == 200
        wait_until(lambda: b"parnet_buffered_bytes 0.0" in server.ask(get("/metrics")).body)


def test_a_body_in_many_pieces_arrives_as_it_was_sent() -> None:
    """Whatever is sent behind it: on the same connection another request follows."""
    plane = Plane()
    body = bytes(range(256)) * 2000
    with running(plane) as server:
        client = server.connect()
        request = post(INFER, body, "Inference-Header-Content-Length: 7") * 2
        for first in range(0, len(request), 50_001):
            client.sendall(request[first : first + 50_001])
        assert [read_answer(client).body for _ in range(2)] == [body, body]


# --- codings --------------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


CODED = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    " deflate ": raw_deflate,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_compressed_body(plane: Plane, coding: str, size: int) -> None:
    """Those above a size are undone on a thread, and these bytes cannot be made fewer."""
    plain = random.Random(0).randbytes(size)
    data = CODED[coding](plain)
    ask(app_of(plane), "POST", INFER, data, {"Content-Encoding": coding})
    assert plane.asked == [("tiny", None, plain, None)]


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress", "gzip;q=1"])
def test_an_unknown_coding(plane: Plane, coding: str) -> None:
    got = ask(app_of(plane), "POST", INFER, b"x", {"Content-Encoding": coding})
    assert (got.status, got.headers["accept-encoding"]) == (415, "gzip, deflate, identity")
    assert "gzip" in got.error
    assert not plane.asked


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate])
@pytest.mark.parametrize("parts", [1, 50])
def test_a_bomb_is_not_unpacked(plane: Plane, pack, parts: int) -> None:
    bomb = pack(bytes(10_000_000))
    coding = "gzip" if pack is gzip.compress else "deflate"
    step = -(-len(bomb) // parts)
    pieces = [bomb[first : first + step] for first in range(0, len(bomb), step)]
    got = ask(app_of(plane, max_body=100_000), "POST", INFER, pieces, {"Content-Encoding": coding})
    assert got.status == 413
    assert "100000 bytes when it is decompressed" in got.error
    assert not plane.asked


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int, int]]:
    """Pieces that are decompressed: whether on the event loop, their sizes, how many at once."""
    found: list[tuple[bool, int, int]] = []
    read, lock, under_way = Coded.read, threading.Lock(), [0]

    def spy(coded: Coded, most: int) -> bytes:
        with lock:
            under_way[0] += 1
            count = under_way[0]
        try:
            part = read(coded, most)
        finally:
            with lock:
                under_way[0] -= 1
        on_loop = threading.current_thread() is threading.main_thread()
        found.append((on_loop, len(part), count))
        return part

    monkeypatch.setattr(Coded, "read", spy)
    return found


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_does_not_hold_the_event_loop_up(
    plane: Plane, pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is on the wire, what it becomes is made on a thread, piece by piece."""
    found = spied(monkeypatch)
    coding = "gzip" if pack is gzip.compress else "deflate"
    body = pack(bytes(10_000_000))
    assert ask(app_of(plane), "POST", INFER, body, {"Content-Encoding": coding}).status == 200
    assert sum(size for _, size, _ in found) == 10_000_000
    assert max(size for on_loop, size, _ in found if on_loop) <= 65_536
    assert max(size for _, size, _ in found) <= 1 << 20


def test_a_bomb_is_known_before_it_takes_more_than_the_budget_has(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = spied(monkeypatch)
    budget = Budget(8_000_000)
    app = app_of(plane, budget=budget, max_body=8_000_000)
    with budget.hold() as others:
        others.take(6_000_000)
        body = gzip.compress(bytes(6_000_000))
        assert ask(app, "POST", INFER, body, {"Content-Encoding": "gzip"}).status == 503
    assert sum(size for _, size, _ in found) < 4_000_000
    assert budget.used == 0


def test_few_bodies_are_decompressed_at_once(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    found = spied(monkeypatch)
    app = app_of(plane)
    body = gzip.compress(bytes(2_000_000))

    async def many() -> None:
        await asyncio.gather(
            *(asked(app, "POST", INFER, body, {"Content-Encoding": "gzip"}) for _ in range(8))
        )

    asyncio.run(many())
    assert max(count for on_loop, _, count in found if not on_loop) <= 3  # two, and one on the loop


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\0" + data,
        lambda data: data + b"x",
        lambda data: data + data,
        lambda data: data[:20] + bytes(8) + data[28:],
    ],
)
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_damaged_coding(plane: Plane, damage, coding: str) -> None:
    data = damage(CODED[coding](b"some bytes" * 50 + bytes(range(256))))
    got = ask(app_of(plane), "POST", INFER, data, {"Content-Encoding": coding})
    assert got.status == 400
    assert coding in got.error
    assert not plane.asked


@given(data=st.binary(max_size=200), coding=st.sampled_from(["gzip", "deflate"]))
def test_no_coded_bytes_are_a_surprise(data: bytes, coding: str) -> None:
    got = ask(app_of(Plane()), "POST", INFER, data, {"Content-Encoding": coding})
    assert got.status in (200, 400)


# --- the limit by default -------------------------------------------------------------------------


def test_the_default_limit_takes_the_largest_batch_as_json() -> None:
    numbers = 2 * 3 * 64 * 64
    longest = len(json.dumps([-1.2345678901234567e-100])) - 1
    assert body_limit(SIGNATURE, ServeSettings()) >= numbers * longest
    assert body_limit(SIGNATURE, ServeSettings()) == 16 * 1024 * 1024, "a photograph"
    assert body_limit(SIGNATURE, ServeSettings(max_body=7)) == 7
    assert body_limit(SIGNATURE, ServeSettings(max_buffered=9)) == 9


# --- tensors --------------------------------------------------------------------------------------


@given(head=st.integers(0, 40), cuts=st.lists(st.integers(0, 4000), min_size=1, max_size=5))
def test_a_tensor_behind_a_header_of_any_length_is_aligned(head: int, cuts: list[int]) -> None:
    """So that it is read where it lies."""
    plane = Plane()
    body = bytes(head) + np.arange(1000, dtype="<f4").tobytes()
    ends = sorted({0, *(min(cut, len(body)) for cut in cuts), len(body)})
    parts = [body[first:last] for first, last in itertools.pairwise(ends)]
    ask(app_of(plane), "POST", INFER, parts, {"Inference-Header-Content-Length": str(head)})
    ((_, _, found, _),) = plane.asked
    assert bytes(found) == body
    tensor = np.frombuffer(found, "<f4", offset=head)
    assert tensor.flags.aligned or len(parts) == 1
