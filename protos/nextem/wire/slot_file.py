"""Numbers in a small file that survive their writer at any byte."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path

from crc32c import crc32c

from nextem.wire.log import CorruptRecord


class SlotFile:
    """A few unsigned 64-bit numbers that one process at a time replaces and any process reads whole.

    The file must exist, see :meth:`create`. It is written through shared memory, thus survives the process.
    """

    _SLOT = 256

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._body = path, struct.Struct(f"<Q{count}Q")
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 2 * self._SLOT)

    @classmethod
    def create(cls, path: Path, values: tuple[int, ...]) -> None:
        """Writes a new file, or replaces one, in one step."""
        body = struct.pack(f"<Q{len(values)}Q", 0, *values)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        fresh.write_bytes((body + crc32c(body).to_bytes(4, "little")).ljust(2 * cls._SLOT, b"\0"))
        fresh.replace(path)

    def changed(self, seen: bytes) -> bool:
        """Whether the file differs from what :meth:`snapshot` returned."""
        return self._map[:] != seen

    def snapshot(self) -> bytes:
        return self._map[:]

    def read(self) -> tuple[int, ...]:
        return self._newest()[1:]

    def write(self, values: tuple[int, ...]) -> None:
        """Only under the lock that guards this file."""
        version = self._newest()[0] + 1
        body = self._body.pack(version, *values)
        start = self._SLOT * (version % 2)
        self._map[start : start + len(body) + 4] = body + crc32c(body).to_bytes(4, "little")

    def sync(self) -> None:
        self._map.flush()

    def _newest(self) -> tuple[int, ...]:
        # A slot may be half written while we look. Then the other is whole, unless the writer went round
        # twice in between: look again. Nobody writes a thousand times within one look.
        for _ in range(1000):
            whole = [slot for slot in (self._slot(0), self._slot(1)) if slot is not None]
            if whole:
                return max(whole)
        raise CorruptRecord(f"{self._path}: both slots fail their checksum")

    def _slot(self, index: int) -> tuple[int, ...] | None:
        start, size = index * self._SLOT, self._body.size
        data = self._map[start : start + size + 4]
        if crc32c(data[:size]) != int.from_bytes(data[size:], "little"):
            return None
        return self._body.unpack_from(data)
