"""Movies in the reducing stage: frames in, blocks of averages out, in order and some of them later.

What the one pass found of each frame stays in the columns; the pixels of a block are its average, or none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction import ReducedBlock
from nextem.edge.reduction.movie import MovieBlock, MovieReducer
from nextem.edge.rules.watch import RuleWatch
from nextem.v1 import frames_pb2, plan_pb2
from nextem.wire.blocks import Block
from nextem.wire.packing import EncodedRun, encode_images, encode_run
from nextem.wire.representations import Pixels


class MovieStage:
    """One acquisition's movie. One thread at a time, frames in order."""

    def __init__(
        self,
        movie: plan_pb2.Movie,
        shape: tuple[int, int],
        dtype: np.dtype[np.unsignedinteger],
        corrections: CorrectionArrays | None,
        watch: RuleWatch | None = None,
    ) -> None:
        """Raises :class:`~nextem.edge.reduction.InvalidReduction`."""
        known = watch.look_at_average if watch is not None else lambda block: None
        self._reducer = MovieReducer(movie, shape, dtype, corrections, known)
        self._head: Block | None = None

    def add(
        self, head: Block, reduced: ReducedBlock, times_ns: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> list[EncodedRun]:
        """Takes the frames of ``head``, which says what all blocks have in common; what is now decided."""
        self._head = head
        blocks = self._reducer.add(head.first_frame, reduced.pixels.frames, head.scalars, times_ns)
        return [self._encoded(block, head) for block in blocks]

    def finish(self) -> list[EncodedRun]:
        """What is still held back."""
        if self._head is None:
            return []
        return [self._encoded(block, self._head) for block in self._reducer.finish()]

    def _encoded(self, block: MovieBlock, like: Block) -> EncodedRun:
        head = replace(
            like,
            first_frame=block.first_frame,
            count=block.count,
            scalars=block.columns,
            last_byte_ns=block.last_byte_ns,
            lost=(),
            reason=frames_pb2.REPRESENTATION_REASON_PLAN,
        )
        if block.image is None:
            nothing = Pixels(frames=np.empty((0, *head.shape), head.dtype))
            return encode_run(head, nothing, plan_pb2.REPRESENTATION_POLICY_SCALARS)
        bins = replace(head, bin_px=self._reducer.bin_px, bin_frames=self._reducer.average_frames)
        return encode_images(bins, Pixels(frames=block.image[None]))
