"""Files that may be replaced while a program runs, and files that others must not read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Differs once a file has been replaced; equal for a file that stays away."""

    modified_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        try:
            found = path.stat()
        except OSError:
            return cls(0, -1, 0)
        return cls(found.st_mtime_ns, found.st_size, found.st_ino)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Puts ``data`` at ``path`` at once, so that nobody reads half of it. Raises :class:`OSError`."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # a file left by somebody else may have had another
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
