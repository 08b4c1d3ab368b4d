"""Sockets to listen on: bound before anything else is done, listening once somebody answers."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from dataclasses import dataclass

from parnet_deploy.errors import ServingError, os_reason

_BACKLOG = 1024

_PRIVILEGED = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """Where a server listens.

    Attributes:
        sockets: bound, one for each address of the host.
        host: as it was asked for.
        port: the port, where any was asked for as well.
    """

    sockets: tuple[socket.socket, ...]
    host: str
    port: int

    @property
    def url(self) -> str:
        """Where a program on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine reach it."""
        addresses = (each.getsockname()[0].partition("%")[0] for each in self.sockets)
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)

    def listen(self) -> None:
        """Take connections from now on.

        Raises:
            ServingError: another program, which was bound at the same time, listens already.
        """
        try:
            for each in self.sockets:
                each.listen(_BACKLOG)
        except OSError as exc:
            raise ServingError(_explain(exc, self.host, self.port)) from exc

    def close(self) -> None:
        """Listen no longer."""
        for each in self.sockets:
            each.close()


def bind(host: str, port: int) -> Listener:
    """Take a port on all addresses that a host name has, and no connections yet.

    Args:
        host: a name, or an IPv4 or IPv6 address; ``::`` is all of both.
        port: 0 for any that is free.

    Raises:
        ServingError: the name has no address, the port is taken or needs privileges, or the address
            is not this machine's.
    """
    families = _resolve(host, port)
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, address in families:
            taken = sockets[0].getsockname()[1] if sockets else port
            try:
                each = _bind(family, address, taken)
            except OSError as exc:
                # A machine without IPv6 still calls itself ::1.
                if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(families) > 1:
                    continue
                raise ServingError(_explain(exc, host, taken)) from exc
            opened.callback(each.close)
            sockets.append(each)
        if not sockets:
            raise ServingError(f"'{host}' is no address of this machine; choose one with --host")
        opened.pop_all()
    return Listener(sockets=tuple(sockets), host=host, port=sockets[0].getsockname()[1])


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = os_reason(exc) if isinstance(exc, OSError) else "it is no name of a host"
        raise ServingError(
            f"'{host}' has no address ({reason}); give --host an address of this machine, such as "
            "127.0.0.1"
        ) from exc
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))


def _bind(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    """As `socket.create_server`, but for listening."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = address == "::" and socket.has_dualstack_ipv6()
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        bound.bind((address, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _explain(exc: OSError, host: str, port: int) -> str:
    if exc.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another with --port (0: any that is free)"
    if exc.errno == errno.EACCES and port < _PRIVILEGED:
        return f"port {port} is not for this user; choose one from {_PRIVILEGED} on with --port"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"'{host}' is no address of this machine; choose one with --host"
    return f"cannot listen on port {port} of {host}: {os_reason(exc)}; see --host and --port"
