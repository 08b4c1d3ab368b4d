"""gRPC: the key, deadlines, clients that go, limits, and the end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from serve_grpc import (
    HALF_A_HEADER,
    NO_SETTINGS,
    PREFACE,
    SERVICE,
    Served,
    busy,
    eventually,
    fronted,
    numbers,
    refused,
    request,
    unsent,
    waiting,
)
from served import PATIENCE, SETTINGS
from served_plane import counts
from tritonclient.grpc import service_pb2 as pb

from parnet_deploy.serve.grpc import guard

KEY = "open-sesame"

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LATE = grpc.StatusCode.DEADLINE_EXCEEDED


# The key


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    with fronted(settings=replace(SETTINGS, api_key=KEY)) as served:
        yield served


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ((), "an API key is needed: send it as metadata, 'authorization: Bearer KEY'"),
        ((("authorization", KEY),), "an API key is needed"),
        ((("authorization", "Bearer wrong"),), "this API key is not the right one"),
        ((("authorization", "Bearer "),), "this API key is not the right one"),
        ((("authorization", f"Bearer {KEY}x"),), "this API key is not the right one"),
        ((("authorization-bin", f"Bearer {KEY}".encode()),), "an API key is needed"),
    ],
)
def test_without_the_key(keyed: Served, metadata: Any, text: str) -> None:
    stub = keyed.stub()
    for call in (
        lambda: stub.ModelInfer(request(1), metadata=metadata),
        lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"), metadata=metadata),
        lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=metadata),
    ):
        code, details, _ = refused(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert text in details
        assert KEY not in details


def test_two_keys_are_refused(keyed: Served) -> None:
    """A proxy in front may have gone by the other one."""
    twice = (("authorization", f"Bearer {KEY}"),) * 2
    code, details, _ = refused(lambda: keyed.stub().ModelInfer(request(1), metadata=twice))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "the metadata have more than one 'authorization'"


def test_the_key_is_asked_for_before_a_message_is_received(keyed: Served) -> None:
    messages, go = unsent()
    code, _, _ = refused(lambda: keyed.channel().stream_unary(f"{SERVICE}/ModelInfer")(messages))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    go.set()


def test_with_the_key(keyed: Served) -> None:
    for scheme in ("Bearer", "bearer"):
        metadata = (("authorization", f"{scheme} {KEY}"),)
        assert numbers(keyed.stub().ModelInfer(request(3), metadata=metadata)) == [3]
    with triton.InferenceServerClient(keyed.url) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        assert client.get_server_metadata(headers=headers).name == "parnet-deploy"


def test_health_needs_no_key(keyed: Served) -> None:
    stub = keyed.stub()
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready


# Deadlines, and clients that go


def test_the_servers_deadline() -> None:
    """What waits by then is never run."""
    with busy(replace(SETTINGS, timeout=0.3)) as (served, runner, first):
        code, details, _ = refused(lambda: served.stub().ModelInfer(request(2)))
        assert (code, details) == (LATE, "the request was not answered in time")
        assert refused(first.result)[0] is LATE
        waiting(served, 0)
    assert runner.log == [[1], "closed"]


def test_the_clients_own_deadline() -> None:
    with busy() as (served, runner, first):
        code, _, _ = refused(lambda: served.stub().ModelInfer(request(2), timeout=0.3))
        assert code is LATE
        waiting(served, 0)
        eventually(lambda: counts(served.plane.recorder) == {"cancelled": 1})
        runner.finish(1)
        assert numbers(first.result(PATIENCE)) == [1]
    assert runner.log == [[1], "closed"]


@pytest.mark.parametrize("way", ["cancels", "leaves"])
def test_a_client_that_goes(way: str) -> None:
    """Its request is taken out of the queue, and never run."""
    with busy() as (served, runner, first):
        channel = served.channel()
        call = channel.unary_unary(f"{SERVICE}/ModelInfer").future(request(2).SerializeToString())
        waiting(served, 1)
        if way == "cancels":
            call.cancel()
        else:
            channel.close()
        waiting(served, 0)
        eventually(lambda: counts(served.plane.recorder) == {"cancelled": 1})
        runner.finish(1)
        assert numbers(first.result(PATIENCE)) == [1]
        eventually(lambda: served.front._guard.traffic.active == 0)
    assert runner.log == [[1], "closed"]


def test_a_message_that_does_not_come() -> None:
    with fronted(settings=replace(SETTINGS, body_timeout=0.2)) as served:
        messages, go = unsent()
        infer = served.channel().stream_unary(f"{SERVICE}/ModelInfer")
        code, details, _ = refused(lambda: infer(messages))
        assert (code, details) == (LATE, "the message was not complete after 0.2 s")
        go.set()
        assert numbers(served.stub().ModelInfer(request(2))) == [2]
        eventually(lambda: served.front._guard.traffic.active == 0)
        assert counts(served.plane.recorder) == {"answered": 1}


def test_messages_that_do_not_come_keep_no_health_waiting() -> None:
    """Nor can health, which needs no key, keep others waiting."""
    with fronted(settings=replace(SETTINGS, max_body=400, max_buffered=400)) as served:
        messages, go = unsent()  # the only one for which there is room
        call = served.channel().stream_unary(f"{SERVICE}/ModelInfer").future(messages)
        eventually(served.front._guard._receiving.free.locked)
        stub = served.stub()
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny")).name == "tiny"
        go.set()
        assert numbers(pb.ModelInferResponse.FromString(call.result(PATIENCE))) == [5]
        silent, go = unsent()
        served.channel().stream_unary(f"{SERVICE}/ServerReady")(silent)
        assert numbers(stub.ModelInfer(request(2))) == [2]
        go.set()


def test_a_message_for_which_there_is_no_room_is_refused_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And is not told that it was slow."""
    monkeypatch.setattr(guard, "_PATIENCE", 0.1)
    settings = replace(SETTINGS, max_body=400, max_buffered=400, body_timeout=600.0)
    with fronted(settings=settings) as served:
        messages, go = unsent()
        call = served.channel().stream_unary(f"{SERVICE}/ModelInfer").future(messages)
        eventually(served.front._guard._receiving.free.locked)
        code, details, trailing = refused(lambda: served.stub().ModelInfer(request(2)))
        assert (code, trailing["grpc-retry-pushback-ms"]) == (UNAVAILABLE, "1000")
        assert details == "too many messages are being received; try again"
        go.set()
        assert numbers(pb.ModelInferResponse.FromString(call.result(PATIENCE))) == [5]
        assert numbers(served.stub().ModelInfer(request(2))) == [2]


