"""From the spool to the log, in order, each entry at least once, none left out.

The publisher has one cursor into the spool. Blocks are appended one after the other without waiting; the
position is committed when the log has acknowledged everything before it. ``AcquisitionStarted`` is waited for
before the first block goes out; maps, then ``AcquisitionFinished``, go out when every block is acknowledged.
Where the log cannot be reached the cursor goes back to the first entry that is not acknowledged, and tries
again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Event, Lock, Thread
from zlib import crc32

import numpy as np

from nextem.edge.accounting import amend
from nextem.edge.detectors.base import DetectorError
from nextem.edge.detectors.stream_socket import Backoff
from nextem.edge.meter import Meter
from nextem.edge.telemetry import BLOCK_LATENCY, UNTRACED, BlockSpans, BlockTraces
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.blocks import Block, decode_block
from nextem.wire.clock import Clock
from nextem.wire.log import ACQUISITIONS, FRAMES, Appended, FatalLogError, Log, LogError, LogUnavailable

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 << 20
LATE_NS = 20_000_000
"""How long the blocks of a log that is slow to acknowledge may grow, beyond their age."""
_WAIT_S = 0.05
_ACK_WAIT_S = 0.5
_SILENCE_NS = 1_000_000_000
_LATENCIES = 8192


class BlockRefused(Exception):
    """The log will never take a block. Its frames are lost, and the accounting is corrected."""


class PublishingFailed(DetectorError):
    """Publishing met an error that nobody foresaw; what runs is ended. The spool keeps what was stored."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    offset: int
    entry: Entry
    appended: Appended
    since_ns: int
    spans: BlockSpans = UNTRACED


