"""Listening at an address, by a bare socket or a gRPC server, with one error where that cannot be."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

_WAITING = 4  # connections that nobody has accepted yet


class CannotListen(OSError):
    """Another process listens at the address, or it is none of this machine. Names it."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, port 0 at any free one. Raises :class:`CannotListen`."""
    try:
        return socket.create_server((host, port), backlog=_WAITING)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # Python repeats the address there
        raise CannotListen(f"cannot listen on {address_of(host, port)}: {why}") from error


def bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Has ``server`` listen, without ``credentials`` in the clear; the port, 0 taking a free one.

    Raises :class:`CannotListen`.
    """
    address = address_of(host, port)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: taken, or none of this machine") from error


def address_of(host: str, port: int) -> str:
    """HOST:PORT, the host in brackets where it is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
