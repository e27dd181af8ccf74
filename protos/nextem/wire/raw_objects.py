"""Raw frames in the store: what an edge brought on request, the very bytes of the detector.

``raw/<acquisition>/<name>.raw`` holds messages back to back; ``<name>.json`` beside it says which frames they
are, how long each is, and the SHA-256 of all. The name is ``<first>-<count>-<beginning of the SHA-256>``, so
that an object never changes once it is there. The ``.raw`` file is put in its place last, in one step: a
reader finds all or nothing, whatever dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

FOLDER = "raw"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,150}")
_KEY = re.compile(rf"{FOLDER}/({_NAME.pattern})/({_NAME.pattern})\.raw")


class RawObjectError(Exception):
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
    folder: Path, acquisition_id: str, first_frame: int, parts: Iterable[tuple[NDArray[np.int64], bytes]]
) -> RawObject:
    """Stores messages that come as ``(sizes, bytes)``, part by part; what ``parts`` raises leaves nothing.

    Raises :class:`InvalidRawObject` and OSError.
    """
    if not _NAME.fullmatch(acquisition_id):
        raise InvalidRawObject(f"{acquisition_id!r} cannot be a folder's name in the store")
    place = folder / FOLDER / acquisition_id
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f".{uuid4().hex}"
    digest, sizes, total = hashlib.sha256(), [], 0
    try:
        with fresh.open("wb") as file:
            for part_sizes, data in parts:
                file.write(data)
                digest.update(data)
                sizes.append(part_sizes)
                total += len(data)
        every = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
        name = f"{first_frame}-{every.size}-{digest.hexdigest()[:16]}"
        meta = {
            "acquisition_id": acquisition_id,
            "first_frame": first_frame,
            "sizes": [[size, len(list(group))] for size, group in groupby(every.tolist())],
            "sha256": digest.hexdigest(),
        }
        beside = place / f"{fresh.name}.json"
        beside.write_text(json.dumps(meta))
        os.replace(beside, place / f"{name}.json")
        os.replace(fresh, place / f"{name}.raw")
    finally:
        fresh.unlink(missing_ok=True)
    return RawObject(f"{FOLDER}/{acquisition_id}/{name}.raw", total, digest.hexdigest())


def read(folder: Path, key: str) -> RawMessages:
    """Raises :class:`RawObjectNotFound`, :class:`CorruptRawObject`, :class:`InvalidRawObject`."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise InvalidRawObject(f"{key!r} is no key of raw frames")
    place = folder / FOLDER / found[1]
    try:
        data = (place / f"{found[2]}.raw").read_bytes()
        meta = json.loads((place / f"{found[2]}.json").read_bytes())
        acquisition_id, first = str(meta["acquisition_id"]), int(meta["first_frame"])
        sizes = np.repeat(*np.array(meta["sizes"], np.int64).reshape(-1, 2).T)
    except FileNotFoundError as error:
        raise RawObjectNotFound(f"no raw frames {key!r} in the store") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRawObject(f"{key}: its description cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != meta["sha256"] or int(sizes.sum()) != len(data):
        raise CorruptRawObject(f"{key}: {len(data)} bytes are not those that were stored")
    return RawMessages(acquisition_id, first, sizes, data)
