"""The fused reduction against plain numpy: exactly equal for every shape, format, mask and split."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextem.edge.reduction import (
    InvalidFrames,
    InvalidReduction,
    PixelFormat,
    Reducer,
    compile_reduction,
    mask_pixels,
    reduction_id,
)
from nextem.edge.reduction.masks import cut_into_regions
from nextem.edge.reduction.tables import reciprocal
from nextem.v1 import plan_pb2
from nextem.wire.events import frames_to_streams

Array = npt.NDArray[Any]

SMALLEST = plan_pb2.REPRESENTATION_POLICY_SMALLEST
EVENTS = plan_pb2.REPRESENTATION_POLICY_EVENTS
DENSE = plan_pb2.REPRESENTATION_POLICY_DENSE


def mask(name: str, y: float, x: float, inner: float, outer: float) -> plan_pb2.Mask:
    return plan_pb2.Mask(name=name, center_y_px=y, center_x_px=x, inner_px=inner, outer_px=outer)


def inside_by_loops(of: plan_pb2.Mask, y: int, x: int) -> bool:
    """plan.proto in plain Python, compared in squares."""
    squared = (y - of.center_y_px) ** 2 + (x - of.center_x_px) ** 2
    return squared >= of.inner_px**2 and (of.outer_px < 0 or squared < of.outer_px**2)


def reduce_by_numpy(frames: Array, masks: list[plan_pb2.Mask]) -> dict[str, Array]:
    """The twin: no trick at all, uint64 throughout."""
    wide = frames.astype(np.uint64)
    y, x = np.indices(frames.shape[1:], np.uint64)
    columns = {
        "sum": wide.sum((1, 2)),
        "moment_y": (wide * y).sum((1, 2)),
        "moment_x": (wide * x).sum((1, 2)),
        "nonzero": (frames != 0).sum((1, 2)).astype(np.uint32),
        "pattern": wide.sum(0),
    }
    for each in masks:
        inside = np.array(
            [[inside_by_loops(each, i, j) for j in range(frames.shape[2])] for i in range(frames.shape[1])]
        )
        columns[f"mask/{each.name}"] = (wide * inside).sum((1, 2))
    return columns


def as_messages(frames: Array, pixel: PixelFormat, offset: int, tail: int) -> Array:
    """What a receiver holds: one row a message, pixels somewhere inside, in the detector's byte order."""
    n = len(frames)
    raw = np.full((n, offset + frames[0].size * pixel.itemsize + tail), 0xA5, np.uint8)
    raw[:, offset : raw.shape[1] - tail] = frames.astype(pixel.wire).reshape(n, -1).view(np.uint8)
    return raw


masks = st.builds(
    mask,
    st.just(""),
    st.floats(-10, 40),
    st.floats(-10, 150),
    st.floats(0, 30),
    st.one_of(st.just(-1.0), st.floats(0, 60)),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, PixelFormat, list[plan_pb2.Mask], int]:
    pixel = PixelFormat(draw(st.sampled_from([1, 2, 4, 8])), draw(st.booleans()))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 140)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = min(draw(st.sampled_from([1, 300, 2**64 - 1])), int(np.iinfo(pixel.native).max))
    density = draw(st.sampled_from([[0.0], [0.01], [0.3], [1.0], [0.0, 0.02, 1.0]]))
    kept = rng.random(shape) < rng.choice(density, (shape[0], 1, 1))
    frames = np.where(kept, rng.integers(0, top, shape, dtype=np.uint64, endpoint=True), 0)
    drawn = draw(st.lists(masks, max_size=4))
    for number, each in enumerate(drawn):
        each.name = f"m{number}"
    return frames.astype(pixel.native), pixel, drawn, draw(st.integers(0, 17))


