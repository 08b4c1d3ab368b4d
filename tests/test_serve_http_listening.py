"""Sockets: bound before all else, listening later; what keeps them from it."""

from __future__ import annotations

import errno
import socket

import pytest

from parnet_deploy.errors import ServingError
from parnet_deploy.serve.http.sockets.listening import bind


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), ("port 80", "1024")),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), ("no address of this",)),
        (OSError(errno.EMFILE, "Too many open files"), ("Too many open files", "--port")),
    ],
)
def test_a_socket_that_cannot_be_bound(
    monkeypatch: pytest.MonkeyPatch, error: OSError, named: tuple[str, ...]
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ServingError) as caught:
        bind("192.0.2.1", 80)
    assert all(part in str(caught.value) for part in named), caught.value


def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServingError, match=r"'nohost' has no address \(Name or service not known"):
        bind("nohost", 80)


def test_a_host_that_is_no_name() -> None:
    with pytest.raises(ServingError, match="has no address"):
        bind("a" * 100, 0)


def test_every_address_of_a_name_has_the_same_port() -> None:
    listener = bind("localhost", 0)
    try:
        assert {each.getsockname()[1] for each in listener.sockets} == {listener.port}
        assert listener.is_local
        assert listener.url == f"http://localhost:{listener.port}"
    finally:
        listener.close()


def test_an_address_that_a_machine_has_not_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` may be ::1 where there is no IPv6."""
    bind_one = socket.socket.bind

    def without_ipv6(each: socket.socket, address: tuple) -> None:
        if ":" in address[0]:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        bind_one(each, address)

    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    monkeypatch.setattr(socket.socket, "bind", without_ipv6)
    listener = bind("localhost", 0)
    listener.close()
    assert len(listener.sockets) == 1


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:"), ("127.0.0.1", "http://127.0.0.1:")],
)
def test_where_programs_of_this_machine_reach_it(host: str, url: str) -> None:
    listener = bind(host, 0)
    listener.close()
    assert listener.url == f"{url}{listener.port}"


def test_two_servers_do_not_share_a_port() -> None:
    first = bind("127.0.0.1", 0)
    first.listen()
    try:
        with pytest.raises(ServingError, match="in use"):
            bind("127.0.0.1", first.port)
    finally:
        first.close()


def test_no_connection_is_taken_before_somebody_answers() -> None:
    listener = bind("127.0.0.1", 0)
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.port), 20)
        listener.listen()
        socket.create_connection(("127.0.0.1", listener.port), 20).close()
    finally:
        listener.close()


def test_two_that_took_a_port_in_the_same_moment() -> None:
    """The system lets both have it until one of them listens."""
    first = bind("127.0.0.1", 0)
    second = bind("127.0.0.1", first.port)
    try:
        first.listen()
        with pytest.raises(ServingError, match=f"port {first.port} of 127.0.0.1 is in use"):
            second.listen()
    finally:
        first.close()
        second.close()
