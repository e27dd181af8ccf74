"""One scan of a CSR stream: chunks to frames, the good ones handed over, the others told."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.detectors.base import (
    Claim,
    CorruptFrame,
    DetectorError,
    Ending,
    EndKind,
    FrameSizeChanged,
    SequenceError,
    Sink,
    UnsupportedFormat,
)
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.csr_messages import (
    AcquisitionHeader,
    ChunkHeader,
    chunk_arrays,
    fill_records,
    value_dtype,
)
from nextem.edge.detectors.receiving import tell
from nextem.edge.detectors.ring import Ring
from nextem.edge.detectors.timepix3_records import RecordBatches, event_format, record_dtype


class CsrScan:
    """One claimed scan."""

    def __init__(
        self,
        claim: Claim,
        within: AcquisitionHeader,
        sequence: int,
        begun_ns: int,
        sink: Sink,
        ring: Ring,
        numbers: Counters,
    ) -> None:
        self.claim, self.sequence = claim, sequence
        self.next_frame = self.frames_corrupt = 0
        self._within, self._begun_ns = within, begun_ns
        self._sink, self._ring, self._numbers = sink, ring, numbers
        self._values = 0  # bits
        self._batches: RecordBatches | None = None
        self._first_error: DetectorError | None = None

    @property
    def complete(self) -> bool:
        return self.next_frame == self._within.frames

    def take(self, header: ChunkHeader, body: npt.NDArray[np.uint8], received_ns: int) -> None:
        """Hands over the good frames of a chunk. Raises :class:`DetectorError` where none can be."""
        dtype = value_dtype(header.values)
        size = header.length * record_dtype(dtype).itemsize
        if size > self._ring.limit_bytes:
            raise UnsupportedFormat(f"a chunk of {header.length} events, {size} bytes, is more than the ring")
        batches = self._batches_of(header.values, dtype)
        pixels = self._within.frame[0] * self._within.frame[1]
        counts = np.empty(header.frames, np.int64)
        records: npt.NDArray[Any] = np.zeros(header.length, record_dtype(dtype))
        arrays = chunk_arrays(body, header, self._within)
        made = fill_records(*arrays, pixels, counts, records["pixel"], records["value"])
        beyond = self.next_frame + header.frames - self._within.frames
        if beyond > 0:
            self._numbers.frames_refused += beyond
            self._note(SequenceError(f"{beyond} frames came beyond the {self._within.frames} of the scan"))
            counts = counts[: header.frames - beyond]
        self._hand_over(batches, counts, records[:made], received_ns)
        self.next_frame += len(counts)

    def _hand_over(
        self,
        batches: RecordBatches,
        counts: npt.NDArray[np.int64],
        records: npt.NDArray[Any],
        received_ns: int,
    ) -> None:
        bad = np.flatnonzero(counts < 0)
        if bad.size:
            self.frames_corrupt += bad.size
            which = f"frame {self.next_frame + int(bad[0])}"
            self._note(CorruptFrame(f"{which}: its pixels do not ascend inside the frame ({bad.size} such)"))
        begin, used = 0, 0
        for stop in [*bad.tolist(), len(counts)]:
            size = int(counts[begin:stop].sum())
            if stop > begin:
                part = records[used : used + size]
                batches.put(self.next_frame + begin, counts[begin:stop], part, received_ns)
            begin, used = stop + 1, used + size

    def _batches_of(self, bits: int, dtype: np.dtype[Any]) -> RecordBatches:
        if self._batches is None:
            frames = event_format(self._within.frame, dtype)
            try:
                self._batches = RecordBatches(self.claim, frames, self._sink, self._ring, self._numbers)
            except ValueError as error:
                raise UnsupportedFormat(str(error)) from error
            self._values = bits
        if bits != self._values:
            raise FrameSizeChanged(f"values changed from {self._values} to {bits} bits")
        return self._batches

    def _note(self, error: DetectorError) -> None:
        if self._first_error is None:
            self._first_error = error
            tell(error, self.claim.acquisition_id)

    def finish(self, kind: EndKind, error: DetectorError | None, last_byte_ns: int) -> None:
        """Closes the claim."""
        lost_ring = 0
        if self._batches is not None:
            self._batches.close()
            lost_ring = self._batches.lost_ring
        if self.complete and kind is not EndKind.FAILED:
            kind, error = EndKind.ALL_FRAMES, None
        ending = Ending(
            kind, self.next_frame - 1, error or self._first_error, self._begun_ns, last_byte_ns, lost_ring
        )
        self._sink.close_claim(self.claim, ending)
