"""Electron counting against plain numpy: the very same electrons for every format, shape, rule and split."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from counting_kit import lists, words_of
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction.counting import Counter, WordsMisfit
from nextem.edge.reduction.formats import InvalidReduction, PixelFormat
from nextem.edge.reduction.thresholds import Thresholds
from nextem.v1 import plan_pb2

Array = npt.NDArray[Any]

FIRST, NONE = plan_pb2.EQUAL_NEIGHBOURS_FIRST, plan_pb2.EQUAL_NEIGHBOURS_NONE


# --- the twin: plan.proto in plain numpy -------------------------------------------------------------------


def corrected_by_numpy(frame: Array, by: CorrectionArrays) -> Array:
    if not by:
        return frame
    values = frame.astype(np.float32)
    values = values - (np.float32(0) if by.dark is None else by.dark)
    values = values * (np.float32(1) if by.gain is None else by.gain)
    if by.bad is None:
        return values
    repaired = values.copy()
    for y, x in np.argwhere(by.bad):
        around = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
        good = [float(value) for value in values[around][~by.bad[around]]]
        repaired[y, x] = np.float32(sum(good) / len(good)) if good else 0
    return repaired


def electrons_by_numpy(frame: Array, limits: Thresholds, rule: int) -> list[int]:
    """Regional maxima: connected sets of one value, all of whose other neighbours are lower."""
    height, width = frame.shape
    electrons = []
    seen: set[tuple[int, int]] = set()
    for y, x in np.ndindex(frame.shape):
        value = frame[y, x].item()  # Python compares whole numbers and floats exactly
        if (y, x) in seen or not limits.threshold < value < limits.xray_threshold:
            continue
        plateau, highest = [(y, x)], True
        seen.add((y, x))
        for i, j in plateau:
            for down, right in np.ndindex(3, 3):
                at = i + down - 1, j + right - 1
                if not (0 <= at[0] < height and 0 <= at[1] < width):
                    continue
                highest = highest and frame[at] <= value
                if frame[at] == value and at not in seen:
                    seen.add(at)
                    plateau.append(at)
        if highest and (rule == FIRST or len(plateau) == 1):
            electrons.append(y * width + x)
    return sorted(electrons)


# --- what is drawn -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    frames: Array  # as on the wire
    corrections: CorrectionArrays
    counting: plan_pb2.Counting
    offset: int
    tail: int

    @property
    def counter(self) -> Counter:
        shape = self.frames.shape[1], self.frames.shape[2]
        return Counter(self.counting, self.corrections, shape, PixelFormat.of(self.frames.dtype))

    @property
    def words(self) -> npt.NDArray[np.uint8]:
        return words_of(self.frames, self.offset, self.tail)

    @property
    def expected(self) -> list[list[int]]:
        limits = Thresholds(self.counting.threshold, self.counting.xray_threshold)
        native = self.frames.astype(self.frames.dtype.newbyteorder("="))
        frames = [corrected_by_numpy(frame, self.corrections) for frame in native]
        return [electrons_by_numpy(frame, limits, self.counting.equal) for frame in frames]


def some_corrections(
    rng: np.random.Generator, shape: tuple[int, int], parts: set[str], whole: bool
) -> CorrectionArrays:
    def numbers() -> Array:
        drawn = rng.integers(-3, 4, shape) if whole else rng.uniform(-100, 100, shape)
        return drawn.astype(np.float32)

    return CorrectionArrays.of(
        shape,
        dark=numbers() if "dark" in parts else None,
        gain=numbers() if "gain" in parts else None,
        bad=rng.random(shape) < rng.choice([0.02, 0.5, 1]) if "bad" in parts else None,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype = np.dtype(draw(st.sampled_from(["u1", "<u2", ">u2", "<u4", ">u4", "<u8", ">u8"])))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 150)).filter(lambda s: s[0] * s[1] <= 600))
    n = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = int(np.iinfo(dtype).max)
    most = draw(st.sampled_from([1, 3, 200, top]))  # few different values make many equal neighbours
    values = rng.integers(0, most, (n, *shape), np.uint64, endpoint=True)
    parts = draw(st.sets(st.sampled_from(["dark", "gain", "bad"])))
    made = some_corrections(rng, shape, parts, draw(st.booleans()))
    lowest = -200 if made else 0
    threshold = draw(
        st.one_of(st.integers(lowest, most).map(float), st.floats(float(lowest), float(most))).filter(bool)
    )
    xray = draw(st.one_of(st.just(math.inf), st.floats(threshold, 2.0 * top).filter(lambda v: v > threshold)))
    counting = plan_pb2.Counting(
        threshold=threshold, xray_threshold=xray or math.inf, equal=draw(st.sampled_from([FIRST, NONE]))
    )
    return Case(values.astype(dtype), made, counting, draw(st.integers(0, 9)), draw(st.integers(0, 3)))


# --- the same electrons ------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(case=cases(), data=st.data())
def test_exactly_as_numpy_for_every_split(case: Case, data: st.DataObject) -> None:
    counter, words, expected = case.counter, case.words, case.expected
    assert lists(counter.count(words, case.offset)) == expected
    cut = data.draw(st.integers(1, len(words)))
    parts = [counter.twin().count(part, case.offset) for part in (words[:cut], words[cut:]) if len(part)]
    assert [frame for part in parts for frame in lists(part)] == expected
    every_other = lists(counter.count(words[::2], case.offset))
    assert every_other == expected[::2]


def counted(
    frame: list[list[int]], rule: int, *, threshold: float = 0.5, xray: float = math.inf
) -> list[int]:
    pixels = np.array([frame], np.uint16)
    counting = plan_pb2.Counting(threshold=threshold, xray_threshold=xray, equal=rule)
    shape = pixels.shape[1], pixels.shape[2]
    return lists(Counter(counting, None, shape, PixelFormat.of("<u2")).count(words_of(pixels, 0, 0)))[0]


def test_equal_neighbours() -> None:
    pair = [[0, 0, 0, 0], [0, 7, 7, 0], [0, 0, 0, 0]]
    assert (counted(pair, FIRST), counted(pair, NONE)) == ([5], [])
    shoulder = [[0, 0, 0, 0, 0], [0, 7, 7, 8, 0], [0, 0, 0, 0, 0]]
    assert (counted(shoulder, FIRST), counted(shoulder, NONE)) == ([8], [8])
    v_shape = [[7, 0, 7], [0, 7, 0], [0, 0, 0]]
    assert (counted(v_shape, FIRST), counted(v_shape, NONE)) == ([0], [])
    low_start = [[0, 7, 0, 7], [0, 0, 7, 0], [0, 7, 9, 0]]
    assert (counted(low_start, FIRST), counted(low_start, NONE)) == ([10], [10])
    flat = [[5] * 130] * 3
    assert (counted(flat, FIRST), counted(flat, NONE)) == ([0], [])
    assert (counted([[3]], FIRST), counted([[3]], NONE)) == ([0], [0])


def test_borders_do_not_wrap_and_do_not_hide() -> None:
    corners = [[9, 0, 8], [0, 0, 0], [7, 0, 6]]
    assert counted(corners, NONE) == [0, 2, 6, 8]
    assert counted([[9, 0, 0], [0, 0, 9]], NONE) == [0, 5]


def test_thresholds_are_strict_and_an_xray_hides_its_neighbours() -> None:
    row = [[4, 0, 5, 0, 6, 0, 7]]
    assert counted(row, NONE, threshold=4, xray=7) == [2, 4]
    assert counted(row, NONE, threshold=4.5, xray=6.5) == [2, 4]
    assert counted([[0, 5, 900, 0]], NONE, threshold=4, xray=100) == []


@settings(max_examples=30)
@given(seed=st.integers(0, 999), threads=st.integers(2, 4))
def test_threads_never_change_an_electron(seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.poisson(3, (24, 40, 70)).astype(">u2")
    words = words_of(frames, 3, 1)
    counter = Counter(plan_pb2.Counting(sample_frames=5), None, (40, 70), PixelFormat.of(">u2"))
    counter.sample(words, 3)
    twins = [counter.twin() for _ in range(threads)]
    shares = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda twin, share: lists(twin.count(share, 3)), twins, shares))
    assert [frame for part in parts for frame in part] == lists(counter.count(words, 3))


def test_a_scratch_frame_holds_nothing_of_the_frame_before() -> None:
    counting = plan_pb2.Counting(threshold=1, xray_threshold=math.inf)
    frames = np.zeros((3, 5, 66), np.uint8)
    frames[0] = 9
    frames[2, 2, 3] = 2
    counter = Counter(counting, None, (5, 66), PixelFormat.of("u1"))
    assert lists(counter.count(words_of(frames, 0, 0))) == [[0], [], [2 * 66 + 3]]


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counting", "message"),
    [
        ({"threshold": -1}, "threshold -1.0"),
        ({"threshold": math.nan}, "threshold nan"),
        ({"threshold": 9, "xray_threshold": 9}, "xray_threshold 9.0 is not above threshold 9.0"),
        ({"xray_threshold": math.nan}, "xray_threshold nan"),
        ({"background_sigmas": -4}, "background_sigmas -4.0"),
        ({"xray_sigmas": math.inf}, "xray_sigmas inf"),
        ({"equal": 7}, "equal 7"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(counting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidReduction, match=message):
        Counter(plan_pb2.Counting(**counting), None, (4, 4), PixelFormat(2))


def test_frames_of_no_pixel_are_refused() -> None:
    with pytest.raises(InvalidReduction, match="0x4"):
        Counter(plan_pb2.Counting(), None, (0, 4), PixelFormat(2))


@pytest.mark.parametrize(
    ("words", "offset"),
    [
        (np.zeros((2, 31), np.uint8), 0),
        (np.zeros((2, 40), np.uint8), 9),
        (np.zeros((2, 40), np.uint8), -1),
        (np.zeros((2, 32), np.uint16), 0),
        (np.zeros(32, np.uint8), 0),
        (np.zeros((2, 80), np.uint8)[:, ::2], 0),
    ],
)
def test_nothing_is_read_outside_the_words(words: Array, offset: int) -> None:
    counter = Counter(plan_pb2.Counting(sample_frames=2), None, (4, 4), PixelFormat(2))
    with pytest.raises(WordsMisfit, match=f"no 32 bytes from byte {offset}"):
        counter.sample(words, offset)
    counter.sample(np.zeros((2, 32), np.uint8))
    with pytest.raises(WordsMisfit, match="no 32 bytes"):
        counter.count(words, offset)


def test_warm_up_leaves_no_trace() -> None:
    counter = Counter(plan_pb2.Counting(), None, (4, 4), PixelFormat(2))
    counter.warm_up()
    assert counter.wants_samples() == 20
    assert counter.thresholds is None
