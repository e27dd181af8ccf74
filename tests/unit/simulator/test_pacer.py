"""When frames are due, and how many go at once."""

from __future__ import annotations

import threading

import pytest

from nextem.simulator.data_server import Pacer, batch_frames


class SteppingClock(threading.Event):
    """Time stands still but in a wait, which is over at once and written down."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.waits_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits_s.append(timeout)
        self.now_ns += int(timeout * 1e9)
        return False


def test_the_schedule_is_absolute() -> None:
    clock = SteppingClock()
    pacer = Pacer(1000.0, lambda: clock.now_ns)
    pacer.wait(2, clock)
    clock.now_ns += 7_000_000  # late: frames 4, 6 and 8 are due already
    for frames in (4, 6, 8, 10):
        pacer.wait(frames, clock)
    assert clock.waits_s == pytest.approx([0.002, 0.001])


def test_a_slower_schedule_begins_where_it_was_changed() -> None:
    clock = SteppingClock()
    pacer = Pacer(1000.0, lambda: clock.now_ns)
    pacer.wait(2, clock)
    pacer.slow_down(4.0, 2)
    for frames in (3, 5):
        pacer.wait(frames, clock)
    assert clock.waits_s == pytest.approx([0.002, 0.004, 0.008])
    assert pacer.elapsed_s() == pytest.approx(0.014)


def test_without_a_rate_nobody_waits() -> None:
    pacer = Pacer(None)
    pacer.wait(10**12, threading.Event())
    assert pacer.elapsed_s() >= 0


@pytest.mark.parametrize(
    ("rate_fps", "message_bytes", "frames"),
    [
        (1.0, 131_471, 1),
        (1000.0, 131_471, 2),
        (4000.0, 131_471, 8),
        (1e6, 131_471, 15),
        (None, 33_167, 63),
        (None, 1 << 23, 1),
    ],
)
def test_a_batch_is_two_milliseconds_and_two_mebibytes_at_most(
    rate_fps: float | None, message_bytes: int, frames: int
) -> None:
    assert batch_frames(rate_fps, message_bytes) == frames
