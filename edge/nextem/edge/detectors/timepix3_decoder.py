"""A raw Timepix3 stream in, scan positions out: sort, cluster and place, one buffer after the other.

:class:`Decoder` does no input and knows no acquisition: it counts frames through all the scans of a stream.
Its memory is bounded by the hits inside the sorting window, the events of the one open position and a
constant; what it makes of a stream does not depend on how the stream was cut.
"""

from __future__ import annotations

import re
from enum import Enum

import numpy as np
import numpy.typing as npt

from nextem.edge.detectors import timepix3_cluster as clustering
from nextem.edge.detectors import timepix3_positions as positions
from nextem.edge.detectors import timepix3_words as words
from nextem.edge.detectors.timepix3_options import Sync, Timepix3Options

Numbers = npt.NDArray[np.int64]
Records = npt.NDArray[np.uint64]

WORK_HITS = 1 << 16
"""As many new hits are worked off at once; the arrays of this many stay in the second-level cache."""

MOST_NUMBER = 1 << 30
"""Of clusters, which have 32 bits, before they begin anew; no batch begins as many."""

_WAITING_HITS = 1 << 20  # at most, inside the sorting window: 120 Mhit/s for 8 ms
_EDGES = 1 << 18
_SKIPS = 4096
_FRAMES = 1 << 16  # taken at once
_HEADER = re.compile(rb"TPX3..[" + b"".join(re.escape(bytes([k])) for k in range(0, 256, 8)) + rb"].", re.S)


class Reach(Enum):
    """How far :meth:`Decoder.work_off` goes."""

    WINDOW = "what no later hit can change"
    ALL = "everything; positions that end after the newest time stay open"
    END = "everything; the measurement ended, so the running segment is complete"


