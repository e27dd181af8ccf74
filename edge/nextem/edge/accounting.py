"""Exact accounting of one acquisition: frames announced = frames stored + frames lost, the lost ones listed.

Only what was stored is ever noted. What was lost follows as its complement, so that no way of losing a frame
can be forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import Ending, EndKind
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import frames_pb2
from nextem.wire.blocks import Block
from nextem.wire.coverage import FrameSet
from nextem.wire.zstd import pack_zstd, unpack_zstd

MAX_PATTERN_BYTES = 700_000
"""A larger summed pattern (compressed) is left out of the accounting: the record must fit the log."""


UNKNOWN_PATTERN: NDArray[np.uint64] = np.zeros((0, 0), dtype=np.uint64)


class FramesLost(Exception):
    """Announced frames that were not stored, with the causes that were seen."""


def add_ranges(target: FrameSet, ranges: Iterable[frames_pb2.FrameRange]) -> None:
    """Adds the ranges of a message."""
    for r in ranges:
        target.add(r.first, r.first + r.count)


class Account:
    """What one acquisition stored. One thread writes it.

    ``announced`` is 0 where the detector did not say; then it is the highest frame seen + 1 at the end.
    ``pattern`` is the sum of all stored frames, uint64 (y, x), or ``UNKNOWN_PATTERN``.
    """

    def __init__(self, acquisition_id: str, announced: int, shape: tuple[int, int] = (0, 0)) -> None:
        self.acquisition_id = acquisition_id
        self.announced = announced
        self.stored = FrameSet()
        self.next_frame = 0  # after the last stored block
        self.seen = 0  # after the last frame that came
        self.blocks = 0
        self.bytes_raw = 0
        self.bytes_encoded = 0
        self.causes: Counter[str] = Counter()  # of lost frames, as far as the edge itself lost them
        self.pattern: NDArray[np.uint64] = np.zeros(shape, dtype=np.uint64)
        self._representations: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()  # of frames that are not whole

    def lost_before(self, first_frame: int) -> tuple[tuple[int, int], ...]:
        """Half-open ranges that are missing between the last stored block and ``first_frame``."""
        return ((self.next_frame, first_frame),) if first_frame > self.next_frame else ()

    def store(self, block: Block, encoded_bytes: int) -> None:
        """Notes a block that is safe in the spool. The pattern is the caller's to add."""
        self.stored.add(block.first_frame, block.first_frame + block.count)
        self.next_frame = block.first_frame + block.count
        self.blocks += 1
        self.bytes_encoded += encoded_bytes
        self._representations[representation_name(block.representation)] += 1
        if not block.whole:
            self._reasons[reason_name(block.reason)] += block.count

    def lose(self, frames: int, cause: str) -> None:
        """Notes why the edge lost frames. It is for people; the number lost does not depend on it."""
        self.causes[cause] += frames

    def checkpoint(self) -> pb.AcquisitionFinished:
        """Everything so far, to go on from after a restart; ``lost`` up to the last stored block."""
        return self._message(self.announced, self.stored.missing(0, self.next_frame))

    @classmethod
    def restore(cls, checkpoint: pb.AcquisitionFinished, shape: tuple[int, int]) -> Account:
        """Undoes :meth:`checkpoint`."""
        account = cls(checkpoint.acquisition_id, checkpoint.frames_announced, shape)
        lost = FrameSet.from_proto(checkpoint.lost)
        account.next_frame = checkpoint.frames_stored + len(lost)
        for start, stop in lost.missing(0, account.next_frame):
            account.stored.add(start, stop)
        account.blocks = checkpoint.blocks
        account.bytes_raw = checkpoint.bytes_raw
        account.bytes_encoded = checkpoint.bytes_encoded
        account._representations.update(checkpoint.blocks_by_representation)
        account._reasons.update(checkpoint.frames_by_reason)
        if checkpoint.summed_pattern:
            account.pattern = unpack_pattern(checkpoint.summed_pattern, shape)
        elif len(account.stored):
            account.pattern = UNKNOWN_PATTERN
        return account

    def finish(self, ending: Ending, finished_ns: int) -> pb.AcquisitionFinished:
        """The final accounting."""
        announced = self.announced or max(ending.highest_frame + 1, self.next_frame, self.seen)
        if ending.lost_ring:
            self.lose(ending.lost_ring, "the full ring")
        lost = self.stored.missing(0, announced)
        message = self._message(announced, lost)
        message.first_byte_ns = ending.first_byte_ns
        message.last_byte_ns = ending.last_byte_ns
        message.finished_ns = finished_ns
        message.reason, message.error = self._verdict(ending, announced, message.frames_lost)
        return message

    def _message(self, announced: int, lost: list[tuple[int, int]]) -> pb.AcquisitionFinished:
        pattern = pack_pattern(self.pattern)
        return pb.AcquisitionFinished(
            acquisition_id=self.acquisition_id,
            frames_announced=announced,
            frames_stored=len(self.stored),
            frames_lost=sum(stop - start for start, stop in lost),
            lost=FrameSet(lost).to_proto(),
            blocks=self.blocks,
            bytes_raw=self.bytes_raw,
            bytes_encoded=self.bytes_encoded,
            blocks_by_representation=dict(self._representations),
            frames_by_reason=dict(self._reasons),
            summed_pattern=pattern if len(pattern) <= MAX_PATTERN_BYTES else b"",
        )

    def _verdict(self, ending: Ending, announced: int, lost: int) -> tuple[pb.FinishReason, str]:
        text = f"{type(ending.error).__name__}: {ending.error}" if ending.error else ""
        if ending.kind is EndKind.FAILED:
            return pb.FINISH_REASON_FAILED, text
        if ending.kind is EndKind.STOPPED and (lost or not self.announced):
            return pb.FINISH_REASON_STOPPED, text
        if lost or text:
            return pb.FINISH_REASON_INCOMPLETE, text or self._loss(lost, announced)
        return pb.FINISH_REASON_COMPLETE, ""

    def _loss(self, lost: int, announced: int) -> str:
        told = [f"{count} by {cause}" for cause, count in sorted(self.causes.items())]
        rest = lost - sum(self.causes.values())
        if rest > 0:
            told.append(f"{rest} never came")
        return f"{FramesLost.__name__}: {lost} of {announced} frames ({', '.join(told)})"


