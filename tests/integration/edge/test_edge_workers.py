"""Several threads reduce at once: the same results as one, in order."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextem.edge import stages
from nextem.edge.accounting import unpack_pattern
from nextem.edge.calibrations import Calibrations
from nextem.edge.detectors.base import FrameFormat, FrameRun, Slab
from nextem.edge.live import LiveBlock
from nextem.edge.uplink import spool as spooling
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import frames_pb2, plan_pb2
from nextem.wire.events import Events, frames_to_events

Rig = Any
Kit = Any

ALL_MAPS = plan_pb2.Maps(variance=True, maximum=True, histogram=True)


def acquire(
    rig: Rig, kit: Kit, images: Any, *, workers: int = 2, name: str = "scan", **reduction: Any
) -> Any:
    """One acquisition of ``images`` by a scripted detector; returns its accounting."""
    detector = kit.scripted()
    pipeline = rig.start(detector, workers=workers)
    handle = pipeline.expect(name, kit.plan(len(images), **reduction), "")
    detector.open(len(images))
    detector.frames(images)
    detector.end()
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    rig.stop()
    return finished


# ---- the same whatever the number of threads -------------------------------------------------------


def test_no_bit_depends_on_the_number_of_threads(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(300)
    images[100:130] += 300  # dense in between
    images[7] = 0
    results = []
    for workers in (1, 2, 4):
        name = f"scan-by-{workers}"
        finished = acquire(rig, kit, images, workers=workers, name=name, maps=ALL_MAPS)
        logged = rig.logged()[name]
        logged.check(dict(enumerate(images)))
        boot = logged.started.edge_boot_id
        records = sorted(
            (block.block_number, record.replace(boot.encode(), b"boot").replace(name.encode(), b"name"))
            for block, record in zip(logged.blocks, logged.records, strict=True)
        )
        maps = {key: values.tobytes() for key, values in logged.maps().items()}
        results.append((records, maps, finished.summed_pattern, finished.bytes_raw, finished.blocks))
    assert len(results[0][0]) == 43
    assert results[0] == results[1] == results[2]


def test_gaps_are_told_by_the_block_after_them(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(90)
    detector = kit.scripted()
    pipeline = rig.start(detector, workers=4)
    handle = pipeline.expect("scan", kit.plan(90), "")
    detector.open(90)
    for first in range(0, 90, 6):
        detector.frames(images[first : first + 4], first, each=2)
    detector.end()
    finished = handle.wait(kit.wait_s)
    rig.stop()
    lost = [(each.first, each.first + each.count) for each in finished.lost]
    assert lost == [(first, first + 2) for first in range(4, 90, 6)]
    rig.logged()["scan"].check(dict(enumerate(images)))


@pytest.mark.parametrize("workers", [1, 3])
def test_maps_are_those_of_the_stored_frames(rig: Rig, kit: Kit, workers: int) -> None:
    images = kit.sparse_frames(64)
    acquire(rig, kit, images, workers=workers, maps=ALL_MAPS)
    logged = rig.logged()["scan"]
    maps, wide = logged.maps(), images.astype(np.float64)
    assert {part.frames for part in logged.map_parts} == {64}
    assert np.array_equal(maps["mean"], wide.mean(axis=0))
    assert np.allclose(maps["variance"], wide.var(axis=0), rtol=1e-12, atol=1e-15)
    assert np.array_equal(maps["maximum"], wide.max(axis=0))
    assert maps["histogram"].sum() == images.size
    assert maps["histogram"][0] == np.count_nonzero(images == 0)


def test_corrections_come_from_the_edges_folder(rig: Rig, kit: Kit, tmp_path: Path) -> None:
    images = kit.sparse_frames(20)
    dark = np.full(images.shape[1:], 0.25, np.float32)
    calibrations = Calibrations(tmp_path / "calibrations")
    corrections = plan_pb2.Corrections(dark_sha256=calibrations.add(dark))
    detector = kit.scripted()
    pipeline = rig.start(detector, calibrations=tmp_path / "calibrations")
    handle = pipeline.expect("scan", kit.plan(20, corrections=corrections), "")
    detector.open(20)
    detector.frames(images)
    detector.end()
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    logged.check(dict(enumerate(images)))  # payloads stay raw
    wanted = (images - dark).sum(axis=(1, 2), dtype=np.float64)
    assert np.allclose(logged.column("sum"), wanted, rtol=1e-12)
    assert np.allclose(logged.maps()["mean"], images.mean(axis=0) - 0.25, atol=1e-12)


def test_a_map_larger_than_a_record_comes_in_pieces(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(2, (512, 400))
    acquire(rig, kit, images, maps=plan_pb2.Maps(maximum=True))
    logged = rig.logged()["scan"]
    assert len(logged.map_parts) == 8
    assert np.array_equal(logged.maps()["maximum"], images.max(axis=0))


# ---- other kinds of sources --------------------------------------------------------------------------


def test_events_and_columns_of_a_detector_arrive(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(40)
    arrivals = np.arange(40, dtype=np.float64) / 8

    def unpack(data: Any, run: FrameRun) -> Events:
        return frames_to_events(images[run.first_frame : run.first_frame + run.count])

    form = FrameFormat(images.shape[1:], images.dtype, images[0].nbytes, unpack=unpack)
    detector = kit.scripted()
    pipeline = rig.start(detector)
    handle = pipeline.expect("scan", kit.plan(40), "")
    detector.open(40)
    for first in range(0, 40, 10):
        columns = {"arrival_s": arrivals[first : first + 10]}
        detector.send(Slab(16), form, kit.frame_run(first, 10, 1, columns=columns))
    detector.end()
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    logged.check(dict(enumerate(images)))
    assert np.array_equal(logged.column("arrival_s"), arrivals)
    assert np.array_equal(logged.column("sum"), images.sum(axis=(1, 2)))


def test_a_run_longer_than_a_reducer_takes_is_cut(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(700, (4, 8))
    detector = kit.scripted()
    pipeline = rig.start(detector)
    handle = pipeline.expect("scan", kit.plan(700), "")
    detector.open(700)
    detector.frames(images, each=700)
    detector.end()
    assert handle.wait(kit.wait_s) is not None
    rig.stop()
    logged = rig.logged()["scan"]
    assert len(logged.blocks) == 3
    logged.check(dict(enumerate(images)))


def test_a_slab_is_given_back_once_its_frames_are_reduced(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither encoding nor the turn keeps it from the receiver, and nobody gives it back twice."""
    encode, go_on = stages.encode_run, threading.Event()

    def held(*what: Any, **how: Any) -> Any:
        assert go_on.wait(kit.wait_s)
        return encode(*what, **how)

    monkeypatch.setattr(stages, "encode_run", held)
    detector = kit.scripted()
    handle = rig.start(detector, workers=2).expect("scan", kit.plan(14), "")
    detector.open(14)
    detector.frames(kit.sparse_frames(14), each=7)
    detector.end()
    rig.wait_for(lambda: detector.released == 2)
    go_on.set()
    finished = handle.wait(kit.wait_s)
    rig.stop()
    assert (finished.frames_stored, detector.released) == (14, 2)


