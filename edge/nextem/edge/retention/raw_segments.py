"""The raw ring on disk: preallocated segment files used in a circle, and what lies in them.

``<slot>.raw`` holds messages as the detector sent them, back to back. ``<slot>.idx`` says what they are: a
first record that holds the segment's number, which counts up, then one for each piece that was written:

    crc32c of what follows (u32), length of what follows (u32), body

The body of a piece is :data:`_PIECE`, the acquisition's id, and, for messages of different sizes, one u32 for
each. A piece holds consecutive frames of one acquisition, with the CRC-32C of its bytes. Everything is
little-endian.

The bytes of a piece are written before its record, and the index of a segment is emptied before its bytes are
written over: whatever moment a process dies at, a record that is whole names bytes that are whole. Nothing is
synced, so that after a power cut records may name other bytes: the checksum tells, and they count as gone.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

_RECORD = struct.Struct("<II")
_NUMBER = struct.Struct("<8sQ")
_PIECE = struct.Struct("<QQIQQQIqHB")
_MAGIC = b"NXRAW001"
MAX_PIECE_FRAMES = 1 << 20
_MOST_VECTORS = 1024  # IOV_MAX of Linux


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """``count`` messages at byte ``start`` of a segment.

    Message i lies ``i * stride`` further and has ``frame_bytes``; where ``sizes`` (count,) is given they lie
    back to back.
    """

    acquisition_id: str
    first_frame: int
    count: int
    start: int
    length: int
    stride: int
    frame_bytes: int
    checksum: int
    written_unix_ns: int
    sizes: NDArray[np.uint32] | None = None

    @property
    def stop_frame(self) -> int:
        return self.first_frame + self.count

    def extents(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """(offset in the piece, bytes) of the messages of frames ``first .. stop - 1``."""
        low, high = first - self.first_frame, stop - self.first_frame
        if self.sizes is None:
            for place in range(low, high):
                yield place * self.stride, self.frame_bytes
            return
        at = int(self.sizes[:low].sum(dtype=np.int64))
        for size in self.sizes[low:high].tolist():
            yield at, size
            at += size

    def bytes_of(self, first: int, stop: int) -> int:
        """Of the messages of these frames."""
        if self.sizes is None:
            return (stop - first) * self.frame_bytes
        low, high = first - self.first_frame, stop - self.first_frame
        return int(self.sizes[low:high].sum(dtype=np.int64))

    def pack(self) -> bytes:
        name = self.acquisition_id.encode()
        numbers = (self.first_frame, self.start, self.count, self.length, self.stride, self.frame_bytes)
        tail = (self.checksum, self.written_unix_ns, len(name), self.sizes is not None)
        sizes = b"" if self.sizes is None else self.sizes.astype("<u4").tobytes()
        return _PIECE.pack(*numbers, *tail) + name + sizes

    @classmethod
    def unpack(cls, body: bytes) -> Piece:
        """Raises ValueError and struct.error for what :meth:`pack` never wrote."""
        first, start, count, length, stride, frame_bytes, checksum, written, name_bytes, sized = (
            _PIECE.unpack_from(body)
        )
        at = _PIECE.size + name_bytes
        sizes = np.frombuffer(body, "<u4", offset=at).astype(np.uint32) if sized else None
        if sizes is not None and sizes.size != count:
            raise ValueError(f"{sizes.size} sizes of {count} messages")
        name = body[_PIECE.size : at].decode()
        return cls(name, first, count, start, length, stride, frame_bytes, checksum, written, sizes)


class Segment:
    """One slot of the circle. One thread writes; :meth:`read` may be called by any."""

    def __init__(self, folder: Path, slot: int, size: int) -> None:
        """Opens or preallocates the files. Raises OSError where there is no room."""
        self.size = size
        self.number = 0  # 0: never used
        self.pieces: list[Piece] = []
        self._data = os.open(folder / f"{slot:05}.raw", os.O_RDWR | os.O_CREAT, 0o644)
        self._index = os.open(folder / f"{slot:05}.idx", os.O_RDWR | os.O_CREAT, 0o644)
        self._index_end = 0
        if os.fstat(self._data).st_size != size:
            os.ftruncate(self._index, 0)  # of a ring with other segments
            os.ftruncate(self._data, size)
        os.posix_fallocate(self._data, 0, size)
        self._load()

    @property
    def end(self) -> int:
        """Bytes in use."""
        return self.pieces[-1].start + self.pieces[-1].length if self.pieces else 0

    def begin(self, number: int) -> None:
        """Forgets what is here; the segment is the newest from now on."""
        self.forget()
        self.number = number
        self._append(_NUMBER.pack(_MAGIC, number))

    def forget(self) -> None:
        self.pieces, self.number, self._index_end = [], 0, 0
        os.ftruncate(self._index, 0)

    def write(self, parts: Sequence[NDArray[np.uint8]], piece: Piece) -> None:
        """Adds a piece that fits; ``parts`` are its bytes. Raises OSError."""
        at = piece.start
        for low in range(0, len(parts), _MOST_VECTORS):
            some = parts[low : low + _MOST_VECTORS]
            wanted = sum(part.nbytes for part in some)
            written = os.pwritev(self._data, [part.data for part in some], at)
            if written != wanted:
                raise OSError(f"the disk of the raw ring took {written} of {wanted} bytes")
            at += written
        self._append(piece.pack())
        self.pieces.append(piece)

    def read(self, piece: Piece) -> bytes | None:
        """The bytes of a piece; None where they are others by now, or damaged."""
        data = os.pread(self._data, piece.length, piece.start)
        return data if len(data) == piece.length and crc32c(data) == piece.checksum else None

    def sync(self) -> None:
        """The bytes, then the index that names them."""
        os.fsync(self._data)
        os.fsync(self._index)

    def close(self) -> None:
        os.close(self._data)
        os.close(self._index)

    def _append(self, body: bytes) -> None:
        record = _RECORD.pack(crc32c(body), len(body)) + body
        if os.pwrite(self._index, record, self._index_end) != len(record):
            raise OSError("the disk of the raw ring is full")
        self._index_end += len(record)

    def _load(self) -> None:
        """Reads the index up to the first record that is not whole, and cuts it there."""
        data = os.pread(self._index, os.fstat(self._index).st_size, 0)
        at = 0
        while at + _RECORD.size <= len(data):
            checksum, length = _RECORD.unpack_from(data, at)
            body = data[at + _RECORD.size : at + _RECORD.size + length]
            if len(body) != length or crc32c(body) != checksum:
                break
            try:
                if not self._take(body):
                    break
            except (ValueError, struct.error):
                break
            at += _RECORD.size + length
        os.ftruncate(self._index, at)
        self._index_end = at

    def _take(self, body: bytes) -> bool:
        if not self.number:
            magic, number = _NUMBER.unpack(body)
            self.number = number
            return bool(magic == _MAGIC)
        piece = Piece.unpack(body)
        if piece.start < self.end or piece.start + piece.length > self.size:
            return False
        self.pieces.append(piece)
        return True
