"""The example of docs/add-a-detector.md works as it stands there."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import file_kit as kit
import numpy as np
import pytest

from nextem.edge.detectors import registry
from nextem.edge.detectors.base import EndKind, TruncatedStream
from nextem.wire.clock import MonotonicClock

PAGE = Path(__file__).parents[3] / "docs" / "add-a-detector.md"
FRAMES = kit.sparse(100, (64, 64))
WHOLE = (100).to_bytes(8, "little") + FRAMES.tobytes()

Make = Callable[..., Any]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Make:
    """The page's detector, by its address, connected to a camera that sends ``data`` and then hangs up."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 75
    module = ModuleType("my_package.simple")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "my_package.simple", module)
    monkeypatch.setattr(registry, "SCHEMES", {**registry.SCHEMES, "simple": "my_package.simple"})

    def make(taker: kit.Taker, data: bytes, hang_up: threading.Event | None = None, **options: Any) -> Any:
        server = socket.create_server(("127.0.0.1", 0))

        def send() -> None:
            with server, server.accept()[0] as connection:
                connection.sendall(data)
                if hang_up is not None:
                    assert hang_up.wait(kit.WAIT_S)

        threading.Thread(target=send, daemon=True).start()
        address = f"simple://127.0.0.1:{server.getsockname()[1]}"
        return registry.connect(registry.parse_address(address, **options), taker, MonotonicClock())

    return make


def test_all_frames_come(made: Make) -> None:
    taker = kit.Taker()
    detector = made(taker, WHOLE)
    detector.start()
    assert taker.wait_for_end().kind is EndKind.ALL_FRAMES
    detector.close()
    assert np.array_equal(taker.stack(), FRAMES)
    assert detector.counters()["frames_received"] == 100


def test_a_stream_cut_short(made: Make) -> None:
    taker = kit.Taker()
    detector = made(taker, WHOLE[:-10_000])
    detector.start()
    ending = taker.wait_for_end()
    detector.close()
    assert isinstance(ending.error, TruncatedStream)
    assert (ending.kind, ending.highest_frame) == (EndKind.SENDING_ENDED, 97)
    assert np.array_equal(taker.stack(), FRAMES[:98])


def test_a_full_ring_costs_frames_and_says_so(made: Make) -> None:
    taker = kit.Taker(hold=True)
    detector = made(taker, WHOLE, ring_bytes=600_000)  # two slabs
    detector.start()
    ending = taker.wait_for_end()
    detector.close()
    held = sum(run.count for batch in taker.held for run in batch.runs)
    assert ending.lost_ring > 0
    assert held + ending.lost_ring == 100


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stop_and_close(made: Make, how: str) -> None:
    """The camera has more to send, and does not."""
    hang_up = threading.Event()
    taker = kit.Taker(hold=True, reason="enough" if how == "stop" else None)
    detector = made(taker, WHOLE[: len(WHOLE) // 2], hang_up)
    detector.start()
    with taker.news:
        assert taker.news.wait_for(lambda: taker.held or taker.ending is not None, kit.WAIT_S)
    detector.close()
    hang_up.set()
    assert taker.wait_for_end().kind is EndKind.STOPPED
