"""Maps of a whole acquisition as they travel: in pieces that fit a record, whatever the detector's size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.zstd import pack_zstd

PART_BYTES = 512 << 10
"""Of the values of one piece, not compressed: no piece comes near the size of a record."""


def map_parts(acquisition_id: str, maps: Mapping[str, NDArray[Any]], frames: int) -> Iterator[pb.MapPart]:
    """The pieces of each map, in order. ``frames``: of how many frames the maps are."""
    for name, array in maps.items():
        flat = array.astype(array.dtype.newbyteorder("<")).reshape(-1)
        step = PART_BYTES // array.itemsize
        for first in range(0, flat.size, step):
            yield pb.MapPart(
                acquisition_id=acquisition_id,
                name=name,
                dtype=array.dtype.name,
                shape=array.shape,
                first=first,
                values=pack_zstd(flat[first : first + step].tobytes()),
                frames=frames,
            )
