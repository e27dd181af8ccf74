"""The end of the reducing stage: what was encoded goes into the spool, in order, and is accounted for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Event

import numpy as np

from nextem.edge.accounting import UNKNOWN_PATTERN
from nextem.edge.detectors.base import CorruptFrame, Ending, EndKind, FrameBatch, FrameFormat
from nextem.edge.live import Live
from nextem.edge.map_parts import map_parts
from nextem.edge.meter import Meter
from nextem.edge.numbering import number
from nextem.edge.recovery import pack_checkpoint
from nextem.edge.retention.raw_ring import RawGone, RawRing
from nextem.edge.retention.representation import Ladder, Policy, no_changes
from nextem.edge.uplink.publisher import Publisher
from nextem.edge.uplink.spool import Entry, Kind, Spool, SpoolFull
from nextem.edge.work import Work
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.blocks import Block
from nextem.wire.clock import Clock
from nextem.wire.packing import EncodedBlock, EncodedRun

log = logging.getLogger(__name__)

Forget = Callable[[int, int], None]
"""Takes frames, from the first to before the second, out of the maps of the reducer that has them."""

_EVENT_RETRY_S = 0.2
_SMOOTHING = 0.2  # weight of the newest block in the running size of an encoded frame


class Storing:
    """One thread at a time, in the order of frames: whoever has the turn."""

    def __init__(
        self,
        instrument: str,
        spool: Spool,
        publisher: Publisher,
        clock: Clock,
        live: Live,
        raw_ring: RawRing | None = None,
    ) -> None:
        self._instrument, self._spool, self._publisher = instrument, spool, publisher
        self._clock, self._live, self._raw_ring = clock, live, raw_ring
        self._meter = Meter()  # of encoded bytes
        self.closing = Event()
        names = ("frames_stored", "frames_lost_spool", "frames_lost_corrupt", "blocks")
        self.representation_changes = no_changes()
        self.totals = dict.fromkeys((*names, "bytes_raw", "bytes_encoded"), 0)

    def receive(self, work: Work, batch: FrameBatch) -> None:
        """Notes what came, whatever becomes of it."""
        work.account.bytes_raw += batch.raw_bytes
        self.totals["bytes_raw"] += batch.raw_bytes
        for run in batch.runs:
            work.account.seen = max(work.account.seen, run.first_frame + run.count)

    # ---- blocks -----------------------------------------------------------------------------

    def store(self, work: Work, run: EncodedRun, forget: Forget) -> None:
        """Spools the blocks of a run; ``forget`` takes frames that cannot be out of the maps again.

        Raises what the spool raises, but ``SpoolFull``: that costs frames.
        """
        for too_large in run.too_large:
            forget(too_large.frame, too_large.frame + 1)
            work.account.lose(1, "the record size")
            log.error("BlockTooLarge: %s (acquisition %s)", too_large, work.acquisition_id)
        for place, encoded in enumerate(run.blocks):
            rest = run.blocks[place:]
            if work.failed is not None:
                _drop(rest, forget)
                return
            try:
                self._store(work, encoded)
            except SpoolFull as error:
                # The blocks after it name what was lost before them, so they cannot go without it.
                self._tell_full(work, _drop(rest, forget), error)
                return
            except Exception:
                _drop(rest, forget)
                raise

    def backlog(self) -> float:
        """Fraction of the spool that waits for the log. Any thread."""
        return self._publisher.waiting_bytes / self._spool.max_bytes

    def decide(self, ladder: Ladder, in_time: bool) -> Policy:
        """How the next block is encoded, by what waits for the log and how fast that is. Any thread."""
        now_ns = self._clock.now_ns()
        return ladder.decide(
            self.backlog(),
            now_ns,
            self._meter.rate(now_ns),
            self._publisher.link_bytes_per_s(),
            in_time=in_time,
        )

    def lose_corrupt(self, work: Work, count: int, error: CorruptFrame) -> None:
        """Notes frames whose bytes cannot be decoded."""
        if not self.totals["frames_lost_corrupt"] or not work.account.causes["corrupt bytes"]:
            log.error("CorruptFrame: %s (acquisition %s)", error, work.acquisition_id)
        work.account.lose(count, "corrupt bytes")
        self.totals["frames_lost_corrupt"] += count

    def _store(self, work: Work, encoded: EncodedBlock) -> None:
        account = work.account
        encoded = number(encoded, account.blocks, account.lost_before(encoded.block.first_frame))
        block, size = encoded.block, len(encoded.data)
        entry = Entry(Kind.BLOCK, block.acquisition_id, encoded.data, block.block_number, block.last_byte_ns)
        offset = self._spool.append(entry)
        account.store(block, size)
        self._publisher.offer(offset, entry)
        self._count(work, block, size)
        self._live.tell_block(block.acquisition_id, block.first_frame, block.last_byte_ns, block.scalars)

    def _count(self, work: Work, block: Block, size: int) -> None:
        self.totals["frames_stored"] += block.count
        self.totals["blocks"] += 1
        self.totals["bytes_encoded"] += size
        self._meter.add(size, self._clock.now_ns())
        known, newest = work.acquisition.encoded_frame_bytes, size / block.count
        work.acquisition.encoded_frame_bytes = known + _SMOOTHING * (newest - known) if known else newest

    def _tell_full(self, work: Work, frames: int, error: SpoolFull) -> None:
        work.account.lose(frames, "the full spool")
        self.totals["frames_lost_spool"] += frames
        if not work.spool_full:
            work.spool_full = True
            log.error("SpoolFull: %s (acquisition %s)", error, work.acquisition_id)

    # ---- events: only while nobody reduces ----------------------------------------------------

    def start(self, work: Work, pixels: FrameFormat | None) -> None:
        """Tells that an acquisition has begun; without ``pixels`` no frame ever came."""
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
        self._live.tell(started)

    def wants_checkpoint(self, work: Work) -> bool:
        """Each segment of the spool needs one, so that the segments before it may go."""
        return self._spool.segment() != work.segment

    def checkpoint(self, work: Work) -> None:
        """From here a recovery can go on."""
        assert work.started is not None
        self._sum_up(work)
        if work.movie is not None:  # frames that it holds back are in the maps already
            work.account.pattern = UNKNOWN_PATTERN
        checkpoint = pack_checkpoint(work.started, work.account)
        self._spool.need_from(self._event(Kind.CHECKPOINT, work.acquisition_id, checkpoint))
        work.segment = self._spool.segment()

    def close(self, work: Work, ending: Ending) -> pb.AcquisitionFinished:
        """The end, spooled. Never raises: what cannot be spooled is left to the next start's recovery."""
        if work.failed is not None and ending.kind is not EndKind.FAILED:
            ending = Ending(
                EndKind.FAILED,
                ending.highest_frame,
                work.failed,
                ending.first_byte_ns,
                ending.last_byte_ns,
                ending.lost_ring,
            )
        self._sum_up(work)
        finished = work.account.finish(ending, self._clock.now_ns())
        try:
            finished.frames_raw_kept = self._raw_kept(work)
            if work.started is None:
                self.start(work, None)
            self._send_maps(work)
            self._event(Kind.FINISHED, work.acquisition_id, finished.SerializeToString())
            self._spool.need_from(None)
        except Exception as error:
            # The next start finds the acquisition open in the spool and closes it.
            name = work.acquisition_id
            known = isinstance(error, SpoolFull)  # while closing
            log.error("the end of acquisition %s is left to recovery: %s", name, error, exc_info=not known)
        self._live.tell(finished)
        return finished

    def _raw_kept(self, work: Work) -> int:
        if self._raw_ring is None or not work.acquisition.plan.reduction.keep_raw or not work.account.seen:
            return 0
        try:
            self._raw_ring.size_of(work.acquisition_id, 0, work.account.seen)
        except RawGone as gone:
            return work.account.seen - sum(stop - start for start, stop in gone.ranges)
        return work.account.seen

    def _send_maps(self, work: Work) -> None:
        """Nothing where the summed pattern says it all. Maps are no frames: they give way to a full spool."""
        reduction = work.acquisition.plan.reduction
        asked = reduction.HasField("maps") or reduction.HasField("corrections")
        maps = work.maps()
        if maps is None or not maps.frames or not asked or not work.pattern_known:
            return
        try:
            for part in map_parts(work.acquisition_id, work.finished_maps(maps), maps.frames):
                entry = Entry(Kind.MAP, work.acquisition_id, part.SerializeToString())
                self._publisher.offer(self._spool.append(entry), entry)
        except SpoolFull as error:
            log.error("SpoolFull: maps are left out: %s (acquisition %s)", error, work.acquisition_id)

    def _sum_up(self, work: Work) -> None:
        maps = work.maps()
        if maps is not None:
            work.account.pattern = maps.sum if work.pattern_known else UNKNOWN_PATTERN

    def _event(self, kind: Kind, acquisition_id: str, value: bytes) -> int:
        """Spools an event; a spool that is full is tried again, since an event cannot be counted as lost."""
        entry = Entry(kind, acquisition_id, value)
        told = False
        while True:
            try:
                offset = self._spool.append(entry)
            except SpoolFull as error:
                if not told:
                    log.error("SpoolFull: %s waits: %s (acquisition %s)", kind.name, error, acquisition_id)
                    told = True
                if self.closing.wait(_EVENT_RETRY_S):
                    raise
            else:
                self._publisher.offer(offset, entry)
                return offset


def _drop(blocks: Sequence[EncodedBlock], forget: Forget) -> int:
    """Takes blocks out of the maps; returns how many frames they hold."""
    for encoded in blocks:
        first = encoded.block.first_frame
        forget(first, first + encoded.block.count)
    return sum(encoded.block.count for encoded in blocks)
