"""A scan seen by a Timepix3: planted electrons, their clusters, and the stream of words that tells of them.

Each electron leaves a Gaussian charge cloud. Pixels above the threshold fire: ToT grows with the charge, and
a weak pixel crosses the threshold later (time walk). Hits leave the chip late and not in order. What a
perfect receiver would find is known: position, centroid and time of every electron.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import erf

import numpy as np
import numpy.typing as npt

from nextem.simulator import timepix3_words as words

TICK_NS = 25 / 16
_REACH = 3  # pixels around the electron's own that may fire
_STEPS = 64  # of the electron's place inside its pixel, for the table of charges

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timepix3Camera:
    """The chip or quad, its sensor and its readout.

    ``cloud_px`` is the sigma of the charge cloud, ``threshold`` a fraction of the electron's charge;
    ``walk_ns`` the latest that a pixel at the threshold fires, ``jitter_ns`` the sigma of each time;
    ``disorder_ns`` the mean, and ``most_disorder_ns`` the longest time that a hit waits in the chip.
    """

    chips: int = 1
    gap_px: int = 4
    cloud_px: float = 0.55
    threshold: float = 0.04
    walk_ns: float = 60.0
    jitter_ns: float = 2.0
    disorder_ns: float = 20_000.0
    most_disorder_ns: float = 200_000.0
    chunk_ns: float = 50_000.0

    @property
    def side_px(self) -> int:
        return 256 if self.chips == 1 else 512 + self.gap_px

    def on_chip(self, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Chip (-1 for none) and place on it of pixels of the image."""
        if self.chips == 1:
            inside = (x >= 0) & (x < 256) & (y >= 0) & (y < 256)
            return np.where(inside, 0, -1), x, y
        far = 256 + self.gap_px
        chip = np.full(x.shape, -1, np.int64)
        own_x, own_y = np.zeros_like(x), np.zeros_like(y)
        turned = far + 255
        quarters = ((far, 1, 0, 1), (turned, -1, turned, -1), (255, -1, turned, -1), (0, 1, 0, 1))
        for number, (x0, step_x, y0, step_y) in enumerate(quarters):
            place_x, place_y = (x - x0) * step_x, (y - y0) * step_y
            inside = (place_x >= 0) & (place_x < 256) & (place_y >= 0) & (place_y < 256)
            chip[inside] = number
            own_x[inside], own_y[inside] = place_x[inside], place_y[inside]
        return chip, own_x, own_y


@dataclass(frozen=True, slots=True)
class Hits:
    """Pixels that fired: time, place in the image, ToT, and the electron that made each."""

    ticks: Numbers
    x: Numbers
    y: Numbers
    tot: Numbers
    electron: Numbers


def fire(
    camera: Timepix3Camera, ticks: Numbers, x_px: Floats, y_px: Floats, rng: np.random.Generator
) -> Hits:
    """Hits of electrons that strike at ``ticks`` at (x, y); the middle of a pixel is at .5."""
    across = _shares(x_px, camera.cloud_px)
    down = _shares(y_px, camera.cloud_px)
    charge = down[:, :, None] * across[:, None, :]
    electron, dy, dx = np.nonzero(charge > camera.threshold)
    share = charge[electron, dy, dx]
    x = np.floor(x_px).astype(np.int64)[electron] + dx - _REACH
    y = np.floor(y_px).astype(np.int64)[electron] + dy - _REACH
    late_ns = camera.walk_ns * camera.threshold / share
    late_ns = late_ns + np.abs(rng.normal(0.0, camera.jitter_ns, share.size))
    times = ticks[electron] + np.round(late_ns / TICK_NS).astype(np.int64)
    tot = np.clip(np.round(share * 200), 1, 1023).astype(np.int64)
    inside = camera.on_chip(x, y)[0] >= 0
    return Hits(times[inside], x[inside], y[inside], tot[inside], electron[inside])


def _shares(places: Floats, sigma: float) -> Floats:
    """Share of the charge in each of the columns around ``places``, by the error function."""
    borders = np.arange(-_REACH, _REACH + 2)
    table = np.array(
        [
            [erf((border - step / _STEPS) / (sigma * 2**0.5)) / 2 for border in borders]
            for step in range(_STEPS + 1)
        ]
    )
    inside: Floats = np.diff(table, axis=1)[np.round(places % 1.0 * _STEPS).astype(int)]
    return inside


