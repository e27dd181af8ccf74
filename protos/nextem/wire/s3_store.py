"""Objects in a bucket of an S3 store, by obstore; see :mod:`nextem.wire.object_store`.

The server must honour conditional writes (``If-None-Match: *``, ``If-Match``), as Amazon S3, the Versity
gateway and MinIO do; ``nextem store check`` tries them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from nextem.wire.object_store import (
    S3_SCHEME,
    InvalidAddress,
    ObjectExists,
    ObjectNotFound,
    Part,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ClientConfig, RetryConfig
    from zarr.abc.store import Store

PART_BYTES = 5 << 20
"""The least that S3 allows for a part of an upload that is not the last."""
_PARTS_AT_ONCE = 4
RETRY_S = 30.0  # how long a server may be away unnoticed
_MOST_POINTS = 100
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_ROOM = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "EntityTooLarge"})
WHAT_TO_CHECK = {
    "NoSuchBucket": "the bucket does not exist: `nextem store check` makes it",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY, and the clock of this machine",
    "InvalidAccessKeyId": "the server does not know this key: check AWS_ACCESS_KEY_ID",
    "XAdminUserNotFound": "the server does not know this key: check AWS_ACCESS_KEY_ID",
    "AccessDenied": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what policies let this key do",
    "RequestTimeTooSkewed": "check the clock of this machine",
    "PermanentRedirect": "check AWS_REGION and AWS_ENDPOINT_URL",
    "AuthorizationHeaderMalformed": "check AWS_REGION",
}


def bucket_and_prefix(address: str) -> tuple[str, str]:
    """Of ``s3://BUCKET/PREFIX``; the prefix may be empty. Raises :class:`InvalidAddress`."""
    bucket, _, prefix = address.removeprefix(S3_SCHEME).partition("/")
    prefix = prefix.rstrip("/")
    if not address.startswith(S3_SCHEME) or not _BUCKET.fullmatch(bucket):
        raise InvalidAddress(
            f"{address!r} is not {S3_SCHEME}BUCKET/PREFIX: {bucket!r} is no name of a bucket"
        )
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise InvalidAddress(f"{address!r}: a part of the prefix is empty, '.' or '..'")
    return bucket, prefix


def endpoint() -> str | None:
    """``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``; None means Amazon's own.

    Raises :class:`StoreRefused` for plain HTTP where ``AWS_ALLOW_HTTP`` is not true.
    """
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if (
        url
        and url.startswith("http://")
        and os.environ.get("AWS_ALLOW_HTTP", "").lower() not in ("true", "1")
    ):
        raise StoreRefused(f"{url} is not encrypted: use https, or set AWS_ALLOW_HTTP=true")
    return url or None