@settings(max_examples=150)
@given(cases(), st.sampled_from([SMALLEST, EVENTS, DENSE]), st.data())
@example((np.zeros((1, 1, 1), np.uint8), PixelFormat(1), [], 0), SMALLEST, None)
def test_exactly_as_numpy_for_every_split_into_blocks(
    case: tuple[Array, PixelFormat, list[plan_pb2.Mask], int], policy: int, data: st.DataObject | None
) -> None:
    frames, pixel, drawn, offset = case
    reduction = plan_pb2.Reduction(masks=drawn, center_of_mass=True, representation=policy)
    reducer = compile_reduction(reduction, frames.shape[1:], pixel, max_frames=len(frames))
    expected = reduce_by_numpy(frames, drawn)
    raw = as_messages(frames, pixel, offset, tail=3)
    cuts = data.draw(st.sets(st.integers(1, len(frames)))) if data else set()
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(frames)], strict=True):
        if start == stop:
            continue
        reduced = reducer.reduce(raw[start:stop], offset)
        columns = reduced.scalars()
        for name in ("sum", *(f"mask/{each.name}" for each in drawn)):
            assert columns[name].dtype == np.uint64
            assert np.array_equal(columns[name], expected[name][start:stop]), name
        for name in ("moment_y", "moment_x", "nonzero"):
            assert np.array_equal(getattr(reduced, name), expected[name][start:stop]), name
        assert np.array_equal(reduced.pixels.frames, frames[start:stop])
        assert reduced.pixels.frames.dtype == pixel.native
        assert reduced.pixels.streams.pack() == frames_to_streams(frames[start:stop]).pack()
    assert np.array_equal(reducer.pattern, expected["pattern"])


def plain() -> Reducer:
    return compile_reduction(plan_pb2.Reduction(center_of_mass=True), (6, 70), PixelFormat(2), 8)


def test_center_of_mass_is_the_quotient_and_nan_for_an_empty_frame() -> None:
    frames = np.zeros((3, 6, 70), np.uint16)
    frames[1, 2, 60] = 7
    frames[2, 1, 3], frames[2, 4, 9] = 1, 2
    columns = plain().reduce(as_messages(frames, PixelFormat(2), 0, 0)).scalars()
    assert np.array_equal(columns["com_y"], [np.nan, 2, 3], equal_nan=True)
    assert np.array_equal(columns["com_x"], [np.nan, 60, 7], equal_nan=True)


def test_no_center_of_mass_where_the_plan_asks_for_none() -> None:
    reduction = plan_pb2.Reduction(masks=[mask("bf", 1, 1, 0, 2)])
    reduced = compile_reduction(reduction, (4, 4), PixelFormat(1)).reduce(np.ones((2, 16), np.uint8))
    assert list(reduced.scalars()) == ["sum", "mask/bf"]


@given(masks, st.integers(1, 12), st.integers(1, 12))
@example(mask("", 0, 0, 0, 5), 6, 6)
@example(mask("", 0, 0, 5, -1), 6, 6)
@example(mask("", 2, 2, 0, 0), 6, 6)
def test_masks_are_annuli_between_pixel_centres(of: plan_pb2.Mask, y: int, x: int) -> None:
    inside = mask_pixels(of, (y, x))
    assert all(inside[i, j] == inside_by_loops(of, i, j) for i in range(y) for j in range(x))


def test_a_thousand_masks_cost_regions_not_passes() -> None:
    rng = np.random.default_rng(0)
    many = [mask(f"m{k}", *rng.uniform(0, 64, 2), 0, rng.uniform(1, 30)) for k in range(1000)]
    frames = rng.poisson(0.1, (2, 64, 64)).astype(np.uint16)
    reducer = compile_reduction(plan_pb2.Reduction(masks=many), (64, 64), PixelFormat(2))
    found = reducer.reduce(as_messages(frames, PixelFormat(2), 1, 0), 1).masks
    stack = np.array([mask_pixels(each, (64, 64)) for each in many]).reshape(1000, -1)
    assert np.array_equal(found, stack.astype(np.uint64) @ frames.reshape(2, -1).astype(np.uint64).T)


def test_regions_beyond_two_bytes() -> None:
    """More regions than uint16 counts: nearly straight cuts between any two rows and any two columns."""
    rings = [mask(f"r{k}", 0, -1e6, 1e6 + k, -1) for k in range(300)]
    rows = [mask(f"c{k}", -1e6, 0, 1e6 + k, -1) for k in range(300)]
    regions = cut_into_regions(rings + rows, (300, 300))
    assert regions.labels.dtype == np.uint32
    assert regions.count > 1 << 16
    frames = np.random.default_rng(0).poisson(0.01, (1, 300, 300)).astype(np.uint8)
    reducer = compile_reduction(plan_pb2.Reduction(masks=rings + rows), (300, 300), PixelFormat(1))
    found = reducer.reduce(frames.reshape(1, -1)).masks[:, 0]
    assert found.tolist() == [int(frames[0][mask_pixels(each, (300, 300))].sum()) for each in rings + rows]


