"""HTTP without a socket: routes, refusals, keys, ids, limits of bodies, clients that go."""

from __future__ import annotations

import pytest
from serve_http import INFER, Plane, app_of, ask

from parnet_deploy.errors import RequestError
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


# --- what tells -----------------------------------------------------------------------------------


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
    assert b"parnet_buffered_bytes 0.0" in got.body
    assert b"parnet_request_infer_seconds" in got.body, "the data plane's own"


def test_metrics_count_grpc_beside_http(plane: Plane) -> None:
    calls = Traffic()
    calls.answers["OK"] += 2
    calls.active = 1
    body = ask(app_of(plane, calls=calls), "GET", "/metrics").body
    assert b'parnet_grpc_responses_total{code="OK"} 2.0' in body
    assert b"parnet_grpc_calls 1.0" in body
    assert b"parnet_grpc" not in ask(app_of(plane), "GET", "/metrics").body


def test_the_page_brings_its_own_policy(plane: Plane) -> None:
    got = ask(app_of(plane), "GET", "/")
    assert got.headers["content-type"] == "text/html; charset=utf-8"
    assert got.body.startswith(b"<!doctype html>")
    assert "connect-src 'self'" in got.headers["content-security-policy"]
    assert got.headers["x-content-type-options"] == "nosniff"


# --- what works -----------------------------------------------------------------------------------


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


# --- what is not there ----------------------------------------------------------------------------


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


# --- errors ---------------------------------------------------------------------------------------


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
