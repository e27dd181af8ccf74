"""Has the kernels of the DECTRIS receiver compiled, so that no acquisition waits for a compiler."""

from __future__ import annotations

import numpy as np

from nextem.edge.detectors import dectris_lz4
from nextem.edge.detectors.base import FrameRun
from nextem.edge.detectors.dectris_blobs import Layout, Packing, Unpack
from nextem.edge.detectors.dectris_receive import Table
from nextem.edge.detectors.dectris_v1 import V1Like
from nextem.edge.detectors.dectris_v2 import V2Like


def warm_up() -> None:
    """Every kernel once, on almost nothing."""
    for itemsize in (1, 2, 4):
        layout = Layout((8, 256), itemsize, Packing.BITSHUFFLE, itemsize)
        # One LZ4 block of zeros: one literal, a match as long as needed, five literals.
        match = layout.pixel_bytes - 6 - 4 - 15
        block = bytes((0x1F, 0, 1, 0)) + b"\xff" * (match // 255) + bytes((match % 255, 0x50, 0, 0, 0, 0, 0))
        blob = bytes(dectris_lz4.HEADER_BYTES) + len(block).to_bytes(4, "big") + block
        _run(layout, blob)
        _run(Layout(layout.shape, itemsize, Packing.BITSHUFFLE, itemsize, big_endian=True), blob)
    _run(Layout((1, 6), 1, Packing.PLAIN), bytes(6))
    _run(Layout((1, 6), 1, Packing.LZ4_BLOCK), bytes((0x60, 0, 0, 0, 0, 0, 0)))
    data, table = np.zeros(64, np.uint8), Table.empty(2)
    V1Like(b"a", b"b").check(data, table, 0, 1)
    V2Like(b"", (0,) * 6).check(data, table, 0, 1)


def _run(layout: Layout, blob: bytes) -> None:
    data = np.frombuffer(bytearray(blob), np.uint8)
    one = np.array([0], np.int64)
    run = FrameRun(0, 1, 0, 0, 0, one, offsets=one, sizes=np.array([len(blob)], np.int64))
    Unpack(layout)(data, run)