@dataclass(frozen=True, slots=True)
class Timepix3Scan:
    """A raster and what marks it. Line k starts at ``k * (x * dwell + flyback)`` after ``start_ticks``.

    ``edges`` "line", "pixel", "start" or "none"; ``dwell_ns`` and ``flyback_ns`` are rounded to ticks.
    """

    shape: tuple[int, int]
    dwell_ns: float
    flyback_ns: float = 0.0
    edges: str = "line"
    start_ticks: int = 1_000_000
    first_count: int = 0

    @property
    def dwell_ticks(self) -> int:
        return round(self.dwell_ns / TICK_NS)

    def position_start(self, frames: Numbers) -> Numbers:
        """First tick of each position."""
        line, column = np.divmod(frames, self.shape[1])
        period = self.shape[1] * self.dwell_ticks + round(self.flyback_ns / TICK_NS)
        starts: Numbers = self.start_ticks + line * period + column * self.dwell_ticks
        return starts

    def marks(self) -> Numbers:
        """Ticks of the TDC edges."""
        count = self.shape[0] * self.shape[1]
        step = {"line": self.shape[1], "pixel": 1, "start": count}.get(self.edges)
        return self.position_start(np.arange(0, count, step)) if step else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Recording:
    """A stream, and the truth: position of each electron by its earliest hit, and its hits.

    ``frames`` is -1 for an electron that fired nothing, or in no position of the raster.
    """

    data: bytes
    frames: Numbers
    hits: Hits


def record(
    camera: Timepix3Camera,
    scan: Timepix3Scan,
    frames: Numbers,
    x_px: Floats,
    y_px: Floats,
    rng: np.random.Generator,
    *,
    end: bool = True,
) -> Recording:
    """The stream of electrons at (x, y), one in position ``frames[i]`` each, at a random time in it."""
    within = rng.uniform(0, max(scan.dwell_ticks - 1, 1), len(frames)).astype(np.int64)
    ticks = scan.position_start(frames) + within
    hits = fire(camera, ticks, x_px, y_px, rng)
    truth = _positions(scan, hits, len(frames))
    return Recording(stream(camera, scan, hits, rng, end=end), truth, hits)


def _positions(scan: Timepix3Scan, hits: Hits, electrons: int) -> Numbers:
    earliest = np.full(electrons, np.iinfo(np.int64).max)
    np.minimum.at(earliest, hits.electron, hits.ticks)
    starts = scan.position_start(np.arange(scan.shape[0] * scan.shape[1]))
    frames = np.searchsorted(starts, earliest, side="right") - 1
    fired = earliest < np.iinfo(np.int64).max
    inside = fired & (frames >= 0) & (earliest - starts[np.maximum(frames, 0)] < scan.dwell_ticks)
    return np.where(inside, frames, -1)


def stream(
    camera: Timepix3Camera, scan: Timepix3Scan, hits: Hits, rng: np.random.Generator, *, end: bool = True
) -> bytes:
    """Words in chunks, in the order of readout: hits of each chip late and shuffled, edges at once."""
    wait_ns = np.minimum(
        rng.exponential(camera.disorder_ns or 1e-9, hits.ticks.size), camera.most_disorder_ns
    )
    chip, x, y = camera.on_chip(hits.x, hits.y)
    marks = scan.marks()
    counts = scan.first_count + np.arange(marks.size)
    edge_words = words.edge_words(marks * words.UNITS_PER_TICK, counts)
    all_words = np.concatenate([edge_words, words.hit_words(hits.ticks, x, y, hits.tot)])
    read_out = np.concatenate([marks, hits.ticks + np.round(wait_ns / TICK_NS).astype(np.int64)])
    chips = np.concatenate([np.zeros(marks.size, np.int64), chip])
    parts = [words.chunk(words.marker_word(0x5F), number) for number in range(camera.chips)]
    parts += _chunks(all_words, read_out, chips, round(camera.chunk_ns / TICK_NS))
    if end:
        last = np.concatenate([words.marker_word(0x5A), words.control_word(0xB0)])
        parts += [words.chunk(last, number) for number in range(camera.chips)]
    return b"".join(parts)


def _chunks(all_words: words.Words, read_out: Numbers, chips: Numbers, chunk_ticks: int) -> Iterator[bytes]:
    """Chunks of what each chip read out in equal spans of time, one chip after the other."""
    spans = read_out // chunk_ticks
    order = np.lexsort((read_out, chips, spans))
    group = spans[order] * 256 + chips[order]
    borders = [0, *(np.flatnonzero(np.diff(group)) + 1), len(order)]
    for start, stop in pairwise(borders):
        if start == stop:
            continue
        part = order[start:stop]
        yield words.chunk(all_words[part], int(chips[part[0]]))
