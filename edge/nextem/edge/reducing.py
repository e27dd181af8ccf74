"""The middle of the data path: one thread that reduces, encodes and spools what the detector handed over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread

import numpy as np

from nextem.edge.accounting import Account
from nextem.edge.acquisition import Acquisition
from nextem.edge.detectors.base import (
    DetectorError,
    Ending,
    EndKind,
    FrameBatch,
    FrameFormat,
    FrameRun,
)
from nextem.edge.recovery import pack_checkpoint
from nextem.edge.reduction import PixelFormat, ReducedBlock, Reducer, compile_reduction
from nextem.edge.uplink.publisher import Publisher
from nextem.edge.uplink.spool import Entry, Kind, Spool, SpoolFull
from nextem.edge.work import Closed, Frames, Opened, StageTimes, Work
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.blocks import Block
from nextem.wire.clock import Clock
from nextem.wire.packing import EncodedBlock, encode_run

log = logging.getLogger(__name__)

_REDUCERS_KEPT = 4
_MOST_WAITING = 2  # batches: with fewer, the reduction counts as waiting for work
_EVENT_RETRY_S = 0.2
_SMOOTHING = 0.2  # weight of the newest block in the running size of an encoded frame


class ReductionFailed(DetectorError):
    """Frames could not be reduced or encoded; the acquisition's remaining frames are lost."""