def open_s3(address: str) -> S3Objects:
    """``s3://BUCKET/PREFIX``, with the rest from the environment.

    ``AWS_ENDPOINT_URL`` (``AWS_ALLOW_HTTP=true`` where it is plain HTTP), ``AWS_REGION``,
    ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_CA_BUNDLE`` (a PEM file),
    and what else obstore reads. Raises :class:`InvalidAddress` and :class:`StoreRefused`.
    """
    bucket, prefix = bucket_and_prefix(address)
    url = endpoint()
    client: ClientConfig = {"connect_timeout": "5s", "read_timeout": "120s", "timeout": "1h"}
    if url is not None and url.startswith("http://"):
        client["allow_http"] = True
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        try:
            client["root_certificate"] = Path(bundle).read_bytes()
        except OSError as error:
            raise StoreRefused(f"AWS_CA_BUNDLE={bundle}: {error.strerror}") from error
    retries: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_S)}
    try:
        store = S3Store(bucket, prefix=prefix or None, client_options=client, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise StoreRefused(f"{address}: {_first_line(error)}") from error
    return S3Objects(store, address)


class S3Objects:
    """Implements :class:`nextem.wire.object_store.Objects`; made by :func:`open_s3`."""

    def __init__(self, store: S3Store, address: str) -> None:
        self._store, self._address = store, address.rstrip("/")

    @property
    def address(self) -> str:
        return self._address

    def get(self, key: str) -> bytes:
        return self._get(key)[0]

    def put(self, key: str, *parts: Part, media: str = "application/octet-stream") -> None:
        with self.errors(key):
            obstore.put(
                self._store,
                key,
                b"".join(parts),
                attributes={"Content-Type": media},
                chunk_size=PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def create(self, key: str, *parts: Part) -> None:
        with self.errors(key):
            obstore.put(self._store, key, b"".join(parts), mode="create")

    def stream(self, key: str, parts: Iterable[Part]) -> None:
        """A multipart upload, which obstore takes back where ``parts`` raises."""
        with self.errors(key):
            obstore.put(self._store, key, iter(parts), chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

    def keys(self, prefix: str) -> Iterator[str]:
        with self.errors(prefix):
            for batch in obstore.list(self._store, prefix):
                for found in batch:
                    yield found["path"]

    def children(self, prefix: str) -> list[str]:
        with self.errors(prefix):
            found = obstore.list_with_delimiter(self._store, prefix)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return [path.removeprefix(f"{prefix}/").rstrip("/") for path in paths]

    def delete(self, key: str) -> None:
        with self.errors(key):
            obstore.delete(self._store, key)

    def delete_tree(self, prefix: str) -> None:
        with self.errors(prefix):
            for batch in obstore.list(self._store, prefix):
                obstore.delete(self._store, [found["path"] for found in batch])

    def point(self, key: str, target: str) -> str | None:
        """By a conditional put, so that each of several writers learns what it replaced."""
        for _ in range(_MOST_POINTS):
            try:
                before, tag = self._get(key)
            except ObjectNotFound:
                before, tag = b"", None
            if before.decode() == target:  # our own put, whose answer was lost
                return None
            try:
                with self.errors(key):
                    mode: PutMode = "create" if tag is None else {"e_tag": tag}
                    obstore.put(self._store, key, target.encode(), mode=mode)
            except ObjectExists:
                continue
            return before.decode() or None
        raise StoreUnavailable(f"{key} was changed by others {_MOST_POINTS} times")

    def pointed(self, key: str) -> str | None:
        try:
            return self.get(key).decode()
        except ObjectNotFound:
            return None

    def link(self, key: str, expires_s: float) -> str:
        with self.errors(key):
            return obstore.sign(self._store, "GET", key, timedelta(seconds=expires_s))

    def zarr(self) -> Store:
        from zarr.storage import ObjectStore  # an edge has no zarr

        return ObjectStore(self._store)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise self._error(error, what) from error

    def ignored_conditions(self) -> list[str]:
        """Which of the conditional writes the server does regardless; none where it is fit for a store."""
        key, ignored = f"check/{uuid4().hex}", []
        conditions: dict[str, PutMode] = {"If-None-Match": "create", "If-Match": {"e_tag": '"another"'}}
        self.create(key, b"")
        for name, mode in conditions.items():
            try:
                with self.errors(key):
                    obstore.put(self._store, key, b"again", mode=mode)
            except ObjectExists:
                continue
            ignored.append(name)
        self.delete(key)
        return ignored

    def sweep(self, older_than_s: float) -> int:
        """Nothing: S3 does it itself by an expiry rule, which ``nextem store check`` makes."""
        return 0

    def _get(self, key: str) -> tuple[bytes, str | None]:
        with self.errors(key):
            answer = obstore.get(self._store, key)
            return bytes(answer.bytes()), answer.meta["e_tag"]

    def _error(self, error: Exception, what: str) -> StoreError:
        text = str(error)
        found = _CODE.search(text)
        code = found[1] if found else ""
        where = f"{what} in {self._address}"
        if code in WHAT_TO_CHECK:
            return StoreRefused(f"{where}: {code}: {WHAT_TO_CHECK[code]}")
        if isinstance(error, AlreadyExistsError | PreconditionError):
            return ObjectExists(f"{where} is another one now")
        if isinstance(error, FileNotFoundError):
            return ObjectNotFound(f"no {what} in {self._address}")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return StoreRefused(f"{where}: {code or 'refused'}: check AWS_ACCESS_KEY_ID and its rights")
        if code in _NO_ROOM or "no space left" in text.lower():
            return StoreFull(f"{where}: {code or 'no space left'}")
        if "169.254.169.254" in text:
            return StoreRefused(f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return StoreUnavailable(f"{where}: {code or _first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
