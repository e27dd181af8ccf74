"""Scan positions of a raw ``.tpx3`` file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nextem.edge.detectors.timepix3_decoder import Decoder, Reach
from nextem.edge.detectors.timepix3_options import Timepix3Options
from nextem.edge.detectors.timepix3_records import record_dtype
from nextem.wire.events import Events

_READ_BYTES = 1 << 20


def read_tpx3(path: Path, options: Timepix3Options) -> Iterator[tuple[int, Events]]:
    """Positions of a ``.tpx3`` file in order: (first position, CSR of some). The file's end ends the scan.

    Positions count on where the file holds several scans; those whose edge was lost are left out. Raises
    OSError.
    """
    decoder = Decoder(options)
    record = record_dtype(options.value_dtype)
    first = 0
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(_READ_BYTES):
            rest += piece
            used = 1
            while used and len(rest) >= 8:
                used, over = decoder.read(np.frombuffer(bytearray(rest), np.uint8))
                rest = rest[used:]
                decoder.work_off(Reach.END if over else Reach.WINDOW)
                yield from _taken(decoder, record, first)
                if over:
                    first += -(-decoder.frame // options.positions) * options.positions
                    decoder.restart()
        decoder.work_off(Reach.END)
        yield from _taken(decoder, record, first)


def _taken(decoder: Decoder, record: np.dtype[Any], first: int) -> Iterator[tuple[int, Events]]:
    while (piece := decoder.next_run(decoder.complete)) is not None:
        start, counts, records = piece
        indptr = np.zeros(len(counts) + 1, np.uint32)
        np.cumsum(counts, out=indptr[1:])
        fields = records.view(record)
        values = fields["value"].astype(record["value"])
        yield first + start, Events(indptr, fields["pixel"].astype(np.uint32), values)
