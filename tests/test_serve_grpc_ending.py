"""gRPC's end: what is in flight, what does not come, what keeps silent; a port that is taken."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import Future
from dataclasses import replace

import grpc
import pytest
from serve_grpc import (
    NO_SETTINGS,
    PREFACE,
    SERVICE,
    busy,
    eventually,
    fronted,
    numbers,
    on_loop,
    refused,
    request,
    unsent,
    waiting,
)
from served import PATIENCE, SETTINGS, GatedRunner
from served_plane import counts

from parnet_deploy.errors import ServingError
from parnet_deploy.serve.grpc import start

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def test_what_is_in_flight_is_answered() -> None:
    runner = GatedRunner()
    with fronted(runner) as served:
        stub = served.stub()
        calls = [stub.ModelInfer.future(request(n)) for n in (1, 2)]
        runner.begun()
        waiting(served, 1)
        stopping: Future[bool] = served.stopping(grace=PATIENCE)
        eventually(lambda: served.front._guard.traffic.draining)
        code, _, _ = refused(lambda: served.stub().ModelInfer(request(3)))
        assert code is UNAVAILABLE
        assert not stopping.done()
        runner.finish(1)
        runner.finish(2)
        assert [numbers(call.result(PATIENCE)) for call in calls] == [[1], [2]]
        assert stopping.result(PATIENCE) is True
    assert sorted(runner.log[:2]) == [[1], [2]]  # which comes first is the client's affair


def test_a_grace_period_ends() -> None:
    with busy() as (served, _, first):
        assert served.stop(grace=0.2) is False
        assert refused(lambda: first.result(PATIENCE))[0] in (
            UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
        eventually(lambda: counts(served.plane.recorder) == {"cancelled": 1})


def test_a_shorter_grace_period_counts() -> None:
    with busy() as (served, _, first):
        patient = served.stopping(grace=600.0)
        eventually(lambda: served.front._guard.traffic.draining)
        assert not patient.done()
        assert served.stop(grace=0.1) is False
        assert refused(lambda: first.result(PATIENCE))[0] in (
            UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        )
        patient.result(PATIENCE)


def test_stops_at_once() -> None:
    for _ in range(20):
        with fronted() as served:
            numbers(served.stub().ModelInfer(request(2)))
            stops = [served.stopping(grace=grace) for grace in (0, 0.1, 600.0, 0)]
            for stop in stops:
                stop.result(PATIENCE)


def test_a_model_that_drains() -> None:
    with fronted() as served:
        served.plane.model.drain()
        code, details, trailing = refused(lambda: served.stub().ModelInfer(request(1)))
        assert (code, details) == (UNAVAILABLE, "the server is shutting down")
        assert trailing["grpc-retry-pushback-ms"] == "5000"


def test_messages_that_do_not_come_do_not_keep_it() -> None:
    with fronted(settings=replace(SETTINGS, body_timeout=600.0)) as served:
        messages, go = unsent()
        call = served.channel().stream_unary(f"{SERVICE}/ModelInfer").future(messages)
        eventually(lambda: served.front._guard.traffic.active == 1)
        assert served.stop(grace=600.0) is True
        code, details, _ = refused(lambda: call.result(PATIENCE))
        assert (code, details) == (UNAVAILABLE, "the server is shutting down")
        go.set()


def test_connections_that_say_nothing_do_not_keep_it() -> None:
    with fronted() as served, contextlib.ExitStack() as opened:
        for said in (b"", PREFACE, PREFACE + NO_SETTINGS):
            idle = socket.create_connection(("127.0.0.1", served.front.port), PATIENCE)
            opened.enter_context(idle)
            idle.sendall(said)
        assert idle.recv(1), "it has been let in"
        assert numbers(served.stub().ModelInfer(request(2))) == [2]
        assert served.stop(grace=600.0) is True


def test_a_port_that_is_taken() -> None:
    with fronted() as served:
        second = on_loop(start(served.plane, SETTINGS, served.front.port))
        with pytest.raises(ServingError, match="choose another with --grpc-port"):
            second.result(PATIENCE)
