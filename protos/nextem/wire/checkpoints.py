"""Checkpoints: named arrays and a little JSON, replaced as a whole.

One checkpoint is one object: a line of JSON (``format``, ``meta``, and ``arrays`` as [name, CRC-32C] in
order), then each array as numpy's ``.npy``. A reader sees the old one or the new one, whatever dies. Zarr
would do it too, but takes four times as long (measured in a folder: 8 MiB in 9 ms against 2 ms).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from nextem.wire.object_store import ObjectNotFound, Objects, Part, StoreError

Array = npt.NDArray[Any]

FORMAT = "nextem-checkpoint-1"
FILE = ".checkpoint"


class CheckpointError(StoreError):
    """A checkpoint cannot be written or read."""


class CorruptCheckpoint(CheckpointError):
    """A file is not a checkpoint, or not the one that was written."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What :func:`write` was given."""

    arrays: dict[str, Array]
    meta: dict[str, Any]


def write(objects: Objects, name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Makes the folder ``name`` of ``objects`` hold this checkpoint. ``meta`` is JSON.

    Raises :class:`CheckpointError` for arrays of Python objects and for ``meta`` that is no JSON, and the
    errors of :class:`Objects`.
    """
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if any(array.dtype.hasobject for array in in_order.values()):
        raise CheckpointError(
            f"arrays of Python objects: {[n for n, a in in_order.items() if a.dtype.hasobject]}"
        )
    sums = [[name, _checksum(array)] for name, array in in_order.items()]
    try:
        head = json.dumps({"format": FORMAT, "meta": dict(meta), "arrays": sums}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the meta of a checkpoint must be JSON: {error}") from error
    parts: list[Part] = [head.encode() + b"\n"]
    for array in in_order.values():
        parts += _npy(array)
    objects.put(f"{name}/{FILE}", *parts)


def read(objects: Objects, name: str) -> Checkpoint | None:
    """The checkpoint in the folder ``name``; None where there is none.

    Raises :class:`CorruptCheckpoint` and the errors of :class:`Objects`.
    """
    try:
        found = objects.get(f"{name}/{FILE}")
    except ObjectNotFound:
        return None
    try:
        return _parse(io.BytesIO(found))
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise CorruptCheckpoint(f"{name}: {error}") from error


def delete(objects: Objects, name: str) -> None:
    """Removes the checkpoint, if there is one."""
    objects.delete(f"{name}/{FILE}")


def _npy(array: Array) -> list[Part]:
    """Header and bytes of a ``.npy`` file, without a copy; transposed arrays come in C order."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return [header.getvalue(), _bytes(array)]


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(array: Array) -> int:
    return crc32c(_bytes(array))


def _parse(file: io.BytesIO) -> Checkpoint:
    head = json.loads(file.readline())
    if not isinstance(head, dict) or head["format"] != FORMAT:
        raise ValueError(f"the first line does not name the format {FORMAT}")
    arrays = {}
    for name, checksum in head["arrays"]:
        array = _read_npy(file)
        found = _checksum(array)
        if found != checksum:
            raise ValueError(f"array {name!r} has CRC-32C {found:08x}, not {checksum:08x}")
        arrays[name] = array
    if file.read(1):
        raise ValueError("bytes follow after the last array")
    return Checkpoint(arrays, head["meta"])


def _read_npy(file: io.BytesIO) -> Array:
    """What :func:`_npy` made, copied once; numpy's own reader copies memory in small pieces."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array has version {version} of .npy")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError(f"an array is of {dtype} or not in C order")
    wanted, left = math.prod(shape) * dtype.itemsize, file.getbuffer().nbytes - file.tell()
    if wanted > left:
        raise EOFError(f"an array of {wanted} bytes is cut off after {left}")
    array = np.empty(shape, dtype)
    file.readinto(_bytes(array))
    return array
