"""A TCP client that waits for more bytes the faster they come, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from agent_kit import HandClock

from nextem.edge.detectors.stream_socket import ConnectionEnded, StreamSocket
from nextem.wire.clock import MonotonicClock

SECOND_NS = 1_000_000_000
FAST = bytes(range(256)) * (1 << 17)  # 32 MiB, in one go


class Pair:
    """A detector's end and ours."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            self.detector, _ = listener.accept()
        self.ours, self.source = ours, StreamSocket(ours, MonotonicClock())

    def awaited(self) -> int:
        """Bytes that wake the reader, as the kernel has it."""
        return self.ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def read_fast(self) -> bytes:
        """What the detector sends as fast as it can."""
        sender = threading.Thread(target=self.detector.sendall, args=(FAST,))
        sender.start()
        got, into = bytearray(), memoryview(bytearray(1 << 22))
        while len(got) < len(FAST):
            count = self.source.read(into, SECOND_NS)
            assert count, f"nothing came after {len(got)} bytes"
            got += into[:count]
        sender.join()
        return bytes(got)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.detector.close()
    made.source.close()


def test_every_byte_of_a_fast_stream_comes_once(pair: Pair) -> None:
    assert pair.read_fast() == FAST
    assert pair.source.bytes_received == len(FAST)


def test_a_few_bytes_do_not_wait_for_more(pair: Pair) -> None:
    """A clock that stands still makes every wait a short one, after which more bytes are awaited."""
    pair.source = StreamSocket(pair.ours, HandClock())
    into, awaited = memoryview(bytearray(1 << 20)), set()
    for piece in range(50):
        pair.detector.sendall(piece.to_bytes(4, "little"))
        assert pair.source.read(into, 10 * SECOND_NS) == 4, "they waited for company"
        assert int.from_bytes(into[:4], "little") == piece
        awaited.add(pair.awaited())
    assert awaited == {1, 1 << 14}


def test_a_pause_makes_the_next_byte_wake_at_once(pair: Pair) -> None:
    pair.read_fast()
    assert pair.source.read(memoryview(bytearray(8)), 20_000_000) == 0
    assert pair.awaited() == 1


def test_a_slow_stream_wakes_for_each_piece(pair: Pair) -> None:
    """A clock that goes on by a millisecond with each look makes every wait a long one."""
    pair.source = StreamSocket(pair.ours, HandClock(step_ns=1_000_000))
    into = memoryview(bytearray(1 << 20))
    for piece in range(50):
        pair.detector.sendall(piece.to_bytes(4, "little"))
        assert pair.source.read(into, 10 * SECOND_NS) == 4
        assert int.from_bytes(into[:4], "little") == piece
        assert pair.awaited() == 1


def test_a_stream_that_slows_down_is_waited_for_less(pair: Pair) -> None:
    clock = HandClock()
    pair.source = StreamSocket(pair.ours, clock)
    into = memoryview(bytearray(1 << 20))
    for _ in range(2):  # the first read does not wait
        pair.detector.sendall(b"fast")
        assert pair.source.read(into, 10 * SECOND_NS) == 4
    assert pair.awaited() == 1 << 14
    clock.step_ns = 1_000_000
    pair.detector.sendall(bytes(1 << 14))
    assert pair.source.read(into, 10 * SECOND_NS) == 1 << 14
    assert pair.awaited() == 1


@pytest.mark.parametrize("tail", [b"", b"tail"])
def test_the_end_comes_after_the_last_bytes(pair: Pair, tail: bytes) -> None:
    pair.read_fast()
    pair.detector.sendall(tail)
    pair.detector.close()
    into = memoryview(bytearray(1 << 20))
    if tail:
        assert pair.source.read(into, 10 * SECOND_NS) == len(tail)
        assert bytes(into[: len(tail)]) == tail
    with pytest.raises(ConnectionEnded, match="closed by the detector"):
        pair.source.read(into, 10 * SECOND_NS)


def test_time_without_bytes_is_bounded(pair: Pair) -> None:
    pair.read_fast()
    assert pair.source.read(memoryview(bytearray(8)), 0) == 0
    assert pair.source.read(memoryview(bytearray(8)), 5_000_000) == 0