# ---- electron counting -------------------------------------------------------------------------------


def noisy(frames: int, seed: int = 3) -> Any:
    """Gaussian background with 20 electrons in each frame, never beside each other."""
    generator = np.random.default_rng(seed)
    images = generator.normal(100, 5, (frames, 32, 48)).round().astype("u2")
    grid = np.stack(np.meshgrid(np.arange(1, 31, 3), np.arange(1, 46, 3), indexing="ij"), -1).reshape(-1, 2)
    for image in images:
        y, x = generator.permutation(grid)[:20].T
        image[y, x] += 400
    return images


@pytest.mark.parametrize(("frames", "workers"), [(60, 1), (60, 3), (5, 2)])
def test_counting_samples_the_first_frames_and_loses_none(
    rig: Rig, kit: Kit, frames: int, workers: int
) -> None:
    """Also where the acquisition ends before there were as many as the plan wants."""
    images = noisy(frames)
    counting = plan_pb2.Counting(sample_frames=12, background_sigmas=6, xray_sigmas=100)
    finished = acquire(rig, kit, images, workers=workers, counting=counting)
    assert (finished.reason, finished.frames_stored) == (pb.FINISH_REASON_COMPLETE, frames)
    logged = rig.logged()["scan"]
    assert all(block.counted and block.dtype == np.uint8 for block in logged.blocks)
    assert [block.block_number for block in sorted(logged.blocks, key=lambda b: b.first_frame)] == list(
        range(len(logged.blocks))
    )
    for i, image in logged.frames().items():
        assert np.array_equal(image, images[i] > 300)
    assert logged.column("sum").tolist() == [20] * frames


def test_the_next_acquisition_with_the_same_plan_finds_its_own_thresholds(rig: Rig, kit: Kit) -> None:
    detector = kit.scripted()
    pipeline = rig.start(detector, workers=3)
    counting = plan_pb2.Counting(sample_frames=12, background_sigmas=6, xray_sigmas=100)
    for name, shift in (("first", 0), ("second", 900)):
        handle = pipeline.expect(name, kit.plan(30, counting=counting), "")
        detector.open(30)
        detector.frames(noisy(30) + np.uint16(shift))
        detector.end()
        assert handle.wait(kit.wait_s) is not None
    rig.stop()
    for logged in rig.logged().values():
        assert logged.column("sum").tolist() == [20] * 30


# ---- representation ----------------------------------------------------------------------------------


