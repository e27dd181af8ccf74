"""One acquisition as the reducer host keeps it: its reducer, a lock, and its live values."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nextem.analysis.messages import Item
from nextem.analysis.plugin import Live, State, needs_pixels
from nextem.analysis.reducer import Reducer
from nextem.v1 import product_pb2
from nextem.wire.coverage import FrameSet

logger = logging.getLogger(__name__)

UPDATE_FRAMES = 100_000
"""Frames in one live update: well within the largest record of the log."""

FIT_SHARE = 0.1
"""Of the time, that fits may take while frames arrive. The last one, when all are here, is not put off."""

TELL_MISSING_S, LONGEST_TELL_S = 5.0, 600.0
"""How long after its end an acquisition's missing frames are logged; from then on at doubling intervals."""

REVISION_RESERVE = 1000
"""A restored reducer counts on from so much higher: revisions after the checkpoint may have gone out."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of one item.

    ``missing``: where it was had in part, the ranges to send again. ``updates``: first answers. ``failed``:
    analyses that are switched off.
    """

    missing: list[tuple[int, int]]
    updates: list[product_pb2.LiveUpdate]
    failed: list[str]


class _Stamp(NamedTuple):
    """What was known when values were computed."""

    edge_boot_id: str
    last_byte_ns: int
    frames_covered: int


