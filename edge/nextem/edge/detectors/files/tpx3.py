"""Raw ``.tpx3`` files: the words that a Timepix3 sent, as ASI's server writes them.

The words say nothing of the scan: ``scan=YxX`` and what else the receiver of a stream is told stand in the
address, see :mod:`nextem.edge.detectors.timepix3_options`. ``scans=N`` where a file holds several rasters.
The file's end is taken for the end of the readout, so that the positions after the last hit are complete;
where the file ends inside a chunk it was cut, and only positions that were over by then are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nextem.edge.detectors.base import GarbageSkipped, UnsupportedFormat
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Incomplete, Piece, Recording, TruncatedFile, UnreadableFile
from nextem.edge.detectors.timepix3_decoder import Decoder, Numbers, Reach, Records
from nextem.edge.detectors.timepix3_options import Timepix3Options, parse_options
from nextem.edge.detectors.timepix3_records import event_format
from nextem.edge.detectors.timepix3_scan import lacking

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_RECORD_BYTES = 8


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises ``BadAddress``, :class:`UnreadableFile` where no chunk begins in the first MiB, and
    :class:`UnsupportedFormat`."""
    if parameters.scale is not None or parameters.offset is not None:
        raise UnsupportedFormat(f"{path}: electrons are counted here, scale and offset mean nothing")
    scan = {"scan": "{}x{}".format(*parameters.scan)} if parameters.scan else {}
    options = parse_options(scan | dict(parameters.timepix3))
    try:
        with path.open("rb") as file:
            head = file.read(_READ_BYTES)
    except OSError as error:
        raise UnreadableFile(f"{path}: {error}") from error
    if b"TPX3" not in head:
        raise UnreadableFile(f"{path}: no chunk of a Timepix3 begins in the first {_READ_BYTES} bytes")
    rows, columns = options.scan[0] * parameters.scans, options.scan[1]
    return Recording(
        f"{options.text}, from a file",
        rows * columns,
        (rows, columns),
        event_format(Decoder(options).shape, options.value_dtype),
        lambda: _pieces(path, options, rows * columns),
    )


def _pieces(path: Path, options: Timepix3Options, announced: int) -> Iterator[Piece]:
    """Raises :class:`Incomplete` at the end for whatever is missing."""
    reading = _Reading(path, options)
    stop = 0
    for first, counts, records in reading.runs():
        sizes = counts * _RECORD_BYTES
        offsets = np.cumsum(sizes) - sizes
        yield Piece(records.view(np.uint8), first, len(counts), offsets=offsets, sizes=sizes)
        stop = first + len(counts)
    found = lacking(reading.decoder.counters())
    if stop < announced:
        found.insert(0, TruncatedFile(f"{path}: ends after {stop} of {announced} positions"))
    if reading.garbage_bytes:
        found.append(GarbageSkipped(f"{path}: {reading.garbage_bytes} bytes belong to no chunk"))
    for error in found:
        log.error("%s: %s", type(error).__name__, error)
    if found:
        raise Incomplete(found[0])


class _Reading:
    """One pass over a file."""

    def __init__(self, path: Path, options: Timepix3Options) -> None:
        self.decoder = Decoder(options)
        self.garbage_bytes = 0
        self._path = path
        self._begin = 0  # of the running measurement, in positions

    def runs(self) -> Iterator[tuple[int, Numbers, Records]]:
        """(first position, records of each, all records), in order. The next measurement begins a raster."""
        decoder = self.decoder
        rest = bytearray()
        with self._path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                rest += piece
                while len(rest) >= 8:
                    used, over = decoder.read(np.frombuffer(rest, np.uint8))
                    if not used:
                        break
                    rest = rest[used:]
                    decoder.work_off(Reach.END if over else Reach.WINDOW)
                    yield from self._taken()
                    if over:
                        self._restart()
        self.garbage_bytes = decoder.garbage_bytes + len(rest)
        decoder.work_off(Reach.ALL if decoder.inside_chunk or rest else Reach.END)
        yield from self._taken()

    def _taken(self) -> Iterator[tuple[int, Numbers, Records]]:
        while (run := self.decoder.next_run(self.decoder.complete)) is not None:
            first, counts, records = run
            yield self._begin + first, counts, records

    def _restart(self) -> None:
        positions = self.decoder.options.positions
        self._begin += -(-self.decoder.frame // positions) * positions
        self.decoder.restart()