@pytest.mark.parametrize(
    "wrong",
    [
        [mask("a", 0, 0, 0, 1), mask("a", 1, 1, 0, 1)],
        [mask("", 0, 0, 0, 1)],
        [mask("a", 0, 0, -1, 1)],
        [mask("a", np.nan, 0, 0, 1)],
        [mask("a", 0, 0, 0, np.inf)],
    ],
)
def test_masks_that_are_none_are_refused(wrong: list[plan_pb2.Mask]) -> None:
    with pytest.raises(InvalidReduction, match="mask"):
        compile_reduction(plan_pb2.Reduction(masks=wrong), (4, 4), PixelFormat(2))


def test_formats_and_shapes_that_are_none_are_refused() -> None:
    for build in (lambda: PixelFormat(3), lambda: PixelFormat.of("f4"), lambda: PixelFormat.of(">i2")):
        with pytest.raises(InvalidReduction):
            build()
    for shape in ((0, 4), (1 << 16, 1 << 16)):
        with pytest.raises(InvalidReduction, match="pixels"):
            Reducer(plan_pb2.Reduction(), shape, PixelFormat(1), 1)


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<u2", ">u4", ">u8"])
def test_formats_of_numpy(dtype: str) -> None:
    pixel = PixelFormat.of(dtype)
    assert pixel.wire == np.dtype(dtype)
    assert pixel.native == np.dtype(dtype).newbyteorder("=")
    assert pixel.swapped == (dtype.startswith(">") and np.little_endian)


@pytest.mark.parametrize(
    ("raw", "offset"),
    [
        (np.zeros((1, 839), np.uint8), 0),
        (np.zeros((1, 840), np.uint8), 1),
        (np.zeros((1, 840), np.uint8), -1),
        (np.zeros((9, 840), np.uint8), 0),
        (np.zeros((0, 840), np.uint8), 0),
        (np.zeros((1, 840), np.uint16), 0),
        (np.zeros(840, np.uint8), 0),
        (np.zeros((1, 1680), np.uint8)[:, ::2], 0),
    ],
)
def test_frames_that_do_not_fit_are_refused(raw: Array, offset: int) -> None:
    with pytest.raises(InvalidFrames):
        plain().reduce(raw, offset)


def test_any_view_of_a_receiver_s_buffer_is_read_in_place() -> None:
    frames = np.random.default_rng(0).poisson(0.2, (3, 6, 70)).astype(np.uint16)
    message = as_messages(frames, PixelFormat(2), 0, 0)
    buffer = bytearray(b"\0" * 5000)
    long_rows = np.frombuffer(memoryview(buffer), np.uint8)[13 : 13 + 3 * 1200].reshape(3, 1200)
    long_rows[:, 55 : 55 + 840] = message
    read_only = np.frombuffer(bytes(buffer), np.uint8)[13 : 13 + 3 * 1200].reshape(3, 1200)
    backwards = long_rows[::-1]
    expected = reduce_by_numpy(frames, [])["moment_x"]
    assert plain().reduce(long_rows, 55).moment_x.tolist() == expected.tolist()
    assert plain().reduce(read_only, 55).moment_x.tolist() == expected.tolist()
    assert plain().reduce(backwards, 55).moment_x.tolist() == expected[::-1].tolist()


def test_the_way_follows_the_density_of_the_block_before() -> None:
    """What the way is shows in which form the pixels are; the figures are the same either way."""
    bright, dark = np.full((2, 840), 1, np.uint8), np.zeros((2, 840), np.uint8)
    reducer = plain()
    forms = [reducer.reduce(raw).pixels._frames is not None for raw in (dark, bright, bright, dark, dark)]
    assert forms == [False, False, True, True, False]
    reducer.reduce(bright)
    reducer.reset()
    assert reducer.reduce(bright).pixels._frames is None


def test_sums_wrap_modulo_2_64_and_the_bound_is_stated() -> None:
    top = np.full((1, 6, 70), 2**64 - 1, np.uint64)
    reducer = compile_reduction(plan_pb2.Reduction(), (6, 70), PixelFormat(8), 1)
    reduced = reducer.reduce(as_messages(top, PixelFormat(8), 0, 0))
    assert int(reduced.sum[0]) == (2**64 - 1) * 420 % 2**64
    heaviest = max(420, 70 * 15, 6 * 35 * 69)
    assert reducer.max_exact_pixel == (2**64 - 1) // heaviest
    exact = np.full((1, 6, 70), reducer.max_exact_pixel, np.uint64)
    reduced = reducer.reduce(as_messages(exact, PixelFormat(8), 0, 0))
    assert int(reduced.moment_x[0]) == reducer.max_exact_pixel * 6 * 35 * 69
    for itemsize, side in ((1, 46340), (2, 46340), (4, 1448)):
        heaviest = side * side * (side - 1) // 2
        assert (2 ** (8 * itemsize) - 1) * heaviest < 2**64


