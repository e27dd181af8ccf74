"""What a dead edge left open is closed from the spool alone, whatever of it is still there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nextem.edge.accounting import Account, unpack_pattern
from nextem.edge.recovery import pack_checkpoint, recover
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import frames_pb2
from nextem.wire.blocks import DENSE, SCALARS, Block, encode_block
from nextem.wire.coverage import FrameSet

SHAPE = (8, 16)
STARTED = pb.AcquisitionStarted(acquisition_id="a", frames_announced=100, shape_y=8, shape_x=16)


def block(number: int, first: int, count: int) -> Block:
    frames = np.random.default_rng(number).integers(0, 9, (count, *SHAPE)).astype("<u2")
    kind = (np.dtype("u2"), DENSE, frames_pb2.CODEC_NONE)
    return Block("a", number, first, count, SHAPE, *kind, payload=frames.tobytes(), last_byte_ns=number + 1)


BLOCKS = [block(n, first, 5) for n, first in enumerate((0, 5, 12, 17, 30, 35, 40, 45, 60, 65))]


def fill(spool: Spool, checkpoint_after: int | None) -> None:
    """Ten blocks with gaps; the position of a checkpoint in between is where the spool was cut."""
    spool.need_from(spool.append(Entry(Kind.STARTED, "a", STARTED.SerializeToString())))
    account = Account("a", 100, SHAPE)
    for one in BLOCKS:
        data = encode_block(one)
        spool.append(Entry(Kind.BLOCK, "a", data, one.block_number, one.last_byte_ns))
        account.store(one, len(data))
        account.pattern += one.frames().sum(axis=0, dtype=np.uint64)
        account.bytes_raw += one.frames().nbytes
        if one.block_number == checkpoint_after:
            spool.need_from(spool.append(Entry(Kind.CHECKPOINT, "a", pack_checkpoint(STARTED, account))))


@pytest.mark.parametrize("checkpoint_after", [None, 0, 5, 9])
@pytest.mark.parametrize("published", [False, True])
def test_an_open_acquisition_is_closed_exactly(
    tmp_path: Path, checkpoint_after: int | None, published: bool
) -> None:
    spool = Spool(tmp_path, segment_bytes=2000)
    fill(spool, checkpoint_after)
    if published:
        spool.commit(spool.end)
    spool.prune()
    assert (spool.oldest > 0) == (published and checkpoint_after in (5, 9))
    spool.close()
    spool = Spool(tmp_path, segment_bytes=2000)
    (finished,) = recover(spool)
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert (finished.frames_announced, finished.frames_stored, finished.frames_lost) == (100, 50, 50)
    stored = FrameSet((one.first_frame, one.first_frame + one.count) for one in BLOCKS)
    assert list(FrameSet.from_proto(finished.lost)) == stored.missing(0, 100)
    assert finished.blocks == 10
    assert finished.bytes_raw == sum(one.frames().nbytes for one in BLOCKS)
    wanted = sum(one.frames().sum(axis=0, dtype=np.uint64) for one in BLOCKS)
    assert np.array_equal(unpack_pattern(finished.summed_pattern, SHAPE), wanted)
    assert recover(spool) == []
    spool.close()


def test_an_acquisition_without_a_frame_is_closed_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(Entry(Kind.STARTED, "a", STARTED.SerializeToString()))
    (finished,) = recover(spool)
    assert (finished.frames_announced, finished.frames_lost) == (100, 100)
    spool.close()


def test_a_finished_acquisition_is_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    fill(spool, 3)
    spool.append(Entry(Kind.FINISHED, "a", pb.AcquisitionFinished(acquisition_id="a").SerializeToString()))
    assert recover(spool) == []
    spool.close()


@pytest.mark.parametrize("whole", [BLOCKS[:0], BLOCKS[:3]])
def test_where_pixels_were_not_kept_the_sum_is_not_known_and_says_so(
    tmp_path: Path, whole: list[Block]
) -> None:
    """The accounting is exact all the same."""
    spool = Spool(tmp_path)
    spool.append(Entry(Kind.STARTED, "a", STARTED.SerializeToString()))
    nothing = replace(
        block(len(whole), 40, 7),
        representation=SCALARS,
        reason=frames_pb2.REPRESENTATION_REASON_SPOOL,
        payload=b"",
    )
    for one in (*whole, nothing, block(len(whole) + 1, 60, 5)):
        spool.append(Entry(Kind.BLOCK, "a", encode_block(one), one.block_number, one.last_byte_ns))
    (finished,) = recover(spool)
    assert finished.frames_stored == 5 * len(whole) + 12
    assert finished.summed_pattern == b""
    assert dict(finished.frames_by_reason) == {"spool": 7}
    spool.close()