@dataclass(slots=True)
class Tenant:
    """Whoever touches ``reducer`` holds ``lock``. Model fits run on no lock."""

    reducer: Reducer
    lock: threading.Lock = field(default_factory=threading.Lock)
    live: dict[str, Live] = field(default_factory=dict)
    next_revision: int = 1
    dirty: bool = False
    fit_at: float = 0.0
    tell_missing_at: float = 0.0  # 0: not before the acquisition is over
    tell_missing_every_s: float = TELL_MISSING_S
    traceparent: str = ""  # of the newest frames, where they are traced ...
    merged_ns: int = 0  # when those came, on the monotonic clock
    fit_traceparent: str = ""  # of the newest frames that the newest model was applied to ...
    fit_since_ns: int = 0  # ... and since when they waited for it: its fit may have begun before they came

    def __post_init__(self) -> None:
        for name, analysis in self.reducer.live().items():
            self.live[name] = analysis.live()

    # ---- the path from a frame to a command ----------------------------------------------------

    def add(self, item: Item) -> Taken:
        """Merges ``item`` where all its frames are new."""
        with self.lock:
            missing = self.reducer.missing(item)
            if not missing or not self.reducer.add(item):
                return Taken(missing, [], list(self.reducer.analyses.failed))
            self.dirty = True
            if item.last_byte_ns == self.reducer.last_byte_ns:
                self.traceparent = item.traceparent or self.traceparent
                self.merged_ns = time.monotonic_ns()
            updates = []
            for name, live in self._running():
                if not item.whole and needs_pixels(self.reducer.analyses.running[name]):
                    continue
                values = live.score(self.reducer.states[name], item.first_frame, item.stop_frame)
                if values is not None:
                    span = FrameSet([(item.first_frame, item.stop_frame)])
                    stamp = _Stamp(item.edge_boot_id, item.last_byte_ns, len(self.reducer.covered))
                    updates.append(self._update(name, live.revision, span, values, stamp))
            return Taken([], updates, list(self.reducer.analyses.failed))

    def _running(self) -> list[tuple[str, Live]]:
        return [(name, live) for name, live in self.live.items() if name in self.reducer.states]

    def _update(
        self,
        name: str,
        revision: int,
        frames: FrameSet,
        values: npt.NDArray[np.float32],
        stamp: _Stamp,
    ) -> product_pb2.LiveUpdate:
        return product_pb2.LiveUpdate(
            acquisition_id=self.reducer.acquisition_id,
            analysis=name,
            revision=revision,
            frames=frames.to_proto(),
            values=values.astype("<f4").tobytes(),
            frames_covered=stamp.frames_covered,
            edge_boot_id=stamp.edge_boot_id,
            last_byte_ns=stamp.last_byte_ns,
        )

    # ---- beside it -----------------------------------------------------------------------------

    def refit(self, complete: bool) -> list[product_pb2.LiveUpdate]:
        """Makes due models anew; the new values of every frame covered."""
        updates: list[product_pb2.LiveUpdate] = []
        begun = time.monotonic()
        if begun < self.fit_at and not complete:
            return updates
        for name, live in self._running():
            with self.lock:
                frames = len(self.reducer.covered)
                analysis = self.reducer.live().get(name)
                if analysis is None or not live.due(frames, complete):
                    continue
                snapshot = analysis.snapshot(self.reducer.states[name])
            try:
                model = live.fit(snapshot)
            except Exception as error:  # noqa: BLE001  plug-ins may raise anything
                with self.lock:
                    self.reducer.fail(name, error)
                continue
            with self.lock:
                if name not in self.reducer.states:
                    continue
                live.use(model, self.next_revision, frames)
                if live.revision != self.next_revision:
                    continue  # too few frames for a model
                self.next_revision += 1
                now = analysis.snapshot(self.reducer.states[name])
                spans = list(self.reducer.covered)
                stamp = _Stamp(
                    self.reducer.edge_boot_id, self.reducer.last_byte_ns, len(self.reducer.covered)
                )
                self.fit_traceparent = self.traceparent
                self.fit_since_ns = max(int(begun * 1e9), self.merged_ns)
            updates += self._scored(name, live, now, spans, stamp)
        took = time.monotonic() - begun
        self.fit_at = begun + took / FIT_SHARE
        return updates

    def _scored(
        self, name: str, live: Live, state: State, spans: list[tuple[int, int]], stamp: _Stamp
    ) -> list[product_pb2.LiveUpdate]:
        """Values of every frame in ``spans``, on no lock."""
        updates = []
        for start, stop in spans:
            for low in range(start, stop, UPDATE_FRAMES):
                high = min(low + UPDATE_FRAMES, stop)
                values = live.score(state, low, high)
                if values is not None:
                    updates.append(self._update(name, live.revision, FrameSet([(low, high)]), values, stamp))
        return updates

    def complete(self, frames_stored: int) -> bool:
        """Whether every frame that the edge stored is here."""
        with self.lock:
            return len(self.reducer.covered) >= frames_stored

    def tell_missing(self, frames_stored: int, lost: FrameSet, announced: int) -> None:
        """Logs which frames have not come though the acquisition is over; less often as time goes by."""
        now = time.monotonic()
        if not self.tell_missing_at:
            self.tell_missing_at = now + self.tell_missing_every_s
        if now < self.tell_missing_at:
            return
        self.tell_missing_every_s = min(2 * self.tell_missing_every_s, LONGEST_TELL_S)
        self.tell_missing_at = now + self.tell_missing_every_s
        with self.lock:
            gaps, here = self.reducer.covered.missing(0, announced), len(self.reducer.covered)
        absent = [span for gap in gaps for span in lost.missing(*gap)]
        text = "acquisition %s is over, but only %d of its %d stored frames are here; missing: %s"
        shown = ", ".join(f"{start}..{stop - 1}" for start, stop in absent[:8])
        logger.warning(text, self.reducer.acquisition_id, here, frames_stored, shown)

    def checkpoint(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """A copy of everything, for the store; what comes after it is dirty again."""
        with self.lock:
            self.dirty = False
            arrays, meta = self.reducer.snapshot()
            return arrays, {**meta, "next_revision": self.next_revision}

    @classmethod
    def restored(cls, reducer: Reducer, meta: Mapping[str, Any]) -> Tenant:
        """A tenant whose ``reducer`` came from a checkpoint with this ``meta``."""
        return cls(reducer, next_revision=meta["next_revision"] + REVISION_RESERVE)
