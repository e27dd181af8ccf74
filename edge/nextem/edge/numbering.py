"""A block's number and what was lost before it: known only when its turn comes, after it was encoded."""

from __future__ import annotations

from dataclasses import replace

from nextem.v1 import frames_pb2
from nextem.wire.blocks import encode_block
from nextem.wire.packing import EncodedBlock

Ranges = tuple[tuple[int, int], ...]


def number(encoded: EncodedBlock, block_number: int, lost: Ranges) -> EncodedBlock:
    """``encoded``, made with number 0, as block ``block_number`` with ``lost`` frames before it.

    Serialised protobuf messages may be joined: a reader merges the fields of both parts. So the two fields
    are appended, and pixels are neither packed nor checked a second time.
    """
    block = replace(encoded.block, block_number=block_number, lost=lost)
    if encoded.block.block_number or encoded.block.lost not in ((), lost):
        return EncodedBlock(block, encode_block(block))
    told = () if encoded.block.lost else lost
    tail = frames_pb2.FrameBlock(
        block_number=block_number,
        lost=[frames_pb2.FrameRange(first=start, count=stop - start) for start, stop in told],
    )
    return EncodedBlock(block, encoded.data + tail.SerializeToString())