def test_a_question_that_does_not_come() -> None:
    """It is a few names, and waited for no longer than for a header."""
    with fronted(settings=replace(SETTINGS, header_timeout=0.2, body_timeout=600.0)) as served:
        messages, go = unsent()
        ask = served.channel().stream_unary(f"{SERVICE}/ModelMetadata")
        code, details, _ = refused(lambda: ask(messages))
        assert (code, details) == (LATE, "the message was not complete after 0.2 s")
        go.set()


def test_work_that_nobody_takes_is_refused_before_its_message_is_received() -> None:
    with fronted() as served:
        served.plane.model.drain()
        messages, go = unsent()
        infer = served.channel().stream_unary(f"{SERVICE}/ModelInfer")
        code, details, _ = refused(lambda: infer(messages))
        assert (code, details) == (UNAVAILABLE, "the server is shutting down")
        go.set()
        eventually(lambda: served.front._guard.traffic.answers == {"UNAVAILABLE": 1})


def test_a_client_that_goes_before_its_message_comes() -> None:
    with fronted() as served:
        messages, go = unsent()
        call = served.channel().stream_unary(f"{SERVICE}/ModelInfer").future(messages)
        eventually(lambda: served.front._guard.traffic.active == 1)
        call.cancel()
        eventually(lambda: served.front._guard.traffic.active == 0)
        go.set()
        assert counts(served.plane.recorder) == {}


# Limits


@pytest.fixture(scope="module")
def slow() -> Iterator[Served]:
    with fronted(settings=replace(SETTINGS, header_timeout=0.2, idle_timeout=0.2)) as served:
        yield served


