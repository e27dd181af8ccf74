"""What rules see of the data path: each frame that was reduced, in order; a plan that is wrong ends early."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from nextem.edge.rules.plan import InvalidRule
from nextem.edge.rules.watch import Firing
from nextem.edge.service import EdgeOptions, run_edge
from nextem.edge.uplink import spool as spooling
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2

Rig = Any
Kit = Any


def bright(**fields: Any) -> plan_pb2.EdgeRule:
    given: dict[str, Any] = {"pixel_value": 60_000, "pixels": 4, "rearm_frames": 1}
    return plan_pb2.EdgeRule(name="bright", saturation=plan_pb2.SaturationRule(**given | fields))


def frames(count: int, saturated: set[int]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    made = np.random.default_rng(5).integers(0, 1000, (count, 64, 64)).astype("u2")
    for frame in saturated:
        made[frame, 3, :9] = 65_000
    return made


@pytest.mark.parametrize("workers", [1, 3])
def test_rules_see_frames_in_order_however_many_threads_reduce(rig: Rig, kit: Kit, workers: int) -> None:
    saturated = {3, 4, 57, 199}
    sent, fired = frames(200, saturated), list[Firing]()
    pipeline = rig.start(workers=workers)
    pipeline.on_firing(fired.append)
    plan = kit.plan(200)
    plan.rules.append(bright())
    handle = pipeline.expect("scan", plan, "")
    rig.camera.send(kit.acquisition_header(200) + kit.stream(sent))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert finished.frames_stored == 200
    assert [one.last_frame for one in fired] == [3, 57, 199]
    assert all(one.last_byte_ns > 0 for one in fired)
    counted = rig.logged()["scan"].column("saturated/60000")
    np.testing.assert_array_equal(counted, (sent >= 60_000).sum(axis=(1, 2)))


def test_frames_that_find_no_room_are_seen_all_the_same(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spooling, "RESERVE_BYTES", 64 << 10)
    sent, fired = np.random.default_rng(3).integers(0, 50_000, (200, 128, 128)).astype("u2"), list[Firing]()
    sent[9::10, 3, :9] = 65_000
    rig.log.away.set()
    pipeline = rig.start(spool_bytes=4 << 20, spool_segment_bytes=32 << 10, idle_timeout_s=60.0)
    pipeline.on_firing(fired.append)
    plan = kit.plan(200)
    plan.rules.append(bright())
    handle = pipeline.expect("scan", plan, "")
    rig.camera.send(kit.acquisition_header(200) + kit.stream(sent))
    rig.wait_for(
        lambda: sum(pipeline.stats()[name] for name in ("frames_stored", "frames_lost_spool")) == 200
    )
    rig.log.away.clear()
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    lost = {frame for part in finished.lost for frame in range(part.first, part.first + part.count)}
    seen = [one.last_frame for one in fired]
    assert seen == list(range(9, 200, 10))
    assert lost & set(seen)


def test_a_pixel_value_that_no_pixel_can_have_ends_the_acquisition(rig: Rig, kit: Kit) -> None:
    pipeline = rig.start()
    plan = kit.plan(10)
    plan.rules.append(bright(pixel_value=70_000))
    handle = pipeline.expect("scan", plan, "")
    rig.camera.send(kit.acquisition_header(10) + kit.stream(frames(10, set())))
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert "rule 'bright': pixel_value 70000 > 65535" in finished.error


def test_an_edge_that_cannot_act_does_not_begin(tmp_path: Path) -> None:
    options = EdgeOptions(
        "tem", str(tmp_path / "log"), "127.0.0.1:1", tmp_path / "spool", tmp_path / "journal.db",
        passive_plan=plan_pb2.Plan(rules=[bright()]),
    )  # fmt: skip
    with pytest.raises(InvalidRule, match="commands no instrument"):
        run_edge(options, Event())
    assert not (tmp_path / "spool").exists()


def test_raw_frames_cannot_be_kept_without_a_ring(rig: Rig, kit: Kit) -> None:
    plan = kit.plan(10, keep_raw=True)
    keep = plan_pb2.EventRule(column="sum", above=1.0, pre_frames=3)
    plan.rules.append(plan_pb2.EdgeRule(name="burst", event=keep))
    with pytest.raises(InvalidRule, match="no ring of raw frames"):
        rig.start().expect("scan", plan, "")
