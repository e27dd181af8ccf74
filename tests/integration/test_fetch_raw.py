"""Raw frames from the edge's disk to a client: the real steering service, the real control agent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from nextem.cli.fetch_raw import fetch_raw
from nextem.client import (
    InvalidRequest,
    RawFramesGone,
    RawFramesRefused,
    SteeringClient,
    SteeringUnavailable,
)
from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.limits import default_limits
from nextem.edge.control.link import LinkTimes
from nextem.edge.detectors.base import FrameBatch, FrameFormat, FrameRun, Slab
from nextem.edge.retention.fetch import RawFetcher, without_ring
from nextem.edge.retention.raw_ring import RawRing
from nextem.steering.hub import Hub
from nextem.steering.server import SteeringServer
from nextem.v1.control_pb2 import InstrumentState
from nextem.wire.clock import MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.object_store import open_objects

SIZE = 64
ACQUISITION = "01890a5d-ac96-774b-bcce-b302099a8057"


class Driver:
    """An instrument that only stands there."""

    def get_state(self) -> InstrumentState:
        return InstrumentState(instrument="scope")

    def stop(self, command_epoch: int, reason: str) -> InstrumentState:
        return self.get_state()


@dataclass
class Site:
    """A steering service, and an edge whose ring holds 50 frames of :data:`ACQUISITION`, from frame 10 on."""

    folder: Path
    max_bytes: int = 1 << 20
    with_ring: bool = True
    _closing: list[Any] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def open(self) -> str:
        """Returns the address of the steering service, once the edge is attached."""
        hub = Hub()
        server = SteeringServer(hub, "127.0.0.1", 0)
        self._closing.append(server.close)
        address = f"127.0.0.1:{server.start()}"
        fetch = without_ring
        if self.with_ring:
            ring = RawRing(self.folder / "ring", 4 << 16, segment_bytes=1 << 16)
            self._closing.append(ring.close)
            ring.start()
            _fill(ring)
            fetcher = RawFetcher(ring, open_objects(self.store), max_bytes=self.max_bytes)
            self._closing.append(fetcher.close)
            fetcher.start()
            fetch = fetcher.fetch
        log = LocalLog(self.folder / "log")
        self._closing.append(log.close)
        options = ControlOptions(
            "scope", address, "", self.folder / "journal.db", default_limits(), link=LinkTimes(0.05, 0.02)
        )
        agent = ControlAgent(options, Driver(), None, MonotonicClock(), log, fetch_raw=fetch)  # type: ignore[arg-type]
        self._closing.append(agent.close)
        agent.start()
        with SteeringClient(address) as client:
            client.heartbeat("scope")
        return address

    def close(self) -> None:
        for close in reversed(self._closing):
            close()


def frame(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def _fill(ring: RawRing) -> None:
    slab = Slab(1 << 13)
    for place in range(50):
        slab.data[place * SIZE : (place + 1) * SIZE] = np.frombuffer(frame(10 + place), np.uint8)
    run = FrameRun(10, 50, 0, SIZE, 0, np.zeros(50, np.int64))
    form = FrameFormat((8, 8), np.dtype("u1"), SIZE)
    written = threading.Event()
    ring.offer(ACQUISITION, FrameBatch(slab, (run,), form, written.set)).release()
    assert written.wait(10)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_the_very_bytes_end_to_end(site: Site) -> None:
    with SteeringClient(site.open()) as client:
        got = client.read_raw(site.store, ACQUISITION, 12, 20)
        assert [bytes(message) for message in got] == [frame(number) for number in range(12, 32)]
        assert (got.acquisition_id, got.first_frame) == (ACQUISITION, 12)
        again = client.fetch_raw(ACQUISITION, 12, 20, instrument="scope")
        assert (again.bytes, again.frames.first, again.frames.count) == (20 * SIZE, 12, 20)
        assert (site.store / again.store_key).read_bytes() == got.data


def test_what_has_gone_is_named(site: Site) -> None:
    with SteeringClient(site.open()) as client:
        with pytest.raises(RawFramesGone, match=r"raw frames 5\.\.9, 60\.\.64 of") as gone:
            client.fetch_raw(ACQUISITION, 5, 60)
        assert gone.value.ranges == ((5, 10), (60, 65))
        with pytest.raises(RawFramesGone):
            client.fetch_raw("another", 0, 1)
    assert not list(site.store.glob("raw/*/*.raw"))


def test_refusals_are_typed(site: Site) -> None:
    site.max_bytes = 10 * SIZE
    with SteeringClient(site.open()) as client:
        with pytest.raises(RawFramesRefused, match="704 bytes; 640 can be") as refused:
            client.fetch_raw(ACQUISITION, 10, 11)
        assert refused.value.rule == "size"
        assert client.fetch_raw(ACQUISITION, 10, 10).bytes == 10 * SIZE
        with pytest.raises(InvalidRequest, match="at least one frame"):
            client.fetch_raw(ACQUISITION, 10, 0)
        with pytest.raises(SteeringUnavailable, match="no edge is attached"):
            client.fetch_raw(ACQUISITION, 10, 1, instrument="other")


def test_an_edge_without_a_ring_says_so(site: Site) -> None:
    site.with_ring = False
    with SteeringClient(site.open()) as client:
        with pytest.raises(RawFramesRefused) as refused:
            client.fetch_raw(ACQUISITION, 0, 1)
        assert refused.value.rule == "no_raw_ring"


def test_the_command_line(site: Site, tmp_path: Path) -> None:
    address, out = site.open(), tmp_path / "out.raw"
    arguments = [ACQUISITION, "10:3", "--steering", address, "--store", str(site.store), "--out", str(out)]
    result = CliRunner().invoke(fetch_raw, arguments)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == b"".join(frame(number) for number in range(10, 13))
    assert f"3 frames, {3 * SIZE} bytes" in result.output
    arguments[1] = "0:3"
    result = CliRunner().invoke(fetch_raw, arguments)
    assert result.exit_code == 1
    assert f"raw frames 0..2 of acquisition {ACQUISITION} have gone" in result.output
    arguments[1] = "0-3"
    assert CliRunner().invoke(fetch_raw, arguments).exit_code == 2
