"""Objects as files of one folder; see :mod:`nextem.wire.object_store`.

What is being written lies in ``.partial`` and is renamed into its place. Everything survives the death of any
process, not of the machine's power. Any number of processes may use one folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from nextem.wire.object_store import (
    ObjectExists,
    ObjectNotFound,
    Part,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store

PARTIAL = ".partial"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


class FolderObjects:
    """Implements :class:`nextem.wire.object_store.Objects`; the folder is made when something is put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    @property
    def address(self) -> str:
        return str(self._folder)

    def get(self, key: str) -> bytes:
        with self.errors(key):
            return (self._folder / key).read_bytes()

    def put(self, key: str, *parts: Part, media: str = "application/octet-stream") -> None:
        self.stream(key, parts)

    def create(self, key: str, *parts: Part) -> None:
        with self.errors(key), self._written(parts) as fresh:
            os.link(fresh, self._place(key))

    def stream(self, key: str, parts: Iterable[Part]) -> None:
        with self.errors(key), self._written(parts) as fresh:
            os.replace(fresh, self._place(key))

    def keys(self, prefix: str) -> Iterator[str]:
        for name in self.children(prefix):
            key = f"{prefix}/{name}"
            path = self._folder / key
            if path.is_symlink() or not path.is_dir():
                yield key
            else:
                yield from self.keys(key)

    def children(self, prefix: str) -> list[str]:
        with self.errors(prefix):
            try:
                return os.listdir(self._folder / prefix)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, key: str) -> None:
        with self.errors(key):
            (self._folder / key).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        """Of several who do this at once, one does it."""
        gone = self._fresh()
        with self.errors(prefix):
            try:
                (self._folder / prefix).rename(gone)
            except FileNotFoundError:
                return
            shutil.rmtree(gone)

    def point(self, key: str, target: str) -> str | None:
        link, beside = self._folder / key, self._fresh()
        with self.errors(key):
            self._place(key)
            before = self.pointed(key)
            beside.symlink_to(os.path.relpath(self._folder / target, link.parent), target_is_directory=True)
            os.replace(beside, link)
        return before

    def pointed(self, key: str) -> str | None:
        link = self._folder / key
        with self.errors(key):
            try:
                target = os.path.normpath(link.parent / os.readlink(link))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Path(os.path.relpath(target, self._folder)).as_posix()

    def link(self, key: str, expires_s: float) -> str:
        """The file's own address; it does not expire."""
        return (self._folder / key).as_uri()

    def zarr(self) -> Store:
        from zarr.storage import LocalStore  # an edge has no zarr

        return LocalStore(self._folder)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectNotFound(f"no {what} in {self._folder}") from error
        except FileExistsError as error:
            raise ObjectExists(f"{what} is in {self._folder} already") from error
        except OSError as error:
            raise _error(error.errno)(f"{what} in {self._folder}: {error.strerror or error}") from error

    def sweep(self, older_than_s: float) -> int:
        swept, latest = 0, time.time() - older_than_s
        for name in self.children(PARTIAL):
            path = self._folder / PARTIAL / name
            with self.errors(PARTIAL):
                try:
                    if path.lstat().st_mtime > latest:
                        continue
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                except FileNotFoundError:
                    continue  # its writer finished
            swept += 1
        return swept

    @contextmanager
    def _written(self, parts: Iterable[Part]) -> Iterator[Path]:
        """A file of ``parts``, to be renamed; taken away if it was not."""
        fresh = self._fresh()
        try:
            with fresh.open("wb") as file:
                file.writelines(parts)
            yield fresh
        finally:
            fresh.unlink(missing_ok=True)

    def _fresh(self) -> Path:
        partial = self._folder / PARTIAL
        with self.errors(PARTIAL):
            partial.mkdir(parents=True, exist_ok=True)
        return partial / uuid4().hex

    def _place(self, key: str) -> Path:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _error(number: int | None) -> type[StoreError]:
    if number in _NO_ROOM:
        return StoreFull
    return StoreRefused if number in _NO_RIGHT else StoreUnavailable
