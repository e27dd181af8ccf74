"""A movie from a camera's socket to the log: averages round an event, figures of every frame."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from nextem.analysis.offline import analyse_offline
from nextem.edge.calibrations import Calibrations
from nextem.edge.movies import MovieStage
from nextem.simulator.movie import MovieOptions, MovieScene, Nucleation
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.binning import bin_pixels
from nextem.wire.blocks import BINNED, SCALARS

Rig = Any
Kit = Any

FRAMES, AVERAGE = 240, 8


def scene() -> np.ndarray[Any, np.dtype[np.unsignedinteger]]:
    event = Nucleation(frame=150, y_px=20.0, x_px=24.0, radius_px=6.0)
    options = MovieOptions(shape=(32, 48), dose_e_px=20.0, nucleations=(event,))
    film = MovieScene(options, FRAMES)
    return np.stack([film.frame(k, np.uint16) for k in range(FRAMES)])


def movie_plan(kit: Kit, frames: int, **movie: Any) -> plan_pb2.Plan:
    plan: plan_pb2.Plan = kit.plan(frames)
    plan.reduction.movie.CopyFrom(plan_pb2.Movie(average_frames=AVERAGE, **movie))
    return plan


def test_averages_go_out_round_an_event_and_figures_of_every_frame(rig: Rig, kit: Kit) -> None:
    sent = scene()
    pipeline = rig.start()
    plan = movie_plan(kit, FRAMES, bin_px=2, key_frames=plan_pb2.KeyFrames(pre_trigger=2, post_trigger=2))
    handle = pipeline.expect("movie", plan, "")
    rig.camera.send(kit.acquisition_header(FRAMES) + kit.stream(sent))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert (finished.reason, finished.frames_stored, finished.frames_lost) == (
        pb.FINISH_REASON_COMPLETE, FRAMES, 0,
    )  # fmt: skip
    logged = rig.logged()["movie"]
    assert finished == logged.finished
    assert np.array_equal(logged.column("sum"), sent.sum(axis=(1, 2)))
    wanted = bin_pixels(sent, (32, 48), 2, AVERAGE)
    kept = []
    for block in logged.blocks:
        assert block.reason
        assert block.count == AVERAGE
        if block.representation == BINNED:
            kept.append(block.first_frame // AVERAGE)
            assert np.array_equal(block.binned(), wanted[kept[-1]][None])
        else:
            assert block.representation == SCALARS
    alarms = np.flatnonzero(logged.column("novelty")[::AVERAGE] > 8.0)
    assert len(alarms) == 1
    assert sorted(kept) == sorted({0, 10, 20, *range(alarms[0] - 2, alarms[0] + 3)})
    assert finished.frames_by_reason["plan"] == FRAMES


def test_the_averages_become_one_image(rig: Rig, kit: Kit) -> None:
    """From the camera's socket through the log to the product, which lacks nothing that was sent."""
    sent = scene()[: FRAMES - 3]
    pipeline = rig.start()
    plan = movie_plan(kit, len(sent), bin_px=2)
    parameters = {"pixel_angstrom": 0.5, "dose_e_per_square_angstrom": 0.01}
    plan.analyses.add(name="movie_average").parameters.update(parameters)
    handle = pipeline.expect("image", plan, "")
    rig.camera.send(kit.acquisition_header(len(sent)) + kit.stream(sent))
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["image"]
    made = {
        product.name: (product, array)
        for product, array in analyse_offline(logged.started, logged.blocks, logged.finished)
    }
    product, mean = made["movie/mean"]
    notes = json_format.MessageToDict(product.provenance)["notes"]
    assert notes == {"averages": 30, "frames": len(sent)}
    assert np.array_equal(mean, bin_pixels(sent, (32, 48), 2, len(sent))[0] / len(sent))
    weighted = made["movie/dose_weighted"][1]
    assert weighted.mean() == pytest.approx(mean.mean())
    assert np.corrcoef(weighted.ravel(), mean.ravel())[0, 1] > 0.99


def test_the_number_of_threads_changes_nothing(rig: Rig, kit: Kit) -> None:
    sent = scene()[:100]
    blocks = []
    for workers in (1, 3):
        pipeline = rig.start(workers=workers)
        name = f"movie of {workers}"
        handle = pipeline.expect(name, movie_plan(kit, 100, drift=True), "")
        rig.camera.send(kit.acquisition_header(100) + kit.stream(sent))
        assert handle.wait(kit.wait_s) is not None
        rig.stop()
        rig.camera.hang_up()
        blocks.append(rig.logged()[name].blocks)
    for one, other in zip(*blocks, strict=True):
        assert (one.first_frame, one.count, bytes(one.payload)) == (
            other.first_frame, other.count, bytes(other.payload),
        )  # fmt: skip
        for column, values in one.scalars.items():
            assert np.array_equal(values, other.scalars[column])


def test_a_movie_that_fails_loses_its_frames_exactly(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "nextem")
    add, calls = MovieStage.add, []

    def fail_late(self: MovieStage, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("the film tore")
        return add(self, *arguments)

    monkeypatch.setattr(MovieStage, "add", fail_late)
    pipeline = rig.start()
    handle = pipeline.expect("movie", movie_plan(kit, 200), "")
    rig.camera.send(kit.acquisition_header(200) + kit.stream(scene()[:200]))
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert "the film tore" in finished.error
    assert finished.frames_stored + finished.frames_lost == finished.frames_announced
    stored = sum(block.count for block in rig.logged()["movie"].blocks)
    assert stored == finished.frames_stored


def test_electrons_are_not_corrected_again(rig: Rig, kit: Kit, tmp_path: Path) -> None:
    """They were counted in corrected frames: the averages are sums of them."""
    gain = np.full((32, 48), 3.0, np.float32)
    plan = movie_plan(kit, 40)
    plan.reduction.corrections.gain_sha256 = Calibrations(tmp_path / "arrays").add(gain)
    plan.reduction.counting.CopyFrom(plan_pb2.Counting(threshold=6, xray_threshold=math.inf))
    sent = kit.sparse_frames(40)
    pipeline = rig.start(calibrations=tmp_path / "arrays")
    handle = pipeline.expect("movie", plan, "")
    rig.camera.send(kit.acquisition_header(40) + kit.stream(sent))
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["movie"]
    assert logged.column("sum").sum() > 0
    for block in logged.blocks:
        assert block.counted
        assert block.binned().sum() == block.scalars["sum"].sum()