def test_forgotten_frames_leave_the_pattern() -> None:
    frames = np.random.default_rng(0).poisson(0.2, (4, 6, 70)).astype(np.uint16)
    reducer = plain()
    reduced = reducer.reduce(as_messages(frames, PixelFormat(2), 0, 0))
    reducer.forget(reduced, [1, 3])
    assert np.array_equal(reducer.pattern, frames[[0, 2]].sum(0))
    reducer.reset()
    assert not reducer.pattern.any()


def test_the_id_names_all_that_decides() -> None:
    reduction = plan_pb2.Reduction(masks=[mask("a", 1, 2, 3, 4)], center_of_mass=True)
    first = reduction_id(reduction, (4, 5), PixelFormat(2))
    again = plan_pb2.Reduction.FromString(reduction.SerializeToString())
    assert reduction_id(again, (4, 5), PixelFormat(2)) == first
    assert compile_reduction(reduction, (4, 5), PixelFormat(2)).reduction_id == first
    others = {
        reduction_id(reduction, (5, 4), PixelFormat(2)),
        reduction_id(reduction, (4, 5), PixelFormat(4)),
        reduction_id(reduction, (4, 5), PixelFormat(2, big_endian=False)),
        reduction_id(plan_pb2.Reduction(center_of_mass=True), (4, 5), PixelFormat(2)),
    }
    assert len(others | {first}) == 5


@settings(max_examples=500)
@given(st.integers(1, 2**31), st.integers(0, 2**31 - 1))
@example(1, 2**31 - 1)
@example(2**31 - 1, 2**31 - 1)
@example(3, 2**31 - 1)
def test_division_by_the_reciprocal_is_exact(divisor: int, number: int) -> None:
    factor, shift = reciprocal(divisor)
    near = number // divisor * divisor
    for i in (number, near, max(0, near - 1)):
        assert i * factor < 2**63
        assert i * factor >> shift == i // divisor


def test_reducers_work_in_threads_at_the_same_time() -> None:
    frames = np.random.default_rng(0).poisson(0.2, (8, 6, 70)).astype(np.uint16)
    raw = as_messages(frames, PixelFormat(2), 3, 0)
    expected = reduce_by_numpy(frames, [])

    def work(_: int) -> bool:
        reducer = plain()
        for _ in range(20):
            reduced = reducer.reduce(raw, 3)
        return np.array_equal(reduced.sum, expected["sum"]) and np.array_equal(
            reducer.pattern, 20 * expected["pattern"]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


@cache
def first_frames(path: Path, offset: int, dtype: str, shape: tuple[int, int], n: int) -> tuple[Array, Array]:
    """(messages, frames): n Merlin frames, each after its header of ``offset`` bytes."""
    pixel_bytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    raw = np.fromfile(path, np.uint8, n * (offset + pixel_bytes)).reshape(n, -1)
    return raw, raw[:, offset:].copy().view(dtype).reshape(n, *shape)


@pytest.mark.data
def test_a_measured_merlin_file_gives_what_numpy_gives(data_dir: Path) -> None:
    """Whatever 12 or 24 bit file of a 256x256 Medipix lies in the folder."""
    tried = 0
    for path in sorted(data_dir.glob("merlin-*/**/*.mib")):
        with path.open("rb") as file:
            header = file.read(384).split(b",")
        if header[0] != b"MQ1" or header[6] not in (b"U08", b"U16", b"U32") or b"R64" in header:
            continue
        offset, dtype = int(header[2]), f">u{int(header[6][1:]) // 8}"
        shape = (int(header[5]), int(header[4]))
        raw, frames = first_frames(path, offset, dtype, shape, 1)
        center = [mask("bf", shape[0] / 2, shape[1] / 2, 0, 30), mask("df", 100, 100, 30, -1)]
        expected = reduce_by_numpy(frames, center)
        reducer = compile_reduction(plan_pb2.Reduction(masks=center), shape, PixelFormat.of(dtype))
        reduced = reducer.reduce(raw, offset)
        assert reduced.scalars()["mask/bf"] == expected["mask/bf"]
        assert reduced.scalars()["mask/df"] == expected["mask/df"]
        assert reduced.moment_y == expected["moment_y"]
        assert np.array_equal(reduced.pixels.frames, frames)
        tried += 1
    if not tried:
        pytest.skip("no readable Merlin file in the folder of measured files")
