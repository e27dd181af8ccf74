"""Raw frames in the store: what an edge brought on request, the very bytes of the detector.

``raw/<acquisition>/<first>-<random>.raw`` holds messages back to back; the object with ``.json`` beside it
says which frames they are, how long each is, and the SHA-256 of all. Neither changes once it is there. The
description is put last, in one step: a reader finds all or nothing, whatever dies.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from nextem.wire.object_store import ObjectNotFound, Objects, StoreError

FOLDER = "raw"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}")
_KEY = re.compile(rf"({FOLDER}/{_NAME.pattern}/{_NAME.pattern})\.raw")


class RawObjectError(StoreError):
    """Something is wrong with raw frames in the store."""


class RawObjectNotFound(RawObjectError):
    """The store has no such object."""


class CorruptRawObject(RawObjectError):
    """The bytes are not those that were written."""


class InvalidRawObject(RawObjectError):
    """A name that cannot be one in the store."""


@dataclass(frozen=True, slots=True)
class RawObject:
    """What was stored: where, how many bytes, and their SHA-256 in hexadecimal."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class RawMessages:
    """Messages of consecutive frames; iterating gives each frame's bytes.

    A message is what the detector sent for a frame, from its header to its last pixel, still compressed where
    it was.
    """

    acquisition_id: str
    first_frame: int
    sizes: NDArray[np.int64]  # (count,)
    data: bytes

    def __len__(self) -> int:
        return self.sizes.size

    def __iter__(self) -> Iterator[memoryview]:
        at, view = 0, memoryview(self.data)
        for size in self.sizes.tolist():
            yield view[at : at + size]
            at += size


def write(
    objects: Objects, acquisition_id: str, first_frame: int, parts: Iterable[tuple[NDArray[np.int64], bytes]]
) -> RawObject:
    """Stores messages that come as ``(sizes, bytes)``, part by part; what ``parts`` raises leaves nothing.

    Raises :class:`InvalidRawObject` and the errors of :class:`Objects`.
    """
    if not _NAME.fullmatch(acquisition_id):
        raise InvalidRawObject(f"{acquisition_id!r} cannot be a folder's name in the store")
    digest = hashlib.sha256()
    sizes: list[NDArray[np.int64]] = []

    def noted() -> Iterator[bytes]:
        for part_sizes, data in parts:
            digest.update(data)
            sizes.append(part_sizes)
            yield data

    stem = f"{FOLDER}/{acquisition_id}/{first_frame}-{uuid4().hex}"
    objects.stream(f"{stem}.raw", noted())
    every = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
    meta = {
        "acquisition_id": acquisition_id,
        "first_frame": first_frame,
        "sizes": [[size, len(list(group))] for size, group in groupby(every.tolist())],
        "sha256": digest.hexdigest(),
    }
    objects.put(f"{stem}.json", json.dumps(meta).encode(), media="application/json")
    return RawObject(f"{stem}.raw", int(every.sum()), digest.hexdigest())


def read(objects: Objects, key: str) -> RawMessages:
    """Raises :class:`RawObjectNotFound`, :class:`CorruptRawObject`, :class:`InvalidRawObject`, and the errors
    of :class:`Objects`."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise InvalidRawObject(f"{key!r} is no key of raw frames")
    try:
        meta = json.loads(objects.get(f"{found[1]}.json"))
        data = objects.get(key)
        acquisition_id, first = str(meta["acquisition_id"]), int(meta["first_frame"])
        sizes = np.repeat(*np.array(meta["sizes"], np.int64).reshape(-1, 2).T)
        sha256 = meta["sha256"]
    except ObjectNotFound as error:
        raise RawObjectNotFound(f"no raw frames {key!r} in the store") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRawObject(f"{key}: its description cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != sha256 or int(sizes.sum()) != len(data):
        raise CorruptRawObject(f"{key}: {len(data)} bytes are not those that were stored")
    return RawMessages(acquisition_id, first, sizes, data)
