"""When frames are due, and how many go at once."""

from __future__ import annotations

import threading

import pytest

from nextem.simulator.data_server import Pacer, batch_frames


def test_the_schedule_is_absolute() -> None:
    now, waits = [0], []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            now[0] += int(timeout * 1e9)
            return False

    pacer = Pacer(1000.0, lambda: now[0])
    pacer.wait(2, Stop())
    now[0] += 7_000_000  # late: frames 4, 6 and 8 are due already
    for frames in (4, 6, 8, 10):
        pacer.wait(frames, Stop())
    assert waits == pytest.approx([0.002, 0.001])


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
