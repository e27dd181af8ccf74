"""From a camera that sees charge to electrons on the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nextem.edge.calibrations import Calibrations
from nextem.simulator.charge import ChargeDetector, ChargeModel, matched
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2

Rig = Any
Kit = Any

SHAPE = (64, 96)


def test_planted_electrons_arrive_on_the_log(rig: Rig, kit: Kit, tmp_path: Path) -> None:
    detector = ChargeDetector(SHAPE, ChargeModel(), seed=9)
    planted = detector.expose(0.003, 0, 120)
    calibrations = Calibrations(tmp_path / "calibrations")
    corrections = plan_pb2.Corrections(
        dark_sha256=calibrations.add(detector.dark), gain_sha256=calibrations.add(detector.gain)
    )
    counting = plan_pb2.Counting(xray_threshold=3000)
    pipeline = rig.start(calibrations=calibrations.folder)
    handle = pipeline.expect("scan", kit.plan(120, counting=counting, corrections=corrections), "")
    rig.camera.send(kit.acquisition_header(120) + kit.stream(planted.frames))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    assert (finished.frames_stored, finished.frames_lost) == (120, 0)
    logged = rig.logged()["scan"]
    assert all(block.counted and block.dtype == np.uint8 for block in logged.blocks)
    frames = logged.frames()
    found = matches = 0
    for index, image in frames.items():
        y, x = (axis.astype(np.float64) for axis in np.nonzero(image))
        found += y.size
        matches += matched(planted.of_frame(index), (y, x), reach_px=1.5)
    assert matches / planted.y_px.size > 0.95
    assert (found - matches) / planted.frames.size < 6e-5
    assert list(logged.column("sum")) == [int(frames[i].sum()) for i in range(120)]
