"""The express lane: the application's answers, sooner."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator

import pytest
from express_lane import ECHO, noise, prompt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_http import (
    INFER,
    LIVE,
    Got,
    Plane,
    Running,
    get,
    post,
    read_answer,
    running,
    wait_until,
)

from parnet_deploy.errors import RequestError
from parnet_deploy.serve.http.sockets import reading
from parnet_deploy.serve.protocol.response import EncodedResponse
from parnet_deploy.serve.recording import Timing

pytestmark = pytest.mark.usefixtures("lone_clients")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Plane, Running]]:
    plane = prompt()
    with running(plane) as server:
        yield plane, server


def named(got: Got) -> dict[str, str]:
    """Its header, but for what no two answers share."""
    return {k: v for k, v in got.headers.items() if k not in ("x-request-id", "date")}


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
    served: tuple[Plane, Running], patient_lane: None, sizes: list[int], cuts: list[int], seed: int
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
        got = server.ask(post(INFER, noise(600), ECHO))
    assert got.headers["server-timing"] == ("prepare;dur=1.000, queue;dur=2.000, infer;dur=3.000")
