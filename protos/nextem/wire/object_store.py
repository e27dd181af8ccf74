"""Objects by key: what products, checkpoints and raw frames are kept in, a folder or S3.

Two classes pass the same tests: :class:`nextem.wire.folder_store.FolderObjects` and
:class:`nextem.wire.s3_store.S3Objects`. An object is there as a whole or not at all, whatever dies meanwhile.
A key is a path of folders with ``/``. A *pointer* is a key that names another one and is moved in one step: a
symbolic link in a folder, a small object in S3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from zarr.abc.store import Store

Part: TypeAlias = bytes | memoryview

S3_SCHEME = "s3://"


class StoreError(Exception):
    """Something is wrong with the store."""


class ObjectNotFound(StoreError):
    """No object has this key."""


class ObjectExists(StoreError):
    """An object has this key already."""


class StoreRefused(StoreError):
    """The store does not let us: wrong credentials, no rights, no bucket. Says what to check. Fatal."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or does not do its work now. Retryable."""


class StoreFull(StoreUnavailable):
    """No room is left."""


class InvalidAddress(StoreError):
    """No address of a store."""


class Objects(Protocol):
    """Thread-safe. Every method raises the :class:`StoreError` that fits; OSError never comes out."""

    @property
    def address(self) -> str:
        """As it was given: a folder, or ``s3://BUCKET/PREFIX``."""

    def get(self, key: str) -> bytes:
        """Raises :class:`ObjectNotFound`."""

    def put(self, key: str, *parts: Part, media: str = "application/octet-stream") -> None:
        """Makes the object hold ``parts``, one after the other, in place of what it held.

        ``media``: its media type, for browsers.
        """

    def create(self, key: str, *parts: Part) -> None:
        """As :meth:`put`, but never in place of an object. Raises :class:`ObjectExists`."""

    def stream(self, key: str, parts: Iterable[Part]) -> None:
        """As :meth:`put` for what does not fit into memory; what ``parts`` raises leaves nothing."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys of all objects and pointers in the folder ``prefix``, and in those below it."""

    def children(self, prefix: str) -> list[str]:
        """Names of what lies directly in the folder ``prefix``."""

    def delete(self, key: str) -> None:
        """Removes an object or pointer, if it is there."""

    def delete_tree(self, prefix: str) -> None:
        """Removes all that lies in the folder ``prefix``, and what streams that died have left there."""

    def point(self, key: str, target: str) -> str | None:
        """Makes ``key`` point to ``target`` in one step; where it pointed before."""

    def pointed(self, key: str) -> str | None:
        """Where a pointer points to; None where there is none."""

    def link(self, key: str, expires_s: float) -> str:
        """Where a browser gets an object without credentials; in S3 for this time, at most a week."""

    def zarr(self) -> Store:
        """The same keys as a store of zarr."""

    def errors(self, what: str) -> AbstractContextManager[None]:
        """Turns what a library raises inside into a :class:`StoreError` that names ``what``."""

    def sweep(self, older_than_s: float) -> int:
        """Removes what unfinished puts and streams left, where this is possible; how many."""


def open_objects(address: str | Path) -> Objects:
    """A folder, which is made when something is put, or ``s3://BUCKET/PREFIX``.

    Of an S3 store, endpoint, region and credentials come from the environment, see
    :func:`nextem.wire.s3_store.open_s3`. Nothing is connected yet. Raises :class:`InvalidAddress` and
    :class:`StoreRefused`.
    """
    text = str(address)
    if text.startswith(S3_SCHEME):
        try:
            from nextem.wire.s3_store import open_s3  # who keeps all in a folder needs no S3 client
        except ModuleNotFoundError as error:
            raise StoreRefused(
                f"{text}: {error.name} is not installed: pip install 'nextem[store]'"
            ) from error
        return open_s3(text)
    if "://" in text or not text:
        raise InvalidAddress(f"{text!r} is no store: a folder, or {S3_SCHEME}BUCKET/PREFIX")
    from nextem.wire.folder_store import FolderObjects

    return FolderObjects(Path(text))


def store_address(given: str | None, default: Path) -> str:
    """What an option ``--store`` says, folders made absolute; ``default`` where it says nothing."""
    if given is not None and "://" in given:
        return given
    return str((default if given is None else Path(given)).resolve())
