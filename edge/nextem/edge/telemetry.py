"""What the edge tells of itself: its figures, and the spans of blocks on their way to the log.

Names and units follow OpenTelemetry's conventions; ``docs/telemetry.md`` lists them. Figures are read from
what the parts count anyway, when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextem.edge.uplink.spool import Entry
from nextem.wire import telemetry
from nextem.wire.log import FRAMES
from nextem.wire.telemetry import NOTHING, Counter, Histogram, Kind, Observed, Reading, Span

if TYPE_CHECKING:
    from nextem.edge.pipeline import EdgePipeline

RECEIVED = Observed("nextem.edge.frames.received", "{frame}", "Frames that came from the detector.", True)
STORED = Observed("nextem.edge.frames.stored", "{frame}", "Frames reduced, encoded and spooled.", True)
LOST = Observed("nextem.edge.frames.lost", "{frame}", "Frames lost, by the accounting at each end.", True)
DROPPED = Observed(
    "nextem.edge.frames.dropped", "{frame}", "Frames that went no further here, by cause.", True
)
BYTES = Observed("nextem.edge.io", "By", "Bytes of frames, raw and encoded.", True)
BLOCKS = Observed("nextem.edge.blocks", "{block}", "Blocks spooled.", True)
ENDED = Observed("nextem.edge.acquisitions", "{acquisition}", "Acquisitions that have ended.", True)
CPU_TIME = Observed("nextem.edge.cpu.time", "s", "Processor time of the data path, by stage.", True)
RETRIES = Observed("nextem.edge.log.retries", "{retry}", "Publishing began again after a failure.", True)
WAITING = Observed("nextem.edge.log.waiting", "By", "Spooled and not acknowledged by the log.")
SPOOL_USAGE = Observed("nextem.edge.spool.usage", "By", "Disk that the spool takes.")
SPOOL_LIMIT = Observed("nextem.edge.spool.limit", "By", "Disk that the spool may take.")
SPOOL_FILL = Observed("nextem.edge.spool.utilization", "1", "Part of the spool that waits for the log.")

BLOCK_LATENCY = Histogram(
    "nextem.edge.block.latency",
    "s",
    "Last byte of a block's newest frame to its acknowledged append.",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0),
)
LOOP_LATENCY = Histogram(
    "nextem.control.loop.latency",
    "s",
    "Last byte of the newest frame behind a decision to the command's arrival at the driver.",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0),
)
COMMANDS = Counter("nextem.control.commands", "{command}", "Outcomes told, by state, rule and action.")

_ONE_SCRAPE_NS = 100_000_000
_LONGEST_WAY_NS = 600_000_000_000
"""An entry that is older was left by an earlier edge, maybe on another clock."""

_DROPPED: Mapping[str, str] = {
    "frames_lost_ring": "ring",
    "frames_corrupt": "message",
    "frames_refused": "order",
    "frames_unclaimed": "unclaimed",
}


class Recent:
    """What ``read`` gave, for as long as one scrape asks."""

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read, self._at_ns = read, 0
        self._value: Mapping[str, Any] = {}

    def __call__(self) -> Mapping[str, Any]:
        now_ns = time.monotonic_ns()
        if not self._value or now_ns > self._at_ns + _ONE_SCRAPE_NS:
            self._value, self._at_ns = self._read(), now_ns
        return self._value


def observe_pipeline(pipeline: EdgePipeline) -> None:
    """Its figures can be read from now on."""
    stats = Recent(pipeline.stats)

    def one(*path: str) -> Callable[[], float]:
        def read() -> float:
            value: Any = stats()
            for name in path:
                value = value[name]
            return float(value)

        return read

    telemetry.observe_all(
        {
            RECEIVED: one("frames_received"),
            STORED: one("frames_stored"),
            LOST: one("frames_lost"),
            BLOCKS: one("blocks"),
            ENDED: one("acquisitions"),
            RETRIES: one("publisher", "retries"),
            WAITING: one("publisher", "waiting_bytes"),
            SPOOL_USAGE: one("spool_bytes"),
            SPOOL_LIMIT: one("spool_bytes_most"),
            SPOOL_FILL: lambda: stats()["publisher"]["waiting_bytes"] / stats()["spool_bytes_most"],
        }
    )
    telemetry.observe(DROPPED, lambda: _dropped(stats()))
    telemetry.observe(
        BYTES,
        lambda: [
            (stats()["bytes_raw"], {"nextem.form": "raw"}),
            (stats()["bytes_encoded"], {"nextem.form": "encoded"}),
        ],
    )
    telemetry.observe(
        CPU_TIME,
        lambda: [(ns / 1e9, {"nextem.stage": stage}) for stage, ns in stats()["busy_ns"].items()],
    )


def _dropped(stats: Mapping[str, Any]) -> Reading:
    receiver = stats["receiver"]
    yield stats["frames_lost_spool"], {"nextem.cause": "spool"}
    yield stats["frames_lost_corrupt"], {"nextem.cause": "corrupt"}
    for name, cause in _DROPPED.items():
        yield receiver.get(name, 0), {"nextem.cause": cause}


@dataclass(frozen=True, slots=True)
class BlockSpans:
    """One block: ``whole`` from the last byte to the acknowledgement, ``send`` the log's part of it."""

    whole: Span
    send: Span

    @property
    def headers(self) -> dict[str, bytes] | None:
        """Of its record."""
        return telemetry.to_headers(self.send.traceparent)

    def acknowledged(self, now_ns: int) -> None:
        self.send.end(now_ns)
        self.whole.end(now_ns)


UNTRACED = BlockSpans(NOTHING, NOTHING)


class BlockTraces:
    """Each block that the sampler takes begins a trace. One thread: the publisher's."""

    def __init__(self) -> None:
        self._newest: dict[str, str] = {}

    def block(self, entry: Entry, now_ns: int) -> BlockSpans:
        """Of a block that is appended now."""
        if not telemetry.listened():
            return UNTRACED
        age_ns = now_ns - entry.last_byte_ns
        whole = telemetry.begin_trace(
            "block",
            since_ns=entry.last_byte_ns if 0 <= age_ns < _LONGEST_WAY_NS else now_ns,
            attributes={
                "nextem.acquisition.id": entry.acquisition_id,
                "nextem.block.number": entry.number,
                "nextem.block.bytes": len(entry.value),
            },
        )
        if whole is NOTHING:
            return UNTRACED
        send = telemetry.begin(
            f"send {FRAMES}",
            whole.traceparent,
            kind=Kind.PRODUCER,
            since_ns=now_ns,
            attributes={"messaging.operation.type": "send", "messaging.destination.name": FRAMES},
        )
        self._newest[entry.acquisition_id] = send.traceparent
        return BlockSpans(whole, send)

    def event(self, acquisition_id: str) -> dict[str, bytes] | None:
        """Headers of an event: it goes on with the newest traced block of its acquisition."""
        return telemetry.to_headers(self._newest.get(acquisition_id, ""))

    def ended(self, acquisition_id: str) -> None:
        self._newest.pop(acquisition_id, None)
