"""A log that is away, a spool that is full, an edge that was killed: the accounting is exact."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from nextem.edge.uplink import spool as spooling
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.blocks import decode_block

Rig = Any
Kit = Any


# ---- the log ------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("window", [None, 0])
def test_a_log_that_is_away_costs_nothing(
    rig: Rig, kit: Kit, late: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receiving and spooling go on; everything comes when the log is back, from memory or from the disk."""
    sent = kit.sparse_frames(100)
    pipeline = rig.start()
    if window is not None:
        monkeypatch.setattr(pipeline._publisher, "_window_bytes", window)
    handle = pipeline.expect("scan", kit.plan(100), "")
    rig.camera.send(kit.acquisition_header(100) + kit.stream(sent[:30]))
    rig.wait_for(lambda: pipeline.stats()["publisher"]["entries"] >= 2)
    if late:
        rig.log.fail_late.set()
    rig.log.away.set()
    rig.camera.send(kit.stream(sent[30:], 31))
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_COMPLETE
    assert rig.log.tried.wait(kit.wait_s)
    rig.log.away.clear()
    rig.stop()
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_a_block_that_the_log_refuses_for_good_is_lost_and_told(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(60)
    rig.log.refuse = lambda value: decode_block(value).block_number == 1
    pipeline = rig.start()
    handle = pipeline.expect("scan", kit.plan(60, block_age_ms=1), "")
    rig.camera.send(kit.acquisition_header(60) + kit.stream(sent[:20]))
    rig.wait_for(lambda: pipeline.stats()["frames_stored"] == 20)
    rig.camera.send(kit.stream(sent[20:40], 21))
    rig.wait_for(lambda: pipeline.stats()["frames_stored"] == 40)
    rig.camera.send(kit.stream(sent[40:], 41))
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    assert logged.finished.error.startswith("BlockRefused")
    assert 0 < logged.finished.frames_lost == 60 - len(logged.frames())
    assert logged.finished.frames_stored == len(logged.frames())


def test_a_full_spool_costs_frames_until_there_is_room_again(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooling, "RESERVE_BYTES", 64 << 10)
    sent = np.random.default_rng(3).integers(0, 1 << 16, (200, 128, 128)).astype("u2")
    rig.log.away.set()
    pipeline = rig.start(spool_bytes=4 << 20, spool_segment_bytes=32 << 10, idle_timeout_s=60.0)
    handle = pipeline.expect("scan", kit.plan(200), "")
    rig.camera.send(kit.acquisition_header(200) + kit.stream(sent[:180]))
    rig.wait_for(
        lambda: sum(pipeline.stats()[name] for name in ("frames_stored", "frames_lost_spool")) == 180
    )
    rig.log.away.clear()
    rig.wait_for(lambda: pipeline.stats()["publisher"]["waiting"] == 0)
    rig.camera.send(kit.stream(sent[180:], 181))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    all_lost = finished.frames_lost
    assert finished.error == f"FramesLost: {all_lost} of 200 frames ({all_lost} by the full spool)"
    assert 0 < all_lost < 100
    assert finished.lost[-1].first + finished.lost[-1].count <= 180
    rig.logged()["scan"].check(dict(enumerate(sent)))


# ---- restart ------------------------------------------------------------------------------------

EDGE = """
import sys
from pathlib import Path
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.v1 import plan_pb2
from nextem.wire.clock import MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.log import LogUnavailable
folder, port, away = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "away"
log = LocalLog(folder / "log")
if away:
    def refuse(*args, **kwargs):
        raise LogUnavailable("no broker")
    log.append = refuse
config = PipelineConfig("rig", f"127.0.0.1:{port}", folder / "spool", ring_bytes=1 << 24, idle_timeout_s=60.0,
                        spool_segment_bytes=1 << 14)
pipeline = EdgePipeline(config, log, MonotonicClock())
pipeline.start()
pipeline.expect("scan", plan_pb2.Plan.FromString(bytes.fromhex(sys.argv[4])), "")
print("ready", flush=True)
while pipeline.stats()["frames_stored"] < int(sys.argv[5]) or (
        not away and pipeline.stats()["publisher"]["waiting"]):
    pass
print("stored", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("log_was", ["there", "away"])
@pytest.mark.parametrize("stored", [0, 70])
def test_a_killed_edge_is_closed_with_exact_accounting_by_the_next(
    rig: Rig, kit: Kit, log_was: str, stored: int
) -> None:
    sent = np.random.default_rng(5).integers(0, 1 << 16, (100, 32, 48)).astype("u2")
    command = [sys.executable, "-c", EDGE, str(rig.folder), str(rig.camera.port), log_was]
    command += [kit.plan(100).SerializeToString().hex(), str(stored)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as edge:
        assert edge.stdout is not None
        assert edge.stdout.readline() == "ready\n"
        rig.camera.send(kit.acquisition_header(100) + kit.stream(sent[:stored]))
        assert edge.stdout.readline() == "stored\n"
        edge.kill()
    rig.camera.hang_up()
    pipeline = rig.start()
    handle = pipeline.expect("next", kit.plan(100), "")
    rig.camera.send(kit.acquisition_header(100) + kit.stream(sent))
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()
    logged["next"].check(dict(enumerate(sent)))
    if not stored:
        assert set(logged) == {"next"}
        return
    logged["scan"].check(dict(enumerate(sent)))
    finished = logged["scan"].finished
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert finished.error.startswith("EdgeRestarted")
    assert (finished.frames_announced, finished.frames_stored) == (100, 70)
