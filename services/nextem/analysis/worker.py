"""A worker: reads frame blocks in the consumer group, runs the analyses of their plan, sends partials on.

Plain code without Ray. It keeps nothing that matters: a record is committed when the reducer host has said
that its effects are durable, and after any loss the worker goes back to what was committed. One batch is
under way while the next is prepared.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from nextem.analysis.directory import Directory
from nextem.analysis.frame_run import FrameRun, join
from nextem.analysis.messages import Batch, Host, HostLost, Item, Pending, Reply
from nextem.analysis.progress import Progress
from nextem.analysis.registry import AnalysisSet
from nextem.wire import telemetry
from nextem.wire.blocks import Block, BlockError, decode_block
from nextem.wire.ids import uuid7
from nextem.wire.log import FRAMES, Log, OffsetOutOfRange, Position, Record, RetryableLogError
from nextem.wire.telemetry import NOTHING, Kind, Span

logger = logging.getLogger(__name__)

GROUP = "analysis"
POLL_RECORDS = 64
POLL_S = 0.05
ASK_S = 0.5  # how often to ask what is durable where nothing comes
RETRY_S = 0.5
ORPHAN_S = 30.0
LAG_S = 5.0  # how often the log is asked how far behind we are, where somebody wants to know
KEPT_ACQUISITIONS = 32


@dataclass(slots=True)
class _Sent:
    """A batch under way: the runs of its items, and the records that it is made of."""

    number: int
    runs: list[FrameRun]
    positions: list[Position]
    pending: Pending
    spans: list[Span]


@dataclass(slots=True)
class Counts:
    """What a worker did in its life."""

    blocks: int = 0
    frames: int = 0
    corrupt: int = 0
    rewinds: int = 0
    lag: int = 0  # records that nobody has read yet, of the partitions assigned to us


@dataclass(slots=True)
class _Waiting:
    """Blocks whose acquisition is not on the log, and since when."""

    since: float
    blocks: list[tuple[Position, Block]] = field(default_factory=list)


class Worker:
    """One member of the group. One thread; only ``stop`` may be set by another."""

    def __init__(self, log: Log, host: Host) -> None:
        self.name = uuid7()
        self.counts = Counts()
        self._host = host
        self._consumer = log.consumer([FRAMES], GROUP)
        self._directory = Directory(log)
        self._analyses: dict[str, AnalysisSet] = {}
        self._number = 0
        self._generation = ""
        self._asked_at = self._lag_at = 0.0
        self._rewind_due = False
        self._forget()

    def _forget(self) -> None:
        self._progress = Progress()
        self._sent: _Sent | None = None
        self._undurable: dict[int, list[Position]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._traces: dict[str, dict[int, str]] = {}  # by acquisition and first frame of a block

    def run(self, stop: threading.Event) -> None:
        """Works until ``stop`` is set, then commits what is durable and leaves the group.

        Raises :class:`nextem.wire.log.FatalLogError`; it has left the group then, too.
        """
        try:
            while not stop.is_set():
                try:
                    self.step()
                except (HostLost, RetryableLogError) as error:
                    self._back(f"{type(error).__name__}: {error}")
                    stop.wait(RETRY_S)
            self.drain()
        except (HostLost, RetryableLogError) as error:
            logger.warning("stopped without the last commit, the records will come again: %s", error)
        finally:
            self._consumer.close()
            self._directory.close()

    def step(self, timeout_s: float = POLL_S) -> None:
        """Reads what there is, handles it, and commits what became durable.

        Raises :class:`HostLost` and :class:`RetryableLogError`; after that the worker must go back.
        """
        if self._rewind_due:
            self._consumer.rewind()
            self._rewind_due = False
        try:
            records = self._consumer.poll(POLL_RECORDS, min(timeout_s, 0.002) if self._sent else timeout_s)
        except OffsetOutOfRange as error:
            logger.error("frame blocks are lost to analysis: %s", error)
            return
        polled_ns = time.monotonic_ns()
        fresh = self._decoded(records)
        for acquisition_id in {block.acquisition_id for _, block in fresh} | set(self._waiting):
            blocks = [(at, block) for at, block in fresh if block.acquisition_id == acquisition_id]
            self._handle(acquisition_id, blocks, polled_ns)
        self._look_at_lag()
        self._answered(wait=False)
        if self._undurable and self._sent is None and time.monotonic() > self._asked_at + ASK_S:
            self._send([], [])
        self._commit()

    def drain(self) -> None:
        """Has everything sent so far made durable, and commits it."""
        self._send([], [], flush=True)
        self._settle()
        self._commit()

    # ---- records to runs -----------------------------------------------------------------------

    def _decoded(self, records: Iterable[Record]) -> list[tuple[Position, Block]]:
        blocks = []
        for record in records:
            self._progress.begin(record.position)
            try:
                block = decode_block(record.value)
                blocks.append((record.position, block))
                if traceparent := telemetry.from_headers(record.headers):
                    self._traces.setdefault(block.acquisition_id, {})[block.first_frame] = traceparent
            except BlockError as error:
                self._spoilt([record.position], error)
        return blocks

    def _spoilt(self, positions: list[Position], error: BlockError) -> None:
        """A block cannot be used. The reducer will name its frames as missing."""
        self.counts.corrupt += len(positions)
        self._progress.finish(positions)
        where = ", ".join(f"{at.topic}[{at.partition}] offset {at.offset}" for at in positions)
        logger.error("%s: %s: %s", where, type(error).__name__, error)

    def _look_at_lag(self) -> None:
        if telemetry.listened() and time.monotonic() > self._lag_at + LAG_S:
            self._lag_at = time.monotonic()
            with suppress(RetryableLogError):  # the next poll says so, too
                self.counts.lag = self._consumer.lag()

    def _handle(self, acquisition_id: str, blocks: list[tuple[Position, Block]], polled_ns: int) -> None:
        analyses = self._analyses_of(acquisition_id)
        if analyses is None:
            self._wait(acquisition_id, blocks)
            return
        if acquisition_id in self._waiting:
            blocks = [*self._waiting.pop(acquisition_id).blocks, *blocks]
        if not blocks:
            return
        self.counts.blocks += len(blocks)
        positions = [at for at, _ in blocks]
        try:
            runs = list(join([block for _, block in blocks]))
        except BlockError:
            runs, positions = self._one_by_one(blocks)
        traces = self._traces.pop(acquisition_id, {})
        self._send(runs, positions, spans=[_span(run, traces, polled_ns) for run in runs])

    def _one_by_one(self, blocks: list[tuple[Position, Block]]) -> tuple[list[FrameRun], list[Position]]:
        """Some payload is broken: leaves out that block alone."""
        runs: list[FrameRun] = []
        positions = []
        for at, block in blocks:
            try:
                runs += join([block])
                positions.append(at)
            except BlockError as error:
                self._spoilt([at], error)
        return runs, positions

    def _analyses_of(self, acquisition_id: str) -> AnalysisSet | None:
        if acquisition_id not in self._analyses:
            started = self._directory.started(acquisition_id)
            if started is None:
                return None
            while len(self._analyses) >= KEPT_ACQUISITIONS:
                self._analyses.pop(next(iter(self._analyses)))
            self._analyses[acquisition_id] = AnalysisSet.of(started)
        return self._analyses[acquisition_id]

    def _wait(self, acquisition_id: str, blocks: list[tuple[Position, Block]]) -> None:
        """Keeps blocks of an unknown acquisition for a while; then gives them up, loudly."""
        waiting = self._waiting.setdefault(acquisition_id, _Waiting(time.monotonic()))
        waiting.blocks += blocks
        if time.monotonic() < waiting.since + ORPHAN_S:
            return
        del self._waiting[acquisition_id]
        self._progress.finish(at for at, _ in waiting.blocks)
        text = "%d blocks are of acquisition %s, whose start is not on the log; they are given up"
        logger.error(text, len(waiting.blocks), acquisition_id)

    # ---- runs to the host ----------------------------------------------------------------------

    def _item(self, run: FrameRun, traceparent: str) -> Item:
        analyses = self._analyses_of(run.acquisition_id)
        assert analyses is not None, "a run is made only of blocks whose acquisition is known"
        return Item.of(run, analyses.process(run), dict(analyses.failed), traceparent)

    def _send(
        self,
        runs: list[FrameRun],
        positions: list[Position],
        *,
        flush: bool = False,
        spans: list[Span] | None = None,
    ) -> None:
        """``spans``: of each run, where they are traced."""
        spans = spans or [NOTHING] * len(runs)
        items = [self._item(run, span.traceparent) for run, span in zip(runs, spans, strict=True)]
        batch = Batch(self.name, self._number, items, flush)
        self._settle()
        self._sent = _Sent(self._number, runs, positions, self._host.submit(batch), spans)
        self._number += 1
        self._asked_at = time.monotonic()
        self.counts.frames += sum(run.count for run in runs)

    def _settle(self) -> None:
        """Waits for the batch under way, and for what is to be sent again because of it."""
        while self._sent is not None:
            self._answered(wait=True)

    def _answered(self, wait: bool) -> None:
        sent = self._sent
        if sent is None or not (wait or sent.pending.done()):
            return
        reply = sent.pending.result()
        for span in sent.spans:
            span.end()
        self._sent = None
        if self._generation and reply.generation != self._generation:
            self._generation = reply.generation
            raise HostLost("it was started anew")
        self._generation = reply.generation
        self._learn(reply)
        again = [sent.runs[i].part(*span) for i, spans in reply.missing.items() for span in spans]
        if again:
            self._send(again, sent.positions)
        elif sent.positions:
            self._undurable[sent.number] = sent.positions

    def _learn(self, reply: Reply) -> None:
        for acquisition_id, names in reply.failed.items():
            analyses = self._analyses.get(acquisition_id, AnalysisSet())
            for name in names:
                if name in analyses.running:
                    analyses.fail(acquisition_id, name, "switched off by the reducer")
        for number in [n for n in self._undurable if n <= reply.durable]:
            self._progress.finish(self._undurable.pop(number))

    def _commit(self) -> None:
        positions = self._progress.take()
        if positions:
            self._consumer.commit(positions)

    def _back(self, why: str) -> None:
        """Goes back to what was committed; frames that the host has kept are known there by their index."""
        logger.warning("%s; going back to what was committed", why)
        self.counts.rewinds += 1
        self._generation = ""  # whoever answers next gets everything again
        self._forget()
        self._rewind_due = True


def _span(run: FrameRun, traces: Mapping[int, str], polled_ns: int) -> Span:
    """From the moment it was read until the host has taken it; goes on with its newest traced block."""
    newest = max((first for first in traces if run.first_frame <= first < run.stop_frame), default=-1)
    return telemetry.begin(
        f"process {FRAMES}",
        traces.get(newest, ""),
        kind=Kind.CONSUMER,
        since_ns=polled_ns,
        attributes={
            "messaging.operation.type": "process",
            "messaging.destination.name": FRAMES,
            "messaging.consumer.group.name": GROUP,
            "nextem.acquisition.id": run.acquisition_id,
            "nextem.frames.first": run.first_frame,
            "nextem.frames.count": run.count,
        },
    )
