"""What is kept and what is sent when the way to the log is slow, through the real data path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextem.edge.retention.fetch import RawFetcher
from nextem.edge.retention.raw_ring import RawGone
from nextem.v1 import control_pb2, frames_pb2, plan_pb2
from nextem.wire import raw_objects
from nextem.wire.binning import bin_pixels
from nextem.wire.blocks import BINNED, SCALARS
from nextem.wire.object_store import open_objects

Rig = Any
Kit = Any

PREFIX_BYTES = 15  # of a Merlin message: "MPX,", ten digits, a comma


def test_raw_frames_are_the_bytes_that_the_camera_sent(rig: Rig, kit: Kit, tmp_path: Path) -> None:
    sent = kit.sparse_frames(300)
    pipeline = rig.start(raw_ring_dir=tmp_path / "raw", raw_ring_bytes=192 << 20)
    handle = pipeline.expect("scan", kit.plan(300, keep_raw=True), "command")
    rig.camera.send(kit.acquisition_header(300) + kit.stream(sent))
    assert handle.wait(kit.wait_s).frames_stored == 300
    ring = pipeline.raw_ring
    rig.wait_for(lambda: ring.counters()["frames_kept"] == 300)
    fetcher = RawFetcher(ring, open_objects(tmp_path / "store"))
    frames = frames_pb2.FrameRange(first=17, count=200)
    request = control_pb2.FetchRawRequest(request_id="r", acquisition_id="scan", frames=frames)
    reply = fetcher.bring(request)
    got = raw_objects.read(open_objects(tmp_path / "store"), reply.store_key)
    messages = [kit.stream(sent[i : i + 1], i + 1)[PREFIX_BYTES:] for i in range(17, 217)]
    assert [bytes(message) for message in got] == messages
    rig.stop()


def test_a_plan_that_does_not_ask_keeps_none(rig: Rig, kit: Kit, tmp_path: Path) -> None:
    pipeline = rig.start(raw_ring_dir=tmp_path / "raw", raw_ring_bytes=192 << 20)
    handle = pipeline.expect("scan", kit.plan(20), "command")
    rig.camera.send(kit.acquisition_header(20) + kit.stream(kit.sparse_frames(20)))
    assert handle.wait(kit.wait_s).frames_stored == 20
    with pytest.raises(RawGone):
        pipeline.raw_ring.read("scan", 0, 1)
    rig.stop()


def test_while_the_log_is_away_less_is_sent_and_no_frame_is_lost(rig: Rig, kit: Kit) -> None:
    """12 MB of noise into a spool whose bounds are at 1 and 2 MB: whole, then binned, then columns only."""
    noise = np.random.default_rng(0).integers(0, 4000, (96, 256, 256)).astype(np.uint16)
    degradation = plan_pb2.Degradation(binned_above=1 / 24, scalars_above=1 / 12, bin_px=2)
    rig.log.away.set()
    pipeline = rig.start(spool_bytes=24 << 20, spool_segment_bytes=1 << 20, workers=1)
    handle = pipeline.expect("scan", kit.plan(96, degradation=degradation), "command")
    rig.camera.send(kit.acquisition_header(96))
    for start in range(0, 96, 4):
        rig.camera.send(kit.stream(noise[start : start + 4], start + 1))
    finished = handle.wait(kit.wait_s)
    assert (finished.frames_stored, finished.frames_lost) == (96, 0)
    changes = pipeline.stats()["representation_changes"]
    assert (changes["binned"], changes["scalars"]) == (1, 1)
    rig.log.away.clear()
    rig.stop()
    blocks = sorted(rig.logged()["scan"].blocks, key=lambda block: block.first_frame)
    kinds = [block.representation for block in blocks]
    assert {BINNED, SCALARS} < set(kinds)
    assert kinds.index(BINNED) < kinds.index(SCALARS)
    for block in blocks:
        span = noise[block.first_frame : block.first_frame + block.count]
        assert np.array_equal(block.scalars["sum"], span.sum((1, 2)))
        if block.whole:
            assert np.array_equal(block.frames(), span)
        else:
            assert block.reason == frames_pb2.REPRESENTATION_REASON_SPOOL
        if block.representation == BINNED:
            assert np.array_equal(block.binned(), bin_pixels(span, (256, 256), 2))
    counted = finished.blocks_by_representation
    assert counted["binned"] == kinds.count(BINNED)
    assert counted["scalars"] == kinds.count(SCALARS)
