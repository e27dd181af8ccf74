"""The edge as a program that only listens: it starts, takes what comes, and stops cleanly."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from nextem.edge.detectors import receiving
from nextem.edge.detectors.base import DetectorFailed
from nextem.edge.service import EdgeOptions, run_edge
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.log import ACQUISITIONS

Rig = Any
Kit = Any


def test_an_edge_without_steering_takes_what_comes_and_stops(rig: Rig, kit: Kit) -> None:
    stop, ready = threading.Event(), threading.Event()
    options = EdgeOptions(
        instrument="listener",
        log=str(rig.folder / "log"),
        detector=f"127.0.0.1:{rig.camera.port}",
        spool_dir=rig.folder / "spool",
        journal_path=rig.folder / "journal.db",
        passive_plan=kit.plan(0),
        ring_bytes=16 << 20,
    )
    before = sys.getswitchinterval()
    program = threading.Thread(target=run_edge, args=(options, stop, ready.set))
    program.start()
    assert ready.wait(kit.wait_s)
    sent = kit.sparse_frames(20)
    rig.camera.send(kit.acquisition_header(20) + kit.stream(sent))
    reader = rig.log.real.consumer([ACQUISITIONS], None)
    events: list[pb.AcquisitionEvent] = []
    while len(events) < 2:
        records = reader.poll(10, kit.wait_s)
        assert records, "nothing came"
        events += [pb.AcquisitionEvent.FromString(bytes(record.value)) for record in records]
    reader.close()
    stop.set()
    program.join(kit.wait_s)
    assert not program.is_alive()
    assert sys.getswitchinterval() == before
    assert events[0].started.instrument == "listener"
    (logged,) = rig.logged().values()
    logged.check(dict(enumerate(sent)))
    assert not (rig.folder / "journal.db").exists()


def test_an_edge_whose_detector_thread_died_ends_with_its_error(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever supervises the process starts it anew."""

    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(receiving, "dial", broken)
    options = EdgeOptions(
        instrument="listener",
        log=str(rig.folder / "log"),
        detector=f"127.0.0.1:{rig.camera.port}",
        spool_dir=rig.folder / "spool",
        journal_path=rig.folder / "journal.db",
    )
    with pytest.raises(DetectorFailed, match="RuntimeError: a bug"):
        run_edge(options, threading.Event())
