"""What a thread does with frames that it has taken: reduce and encode them, and spool them in their turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nextem.edge.detectors.base import CorruptFrame, FrameBatch, FrameRun
from nextem.edge.movies import MovieStage
from nextem.edge.reduction import ReducedBlock, Reducer
from nextem.edge.storing import Forget, Storing
from nextem.edge.turns import Turns
from nextem.edge.work import StageTimes, Work, parts_of
from nextem.wire.blocks import Block
from nextem.wire.clock import Clock
from nextem.wire.packing import EncodedRun, encode_run


@dataclass(slots=True)
class Task:
    """Frames that one thread reduces; ``turn`` says when it may spool them."""

    turn: int
    work: Work
    batch: FrameBatch
    to_read: int  # frames that still have to be read from the slab
    released: bool = False

    def release(self) -> None:
        """Gives the slab back, once."""
        if not self.released:
            self.released = True
            self.batch.release()

    def has_read(self, frames: int) -> None:
        """Gives the slab back with the last frame: what comes then, encoding and the turn, does not need it,
        and the receiver finds it still in the processor's cache."""
        self.to_read -= frames
        if not self.to_read:
            self.release()


class Stages:
    """Reduce, encode, spool; all threads at once, each with a task and a reducer of its own.

    ``hungry`` says whether a thread waits for work, or soon will.
    """

    def __init__(self, storing: Storing, turns: Turns, clock: Clock, hungry: Callable[[], bool]) -> None:
        self._storing, self._turns, self._clock, self._hungry = storing, turns, clock, hungry
        self.times = StageTimes()

    def reduce(self, task: Task, reducer: Reducer, run: FrameRun) -> None:
        """Reduces, encodes and spools one run; of one that cannot be decoded, the frames that can."""
        t0 = time.thread_time_ns()
        try:
            read = task.batch.read_words(run) if reducer.counted else task.batch.read(run)
        except CorruptFrame as error:
            if run.count > 1:
                for half in parts_of(run, (run.count + 1) // 2):
                    self.reduce(task, reducer, half)
                return
            task.has_read(1)
            self._turns.wait(task.turn)
            self._storing.lose_corrupt(task.work, 1, error)
            return
        reduced = reducer.reduce(read) if isinstance(read, np.ndarray) else reducer.reduce_events(read)
        task.has_read(run.count)
        t1 = time.thread_time_ns()
        if task.work.movie is not None:
            self._film(task, task.work.movie, self._head(task, reducer, reduced, run), reduced, run)
            return
        try:
            head = self._head(task, reducer, reduced, run)
            if looked := self._turns.has_come(task.turn):  # then no rule need wait for the encoder
                self._look(task.work, head, run)
            encoded = self._encode(task.work, head, reduced)
        except Exception:
            reducer.forget(reduced, range(run.count))
            raise
        t2 = time.thread_time_ns()
        self._turns.wait(task.turn)
        t3 = time.thread_time_ns()
        if not looked:
            self._look(task.work, head, run)
        self._storing.store(task.work, encoded, _forgetting(reducer, reduced, run))
        self.times.reduce_ns += t1 - t0
        self.times.encode_ns += t2 - t1
        self.times.spool_ns += time.thread_time_ns() - t3

    def _film(self, task: Task, movie: MovieStage, head: Block, reduced: ReducedBlock, run: FrameRun) -> None:
        """Averages are made in the order of frames."""
        self._turns.wait(task.turn)
        self._look(task.work, head, run)
        try:
            for encoded in movie.add(head, reduced, run.last_byte_ns):
                self._storing.store(task.work, encoded, task.work.forget_pattern)
        except Exception:
            task.work.forget_pattern()
            raise

    def _look(self, work: Work, head: Block, run: FrameRun) -> None:
        """Shows the frames to the plan's rules, in the order of frames, whether they can be stored or not."""
        if work.watch is not None:
            work.watch.look(run.first_frame, head.scalars, run.last_byte_ns)

    def _encode(self, work: Work, head: Block, reduced: ReducedBlock) -> EncodedRun:
        assert work.ladder is not None
        how = self._storing.decide(work.ladder, self._hungry())
        return encode_run(head, reduced.pixels, how.policy, bin_px=how.bin_px, reason=how.reason)

    def _head(self, task: Task, reducer: Reducer, reduced: ReducedBlock, run: FrameRun) -> Block:
        """What all blocks of a run have in common."""
        work, form = task.work, task.batch.format
        scalars = reduced.scalars() | dict(run.columns)
        if run.epoch is not None:
            scalars["epoch"] = run.epoch
        if work.watch is not None:
            scalars |= work.watch.columns(reduced.pixels)
        return Block(
            acquisition_id=work.acquisition_id,
            block_number=0,  # the block's own is known when its turn comes
            first_frame=run.first_frame,
            count=run.count,
            shape=form.shape,
            dtype=reduced.pixels.dtype,
            scalars=scalars,
            counted=reducer.counted,
            reduction_id=reducer.reduction_id,
            edge_boot_id=self._clock.boot_id,
            last_byte_ns=int(run.last_byte_ns[-1]),
        )


def _forgetting(reducer: Reducer, reduced: ReducedBlock, run: FrameRun) -> Forget:
    def forget(first: int, stop: int) -> None:
        reducer.forget(reduced, range(first - run.first_frame, stop - run.first_frame))

    return forget
