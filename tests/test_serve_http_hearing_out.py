"""The last connections: whoever was taken is heard, and then nobody is taken any more."""

from __future__ import annotations

import socket
import sys
import time

import pytest
from serve_http import Client, Plane, get, read_answer, running

from parnet_deploy.serve.http.sockets import hearing_out

LIVE = "/v2/health/live"


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def wait_until_closed(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return
    raise AssertionError("the port still takes connections")


def test_whoever_waits_to_be_taken_is_and_nobody_behind_them() -> None:
    door = listening()
    address = door.getsockname()
    clients = [socket.create_connection(address) for _ in range(3)]
    taken = hearing_out._last_taken([door])
    assert {each.getpeername() for each in taken} == {c.getsockname() for c in clients}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    for each in (*clients, *taken):
        each.close()


def test_a_client_that_was_taken_may_still_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing_out, "_LAST_WORD", 20.0)
    with running(Plane()) as served:
        silent = served.connect()
        assert served.ask(get(LIVE)).status == 200  # by now the silent one has been taken, too
        served.server.should_exit = True
        wait_until_closed(served.listener.port)
        silent.sendall(get(LIVE))
        assert read_answer(silent).status == 200


def test_what_the_system_took_last_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    door = listening()
    client = Client(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(20)
    client.connect(door.getsockname())
    client.sendall(get(LIVE))

    def last_taken(sockets: list[socket.socket]) -> list[socket.socket]:
        for each in sockets:
            each.close()
        return [door.accept()[0]]

    monkeypatch.setattr(hearing_out, "_last_taken", last_taken)
    with running(Plane()) as served:
        served.server.should_exit = True
        assert read_answer(client).status == 200
    client.close()
    door.close()


def test_a_client_that_says_nothing_keeps_nobody() -> None:
    with running(Plane()) as served:
        silent = served.connect()
        assert served.ask(get(LIVE)).status == 200
        served.server.should_exit = True
        assert silent.recv(1) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
def test_who_comes_too_late_is_overlooked_and_who_was_taken_is_not() -> None:
    """To close a socket closes what nobody has taken from it: there must be nothing."""
    door = listening()
    address = door.getsockname()
    early = socket.create_connection(address)
    hearing_out._pass_over_new(door)
    with pytest.raises(TimeoutError):
        socket.create_connection(address, timeout=0.2)
    early.sendall(b"still here")
    (taken,) = hearing_out._last_taken([door])
    taken.settimeout(20)
    assert taken.recv(16) == b"still here"
    for each in (early, taken):
        each.close()
