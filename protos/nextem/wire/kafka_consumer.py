"""Reading from Apache Kafka. Used through :mod:`nextem.wire.kafka`, whose page says what it promises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nextem.wire.broker_log import CONNECT_S, next_offsets
from nextem.wire.kafka_client import (
    KafkaConsumer,
    MemberState,
    OffsetAndMetadata,
    TopicPartition,
    errors,
    made,
    translated,
)
from nextem.wire.kafka_loop import callers_client
from nextem.wire.log import LogError, OffsetOutOfRange, Position, Record

IDLE_CHECK_S = 5.0
SETTLE_S = 2.0


class KafkaLogConsumer:
    """A member of a consumer group, or a reader of everything. See :class:`nextem.wire.log.Consumer`."""

    def __init__(
        self,
        client: Mapping[str, Any],
        partitions: Sequence[TopicPartition],
        group: str | None,
        from_start: bool,
        acting: str,
    ) -> None:
        """``client``: settings of every client of this log; ``acting``: who reads, for messages."""
        self._group, self._partitions, self._as = group, partitions, acting
        self._returned: dict[TopicPartition, int] = {}
        self._uncommitted: dict[TopicPartition, int] = {}
        self._heard_at = time.monotonic()
        self._consumer = made(
            KafkaConsumer,
            callers_client,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # where to start is decided here, and a gap is never skipped silently
            fetch_max_wait_ms=250,  # the broker answers at once when there is something
            fetch_min_bytes=1,
            fetch_max_bytes=32 << 20,
            max_partition_fetch_bytes=8 << 20,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=500,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **client,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self._consumer.close, autocommit=False, timeout_ms=0)
            self._begin(from_start)
            undo.pop_all()

    def _begin(self, from_start: bool) -> None:
        if self._group is None:
            self._consumer.assign(self._partitions)
        else:
            _join_beside_work(self._consumer._coordinator)
            self._consumer.subscribe(sorted({partition.topic for partition in self._partitions}))
        # The newest record is the newest now, whenever a partition comes to be ours. Asking, after
        # subscribing, also tells the client the partitions: a group leader without them shares out none.
        ends = self._consumer.end_offsets(self._partitions, timeout_ms=CONNECT_S * 1000)
        self._ends = {} if from_start else ends
        if self._group is None:
            self._start(self._partitions)

    def poll(self, max_records: int = 500, timeout_s: float = 0.1) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            found: dict[TopicPartition, list[Any]] = {}
            with translated(f"poll{self._as}"):
                try:
                    left_ms = max(0.0, deadline - time.monotonic()) * 1000
                    found = self._consumer.poll(left_ms, max_records)
                except errors.NoOffsetForPartitionError as error:
                    self._resume(error.args[0])
                except errors.OffsetOutOfRangeError as error:
                    raise self._out_of_range(error.args[0]) from error
            if found or time.monotonic() >= deadline:
                return self._records(found)

    def commit(self, positions: Sequence[Position] | None = None) -> None:
        """Waits up to two seconds while the group rebalances; then what is still ours is committed at later
        polls.
        """
        done = dict(self._returned)
        if positions is not None:
            done = {TopicPartition(*place): offset for place, offset in next_offsets(positions).items()}
        if self._group is not None:
            self._uncommitted.update(done)
            self._commit(SETTLE_S)

    def seek(self, position: Position) -> None:
        ours = TopicPartition(position.topic, position.partition)
        if ours not in self._consumer.assignment():
            raise LogError(f"{position.topic}[{position.partition}] is not assigned to this member")
        self._returned.pop(ours, None)
        self._consumer.seek(ours, position.offset)

    def rewind(self) -> None:
        self._returned.clear()
        with translated("rewind"):
            self._resume(self._consumer.assignment())

    def assigned(self) -> frozenset[tuple[str, int]]:
        return frozenset((ours.topic, ours.partition) for ours in self._consumer.assignment() or ())

    def lag(self) -> int:
        mine = list(self._consumer.assignment())
        if not mine:
            return 0
        with translated("lag"):
            ends = self._consumer.end_offsets(mine, timeout_ms=CONNECT_S * 1000)
            return sum(max(0, ends[ours] - self._at(ours)) for ours in mine)

    def close(self) -> None:
        with translated("close"):
            self._consumer.close(autocommit=False, timeout_ms=CONNECT_S * 1000)

    def _at(self, ours: TopicPartition) -> int:
        """The offset that is read next."""
        try:
            return self._consumer.position(ours) or 0
        except errors.NoOffsetForPartitionError as error:  # it has been ours since just now
            self._resume(error.args[0])
            return self._consumer.position(ours) or 0

    def _records(self, found: Mapping[TopicPartition, list[Any]]) -> list[Record]:
        if self._uncommitted:
            self._commit(0.0)
        mine = self._consumer.assignment()
        self._returned = {ours: at for ours, at in self._returned.items() if ours in mine}
        records = []
        for ours, batch in found.items():
            self._returned[ours] = batch[-1].offset + 1
            for one in batch:
                position = Position(one.topic, one.partition, one.offset)
                records.append(Record(position, one.value or b"", one.key or b"", dict(one.headers)))
        if records:
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > IDLE_CHECK_S and self._partitions:
            self._heard_at = time.monotonic()
            with translated(f"no record for {IDLE_CHECK_S:g} s and no answer"):
                self._consumer.end_offsets(self._partitions[:1], timeout_ms=1000)
        return records

    def _commit(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        with translated(f"commit{self._as}"):
            while not self._committed():
                if time.monotonic() >= deadline:
                    return
                # Rejoins the group. The public way is to poll, which would take records nobody asked for.
                self._consumer._coordinator.poll(timeout_ms=50)
        self._uncommitted.clear()

    def _committed(self) -> bool:
        """Commits what is pending; False where the group is rebalancing."""
        mine = self._consumer.assignment()
        offsets = {
            ours: OffsetAndMetadata(at, "", -1) for ours, at in self._uncommitted.items() if ours in mine
        }
        if not offsets:
            # A rebalance takes all partitions away for a moment: only a settled group says what is not ours.
            return not self._uncommitted or self._consumer.group_metadata().state == MemberState.STABLE
        try:
            self._consumer.commit(offsets, timeout_ms=CONNECT_S * 1000)
        except (errors.CommitFailedError, errors.RebalanceInProgressError):
            return False
        return True

    def _resume(self, partitions: Iterable[TopicPartition]) -> None:
        """Goes to what the group committed, or to the start."""
        fresh = []
        for ours in partitions:
            committed = None
            if self._group is not None:
                committed = self._consumer.committed(ours, timeout_ms=CONNECT_S * 1000)
            if committed is None:
                fresh.append(ours)
            else:
                self._consumer.seek(ours, committed)
        self._start(fresh)

    def _start(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions without a commit start at the oldest record, or at the end noted at the beginning."""
        if self._ends:
            starts = {ours: self._ends[ours] for ours in partitions}
        else:
            starts = (
                self._consumer.beginning_offsets(list(partitions), timeout_ms=CONNECT_S * 1000)
                if partitions
                else {}
            )
        for ours, offset in starts.items():
            self._consumer.seek(ours, offset)

    def _out_of_range(self, wanted: Mapping[TopicPartition, int]) -> OffsetOutOfRange:
        oldest = self._consumer.beginning_offsets(list(wanted), timeout_ms=CONNECT_S * 1000)
        for ours in wanted:
            self._consumer.seek(ours, oldest[ours])
        ours, offset = next(iter(wanted.items()))
        return OffsetOutOfRange(ours.topic, ours.partition, offset, oldest[ours])


def _join_beside_work(coordinator: Any) -> None:
    """A group is joined, once that was begun, whether or not anybody polls.

    kafka-python (3.0) leaves a join that outlasts a poll where it is until the next, and sends no heartbeats
    before: who works meanwhile for longer than a session is thrown out of its group.
    """
    join, joining = coordinator.join_group_async, None

    async def join_or_go_on(timeout_ms: float | None = None) -> bool:
        nonlocal joining
        if joining is None or joining.succeeded():
            joining = coordinator._manager.call_soon(join)
        begun = joining
        try:
            joined: bool = await coordinator._manager.wait_for(begun, timeout_ms)
        except errors.KafkaTimeoutError:
            if begun.is_done:
                raise
            return False
        finally:
            joining = None if begun.is_done else begun  # a failure is told once
        return joined

    coordinator.join_group_async = join_or_go_on
