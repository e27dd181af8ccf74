"""The middle of the data path: threads that reduce, encode and spool what the detector handed over.

All threads do the same. One at a time takes the next thing from the queue; frames it reduces and encodes with
a reducer of its own while others do the same with the frames after them, and when all that was taken before
has been spooled (:mod:`nextem.edge.turns`), it spools its own (:mod:`nextem.edge.stages`). Whatever concerns
an acquisition as a whole, its start, a checkpoint, its end, is done by the thread that takes, once nobody
else works. So the number of threads changes no byte of what is stored but the times.

At low rates a block crosses no more threads than with one: who takes it also spools it.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from threading import Lock, Thread

from nextem.edge.accounting import Account
from nextem.edge.acquisition import Acquisition
from nextem.edge.calibrations import Calibrations
from nextem.edge.detectors.base import FrameFormat
from nextem.edge.movies import MovieStage
from nextem.edge.reducers import Holding, ReducerPool
from nextem.edge.retention.raw_ring import RawRing
from nextem.edge.retention.representation import Ladder
from nextem.edge.rules.plan import read_rules
from nextem.edge.rules.watch import Fire, RuleStatus, RuleWatch, nobody_acts
from nextem.edge.stages import Stages, Task
from nextem.edge.storing import Storing
from nextem.edge.turns import Turns
from nextem.edge.work import Closed, Failed, Frames, MapsWanted, Opened, Work, parts_of
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.clock import Clock

log = logging.getLogger(__name__)

MAX_WORKERS = 4
Item = Opened | Frames | Closed | Failed | MapsWanted


def default_workers() -> int:
    """As many threads as this process has processors, at most four."""
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0))))


class Reducing:
    """Takes what the detector's thread puts, in order; calls ``finished`` for each end."""

    def __init__(
        self,
        storing: Storing,
        clock: Clock,
        finished: Callable[[Acquisition, pb.AcquisitionFinished], None],
        *,
        workers: int = 0,
        calibrations: Calibrations | None = None,
        hold_bytes: int = 64 << 20,
        raw_ring: RawRing | None = None,
        fire: Fire = nobody_acts,
    ) -> None:
        """``workers`` threads, 0: :func:`default_workers`; raises ValueError for less.

        At most ``hold_bytes`` of frames wait for the thresholds of electron counting. ``fire`` is told when
        a rule of the plan sees what it waits for, before those frames are stored.
        """
        if workers < 0:
            raise ValueError(f"{workers} threads cannot reduce")
        self.workers = workers or default_workers()
        self._storing, self._finished = storing, finished
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._ahead: deque[Item] = deque()  # what comes before the queue
        self._taking = Lock()
        self._turns = Turns()
        self._waiting = 0
        self._waiting_lock = Lock()
        self._work: dict[str, Work] = {}
        self._pool = ReducerPool(self.workers, calibrations)
        self._hold_bytes, self._raw_ring, self._fire = hold_bytes, raw_ring, fire
        self._stages = Stages(storing, self._turns, clock, self.hungry)
        self.times = self._stages.times
        self._threads = [
            Thread(target=self._run, args=(place,), name=f"reducing-{place}", daemon=True)
            for place in range(self.workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, item: Item) -> None:
        """Never blocks: what waits is bounded by the ring that the batches lie in."""
        if isinstance(item, Frames):
            self._wait_more(1)
        self._queue.put(item)

    def hungry(self) -> bool:
        """Whether a thread waits for work, or soon will."""
        return self._waiting <= self.workers

    def rules(self) -> list[RuleStatus]:
        """The rules of what is reduced now. Any thread."""
        watches = [work.watch for work in list(self._work.values())]
        return [status for watch in watches if watch is not None for status in watch.statuses()]

    def fail(self, error: Exception) -> None:
        """Ends whatever runs, because the way behind it is broken. Any thread."""
        for work in list(self._work.values()):
            work.fail(error)

    def close(self) -> None:
        """Works off what waits, then ends."""
        self._storing.closing.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _wait_more(self, change: int) -> None:
        with self._waiting_lock:
            self._waiting += change

    def _run(self, place: int) -> None:
        while (task := self._take()) is not None:
            self._process(place, task)

    # ---- taking: one thread at a time ---------------------------------------------------------

    def _take(self) -> Task | None:
        """The next frames to reduce; None at the end. Everything else is done here."""
        with self._taking:
            while True:
                item = self._ahead.popleft() if self._ahead else self._queue.get()
                if item is None:
                    self._queue.put(None)  # for the other threads
                    return None
                if isinstance(item, Frames):
                    work = self._work[item.acquisition.acquisition_id]
                    item = self._prepare(work, item)
                    if work.holding is None:
                        frames = sum(run.count for run in item.batch.runs)
                        return Task(self._turns.issue(), work, item.batch, frames)
                    self._hold(work, work.holding, item)
                else:
                    self._handle(item)

    def _handle(self, item: Opened | Closed | Failed | MapsWanted) -> None:
        if isinstance(item, Opened):
            account = Account(item.acquisition.acquisition_id, item.announcement.frames)
            self._work[account.acquisition_id] = Work(item.acquisition, item.announcement, account)
            return
        if isinstance(item, Failed):
            if failed := self._work.get(item.acquisition_id):
                failed.fail(item.error)
            return
        if isinstance(item, Closed):
            work = self._work[item.acquisition.acquisition_id]
            if work.holding is not None:
                self._ahead.appendleft(item)
                self._let_go(work, work.holding)
                return
        self._turns.wait_for_all()
        if isinstance(item, MapsWanted):
            self._answer(item)
            return
        del self._work[work.acquisition_id]
        self._end_movie(work)
        finished = self._storing.close(work, item.ending)
        try:
            self._finished(work.acquisition, finished)
        except Exception:
            log.exception("whoever waits for the end of acquisition %s failed", work.acquisition_id)

    def _prepare(self, work: Work, item: Frames) -> Frames:
        """What must have happened before these frames are reduced; the frames to go on with."""
        if work.failed is not None:
            return item
        try:
            if work.started is None:
                self._turns.wait_for_all()
                self._storing.start(work, item.batch.format)
                self._compile(work, item.batch.format)
            elif self._storing.wants_checkpoint(work):
                self._turns.wait_for_all()
                self._storing.checkpoint(work)
            return self._keep_raw(work, item)
        except Exception as error:  # noqa: BLE001  whatever it is ends the acquisition and not the thread
            work.fail(error)
            return item

    def _compile(self, work: Work, form: FrameFormat) -> None:
        reduction = work.acquisition.plan.reduction
        work.reducers = self._pool.get(reduction, form)
        work.ladder = Ladder(reduction, work.acquisition_id, self._storing.representation_changes)
        if rules := read_rules(work.acquisition.plan):
            work.watch = RuleWatch(work.acquisition_id, rules, work.reducers[0].dtype, self._fire)
        if work.reducers[0].wants_samples():
            work.holding = Holding(work.reducers[0], self._hold_bytes)
        if reduction.HasField("movie"):
            first = work.reducers[0]
            work.movie = MovieStage(
                reduction.movie, form.shape, first.dtype, first.pending_corrections, work.watch
            )

    def _let_go(self, work: Work, holding: Holding) -> None:
        """What was held is reduced before anything else."""
        work.holding = None
        try:
            if work.failed is None:
                holding.reducer.end_sampling()
                self._pool.complete(work.reducers)
        except Exception as error:  # noqa: BLE001  as in _prepare
            work.fail(error)
        self._ahead.extendleft(reversed(holding.frames))
        self._wait_more(len(holding.frames))

    def _hold(self, work: Work, holding: Holding, item: Frames) -> None:
        self._wait_more(-1)
        try:
            holding.add(item)
        except Exception as error:  # noqa: BLE001  as in _prepare
            work.fail(error)
        if holding.enough or work.failed is not None:
            self._let_go(work, holding)

    def _end_movie(self, work: Work) -> None:
        try:
            for encoded in work.movie.finish() if work.movie is not None else ():
                self._storing.store(work, encoded, work.forget_pattern)
        except Exception as error:  # noqa: BLE001  as in _prepare
            work.forget_pattern()
            work.fail(error)

    def _answer(self, wanted: MapsWanted) -> None:
        work = self._work.get(wanted.acquisition_id)
        try:
            maps = None if work is None else work.maps()
            if work is None or maps is None:
                wanted.answer.set_result(None)
            else:
                wanted.answer.set_result(work.finished_maps(maps) | {"sum": maps.sum})
        except Exception as error:  # noqa: BLE001  it is the asker's to hear
            wanted.answer.set_exception(error)

    def _keep_raw(self, work: Work, item: Frames) -> Frames:
        """Frames that were held come by a second time."""
        if self._raw_ring is None or not work.acquisition.plan.reduction.keep_raw or item.kept:
            return item
        return replace(item, batch=self._raw_ring.offer(work.acquisition_id, item.batch), kept=True)

    # ---- reducing: all threads at once --------------------------------------------------------

    def _process(self, place: int, task: Task) -> None:
        work, batch = task.work, task.batch
        try:
            if work.failed is None:
                reducer = work.reducers[place]
                for run in batch.runs:
                    for part in parts_of(run, reducer.max_frames):
                        self._stages.reduce(task, reducer, part)
        except Exception as error:  # noqa: BLE001  the acquisition ends with exact accounting, the next has its chance
            work.fail(error)
        finally:
            task.release()
            self._wait_more(-1)
            self._turns.wait(task.turn)
            self._storing.receive(work, batch)
            self._turns.end()