class Publisher:
    """One thread. ``offer`` hands it entries while they are in memory; the rest it reads from the spool.

    ``failed`` is called from it with an error that is not the log's. It then tries again, as after an outage.
    """

    def __init__(
        self,
        spool: Spool,
        to: Log,
        clock: Clock,
        *,
        window_bytes: int = WINDOW_BYTES,
        failed: Callable[[PublishingFailed], None] = lambda error: None,
    ) -> None:
        self._failed = failed
        self._spool, self._log, self._clock, self._window_bytes = spool, to, clock, window_bytes
        self._cursor = spool.committed
        self._end = spool.end  # entries that were told of
        self._in_flight: deque[_InFlight] = deque()
        self._memory: dict[int, Entry] = {}
        self._memory_bytes = 0
        self._memory_lock = Lock()
        self._waiting_bytes = spool.bytes_used if spool.committed < spool.end else 0
        self._meter = Meter()
        self._traces = BlockTraces()
        self._news = Condition()
        self._closing = Event()
        self._giving_up = Event()
        self._away = False
        self._offered_ns = 0
        self._refused: dict[str, list[Block]] = {}
        self._published_entries = self._published_bytes = self._retries = self._busy_ns = 0
        self._latency_ns = np.zeros(_LATENCIES, dtype=np.int64)
        self._latencies = 0
        self._thread = Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, offset: int, entry: Entry) -> None:
        """Tells of a new entry of the spool; its value is kept in memory while there is room."""
        with self._memory_lock:
            self._waiting_bytes += len(entry.value)
            if self._memory_bytes + len(entry.value) <= self._window_bytes:
                self._memory[offset] = entry
                self._memory_bytes += len(entry.value)
        self._offered_ns = self._clock.now_ns()
        with self._news:
            self._end = offset + 1
            self._news.notify()

    def close(self, timeout_s: float) -> bool:
        """Publishes what is spooled for at most ``timeout_s``, then ends; whether that was everything."""
        self._closing.set()
        with self._news:
            self._news.notify()
        self._thread.join(timeout_s)
        self._giving_up.set()
        self._thread.join()
        return self._spool.committed == self._end

    def keeps_up(self) -> bool:
        """Whether another block may come: the log has what it was given, or the last came a while ago.

        Where processors or the link are full, each block waits for those before it; fewer, larger ones are
        sooner there.
        """
        if self._cursor >= self._end and not self._in_flight:
            return True
        return self._clock.now_ns() - self._offered_ns >= LATE_NS

    def counters(self) -> Mapping[str, int]:
        return {
            "entries": self._published_entries,
            "bytes": self._published_bytes,
            "retries": self._retries,
            "waiting": self._end - self._spool.committed,
            "waiting_bytes": self._waiting_bytes,
            "busy_ns": self._busy_ns,
        }

    @property
    def waiting_bytes(self) -> int:
        """Spooled and not acknowledged; of what an earlier edge left, about."""
        return self._waiting_bytes

    def link_bytes_per_s(self) -> float:
        """What the log acknowledged of late: what the link carries, while something waits for it."""
        return self._meter.rate(self._clock.now_ns())

    def latency_ms(self, quantile: float) -> float:
        """Last byte of a block's newest frame to its acknowledged append, of the newest blocks; NaN: none."""
        known = self._latency_ns[: min(self._latencies, _LATENCIES)]
        return float(np.quantile(known, quantile)) / 1e6 if len(known) else float("nan")

    def _run(self) -> None:
        backoff = Backoff()
        with suppress(Exception):
            # Dials a broker before the first block would have to wait for it; a failure shows again then.
            self._log.partitions(FRAMES)
        while not self._giving_up.is_set():
            try:
                if self._cursor < self._end:
                    self._publish_next()
                    self._reap(wait=False)
                elif self._in_flight:
                    self._reap(wait=True)
                elif self._closing.is_set():
                    return
                else:
                    self._wait()
                if self._away and not self._in_flight:
                    self._away = False
                    log.info("the log can be reached again")
                    backoff.reset()
            except LogError as error:
                self._fall_back(error)
                backoff.wait(self._giving_up)
            except Exception as error:  # noqa: BLE001  a dead thread would let the spool fill in silence
                self._break(error)
                backoff.wait(self._giving_up)

    def _wait(self) -> None:
        self._busy_ns = time.thread_time_ns()
        with self._news:
            if self._cursor >= self._end and not self._closing.is_set():
                self._news.wait(_WAIT_S)

    def _publish_next(self) -> None:
        offset = self._cursor
        entry = self._entry(offset)
        if entry is None or entry.kind is Kind.CHECKPOINT:
            self._drain()
            self._done(offset, entry)
        elif entry.kind is Kind.BLOCK:
            self._block(offset, entry)
        else:
            self._drain()
            self._event(offset, entry)
        self._cursor = offset + 1

    def _entry(self, offset: int) -> Entry | None:
        with self._memory_lock:
            entry = self._memory.get(offset)
        if entry is None:
            _, entry = next(self._spool.read(offset, offset + 1))
        return entry

    def _block(self, offset: int, entry: Entry) -> None:
        partitions = self._log.partitions(FRAMES)
        key = entry.acquisition_id.encode()
        now_ns = self._clock.now_ns()
        spans = self._traces.block(entry, now_ns)
        try:
            appended = self._log.append(
                FRAMES,
                bytes(entry.value),
                key=key,
                partition=(crc32(key) + entry.number) % partitions,
                headers=spans.headers,
            )
        except FatalLogError as error:
            self._refuse(entry, error)
            self._drain()
            self._done(offset, entry)
            return
        self._in_flight.append(_InFlight(offset, entry, appended, now_ns, spans))

    def _refuse(self, entry: Entry, error: FatalLogError) -> None:
        block = decode_block(entry.value)
        span = f"frames {block.first_frame}..{block.first_frame + block.count - 1}"
        text = f"{span} of acquisition {entry.acquisition_id}: {error}"
        log.error("%s: %s", BlockRefused.__name__, text)
        self._refused.setdefault(entry.acquisition_id, []).append(block)

    def _event(self, offset: int, entry: Entry) -> None:
        event = pb.AcquisitionEvent()
        if entry.kind is Kind.STARTED:
            event.started.ParseFromString(bytes(entry.value))
        elif entry.kind is Kind.MAP:
            event.map.ParseFromString(bytes(entry.value))
        else:
            event.finished.ParseFromString(bytes(entry.value))
            refused = self._refused.get(entry.acquisition_id, [])
            if refused:
                amend(
                    event.finished, refused, f"{BlockRefused.__name__}: the log refused {len(refused)} blocks"
                )
        try:
            appended = self._log.append(
                ACQUISITIONS,
                event.SerializeToString(),
                key=entry.acquisition_id.encode(),
                headers=self._traces.event(entry.acquisition_id),
            )
        except FatalLogError as fatal:
            log.error("%s: event of acquisition %s: %s", type(fatal).__name__, entry.acquisition_id, fatal)
            self._done(offset, entry)
            return
        self._in_flight.append(_InFlight(offset, entry, appended, self._clock.now_ns()))
        self._drain()
        if entry.kind is Kind.FINISHED:
            self._refused.pop(entry.acquisition_id, None)
            self._traces.ended(entry.acquisition_id)
            self._spool.prune()

    def _drain(self) -> None:
        """Waits until everything in flight is acknowledged."""
        while self._in_flight and not self._giving_up.is_set():
            self._reap(wait=True)
        if self._in_flight:
            raise LogError("closing while records are in flight")

    def _reap(self, wait: bool) -> None:
        """Takes what has been acknowledged, in order; with ``wait`` at least one, or after a while none."""
        self._notice_silence()
        while self._in_flight and (wait or self._in_flight[0].appended.done()):
            first = self._in_flight[0]
            try:
                first.appended.result(_ACK_WAIT_S)
            except TimeoutError:
                return
            except FatalLogError as error:
                if first.entry.kind is not Kind.BLOCK:
                    raise
                self._refuse(first.entry, error)
            else:
                self._published_entries += 1
                self._published_bytes += len(first.entry.value)
                now_ns = self._clock.now_ns()
                self._meter.add(len(first.entry.value), now_ns)
                if first.entry.last_byte_ns:
                    latency_ns = now_ns - first.entry.last_byte_ns
                    self._latency_ns[self._latencies % _LATENCIES] = latency_ns
                    self._latencies += 1
                    BLOCK_LATENCY.record(latency_ns / 1e9)
                    first.spans.acknowledged(now_ns)
            self._in_flight.popleft()
            self._done(first.offset, first.entry)
            wait = False

    def _notice_silence(self) -> None:
        """A log client tries by itself for a while: people should hear of it earlier."""
        if self._away or not self._in_flight:
            return
        silent_ns = self._clock.now_ns() - self._in_flight[0].since_ns
        if silent_ns > _SILENCE_NS and not self._in_flight[0].appended.done():
            self._away = True
            text = "%s: no acknowledgement for %.1f s, %d entries wait; spooling goes on"
            log.error(text, LogUnavailable.__name__, silent_ns / 1e9, len(self._in_flight))

    def _done(self, offset: int, entry: Entry | None) -> None:
        self._spool.commit(offset + 1)
        with self._memory_lock:
            kept = self._memory.pop(offset, None)
            if kept is not None:
                self._memory_bytes -= len(kept.value)
            left = self._waiting_bytes - (len(entry.value) if entry is not None else 0)
            # Bytes of an earlier edge are not known one by one: with nothing left, nothing waits.
            self._waiting_bytes = max(0, left) if offset + 1 < self._end else 0

    def _break(self, error: Exception) -> None:
        failure = PublishingFailed(f"{type(error).__name__}: {error}")
        if not self._away:
            log.error("entry %d cannot be published", self._cursor, exc_info=error)
        self._fall_back(failure)
        self._failed(failure)

    def _fall_back(self, error: Exception) -> None:
        """Starts again at the first entry that is not acknowledged; the log may then see some twice."""
        if not self._away:
            log.error("%s: %s; spooling goes on", type(error).__name__, error)
        self._away = True
        self._retries += 1
        self._in_flight.clear()
        self._cursor = self._spool.committed
