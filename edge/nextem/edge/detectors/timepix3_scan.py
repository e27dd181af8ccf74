"""One acquisition of a Timepix3: hands over the positions of one raster, and tells what they lack."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nextem.edge.detectors.base import (
    Claim,
    DetectorError,
    Ending,
    EndKind,
    FrameFormat,
    SequenceError,
    Sink,
    UnsupportedFormat,
)
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.ring import Ring
from nextem.edge.detectors.timepix3_decoder import Decoder
from nextem.edge.detectors.timepix3_records import RecordBatches

log = logging.getLogger(__name__)


class LateHits(DetectorError):
    """Hits came further behind the newest than the sorting window is long; they are in no frame."""


class Scan:
    """One raster. ``claim`` is None where nobody wants it: its positions are taken and dropped."""

    def __init__(
        self,
        claim: Claim | None,
        positions: int,
        frames: FrameFormat,
        decoder: Decoder,
        sink: Sink,
        ring: Ring,
        counters: Counters,
    ) -> None:
        self.first_byte_ns = 0
        self._claim, self._positions, self._decoder = claim, positions, decoder
        self._sink, self._counters = sink, counters
        self._batches = RecordBatches(claim, frames, sink, ring, counters) if claim else None
        self._highest = -1
        self._last_byte_ns = 0

    def stop_reason(self) -> str | None:
        return self._claim.stop_reason() if self._claim is not None else None

    def pass_on(self, begin: int, received_ns: int) -> None:
        """Hands over what is complete of the raster, whose first position is ``begin`` in the stream."""
        stop = min(self._decoder.complete, begin + self._positions)
        while (run := self._decoder.next_run(stop)) is not None:
            first, counts, records = run
            self._last_byte_ns = received_ns
            self._highest = first - begin + len(counts) - 1
            if self._batches is not None:
                self._batches.put(first - begin, counts, records, received_ns)
            else:
                self._counters.frames_unclaimed += len(counts)

    def finish(self, kind: EndKind, error: DetectorError | None, before: Mapping[str, int]) -> None:
        """Ends it. What went wrong since the counters were ``before`` is the error where none is graver."""
        if self._batches is None or self._claim is None:
            return
        self._batches.close()
        after = self._decoder.counters()
        missing = lacking({name: after[name] - before[name] for name in after})
        for one in missing:
            log.error("%s: %s (acquisition %s)", type(one).__name__, one, self._claim.acquisition_id)
        worst = error or (missing[0] if missing else None)
        lost_ring = self._batches.lost_ring
        ending = Ending(kind, self._highest, worst, self.first_byte_ns, self._last_byte_ns, lost_ring)
        self._sink.close_claim(self._claim, ending)


def lacking(counted: Mapping[str, int]) -> list[DetectorError]:
    """What a scan lacks, the gravest first, by the counters of a decoder over it."""
    found: list[DetectorError] = []
    if missing := counted["edges_missing"] + counted["edges_late"]:
        found.append(SequenceError(f"{missing} edges of the scan are missing; their positions are lost"))
    if late := counted["hits_late"]:
        found.append(LateHits(f"{late} of {counted['hits']} hits came later than the sorting window"))
    if timeless := counted["hits_without_time"]:
        found.append(UnsupportedFormat(f"{timeless} hits of the integrated-ToT mode have no time"))
    if strange := counted["words_implausible"] + counted["words_unknown"] + counted["hits_of_unknown_chips"]:
        found.append(SequenceError(f"{strange} words have an unknown kind, chip or time"))
    return found
