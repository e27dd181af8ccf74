"""TIFF stacks: each page, or each plane of an ImageJ stack, is one frame. Read by tifffile.

Uncompressed stacks that lie in one piece are mapped; others are decoded page by page.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from nextem.edge.detectors.base import DetectorError, UnsupportedFormat
from nextem.edge.detectors.files.arrays import (
    Layout,
    check_shape,
    counted_format,
    counted_pieces,
    read_plain,
)
from nextem.edge.detectors.files.counts import Counts
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import (
    PIECE_BYTES,
    Piece,
    Recording,
    UnreadableFile,
    map_file,
    parsing,
    raster,
)


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises :class:`UnreadableFile`, :class:`UnsupportedFormat` and what :func:`read_plain` raises."""
    _check_chain(path)
    with parsing(path, "TIFF"), tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.axes[-2:] != "YX" or series.keyframe.samplesperpixel != 1:
            raise UnsupportedFormat(f"{path}: frames have the axes (..., Y, X), these {series.axes}")
        shape, dtype = (int(series.shape[-2]), int(series.shape[-1])), np.dtype(series.dtype)
        leading = tuple(int(n) for n in series.shape[:-2])
        frames = math.prod(leading)
        # Other kinds of TIFF give axes their own meaning: a stack of time and focus is no scan.
        scan = raster(leading) if series.kind == "shaped" else None
        text = f"TIFF {'x'.join(map(str, series.shape))} {dtype.str} {series.kind}"
        offset = series.dataoffset
        if offset is not None and not (isinstance(offset, int) and offset >= 0):
            raise UnreadableFile(f"{path}: no frame starts at byte {offset!r}")  # of another type of number
        stored = dtype.newbyteorder(file.byteorder)
    if offset is not None:
        return read_plain(path, Layout(offset, frames, shape, stored), text, scan, parameters)
    check_shape(path, frames, shape, dtype.itemsize)
    counts = Counts.of(dtype, parameters)

    def pieces() -> Iterator[Piece]:
        return counted_pieces(_pages(path, frames, shape, dtype), counts, shape)

    return Recording(
        "\n".join(filter(None, (text, counts.told()))), frames, scan, counted_format(shape, counts), pieces
    )


def _check_chain(path: Path) -> None:
    """Follows the pages: a damaged file may lead in circles, which tifffile does not see.

    Raises :class:`UnreadableFile`. Source: TIFF 6.0, section 2, and the BigTIFF design.
    """
    data = map_file(path).data
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or data.nbytes < 16:
        raise UnreadableFile(f"{path}: a TIFF starts with 'II' or 'MM', this file with {bytes(data[:4])!r}")
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset, tags, tag_bytes = (order + "Q", order + "Q", 20) if big else (order + "I", order + "H", 12)
    at = struct.unpack_from(offset, data, 8 if big else 4)[0]
    seen: set[int] = set()
    while at:
        if at in seen:
            raise UnreadableFile(f"{path}: page {len(seen)} leads back to byte {at}, where another page is")
        seen.add(at)
        if at + struct.calcsize(tags) > data.nbytes:
            return  # tifffile says what is wrong here, and keeps the pages before
        at += struct.calcsize(tags) + tag_bytes * int(struct.unpack_from(tags, data, at)[0])
        if at + struct.calcsize(offset) > data.nbytes:
            return
        at = struct.unpack_from(offset, data, at)[0]


def _pages(path: Path, frames: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    step = max(1, PIECE_BYTES // (shape[0] * shape[1] * dtype.itemsize))
    with parsing(path, "TIFF"), tifffile.TiffFile(path) as file:
        pages = file.series[0].pages
        for at in range(0, frames, step):
            images, error = _images(path, pages, range(at, min(at + step, frames)), shape)
            if images:
                yield np.stack(images)
            if error is not None:
                raise error


def _images(
    path: Path, pages: Any, wanted: range, shape: tuple[int, int]
) -> tuple[list[NDArray[Any]], DetectorError | None]:
    """The pages up to the first that cannot be read, and what is wrong with that."""
    images: list[NDArray[Any]] = []
    try:
        with parsing(path, "TIFF"):
            for i in wanted:
                if pages[i] is None:
                    raise UnreadableFile(f"{path}: page {i} is missing")
                images.append(pages[i].asarray().reshape(shape))
    except DetectorError as error:
        return images, error
    return images, None