class Reducing:
    """Takes :class:`Opened`, :class:`Frames`, :class:`Closed` in order; calls ``finished`` for each end."""

    def __init__(
        self,
        instrument: str,
        spool: Spool,
        publisher: Publisher,
        clock: Clock,
        finished: Callable[[Acquisition, pb.AcquisitionFinished], None],
    ) -> None:
        self._instrument, self._spool, self._publisher, self._clock = instrument, spool, publisher, clock
        self._finished = finished
        self._queue: SimpleQueue[Opened | Frames | Closed | None] = SimpleQueue()
        self._waiting = 0
        self._waiting_lock = Lock()
        self._work: dict[str, Work] = {}
        self._reducers: dict[tuple[bytes, tuple[int, int], int, bool], Reducer] = {}
        self._closing = Event()
        self.times = StageTimes()
        names = ("frames_stored", "frames_lost_spool", "blocks", "bytes_raw", "bytes_encoded")
        self.totals = dict.fromkeys(names, 0)
        self._thread = Thread(target=self._run, name="reducing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Opened | Frames | Closed) -> None:
        """Never blocks: what waits is bounded by the ring that the batches lie in."""
        if isinstance(item, Frames):
            with self._waiting_lock:
                self._waiting += 1
        self._queue.put(item)

    def hungry(self) -> bool:
        return self._waiting < _MOST_WAITING

    def close(self) -> None:
        """Works off what waits, then ends."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Frames):
                try:
                    self._batch(self._work[item.acquisition.acquisition_id], item.batch)
                finally:
                    item.batch.release()
                    with self._waiting_lock:
                        self._waiting -= 1
            elif isinstance(item, Opened):
                acquisition_id = item.acquisition.acquisition_id
                account = Account(acquisition_id, item.announcement.frames)
                self._work[acquisition_id] = Work(item.acquisition, item.announcement, account)
            else:
                self._close(self._work.pop(item.acquisition.acquisition_id), item.ending)

    # ---- frames -----------------------------------------------------------------------------

    def _batch(self, work: Work, batch: FrameBatch) -> None:
        received = sum(run.count for run in batch.runs) * batch.format.pixel_bytes
        work.account.bytes_raw += received
        self.totals["bytes_raw"] += received
        if work.failed is not None:
            return
        try:
            if work.started is None:
                self._start(work, batch.format)
                work.reducer = self._reducer(work, batch.format)
                work.account.pattern = work.reducer.pattern
            for run in batch.runs:
                self._reduce(work, batch, run)
        except Exception as error:
            # Whatever went wrong, the acquisition ends with exact accounting and the next one has its chance.
            work.failed = ReductionFailed(f"{type(error).__name__}: {error}")
            log.exception("ReductionFailed (acquisition %s)", work.acquisition.acquisition_id)

    def _reducer(self, work: Work, pixels: FrameFormat) -> Reducer:
        reduction = work.acquisition.plan.reduction
        key = (
            reduction.SerializeToString(deterministic=True),
            pixels.shape,
            pixels.dtype.itemsize,
            pixels.big_endian,
        )
        reducer = self._reducers.pop(key, None)
        if reducer is None:
            reducer = compile_reduction(
                reduction, pixels.shape, PixelFormat(pixels.dtype.itemsize, pixels.big_endian)
            )
            while len(self._reducers) >= _REDUCERS_KEPT:
                del self._reducers[next(iter(self._reducers))]
        self._reducers[key] = reducer
        reducer.reset()
        return reducer

    def _reduce(self, work: Work, batch: FrameBatch, run: FrameRun) -> None:
        reducer = work.reducer
        assert reducer is not None
        t0 = time.thread_time_ns()
        words = batch.read(run)
        assert isinstance(words, np.ndarray), "events are reduced by a reducer for events"
        reduced = reducer.reduce(words)
        t1 = time.thread_time_ns()
        scalars = reduced.scalars()
        if run.epoch is not None:
            scalars["epoch"] = run.epoch
        head = Block(
            acquisition_id=work.acquisition.acquisition_id,
            block_number=work.account.blocks,
            first_frame=run.first_frame,
            count=run.count,
            shape=batch.format.shape,
            dtype=batch.format.dtype,
            scalars=scalars,
            lost=work.account.lost_before(run.first_frame),
            reduction_id=reducer.reduction_id,
            edge_boot_id=self._clock.boot_id,
            last_byte_ns=int(run.last_byte_ns[-1]),
        )
        encoded = encode_run(head, reduced.pixels, work.acquisition.plan.reduction.representation)
        t2 = time.thread_time_ns()
        for too_large in encoded.too_large:
            reducer.forget(reduced, [too_large.frame - run.first_frame])
            work.account.lose(1, "the record size")
            log.error("BlockTooLarge: %s (acquisition %s)", too_large, work.acquisition.acquisition_id)
        self._store(work, reduced, run.first_frame, encoded.blocks)
        t3 = time.thread_time_ns()
        self.times.reduce_ns += t1 - t0
        self.times.encode_ns += t2 - t1
        self.times.spool_ns += t3 - t2

    def _store(
        self, work: Work, reduced: ReducedBlock, first_frame: int, blocks: tuple[EncodedBlock, ...]
    ) -> None:
        for place, encoded in enumerate(blocks):
            block, size = encoded.block, len(encoded.data)
            entry = Entry(
                Kind.BLOCK, block.acquisition_id, encoded.data, block.block_number, block.last_byte_ns
            )
            try:
                offset = self._spool.append(entry)
            except SpoolFull as error:
                # The blocks after it name what was lost before them, so they cannot go without it.
                self._drop(work, reduced, first_frame, blocks[place:], error)
                return
            work.account.store(block, size)
            self._publisher.offer(offset, entry)
            self._count(work, block, size)
        if self._spool.segment() != work.segment:
            self._checkpoint(work)

    def _count(self, work: Work, block: Block, size: int) -> None:
        self.totals["frames_stored"] += block.count
        self.totals["blocks"] += 1
        self.totals["bytes_encoded"] += size
        known, newest = work.acquisition.encoded_frame_bytes, size / block.count
        work.acquisition.encoded_frame_bytes = known + _SMOOTHING * (newest - known) if known else newest

    def _drop(
        self,
        work: Work,
        reduced: ReducedBlock,
        first_frame: int,
        blocks: tuple[EncodedBlock, ...],
        error: SpoolFull,
    ) -> None:
        assert work.reducer is not None
        for encoded in blocks:
            start = encoded.block.first_frame - first_frame
            work.reducer.forget(reduced, range(start, start + encoded.block.count))
            work.account.lose(encoded.block.count, "the full spool")
            self.totals["frames_lost_spool"] += encoded.block.count
        if not work.spool_full:
            work.spool_full = True
            log.error("SpoolFull: %s (acquisition %s)", error, work.acquisition.acquisition_id)

    # ---- events -----------------------------------------------------------------------------

    def _start(self, work: Work, pixels: FrameFormat | None) -> None:
        announcement, acquisition = work.announcement, work.acquisition
        age_ns = self._clock.now_ns() - announcement.received_ns
        started = pb.AcquisitionStarted(
            acquisition_id=acquisition.acquisition_id,
            instrument=self._instrument,
            plan=acquisition.plan,
            command_id=acquisition.command_id,
            frames_announced=announcement.frames,
            detector_header=announcement.text,
            edge_boot_id=self._clock.boot_id,
            started_ns=announcement.received_ns,
            started_unix_ns=time.time_ns() - age_ns,
        )
        if pixels is not None:
            started.shape_y, started.shape_x = pixels.shape
            started.dtype = pixels.dtype.name
            work.account.pattern = np.zeros(pixels.shape, dtype=np.uint64)
        offset = self._event(Kind.STARTED, acquisition.acquisition_id, started.SerializeToString())
        work.started = started
        self._spool.need_from(offset)
        work.segment = self._spool.segment()

    def _checkpoint(self, work: Work) -> None:
        assert work.started is not None
        checkpoint = pack_checkpoint(work.started, work.account)
        self._spool.need_from(self._event(Kind.CHECKPOINT, work.acquisition.acquisition_id, checkpoint))
        work.segment = self._spool.segment()

    def _close(self, work: Work, ending: Ending) -> None:
        if work.failed is not None and ending.kind is not EndKind.FAILED:
            ending = Ending(
                EndKind.FAILED, ending.highest_frame, work.failed, ending.first_byte_ns, ending.last_byte_ns
            )
        finished = work.account.finish(ending, self._clock.now_ns())
        try:
            if work.started is None:
                self._start(work, None)
            self._event(Kind.FINISHED, work.acquisition.acquisition_id, finished.SerializeToString())
            self._spool.need_from(None)
        except SpoolFull:
            # Only while closing: the next start finds the acquisition open in the spool and closes it.
            log.error("the end of acquisition %s is left to recovery", work.acquisition.acquisition_id)
        self._finished(work.acquisition, finished)

    def _event(self, kind: Kind, acquisition_id: str, value: bytes) -> int:
        """Spools an event; a spool that is full is tried again, since an event cannot be counted as lost."""
        entry = Entry(kind, acquisition_id, value)
        while True:
            try:
                offset = self._spool.append(entry)
            except SpoolFull as error:
                log.error("SpoolFull: %s: %s (acquisition %s)", kind.name, error, acquisition_id)
                if self._closing.wait(_EVENT_RETRY_S):
                    raise
            else:
                self._publisher.offer(offset, entry)
                return offset
