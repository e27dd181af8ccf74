"""Reading from Apache Kafka by confluent-kafka. Used through :mod:`nextem.wire.confluent`.

librdkafka keeps its own position; ours is :attr:`ConfluentConsumer._next`, and whatever moves it hands the
whole assignment over anew, which throws away what was fetched ahead.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from nextem.wire.broker_log import CONNECT_S, next_offsets
from nextem.wire.confluent_client import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
    error_of,
    logger,
    once_led,
    translate,
    translated,
)
from nextem.wire.ids import uuid7
from nextem.wire.log import LogError, LogUnavailable, OffsetOutOfRange, Position, Record

Place = tuple[str, int]
"""Topic and partition."""

IDLE_CHECK_S = 5.0
SETTLE_S = 2.0
RENEW_S = 15.0
"""After how long without any answer the client is made anew.

A broker that is starting may name no broker at all. librdkafka then forgets the ones that it knows, and most
times dials the addresses it was given; where it still ends connections to an older one it never does.
"""
_REJOINING = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._ASSIGNMENT_LOST,
}


class ConfluentConsumer:
    """A member of a consumer group, or a reader of everything. See :class:`nextem.wire.log.Consumer`."""

    def __init__(
        self,
        client: Mapping[str, str | int | float | bool],
        places: Sequence[Place],
        group: str | None,
        from_start: bool,
        acting: str,
    ) -> None:
        """``client``: settings of every client of this log; ``acting``: who reads, for messages."""
        self._group, self._places, self._as = group, places, acting
        self._next: dict[Place, int] = {}  # of our partitions, the offset that poll returns next
        self._unplaced: list[Place] = []  # ours too; where to start is not looked up yet
        self._before: dict[Place, int] = {}  # as _next was when the group began to share out anew
        self._moved = False  # whether librdkafka must be told where to read
        self._stable = False  # whether the group has shared out its partitions
        self._fetched: list[Message] = []
        self._returned: dict[Place, int] = {}
        self._uncommitted: dict[Place, int] = {}
        self._heard_at = time.monotonic()
        self._away_since: float | None = None  # when a poll first told so, and none has been well since
        self._settings = {
            **client,
            "group.id": group or f"reader.{uuid7()}",  # a reader of everything never joins it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # where to start is decided here; no gap is skipped silently
            "check.crcs": True,
            "fetch.wait.max.ms": 250,  # the broker answers at once when there is something
            "fetch.min.bytes": 1,
            "fetch.max.bytes": 32 << 20,
            "max.partition.fetch.bytes": 8 << 20,
            "queued.max.messages.kbytes": 32 << 10,
            "fetch.queue.backoff.ms": 20,
            "fetch.error.backoff.ms": 100,
            "socket.timeout.ms": int(CONNECT_S * 1000),
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 500,
            "allow.auto.create.topics": False,
        }
        self._consumer = Consumer(self._settings, logger=logger)
        # The newest record is the newest now, whenever a partition comes to be ours.
        self._ends = {} if from_start else self._offsets(places, OFFSET_END)
        if group is None:
            self._unplaced, self._moved = list(places), True
            self._place()
        else:
            self._join()

    def _join(self) -> None:
        self._consumer.subscribe(
            sorted({topic for topic, _ in self._places}),
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
        )

    def poll(self, max_records: int = 500, timeout_s: float = 0.1) -> list[Record]:
        try:
            records = self._poll(max_records, timeout_s)
        except LogUnavailable:
            now = time.monotonic()
            if self._away_since is None:
                self._away_since = now
            elif now - self._away_since > RENEW_S:
                self._away_since = None
                self._start_anew()
            raise
        if records:
            self._away_since = None
        return records

    def _poll(self, max_records: int, timeout_s: float) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            with translated(f"poll{self._as}"):
                self._fetch(max_records, max(0.0, deadline - time.monotonic()))
            records = self._records(max_records)
            if records or time.monotonic() >= deadline:
                break
        if self._uncommitted:
            self._commit(0.0)
        self._notice_silence(bool(records))
        return records

    def _start_anew(self) -> None:
        """With another client. A member has lost its partitions by now; a reader goes on where it was."""
        logger.warning("no answer for %g s, the client is made anew%s", RENEW_S, self._as)
        with contextlib.suppress(KafkaException):
            self._consumer.close()
        self._consumer = Consumer(self._settings, logger=logger)
        if self._group is None:
            self._fetched.clear()
            self._moved = True
            return
        self._give_all()
        self._before.clear()
        self._join()

    def commit(self, positions: Sequence[Position] | None = None) -> None:
        """Waits up to two seconds while the group rebalances; then what is still ours is committed at later
        polls.
        """
        done = dict(self._returned) if positions is None else next_offsets(positions)
        if self._group is not None:
            self._uncommitted.update(done)
            self._commit(SETTLE_S)

    def seek(self, position: Position) -> None:
        ours = (position.topic, position.partition)
        if ours not in self.assigned():
            raise LogError(f"{position.topic}[{position.partition}] is not assigned to this member")
        with translated("seek"):
            self._place()
            self._returned.pop(ours, None)
            self._next[ours] = position.offset
            self._assign()

    def rewind(self) -> None:
        with translated("rewind"):
            self._unplaced = sorted(self.assigned())
            self._returned.clear()
            self._next.clear()
            self._moved = True
            self._place()

    def assigned(self) -> frozenset[Place]:
        return frozenset(self._next) | frozenset(self._unplaced)

    def lag(self) -> int:
        with translated("lag"):
            self._place()
            ends = self._offsets(list(self._next), OFFSET_END)
        return sum(max(0, ends[ours] - offset) for ours, offset in self._next.items())

    def close(self) -> None:
        with translated("close"):
            self._consumer.close()

    # ---- what is ours --------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group gave us these. A look-up may fail, and must not in a callback: poll does it."""
        given = [(one.topic, one.partition) for one in partitions]
        self._next = {place: self._before[place] for place in given if place in self._before}
        self._returned = {place: at for place, at in self._returned.items() if place in self._next}
        self._unplaced = [place for place in given if place not in self._next]
        self._moved = self._stable = True
        consumer.assign([])

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group shares out anew, and takes everything away for that; what comes back goes on."""
        self._before = dict(self._next)
        self._give_all()
        consumer.unassign()

    def _give_all(self) -> None:
        self._moved = self._stable = False
        self._unplaced.clear()
        self._next.clear()
        self._fetched.clear()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Others may have had our partitions meanwhile: all of them start again from the commit."""
        self._revoked(consumer, partitions)
        self._before.clear()

    def _place(self) -> None:
        """Starts what is newly ours: at what the group committed, or at the start."""
        if not self._moved:
            return
        starts: dict[Place, int] = {}
        if self._group is not None and self._unplaced:
            asked = [TopicPartition(*place) for place in self._unplaced]
            for told in self._consumer.committed(asked, timeout=CONNECT_S):
                if told.error is not None:
                    raise KafkaException(told.error)
                if told.offset >= 0:
                    starts[told.topic, told.partition] = told.offset
        fresh = [place for place in self._unplaced if place not in starts]
        # Partitions without a commit start at the oldest record, or at the end noted at the beginning.
        starts |= (
            {place: self._ends[place] for place in fresh}
            if self._ends
            else self._offsets(fresh, OFFSET_BEGINNING)
        )
        self._next.update(starts)
        self._unplaced.clear()
        self._assign()

    def _assign(self) -> None:
        self._fetched.clear()
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._next.items()])
        self._moved = False

    def _offsets(self, places: Sequence[Place], which: int, timeout_s: float = CONNECT_S) -> dict[Place, int]:
        """The oldest or the next offset of each place."""
        if not places:
            return {}
        # Kafka takes the two special offsets for times too.
        asked = [TopicPartition(*place, which) for place in places]
        deadline = time.monotonic() + timeout_s
        return once_led(lambda: self._asked(asked, max(0.1, deadline - time.monotonic())), deadline)

    def _asked(self, asked: list[TopicPartition], timeout_s: float) -> dict[Place, int]:
        found = {}
        for told in self._consumer.offsets_for_times(asked, timeout=timeout_s):
            if told.error is not None:
                raise KafkaException(told.error)
            found[told.topic, told.partition] = told.offset
        return found

    # ---- records -------------------------------------------------------------------------------

    def _fetch(self, max_records: int, timeout_s: float) -> None:
        """Has something to return, unless nothing came within ``timeout_s``."""
        self._place()
        if self._fetched:
            return
        # consume() waits until it has all that was asked for; only poll() returns with the first.
        first = self._consumer.poll(timeout_s)
        if first is not None:
            self._fetched.append(first)
            if max_records > 1:
                self._fetched += self._consumer.consume(max_records - 1, 0)

    def _records(self, max_records: int) -> list[Record]:
        """Takes what was fetched. Raises :class:`OffsetOutOfRange` and :class:`LogError`."""
        taken, self._fetched = self._fetched[:max_records], self._fetched[max_records:]
        records: list[Record] = []
        for number, message in enumerate(taken):
            error = message.error()
            if error is not None and records:
                self._fetched = taken[number:] + self._fetched  # first what came before
                break
            if error is not None:
                self._told(error, (message.topic() or "", message.partition() or 0))
            elif (record := self._record(message)) is not None:
                records.append(record)
        return records

    def _record(self, message: Message) -> Record | None:
        """None for what is not ours any more, or was fetched before a move."""
        place, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
        if offset < self._next.get(place, offset + 1):
            return None
        self._next[place] = self._returned[place] = offset + 1
        headers = cast("dict[str, bytes]", dict(message.headers() or ()))
        return Record(Position(*place, offset), message.value() or b"", message.key() or b"", headers)

    def _told(self, error: KafkaError, place: Place) -> None:
        if error.code() != KafkaError._AUTO_OFFSET_RESET:
            raise translate(error, f"poll of {place[0]}[{place[1]}]{self._as}")
        if place not in self._next:
            return
        with translated("poll"):
            oldest = self._offsets([place], OFFSET_BEGINNING)[place]
            wanted, self._next[place] = self._next[place], oldest
            self._assign()
        raise OffsetOutOfRange(*place, wanted, oldest)

    def _notice_silence(self, heard: bool) -> None:
        if heard:
            self._heard_at = time.monotonic()
        elif time.monotonic() - self._heard_at > IDLE_CHECK_S and self._places:
            self._heard_at = time.monotonic()
            with translated(f"no record for {IDLE_CHECK_S:g} s and no answer"):
                self._offsets(self._places[:1], OFFSET_END, timeout_s=1.0)
            self._away_since = None

    # ---- commits -------------------------------------------------------------------------------

    def _commit(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        with translated(f"commit{self._as}"):
            while not self._committed():
                if time.monotonic() >= deadline:
                    return
                # Only polling lets the group go on; what it brings is returned by the next poll.
                message = self._consumer.poll(0.05)
                if message is not None:
                    self._fetched.append(message)
        self._uncommitted.clear()

    def _committed(self) -> bool:
        """Commits what is pending; False where the group is rebalancing."""
        mine = self.assigned()
        offsets = [
            TopicPartition(*place, offset) for place, offset in self._uncommitted.items() if place in mine
        ]
        if not offsets:
            # A rebalance takes all partitions away for a moment: only a settled group says what is not ours.
            return not self._uncommitted or self._stable
        try:
            _raise_any(self._consumer.commit(offsets=offsets, asynchronous=False))
        except KafkaException as error:
            if error_of(error).code() in _REJOINING:
                return False
            raise
        return True


def _raise_any(told: Iterable[TopicPartition]) -> None:
    for one in told:
        if one.error is not None:
            raise KafkaException(one.error)
