"""HTTP without a socket: routes, refusals, keys, ids, limits of bodies, clients that go."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import random
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_http import INFER, SIGNATURE, Plane, app_of, ask, asked

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.guard import SECURE
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.transport.limits import body_limit
from parnet_deploy.serve.transport.traffic import Traffic

DOCUMENTS = {
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
    "/v2/models/tiny/ready": {"name": "tiny", "ready": True},
    "/v2/models/tiny/versions/1/ready": {"name": "tiny", "ready": True},
    "/v2/models/tiny/config": {"name": "tiny"},
    "/v2/models/tiny/stats": {"model_stats": [{"name": "tiny"}]},
    "/v2/models/tiny/versions/1/stats": {"model_stats": [{"name": "tiny"}]},
    "/v2/models/stats": {"model_stats": [{"name": "tiny"}]},
}


@pytest.fixture
def plane() -> Plane:
    return Plane()


# --- what tells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS)
def test_documents(plane: Plane, path: str) -> None:
    got = ask(app_of(plane), "GET", path)
    assert (got.status, got.json) == (200, DOCUMENTS[path])
    assert got.headers["content-type"] == "application/json"


def test_metadata(plane: Plane) -> None:
    assert ask(app_of(plane), "GET", "/v2").json["name"] == "parnet-deploy"
    model = ask(app_of(plane), "GET", "/v2/models/tiny/versions/1").json
    assert model == ask(app_of(plane), "GET", "/v2/models/tiny").json
    assert model["inputs"] == [
        {"name": "images_nchw", "datatype": "FP32", "shape": [-1, 3, 64, 64]}
    ]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.endswith(("ready", "live"))])
def test_health_that_is_bad_is_503_and_says_why(plane: Plane, path: str) -> None:
    plane.live = plane.ready = False
    plane.message = "the engine is being started"
    got = ask(app_of(plane), "GET", path)
    assert got.status == 503
    assert got.json["error"] == plane.message
    assert got.json.get("live", got.json.get("ready")) is False


def test_metrics_count_answers_by_status(plane: Plane) -> None:
    app = app_of(plane)
    for path in ("/v2", "/v2", "/nothing"):
        ask(app, "GET", path)
    got = ask(app, "GET", "/metrics")
    assert got.status == 200
    assert got.headers["content-type"].startswith("text/plain; version=")
    assert b'parnet_http_responses_total{status="200"} 2.0' in got.body
    assert b'parnet_http_responses_total{status="404"} 1.0' in got.body
    assert b"parnet_http_buffered_bytes 0.0" in got.body
    assert b"parnet_request_infer_seconds" in got.body, "the data plane's own"


def test_the_page_brings_its_own_policy(plane: Plane) -> None:
    got = ask(app_of(plane), "GET", "/")
    assert got.headers["content-type"] == "text/html; charset=utf-8"
    assert got.body.startswith(b"<!doctype html>")
    assert "connect-src 'self'" in got.headers["content-security-policy"]
    assert got.headers["x-content-type-options"] == "nosniff"


# --- what works ---------------------------------------------------------------------------------


def test_infer_hands_over_what_came(plane: Plane) -> None:
    got = ask(app_of(plane), "POST", INFER, b"{}")
    assert (got.status, got.json) == (200, {"ok": True})
    assert plane.asked == [("tiny", None, b"{}", None)]
    assert "inference-header-content-length" not in got.headers
    assert got.headers["server-timing"] == "prepare;dur=1.000, queue;dur=2.000, infer;dur=3.000"


def test_infer_of_a_version_with_binary_tensors(plane: Plane) -> None:
    headers = {"Inference-Header-Content-Length": "2"}
    got = ask(app_of(plane), "POST", "/v2/models/tiny/versions/1/infer", b"{}\0\1", headers)
    assert plane.asked == [("tiny", "1", b"{}\0\1", 2)]
    assert got.body == b"{}\0\1"
    assert got.headers["inference-header-content-length"] == "2"
    assert got.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("value", ["-1", "+1", "1.0", "0x2", "", " ", "2 2", "\u00b2", "1" * 19])
def test_a_header_length_that_is_no_number(plane: Plane, value: str) -> None:
    got = ask(app_of(plane), "POST", INFER, b"{}", {"Inference-Header-Content-Length": value})
    assert got.status == 400
    assert "Inference-Header-Content-Length" in got.error
    assert not plane.asked


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-www-form-urlencoded", ""])
def test_classify_takes_a_body_whatever_it_is_called(plane: Plane, kind: str) -> None:
    got = ask(app_of(plane), "POST", "/classify?top=2", b"\xff\xd8", {"Content-Type": kind})
    assert plane.asked == [(b"\xff\xd8", 2, False)]
    assert got.json == {
        "model": "tiny",
        "predictions": [
            {"label": "ant", "index": 0, "probability": 1 / 3},
            {"label": "bee", "index": 1, "probability": 1 / 3},
        ],
        "timing": {"prepare": 0.001, "queue": 0.002, "infer": 0.003, "total": 0.007},
        "spans": [],
    }


def test_classify_with_the_stages(plane: Plane) -> None:
    got = ask(app_of(plane), "POST", "/classify?trace=true", b"x")
    assert got.json["spans"] == [{"stage": "stream1", "device": "cpu", "start": 0.0, "end": 0.002}]
    assert len(got.json["predictions"]) == 3, "all, where there are fewer than five"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("top=0", "1 to 3"),
        ("top=4", "1 to 3"),
        ("top=-1", "1 to 3"),
        ("top=", "1 to 3"),
        ("top=%C2%B2", "1 to 3"),
        ("top=1e0", "1 to 3"),
        (f"top={'9' * 5000}", "1 to 3"),
        ("trace=maybe", "true or false"),
        ("tpo=3", "'tpo'"),
        ("&".join(["top=1"] * 20), "the query"),
    ],
)
def test_classify_refuses_options_that_are_none(plane: Plane, query: str, named: str) -> None:
    got = ask(app_of(plane), "POST", f"/classify?{query}", b"x")
    assert got.status == 400
    assert named in got.error
    assert not plane.asked


def test_classify_says_how_where_it_gets_a_form(plane: Plane) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    got = ask(app_of(plane), "POST", "/classify", b"--x", headers)
    assert (got.status, got.headers["accept"]) == (415, "image/*")
    assert "curl --data-binary @cat.jpg" in got.error


def test_classify_says_how_where_it_gets_nothing(plane: Plane) -> None:
    got = ask(app_of(plane), "POST", "/classify")
    assert got.status == 400
    assert "curl --data-binary @cat.jpg" in got.error


# --- what is not there --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v2/",
        "//v2",
        "/V2",
        "/v2/models/",
        "/v2/models/tiny/",
        "/v2/models/other",
        "/v2/models/tiny/versions/2",
        "/v2/models/tiny/../tiny",
        "/v2/models/..%2ftiny",
        "/v2/models/..%2F..%2f..%2fetc%2fpasswd",
        "/v2%2fhealth%2flive",
        "/v2/models/tiny%00",
        "/v2/models/tiny%0d%0aX:1",
        "/v2/models/%252e%252e",
        "/v2/models/tiny%5cconfig",
        "/v2/models/%ff%fe",
        "/v2/models/tiny%",
        "/v2/models/tiny%zz",
        "/v2/repository/index",
        "/v2/systemsharedmemory/status",
    ],
)
def test_not_found(plane: Plane, path: str) -> None:
    got = ask(app_of(plane), "GET", path)
    assert got.status == 404
    assert got.error
    assert not plane.asked


def test_an_encoded_name_is_the_same_name(plane: Plane) -> None:
    assert ask(app_of(plane), "GET", "/v2/models/%74iny").status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", INFER, "POST"),
        ("PUT", "/classify", "POST"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("DELETE", "/v2/models/tiny", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
    ],
)
def test_wrong_method(plane: Plane, method: str, path: str, allowed: str) -> None:
    got = ask(app_of(plane), method, path)
    assert (got.status, got.headers["allow"]) == (405, allowed)
    assert allowed in got.error


# --- errors -------------------------------------------------------------------------------------


def test_a_refusal_of_the_plane_is_handed_on(plane: Plane) -> None:
    async def full() -> None:
        raise RequestError(503, "64 requests wait already", retry_after=3)

    plane.work = full
    got = ask(app_of(plane), "POST", INFER, b"{}")
    assert (got.status, got.headers["retry-after"]) == (503, "3")
    assert got.error == "64 requests wait already"


@pytest.mark.parametrize("path", [INFER, "/classify"])
def test_what_nobody_foresaw_is_told_to_the_log_alone(
    plane: Plane, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("secret of /srv/models")

    plane.work = fail
    got = ask(app_of(plane), "POST", path, b"x")
    assert got.status == 500
    assert got.error == "the server failed to answer this request; its log says why"
    assert "secret of /srv/models" in caplog.text
    assert "Traceback" in caplog.text


def test_a_document_that_fails(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "server_metadata", lambda: 1 / 0)
    got = ask(app_of(plane), "GET", "/v2")
    assert got.status == 500
    assert "division" not in got.error


# --- ids, keys, headers -------------------------------------------------------------------------


def test_every_answer_has_an_id_of_its_own(plane: Plane) -> None:
    app = app_of(plane)
    ids = {ask(app, "GET", path).headers["x-request-id"] for path in ("/v2", "/v2", "/nothing")}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("4bf92f35-77b3", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("two words", False),
        ("line\x0bbreak", False),
        ("", False),
        ("\u00e4", False),
    ],
)
def test_a_clients_id_is_taken_where_it_is_sane(plane: Plane, given: str, taken: bool) -> None:
    got = ask(app_of(plane), "GET", "/v2", headers={"X-Request-Id": given})
    assert (got.headers["x-request-id"] == given) == taken


@pytest.mark.parametrize("path", ["/v2", "/nothing", "/v2/health/live"])
def test_headers_that_keep_browsers_from_guessing(plane: Plane, path: str) -> None:
    got = ask(app_of(plane), "GET", path)
    assert {(n.decode(), v.decode()) for n, v in SECURE} <= set(got.headers.items())


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer right", 200),
        ("bearer  right ", 200),
        ("Bearer wrong", 401),
        ("Bearer rightly", 401),
        ("Bearer", 401),
        ("right", 401),
        ("Basic right", 401),
        (None, 401),
    ],
)
def test_a_key(plane: Plane, given: str | None, status: int) -> None:
    headers = {} if given is None else {"Authorization": given}
    got = ask(app_of(plane, api_key="right"), "POST", INFER, b"{}", headers)
    assert got.status == status
    assert bool(plane.asked) == (status == 200)
    if status == 401:
        assert got.headers["www-authenticate"].startswith('Bearer realm="parnet-deploy"')
        assert "right" not in got.error.replace("the right one", "")


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/health/ready"])
def test_health_and_the_page_need_no_key(plane: Plane, path: str) -> None:
    assert ask(app_of(plane, api_key="right"), "GET", path).status == 200


@pytest.mark.parametrize(
    "path", ["/v2", "/metrics", "/nothing", "/v2/models/stats", "/v2/./health/live"]
)
def test_all_else_does(plane: Plane, path: str) -> None:
    assert ask(app_of(plane, api_key="right"), "GET", path).status == 401


# --- bodies -------------------------------------------------------------------------------------


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
    assert b"parnet_http_buffered_bytes 0.0" in ask(app, "GET", "/metrics").body


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


# --- codings ------------------------------------------------------------------------------------


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


# --- the limit by default -----------------------------------------------------------------------


def test_the_default_limit_takes_the_largest_batch_as_json() -> None:
    numbers = 2 * 3 * 64 * 64
    longest = len(json.dumps([-1.2345678901234567e-100])) - 1
    assert body_limit(SIGNATURE, ServeSettings()) >= numbers * longest
    assert body_limit(SIGNATURE, ServeSettings()) == 16 * 1024 * 1024, "a photograph"
    assert body_limit(SIGNATURE, ServeSettings(max_body=7)) == 7
    assert body_limit(SIGNATURE, ServeSettings(max_buffered=9)) == 9


# --- clients that go ----------------------------------------------------------------------------


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("path", [INFER, "/classify"])
def test_a_client_that_has_gone_is_not_worked_for(
    plane: Plane, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    traffic = Traffic()
    plane.work = for_ever
    app = app_of(plane, traffic)
    got = asyncio.run(asyncio.wait_for(asked(app, "POST", path, b"x", leaves=True), 10))
    assert got is None
    assert plane.cancelled == 1
    assert (traffic.active, traffic.answers) == (0, {499: 1})
    assert f"POST {path} 499" in caplog.text


def test_a_client_that_goes_in_the_middle_of_its_body(plane: Plane) -> None:
    traffic = Traffic()
    app = app_of(plane, traffic)
    headers = {"Content-Length": "10"}
    got = asyncio.run(asyncio.wait_for(asked(app, "POST", INFER, [], headers, leaves=True), 10))
    assert got is None
    assert not plane.asked
    assert traffic.answers == {499: 1}


def test_a_client_that_stays_is_waited_for(plane: Plane) -> None:
    """Longer than it takes until the client is watched."""

    async def a_while() -> None:
        await asyncio.sleep(0.05)

    plane.work = a_while
    assert ask(app_of(plane), "POST", INFER, b"{}").status == 200
    assert plane.cancelled == 0


# --- the end ------------------------------------------------------------------------------------


def test_while_draining_connections_are_not_kept(plane: Plane) -> None:
    traffic = Traffic()
    traffic.drain()
    got = ask(app_of(plane, traffic), "GET", "/v2/health/live")
    assert (got.status, got.headers["connection"]) == (200, "close")


def test_draining_does_not_wait_for_bodies(plane: Plane) -> None:
    traffic = Traffic()
    app = app_of(plane, traffic, body_timeout=1000.0)
    headers = {"Content-Length": "10"}

    async def drain() -> None:
        asking = asyncio.create_task(asked(app, "POST", INFER, [], headers))
        while not traffic.active:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        traffic.drain()
        got = await asyncio.wait_for(asking, 10)
        assert got is not None
        assert (got.status, got.headers["connection"]) == (503, "close")
        assert "shutting down" in got.error
        await asyncio.wait_for(traffic.quiet(), 10)

    asyncio.run(drain())
    assert not plane.asked


def test_work_that_is_cut_off_is_told_so(plane: Plane) -> None:
    """As uvicorn does when the grace period is over."""
    plane.work = for_ever

    async def cut() -> None:
        asking = asyncio.create_task(asked(app_of(plane), "POST", INFER, b"{}"))
        while not plane.asked:
            await asyncio.sleep(0)
        asking.cancel()
        got = await asking
        assert got is not None
        assert got.status == 503

    asyncio.run(cut())
    assert plane.cancelled == 1


# --- tensors ------------------------------------------------------------------------------------


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
