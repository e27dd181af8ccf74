"""Who reads the acquisitions topic late still finds what is durable on it."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

from nextem.analysis.directory import Directory
from nextem.v1 import acquisition_pb2
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS


def test_a_start_that_is_on_its_way_is_waited_for(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path)) as log, closing(Directory(log)) as directory:
        event = acquisition_pb2.AcquisitionEvent(
            started=acquisition_pb2.AcquisitionStarted(acquisition_id="late", instrument="scope")
        )
        assert directory.started("late") is None
        timer = threading.Timer(0.2, lambda: log.append(ACQUISITIONS, event.SerializeToString()))
        timer.start()
        found = directory.started("late", wait_s=30.0)
        timer.join()
    assert found is not None
    assert found.instrument == "scope"


def test_waiting_for_a_start_has_an_end(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path)) as log, closing(Directory(log)) as directory:
        assert directory.started("never", wait_s=0.05) is None