def amend(finished: pb.AcquisitionFinished, refused: Iterable[Block], error: str) -> None:
    """Takes blocks that the log refused for good out of an accounting: their frames are lost."""
    pattern = None
    lost = FrameSet.from_proto(finished.lost)
    for block in refused:
        lost.add(block.first_frame, block.first_frame + block.count)
        finished.blocks -= 1
        finished.blocks_by_representation[representation_name(block.representation)] -= 1
        if not block.whole:
            finished.frames_by_reason[reason_name(block.reason)] -= block.count
            finished.summed_pattern, pattern = b"", None  # what is to be taken off is not known
        elif finished.summed_pattern:
            if pattern is None:
                pattern = unpack_pattern(finished.summed_pattern, block.shape)
            pattern -= block.frames().sum(axis=0, dtype=np.uint64)
    del finished.lost[:]
    finished.lost.extend(lost.to_proto())
    finished.frames_lost = len(lost)
    finished.frames_stored = finished.frames_announced - len(lost)
    if pattern is not None:
        finished.summed_pattern = pack_pattern(pattern)
    if finished.reason == pb.FINISH_REASON_COMPLETE:
        finished.reason = pb.FINISH_REASON_INCOMPLETE
    finished.error = finished.error or error


def representation_name(representation: int) -> str:
    """As counted in ``blocks_by_representation``: "events", "dense"."""
    name: str = frames_pb2.Representation.Name(representation)
    return name.removeprefix("REPRESENTATION_").lower()


def reason_name(reason: int) -> str:
    """As counted in ``frames_by_reason``: "plan", "link", "spool", "size"."""
    name: str = frames_pb2.RepresentationReason.Name(reason)
    return name.removeprefix("REPRESENTATION_REASON_").lower()


def pack_pattern(pattern: NDArray[np.uint64]) -> bytes:
    """A summed pattern as it travels: uint64 little-endian (y, x), zstd."""
    return pack_zstd(pattern.astype("<u8").tobytes()) if pattern.size else b""


def unpack_pattern(data: bytes, shape: tuple[int, int]) -> NDArray[np.uint64]:
    """Undoes :func:`pack_pattern`; writable."""
    size = shape[0] * shape[1] * 8
    return np.frombuffer(unpack_zstd(data, size), dtype="<u8").reshape(shape).astype(np.uint64)
