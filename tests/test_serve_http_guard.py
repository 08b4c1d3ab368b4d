"""What stands around every route: ids, keys, headers, clients that go, and the end."""

from __future__ import annotations

import asyncio
import logging

import pytest
from serve_http import (
    INFER,
    Plane,
    app_of,
    ask,
    asked,
)

from parnet_deploy.serve.http.fields import SECURE
from parnet_deploy.serve.transport.traffic import Traffic


@pytest.fixture
def plane() -> Plane:
    return Plane()


# --- ids, keys, headers ---------------------------------------------------------------------------


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


# --- clients that go ------------------------------------------------------------------------------


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


# --- the end --------------------------------------------------------------------------------------


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