def test_a_log_that_is_away_costs_pixels_before_it_costs_frames(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spooling, "RESERVE_BYTES", 64 << 10)
    images = np.random.default_rng(4).integers(0, 1 << 16, (300, 64, 64)).astype("u2")
    rig.log.away.set()
    detector = kit.scripted()
    pipeline = rig.start(detector, spool_bytes=4 << 20, spool_segment_bytes=32 << 10, workers=2)
    limits = plan_pb2.Degradation(binned_above=0.2, scalars_above=0.23)
    handle = pipeline.expect("scan", kit.plan(300, degradation=limits), "")
    detector.open(300)
    with caplog.at_level(logging.WARNING):
        detector.frames(images, each=3)
        detector.end()
        finished = handle.wait(kit.wait_s)
    rig.log.away.clear()
    rig.stop()
    assert (finished.reason, finished.frames_lost) == (pb.FINISH_REASON_COMPLETE, 0)
    assert np.array_equal(unpack_pattern(finished.summed_pattern, (64, 64)), images.sum(axis=0, dtype="u8"))
    logged = rig.logged()["scan"]
    assert np.array_equal(logged.column("sum"), images.sum(axis=(1, 2), dtype="u8"))
    kinds = {frames_pb2.REPRESENTATION_BINNED, frames_pb2.REPRESENTATION_SCALARS}
    reduced = [block for block in logged.blocks if not block.whole]
    assert {block.representation for block in reduced} == kinds
    assert {block.reason for block in reduced} == {frames_pb2.REPRESENTATION_REASON_SPOOL}
    assert finished.frames_by_reason["spool"] == sum(block.count for block in reduced)
    for block in logged.blocks:
        if block.whole:
            assert np.array_equal(block.frames(), images[block.first_frame : block.first_frame + block.count])
    for step in ("binned", "scalars"):
        assert caplog.text.count(f"-> {step}, spool") == 1


def test_a_plan_without_pixels_sends_none(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(50)
    policy = plan_pb2.REPRESENTATION_POLICY_SCALARS
    finished = acquire(rig, kit, images, representation=policy)
    assert dict(finished.frames_by_reason) == {"plan": 50}
    logged = rig.logged()["scan"]
    assert np.array_equal(logged.column("sum"), images.sum(axis=(1, 2)))
    assert np.array_equal(unpack_pattern(finished.summed_pattern, (32, 48)), images.sum(axis=0))


def test_raw_frames_go_to_the_ring_where_the_plan_says_so(rig: Rig, kit: Kit, tmp_path: Path) -> None:
    images = kit.sparse_frames(40)
    detector = kit.scripted()
    pipeline = rig.start(detector, raw_ring_dir=tmp_path / "raw", raw_ring_bytes=256 << 20)
    for name, keep in (("kept", True), ("not", False)):
        handle = pipeline.expect(name, kit.plan(40, keep_raw=keep), "")
        detector.open(40)
        detector.frames(images)
        rig.wait_for(lambda wanted=40 * (1 + (name == "not")): pipeline.stats()["frames_stored"] == wanted)
        rig.wait_for(lambda: pipeline.stats()["raw_ring"]["frames_kept"] == 40)
        detector.end()
        assert handle.wait(kit.wait_s).frames_raw_kept == (40 if keep else 0)
    found = pipeline.raw_ring.read("kept", 3, 30)
    assert found.data == images[3:33].tobytes()
    rig.stop()
    assert detector.released == 12


# ---- live ---------------------------------------------------------------------------------------------


def test_figures_of_each_block_are_told_at_once(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(70)
    detector = kit.scripted()
    pipeline = rig.start(detector, workers=3)
    with pipeline.subscribe() as updates:
        handle = pipeline.expect("scan", kit.plan(70), "")
        detector.open(70)
        detector.frames(images)
        assert updates.next(kit.wait_s).acquisition_id == "scan"
        blocks = [updates.next(kit.wait_s) for _ in range(10)]
        assert all(isinstance(block, LiveBlock) for block in blocks)
        assert [block.first_frame for block in blocks] == list(range(0, 70, 7))
        sums = np.concatenate([block.columns["sum"] for block in blocks])
        assert np.array_equal(sums, images.sum(axis=(1, 2)))
        maps = pipeline.maps("scan")
        assert np.array_equal(maps["sum"], images.sum(axis=0))
        assert pipeline.maps("another") is None
        detector.end()
        assert updates.next(kit.wait_s) == handle.wait(kit.wait_s)
    assert updates.missed == 0


def test_a_slow_subscriber_loses_whole_updates_and_is_told(rig: Rig, kit: Kit) -> None:
    detector = kit.scripted()
    pipeline = rig.start(detector)
    with pipeline.subscribe(capacity=3) as updates:
        handle = pipeline.expect("scan", kit.plan(70), "")
        detector.open(70)
        detector.frames(kit.sparse_frames(70))
        detector.end()
        finished = handle.wait(kit.wait_s)
        assert updates.missed == 12 - 3
        assert [updates.next(0.0).first_frame for _ in range(2)] == [56, 63]
        assert updates.next(0.0) == finished
        assert updates.next(0.0) is None


def test_a_frame_that_fits_no_record_goes_out_binned_and_is_counted(rig: Rig, kit: Kit) -> None:
    images = np.random.default_rng(2).integers(0, 1 << 16, (3, 800, 800)).astype("u2")
    finished = acquire(rig, kit, images)
    assert (finished.frames_stored, dict(finished.frames_by_reason)) == (3, {"size": 3})
    logged = rig.logged()["scan"]
    assert {block.representation for block in logged.blocks} == {frames_pb2.REPRESENTATION_BINNED}
    assert np.array_equal(logged.column("sum"), images.sum(axis=(1, 2), dtype=np.uint64))
