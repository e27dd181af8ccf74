"""A TCP path that is long: whatever comes in at one end leaves the other after a fixed time, in order.

Each path is a process of its own, so that it takes no turns of the interpreter from what is measured. The
delay is that of one direction; bandwidth is not bounded and nothing is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from nextem.cli.broker import Listener
from nextem.wire.log import CONFLUENT

CHUNK_BYTES = 1 << 16


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Wan:
    """The network between the edge and everything else. Without a delay there is none."""

    delay_ms: float
    broker: Listener = field(default_factory=lambda: Listener(free_port(), free_port()))
    _paths: ExitStack = field(default_factory=ExitStack)

    def reached(self, address: str) -> str:
        """By which address the edge reaches ``address``, HOST:PORT or that of a log; a folder is here."""
        if not self.delay_ms or address.startswith("/"):
            return address
        for scheme in (CONFLUENT, "kafka://"):
            if address.startswith(scheme):
                self._lay(self.broker.advertised, f"127.0.0.1:{self.broker.port}")
                return f"{scheme}127.0.0.1:{self.broker.advertised}"
        port = free_port()
        self._lay(port, address)
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        self._paths.close()

    def _lay(self, port: int, to: str) -> None:
        self._paths.enter_context(path(port, to, self.delay_ms))


@contextmanager
def path(port: int, to: str, delay_ms: float) -> Iterator[None]:
    """Runs one path from ``port`` of loopback to ``to``, HOST:PORT."""
    command = [sys.executable, __file__, str(port), to, str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"no path to {to}")
        try:
            yield
        finally:
            process.terminate()


async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay_s: float) -> None:
    """Brings bytes from ``source`` to ``sink``, each chunk ``delay_s`` after it came, and then the end."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take() -> None:
        with suppress(ConnectionError):
            while data := await source.read(CHUNK_BYTES):
                waiting.put_nowait((loop.time() + delay_s, data))
        waiting.put_nowait((loop.time() + delay_s, b""))

    taking = asyncio.create_task(take())
    with suppress(ConnectionError):
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                break
            sink.write(data)
            await sink.drain()
    taking.cancel()
    sink.close()


async def serve(port: int, to: str, delay_ms: float) -> None:
    """Serves until it is ended."""
    host, _, to_port = to.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(to_port))
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(
            carry(reader, far_writer, delay_ms / 1e3),
            carry(far_reader, writer, delay_ms / 1e3),
            return_exceptions=True,
        )

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("port", type=int)
    options.add_argument("to", metavar="HOST:PORT")
    options.add_argument("delay_ms", type=float)
    given = options.parse_args()
    asyncio.run(serve(given.port, given.to, given.delay_ms))
