from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nextem.analysis.frame_run import join
from nextem.wire.blocks import DENSE, EVENTS


def test_neighbours_are_joined_whatever_their_order(small: Any, representation: int) -> None:
    blocks = small.blocks([10, 30, 31], representation)
    (run,) = join(blocks[::-1])
    assert (run.first_frame, run.stop_frame) == (0, 100)
    assert np.array_equal(run.frames(), small.frames)
    assert np.array_equal(run.events().to_frames(run.shape), small.frames)
    assert np.array_equal(run.scalars["sum"], small.frames.sum((1, 2)))
    assert (run.reduction_ids, run.edge_boot_id, run.last_byte_ns) == ({"r1"}, "boot", 1100)


def test_part_is_cut_by_frame_index(small: Any, representation: int) -> None:
    (run,) = join([small.block(20, 60, 0, representation)])
    part = run.part(25, 40)
    assert (part.first_frame, part.stop_frame) == (25, 40)
    assert np.array_equal(part.frames(), small.frames[25:40])
    assert np.array_equal(part.events().to_frames(part.shape), small.frames[25:40])
    assert np.array_equal(part.scalars["sum"], small.frames[25:40].sum((1, 2)))
    with pytest.raises(ValueError, match=r"10..29 are not in 20..59"):
        run.part(10, 30)


def test_what_does_not_fit_is_not_joined(small: Any) -> None:
    gap = [small.block(0, 10), small.block(11, 20)]
    overlap = [small.block(0, 10), small.block(5, 20)]
    mixed = [small.block(0, 10, 0, EVENTS), small.block(10, 20, 1, DENSE)]
    for blocks in (gap, overlap, mixed):
        assert [run.count for run in join(blocks)] == [block.count for block in blocks]
    assert [run.count for run in join(small.blocks(range(0, 100, 10)), max_frames=35)] == [30, 30, 30, 10]
