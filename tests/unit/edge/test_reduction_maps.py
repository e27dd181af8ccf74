"""Maps, rings, events, counting and threads of a reduction: exactly what numpy makes of the same frames."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.reduction import InvalidFrames, InvalidReduction, Maps, PixelFormat, compile_reduction
from nextem.edge.reduction.figures import ReducedBlock
from nextem.edge.reduction.map_kernels import histogram_bin
from nextem.edge.reduction.maps import histogram_edges
from nextem.edge.reduction.parallel import as_words, reduce_array
from nextem.v1 import plan_pb2
from nextem.wire.events import Events, encode_events, frames_to_events

Array = npt.NDArray[Any]

POLICIES = (
    plan_pb2.REPRESENTATION_POLICY_SMALLEST,
    plan_pb2.REPRESENTATION_POLICY_EVENTS,
    plan_pb2.REPRESENTATION_POLICY_DENSE,
)


def everything(policy: int = POLICIES[0]) -> plan_pb2.Reduction:
    disk = plan_pb2.Mask(name="disk", center_y_px=5, center_x_px=5, inner_px=0, outer_px=4)
    radial = plan_pb2.RadialProfile(center_y_px=3, center_x_px=4, width_px=2, bins=5)
    return plan_pb2.Reduction(
        masks=[disk],
        center_of_mass=True,
        representation=policy,  # type: ignore[arg-type]
        maps=plan_pb2.Maps(variance=True, maximum=True, histogram=True, radial=radial),
    )


@st.composite
def drawn_frames(draw: st.DrawFn) -> Array:
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 16)), draw(st.integers(1, 140)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = min(draw(st.sampled_from([1, 300, 2**40])), 2 ** (8 * itemsize) - 1)
    kept = rng.random(shape) < rng.choice([0.0, 0.02, 0.5, 1.0], (shape[0], 1, 1))
    frames = np.where(kept, rng.integers(0, top, shape, np.uint64, endpoint=True), 0)
    return frames.astype(f"u{itemsize}")


def maps_by_numpy(frames: Array) -> dict[str, Array]:
    wide = frames.astype(np.uint64)
    bins = np.searchsorted(histogram_edges(), wide.ravel(), side="right") - 1
    return {
        "sum": wide.sum(0),
        "squares": (wide**2).sum(0),
        "maximum": frames.max(0),
        "histogram": np.bincount(bins, minlength=256),
    }


def assert_maps(maps: Maps, frames: Array) -> None:
    assert maps.frames == len(frames)
    for name, wanted in maps_by_numpy(frames).items():
        assert np.array_equal(getattr(maps, name), wanted), name


@settings(max_examples=80)
@given(drawn_frames(), st.sampled_from(POLICIES), st.data())
def test_maps_and_rings_as_numpy_for_every_split_over_twins(
    frames: Array, policy: int, data: st.DataObject
) -> None:
    n, y, x = frames.shape
    reducer = compile_reduction(everything(policy), (y, x), PixelFormat.of(frames.dtype), n)
    twins = [reducer, reducer.twin(), reducer.twin()]
    cuts = sorted({0, n, *data.draw(st.sets(st.integers(1, n)))})
    ring = np.sqrt((np.arange(y)[:, None] - 3) ** 2 + (np.arange(x) - 4) ** 2) // 2
    for start, stop in pairwise(cuts):
        part = frames[start:stop]
        twin = data.draw(st.sampled_from(twins))
        as_events = data.draw(st.booleans())
        reduced = twin.reduce_events(frames_to_events(part)) if as_events else twin.reduce(as_words(part))
        columns = reduced.scalars()
        for k in range(5):
            inside = part[:, ring == k]
            if inside.size:
                wanted = inside.astype(np.uint64).sum(1) / inside.shape[1]
                assert np.array_equal(columns[f"radial/{k}"], wanted)
            else:
                assert np.isnan(columns[f"radial/{k}"]).all()
        assert np.array_equal(reduced.pixels.frames, part)
    for twin in data.draw(st.permutations(twins[1:])):
        reducer.maps.add(twin.maps)
    assert_maps(reducer.maps, frames)


@given(st.integers(0, 2**64 - 1))
def test_a_histogram_bin_holds_what_its_edges_say(value: int) -> None:
    edges = histogram_edges().astype(object)
    found = int(histogram_bin(np.uint64(value)))
    assert edges[found] <= value
    assert found == len(edges) - 1 or value < edges[found + 1]


@settings(max_examples=50)
@given(drawn_frames())
def test_finished_maps_are_mean_variance_and_maximum(frames: Array) -> None:
    y, x = frames.shape[1:]
    reducer = compile_reduction(everything(), (y, x), PixelFormat.of(frames.dtype), len(frames))
    reducer.reduce(as_words(frames))
    found = reducer.maps.finish()
    if int(frames.max()) <= 1 << 20:
        np.testing.assert_allclose(found["mean"], frames.mean(0, dtype=np.float64), rtol=1e-12)
        np.testing.assert_allclose(found["variance"], frames.var(0, dtype=np.float64), rtol=1e-9, atol=1e-6)
    assert np.array_equal(found["maximum"], frames.max(0).astype(np.float64))
    assert np.isnan(compile_reduction(everything(), (y, x), PixelFormat(2)).maps.finish()["mean"]).all()


def test_variance_is_exact_where_floats_would_cancel() -> None:
    frames = np.full((1000, 2, 2), 2**26, np.uint32)
    frames[::2] += np.uint32(1)
    maps = reduce_array(frames, everything(), 2)
    assert maps.finish()["variance"].tolist() == [[0.25, 0.25], [0.25, 0.25]]


@pytest.mark.parametrize("policy", POLICIES)
def test_forgotten_frames_leave_every_map(policy: int) -> None:
    frames = np.random.default_rng(3).poisson(0.7, (9, 12, 70)).astype(np.uint16)
    reducer = compile_reduction(everything(policy), (12, 70), PixelFormat.of(frames.dtype), 9)
    reducer.reduce(as_words(frames[:4]))
    reduced = reducer.reduce(as_words(frames[4:]))
    reducer.forget(reduced, [0, 3])
    assert_maps(reducer.maps, frames[[0, 1, 2, 3, 5, 6, 8]])
    reducer.forget(reduced, [])
    assert_maps(reducer.maps, frames[[0, 1, 2, 3, 5, 6, 8]])


def test_nothing_is_kept_that_the_plan_does_not_ask_for() -> None:
    maps = compile_reduction(plan_pb2.Reduction(), (4, 4), PixelFormat(2)).maps
    assert (maps.squares, maps.maximum, maps.histogram) == (None, None, None)
    assert list(maps.finish()) == ["mean"]


@pytest.mark.parametrize(
    "events",
    [
        Events(np.array([0, 1], np.uint32), np.array([840], np.uint32), np.array([1], np.uint16)),
        Events(np.array([0, 2], np.uint32), np.array([3, 3], np.uint32), np.array([1, 1], np.uint16)),
        Events(np.array([0, 1], np.uint32), np.array([3], np.uint32), np.array([0], np.uint16)),
        Events(np.array([0, 1], np.uint32), np.array([3], np.uint32), np.array([1], np.uint8)),
        Events(np.zeros(1, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.uint16)),
    ],
)
def test_events_that_do_not_fit_are_refused(events: Events) -> None:
    with pytest.raises(InvalidFrames):
        compile_reduction(plan_pb2.Reduction(), (12, 70), PixelFormat(2)).reduce_events(events)


def test_events_may_lie_in_memory_that_cannot_be_written() -> None:
    events = frames_to_events(np.eye(70, dtype=np.uint16)[None, :12])
    for array in (events.indptr, events.indices, events.values):
        array.setflags(write=False)
    reducer = compile_reduction(plan_pb2.Reduction(), (12, 70), PixelFormat(2))
    assert reducer.reduce_events(events).sum.tolist() == [12]


@pytest.mark.parametrize("bins", [0, 5000])
def test_a_radial_profile_that_is_none_is_refused(bins: int) -> None:
    wrong = plan_pb2.Reduction(maps=plan_pb2.Maps(radial=plan_pb2.RadialProfile(bins=bins)))
    with pytest.raises(InvalidReduction, match="bins"):
        compile_reduction(wrong, (4, 4), PixelFormat(2))


def counted_plan(**counting: Any) -> plan_pb2.Reduction:
    reduction = everything()
    reduction.counting.CopyFrom(plan_pb2.Counting(**counting))
    return reduction


def hits(n: int) -> tuple[Array, Array]:
    """(frames of noise round 10 with electrons of 100, where the electrons are)."""
    rng = np.random.default_rng(7)
    frames = rng.normal(10, 1, (n, 40, 70)).clip(1).astype(np.uint16)
    planted = np.zeros(frames.shape, bool)
    planted[:, 2:-2:5, 2:-2:6] = rng.random((n, 8, 11)) < 0.4
    frames[planted] = 100
    return frames, planted


def test_counted_frames_are_electrons_in_figures_maps_and_pixels() -> None:
    frames, planted = hits(6)
    reducer = compile_reduction(counted_plan(threshold=50, xray_threshold=math.inf), (40, 70), PixelFormat(2))
    reduced = reducer.reduce(frames.astype(">u2").reshape(6, -1).view(np.uint8))
    assert (reducer.dtype, reducer.counted, reduced.counted) == (np.uint8, True, True)
    assert np.array_equal(reduced.pixels.frames, planted)
    assert reduced.pixels.dtype == np.uint8
    assert np.array_equal(reduced.sum, planted.sum((1, 2)))
    assert_maps(reducer.maps, planted.astype(np.uint8))
    with pytest.raises(InvalidFrames, match="counted"):
        reducer.reduce_events(frames_to_events(frames))


def test_thresholds_are_found_from_the_first_frames() -> None:
    frames, planted = hits(30)
    reducer = compile_reduction(
        counted_plan(sample_frames=8, background_sigmas=10, xray_threshold=math.inf),
        (40, 70),
        PixelFormat(2, False),
    )
    assert reducer.wants_samples() == 8
    maps = reduce_array(frames, reducer, 2)
    assert reducer.wants_samples() == 0
    assert np.array_equal(maps.sum, planted.sum(0))
    short = reduce_array(frames[:3], reducer, 2)
    assert short.frames == 3
    with pytest.raises(InvalidFrames):
        reducer.sample(as_words(frames[:, :-1]))


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "u1"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_arrays_and_files_by_any_number_of_threads(dtype: str, threads: int, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(0.3, (700, 9, 66)).astype(dtype)
    frames.tofile(tmp_path / "scan.raw")
    mapped = np.memmap(tmp_path / "scan.raw", dtype, "r", shape=frames.shape)
    every_other = np.zeros((1400, 9, 66), dtype)[::2]
    every_other[:] = frames
    for array in (frames, mapped, every_other, frames.transpose(0, 2, 1).copy().transpose(0, 2, 1)):
        blocks: dict[int, bytes] = {}

        def keep(first: int, reduced: ReducedBlock, blocks: dict[int, bytes] = blocks) -> None:
            blocks[first] = encode_events(reduced.pixels.streams)

        maps = reduce_array(array, everything(), threads, keep)
        assert_maps(maps, frames.astype(frames.dtype.newbyteorder("=")))
        assert sorted(blocks) == [0, 256, 512]
        native = frames[256:512].astype(frames.dtype.newbyteorder("="))
        assert blocks[256] == encode_events(native)


def test_an_error_in_a_thread_comes_out() -> None:
    def refuse(first: int, reduced: ReducedBlock) -> None:
        raise OSError("the disk is full")

    frames = np.zeros((600, 8, 8), np.uint8)
    with pytest.raises(OSError, match="full"):
        reduce_array(frames, plan_pb2.Reduction(), 2, refuse)


def test_arrays_that_are_no_frames_are_refused() -> None:
    for wrong in (np.zeros((3, 4), np.uint8), np.zeros((0, 4, 4), np.uint8), np.zeros((2, 4, 4), np.float32)):
        with pytest.raises(InvalidReduction):
            reduce_array(wrong, plan_pb2.Reduction())
    reducer = compile_reduction(plan_pb2.Reduction(), (4, 4), PixelFormat(2, False))
    with pytest.raises(InvalidReduction, match="reducer"):
        reduce_array(np.zeros((2, 4, 4), np.uint8), reducer)


def test_sums_of_bright_small_pixels_do_not_wrap() -> None:
    """65,537 frames of the brightest pixel of 16 bits are as many as 32 bits hold."""
    reducer = compile_reduction(plan_pb2.Reduction(), (1, 4), PixelFormat(2, False), max_frames=40_000)
    words = np.full((40_000, 4), 65_535, np.uint16).view(np.uint8)
    for _ in range(3):
        reducer.reduce(words)
    assert (reducer.maps.sum == 120_000 * 65_535).all()
    reducer.reduce(words[:7])
    assert (reducer.maps.copy().sum == 120_007 * 65_535).all()
    reducer.reset()
    reducer.reduce(words[:1])
    assert (reducer.maps.sum == 65_535).all()


def test_more_frames_at_once_than_a_sum_holds_are_refused() -> None:
    with pytest.raises(InvalidReduction, match="65537 frames at once"):
        compile_reduction(plan_pb2.Reduction(), (1, 4), PixelFormat(2, False), max_frames=65_537)