def test_a_full_queue() -> None:
    with busy() as (served, runner, first):
        stub = served.stub()
        calls = [stub.ModelInfer.future(request(n)) for n in (2, 3, 4, 5)]
        waiting(served, SETTINGS.queue)
        code, details, trailing = refused(lambda: stub.ModelInfer(request(6)))
        assert code is UNAVAILABLE
        assert "4 requests wait already" in details
        assert trailing["grpc-retry-pushback-ms"] == "1000"
        for number in (1, 2, 3, 4, 5):
            runner.finish(number)
        assert numbers(first.result(PATIENCE)) == [1]
        assert [numbers(call.result(PATIENCE)) for call in calls] == [[2], [3], [4], [5]]


def test_an_engine_that_fails() -> None:
    with busy() as (_, runner, first):
        runner.finish(1, RuntimeError("cuda: /dev/nvidia0"))
        code, details, _ = refused(lambda: first.result(PATIENCE))
        assert (code, details) == (
            grpc.StatusCode.INTERNAL,
            "the engine failed; it is being started again",
        )


def test_a_message_that_is_too_large() -> None:
    with fronted(settings=replace(SETTINGS, max_body=200)) as served:
        stub = served.stub()
        large = request(1)
        large.id = "x" * 200
        code, details, _ = refused(lambda: stub.ModelInfer(large))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "200" in details
        assert numbers(stub.ModelInfer(request(2))) == [2]
        assert counts(served.plane.recorder) == {"answered": 1}


def test_too_many_bytes_in_memory() -> None:
    with busy(replace(SETTINGS, max_body=300, max_buffered=300)) as (served, _, first):
        large = request(2)
        large.id = "x" * 150
        code, details, trailing = refused(lambda: served.stub().ModelInfer(large))
        assert code is UNAVAILABLE
        assert "too many bytes of requests" in details
        assert trailing["grpc-retry-pushback-ms"] == "1000"
        assert not first.done()


def test_too_many_calls() -> None:
    """Over all connections; on one there cannot be so many, and clients know that."""
    with busy(replace(SETTINGS, max_connections=2)) as (served, runner, first):
        other = served.stub()
        second = other.ModelInfer.future(request(2))
        waiting(served, 1)
        code, details, _ = refused(lambda: other.ModelInfer(request(3)))
        assert (code, details) == (UNAVAILABLE, "2 calls are under way, which is the limit")
        runner.finish(1)
        runner.finish(2)
        assert numbers(first.result(PATIENCE)) == [1]
        assert numbers(second.result(PATIENCE)) == [2]


@pytest.mark.parametrize(
    "said",
    [b"", PREFACE[:9], PREFACE, PREFACE + NO_SETTINGS, PREFACE + NO_SETTINGS + HALF_A_HEADER],
    ids=["nothing", "half a preface", "preface", "no call", "half a header"],
)
def test_connections_that_say_too_little_are_closed(slow: Served, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", slow.front.port), PATIENCE) as connection:
        connection.sendall(said)
        while connection.recv(1000):  # what it is told first
            pass
    assert numbers(slow.stub().ModelInfer(request(2))) == [2]


def test_too_many_connections() -> None:
    with (
        fronted(settings=replace(SETTINGS, max_connections=2)) as served,
        contextlib.ExitStack() as opened,
    ):
        answers = []
        for _ in range(3):
            connection = socket.create_connection(("127.0.0.1", served.front.port), PATIENCE)
            opened.enter_context(connection)
            connection.sendall(PREFACE + NO_SETTINGS)
            answers.append(connection.recv(9))
        assert answers == [answers[0], answers[0], b""]
        assert answers[0]


def test_a_header_that_is_too_large() -> None:
    with fronted(settings=replace(SETTINGS, max_header=1000)) as served:
        metadata = (("x-nonsense", "x" * 2000),)
        code, _, _ = refused(lambda: served.stub().ModelInfer(request(1), metadata=metadata))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert numbers(served.stub().ModelInfer(request(2))) == [2]