class Decoder:
    """One stream. Use: :meth:`read` bytes, :meth:`work_off`, then :meth:`next_run` up to ``complete``.

    ``complete`` and :attr:`frame` count positions since the stream began.
    """

    def __init__(self, options: Timepix3Options) -> None:
        self.options = options
        self.shape, self._layout = words.chip_layout(options.chips, options.gap_px)
        self.complete = 0
        self.garbage_bytes = 0
        self.cut_pixels = 0
        self._skipped: list[tuple[int, int]] = []
        self._window = round(options.window_ns / words.TICK_NS)
        self._duration = round(options.cluster_ns / words.TICK_NS)
        self._width = options.positions // options.segments
        self._most = int(np.iinfo(options.value_dtype).max)
        self._state, self._clock = words.new_state(), positions.new_clock()
        self._hits = np.empty(_WAITING_HITS, np.uint64)
        self._edges = np.empty(_EDGES, np.int64)
        self._skips = np.empty((_SKIPS, 2), np.int64)
        self._keys = np.empty(1 << 17, np.uint64)
        self._keys_used = self._keys_sorted = 0
        self._begun = False
        self._left = 0
        margin = (self.shape[0] + 2) * (self.shape[1] + 2)
        self._newest = np.full(margin, -1, np.int32)
        self._number = 0  # of the next cluster
        self._counts = clustering.new_counts()
        self._room = 0
        self._make_room(2 * WORK_HITS)

    @property
    def frame(self) -> int:
        """The first frame that was not taken."""
        return int(self._clock[positions.FRAME])

    @property
    def started(self) -> int:
        """The first frame of the running segment, -1 before the first edge."""
        segment = int(self._clock[positions.SEGMENT])
        return segment * self._width if segment >= 0 else -1

    @property
    def ended(self) -> bool:
        """Whether all chips told the end of their readout."""
        every = (1 << self.options.chips) - 1
        return int(self._state[words.ENDED]) & every == every

    @property
    def inside_chunk(self) -> bool:
        """Whether the chunk that began last still lacks words."""
        return int(self._state[words.LEFT]) > 0

    @property
    def waiting(self) -> int:
        """Hits and edges that wait."""
        return int(self._state[words.HITS] + self._state[words.EDGES])

    @property
    def due(self) -> bool:
        """Whether so much came since it was last worked off that going over what was left then pays."""
        return self.waiting - self._left >= max(WORK_HITS, self._left)

    @property
    def memory_bytes(self) -> int:
        """Of all the arrays that may grow."""
        arrays = (
            self._work, self._spare, self._labels, self._firsts, self._sums, self._ticks, self._pixels,
            self._keys,
        )  # fmt: skip
        return sum(array.nbytes for array in arrays)

    def counters(self) -> dict[str, int]:
        """Hits seen, and everything that reached no position, by cause."""
        state, clock = self._state, self._clock
        return {
            "hits": int(state[words.SEEN]),
            "hits_late": int(state[words.LATE_HITS]),
            "edges_late": int(state[words.LATE_EDGES]),
            "words_implausible": int(state[words.IMPLAUSIBLE]) + int(state[words.HELD] != 0),
            "hits_without_time": int(state[words.NO_TIME_HITS]),
            "hits_of_unknown_chips": int(state[words.STRANGE_CHIP]),
            "words_unknown": int(state[words.UNKNOWN]),
            "events_outside": int(clock[positions.OUTSIDE]),
            "edges_ignored": int(clock[positions.IGNORED]),
            "edges_missing": int(clock[positions.MISSING]),
            "pixels_cut": self.cut_pixels,
            "garbage_bytes": self.garbage_bytes,
        }

    def read(self, data: npt.NDArray[np.uint8]) -> tuple[int, bool]:
        """Decodes from the front of ``data``, aligned to 8 bytes and writable; returns the bytes it took.

        True: a measurement ended there, and is to be worked off to its ``END`` and :meth:`restart` called.
        The bytes left are for the next call, with what comes after them.
        """
        stream = data[: data.size & ~7].view(np.uint64)
        kind = words.EDGE_KINDS[self.options.edge]
        at = 0
        while at < stream.size:
            took, why = words.decode(
                stream[at:], kind, self._window, self._state, self._layout, self._hits, self._edges
            )
            at += took
            if why == words.OVER:
                return 8 * at, True
            if why == words.BAD_HEADER:
                return 8 * at + self._skip_garbage(data[8 * at :]), False
            if why == words.FULL:
                self._relieve()
        return 8 * at, False

    def _skip_garbage(self, data: npt.NDArray[np.uint8]) -> int:
        """Bytes before what may be the next header."""
        found = _HEADER.search(data.tobytes(), 1)
        skipped = found.start() if found else max(data.size - 7, 1)
        self.garbage_bytes += skipped
        return skipped

    def _relieve(self) -> None:
        """Makes room for hits; only a window that holds more than fit is cut short."""
        self.work_off(Reach.WINDOW)
        crowded = self._state[words.HITS] > _WAITING_HITS // 2 or self._state[words.EDGES] > _EDGES // 2
        if crowded:
            self.work_off(Reach.ALL)

    def work_off(self, reach: Reach) -> None:
        """Sorts, clusters and places what waits, and moves ``complete``."""
        state, clock, options = self._state, self._clock, self.options
        if state[words.NEWEST] == words.NO_TIME:
            return
        newest = int(state[words.NEWEST])
        if reach is Reach.WINDOW:
            before = newest - self._window
            closed = before - self._duration
        else:
            before = closed = newest + 1
            state[words.FLOOR] = max(int(state[words.FLOOR]), closed)
        if closed > state[words.BASE]:
            self._place(before, closed)
        units = words.UNITS_PER_TICK * (closed if reach is Reach.WINDOW else newest)
        complete = positions.complete_before(units, self._width, options.dwell_ps, clock)
        if reach is Reach.END:
            complete = (int(clock[positions.SEGMENT]) + 1) * self._width
        self.complete = max(self.complete, int(complete))
        for row in self._skips[: clock[positions.SKIPPED]]:
            self._skipped.append((int(row[0]), int(row[1])))
        clock[positions.SKIPPED] = 0
        self._left = self.waiting

    def _place(self, before: int, closed: int) -> None:
        """Hits older than ``before`` go to clusters; those begun before ``closed`` become events."""
        state = self._state
        base = int(state[words.BASE])
        self._make_room(int(state[words.HITS]))
        ready, swapped = clustering.sort_ready(
            self._hits, int(state[words.HITS]), before - base, self._work, self._spare, self._counts
        )
        kept = int(state[words.HITS]) - ready
        in_time = self._spare if swapped else self._work
        if self._number > MOST_NUMBER:
            self._newest.fill(-1)
            self._number = 0
        if self._duration:
            clusters = clustering.cluster(
                in_time, ready, self._duration, self.shape[1], self._number,
                self._newest, self._labels, self._firsts, self._sums,
            )  # fmt: skip
        else:
            clusters = clustering.single_hits(
                in_time, ready, self._number, self._labels, self._firsts, self._sums
            )
        events, waits = clustering.gather(
            in_time, ready, self._labels, clusters, self._number, self._firsts, self._sums,
            closed - base, base, self.shape[1], self._ticks, self._pixels, self._hits, kept,
        )  # fmt: skip
        self._number += clusters
        words.rebase(self._hits, waits, closed - base)
        state[words.HITS], state[words.BASE] = waits, closed
        self._count(events, closed)

    def _count(self, events: int, closed: int) -> None:
        options, state = self.options, self._state
        edges = np.sort(self._edges[: state[words.EDGES]])
        if options.sync is Sync.NONE:
            first = [self._ticks[0] * words.UNITS_PER_TICK << words.COUNT_BITS] if events else []
            edges = np.array([] if self._begun else first, np.int64)
            self._begun = self._begun or events > 0
        if self._keys_used + events > self._keys.size:
            self._compact(events)
        self._keys_used, taken = positions.place(
            self._ticks, self._pixels, events, edges, closed * words.UNITS_PER_TICK,
            self._width, options.dwell_ps, options.segments, self._clock, self._skips, self._keys,
            self._keys_used,
        )  # fmt: skip
        left = 0 if options.sync is Sync.NONE else edges.size - taken
        self._edges[:left] = edges[taken : taken + left]
        state[words.EDGES] = left

    def _compact(self, events: int) -> None:
        """Adds up what the open position has more than once, so that its keys are no more than its pixels."""
        self._sort_keys()
        none = np.empty(0, np.int64)
        most = np.iinfo(self.options.value_dtype).max
        _, self._keys_used, _ = positions.count_frames(self._keys, self._keys_used, 0, most, none, self._work)
        self._keys_sorted = self._keys_used
        wanted = 2 * (self._keys_used + events)
        if wanted > self._keys.size:
            self._keys = np.concatenate([self._keys[: self._keys_used], np.empty(wanted, np.uint64)])

    def _sort_keys(self) -> None:
        if self._keys_sorted < self._keys_used:
            self._keys[: self._keys_used].sort()
            self._keys_sorted = self._keys_used

    def next_run(self, stop: int) -> tuple[int, Numbers, Records] | None:
        """(first frame, records of each frame, all records) of frames from :attr:`frame` on, below ``stop``.

        ``stop`` is at most ``complete``; fewer frames come where they are many, and none of a segment whose
        edge was lost: they are passed over. The arrays are the caller's. None: there are no more.
        """
        while self.frame < stop:
            first, end = self.frame, min(stop, self.frame + _FRAMES)
            if self._skipped and first >= self._skipped[0][0]:
                self._take(min(max(self._skipped[0][1], first), end) - first)
                if self.frame >= self._skipped[0][1]:
                    self._skipped.pop(0)
                continue
            if self._skipped:
                end = min(end, self._skipped[0][0])
            counts, records = self._take(end - first)
            return first, counts, records
        return None

    def _take(self, frames: int) -> tuple[Numbers, Records]:
        self._sort_keys()
        counts = np.empty(frames, np.int64)
        records = np.empty(self._keys_used, np.uint64)
        made, left, cut = positions.count_frames(
            self._keys, self._keys_used, frames, self._most, counts, records
        )
        self._keys_used = self._keys_sorted = left
        self._clock[positions.FRAME] += frames
        self.cut_pixels += cut
        return counts, records[:made]

    def restart(self) -> None:
        """Forgets time, edges and open positions; counters go on. What was not worked off is gone."""
        state, clock = words.new_state(), positions.new_clock()
        keep = (words.LEFT, words.CHIP, *range(words.SEEN, words.STATE_SIZE))
        state[list(keep)] = self._state[list(keep)]
        state[words.IMPLAUSIBLE] += self._state[words.HELD] != 0
        kept = [positions.OUTSIDE, positions.IGNORED, positions.MISSING]
        clock[kept] = self._clock[kept]
        self._state, self._clock = state, clock
        self.complete = self._keys_used = self._keys_sorted = 0
        self._skipped.clear()
        self._left = 0
        self._begun = False

    def _make_room(self, hits: int) -> None:
        if hits <= self._room:
            return
        self._room = 1 << (hits - 1).bit_length()
        self._work, self._spare = (np.empty(self._room, np.uint64) for _ in range(2))
        self._firsts = np.empty(self._room + 1, np.uint64)
        self._labels = np.empty(self._room, np.int32)
        self._sums = np.zeros((self._room, 3), np.int64)
        self._ticks, self._pixels = (np.empty(self._room, np.int64) for _ in range(2))
