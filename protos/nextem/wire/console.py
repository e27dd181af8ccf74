"""The console of an edge: a socket file on its own machine, one request and one reply a connection.

The file's permissions say who may: it is made for its owner alone, before anybody can connect. A message is
its length (4 bytes, big-endian) and a protobuf message, at most :data:`MOST_BYTES`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from nextem.v1.control_pb2 import ConsoleReply, ConsoleRequest

FILE_NAME = "console.sock"
"""In the folder of the edge's journal."""

MOST_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")
_LONGEST_PATH = 100  # the kernel's own limit is 108 bytes, and 104 elsewhere

M = TypeVar("M", bound=Message)


class ConsoleError(Exception):
    """The console cannot be opened, or does not answer. The text names the socket file."""


def ask(path: Path, request: ConsoleRequest, timeout_s: float = 30.0) -> ConsoleReply:
    """One request to the edge whose console is at ``path``. Raises :class:`ConsoleError`."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            with _short(path) as address:
                connection.connect(address)
            send(connection, request)
            return receive(connection, ConsoleReply)
    except PermissionError as error:
        raise ConsoleError(f"{path}: only who runs the edge may use its console: {error}") from error
    except FileNotFoundError as error:
        raise ConsoleError(f"{path}: no edge runs in this folder: there is no such file") from error
    except OSError as error:
        raise ConsoleError(f"{path}: no edge answers: {error}") from error


def listen(path: Path) -> socket.socket:
    """A socket that listens at ``path``, which the caller alone uses: what lies there is taken away.

    Raises :class:`ConsoleError`.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        with _short(path) as address:
            listening.bind(address)
        path.chmod(0o600)  # nobody can connect before it listens
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConsoleError(f"{path}: the console cannot be opened: {error}") from error
    return listening


def send(connection: socket.socket, message: Message) -> None:
    """Raises OSError."""
    data = message.SerializeToString()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket, kind: type[M]) -> M:
    """The next message. Raises OSError, also for an end before its end and for what is no message."""
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > MOST_BYTES:
        raise OSError(f"a message of {size} bytes > {MOST_BYTES}")
    message = kind()
    try:
        message.ParseFromString(_exactly(connection, size))
    except DecodeError as error:
        raise OSError(f"no {kind.__name__}: {error}") from error
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionResetError(f"the connection ended after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of ``path`` that fits into a socket address: through its open folder, where it is too long."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
