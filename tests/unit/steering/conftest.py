"""Surveys, maps, and a log and an edge that live in memory."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from nextem.steering.hub import Hub
from nextem.steering.look_closer import LookCloser
from nextem.steering.mailbox import MailboxClosed
from nextem.steering.policy import Suggestion
from nextem.steering.session import EdgeSession
from nextem.v1 import acquisition_pb2, control_pb2, frames_pb2, plan_pb2, product_pb2
from nextem.wire.log import Position, Record


class FakeClock:
    """Time that moves when told."""

    def __init__(self, now_ns: int = 10**12) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Surveys:
    """Makes the messages of one survey and drives a policy with them."""

    acquisition_id = "01890a5d-ac96-774b-bcce-b302099a8057"

    def started(
        self,
        size: int = 64,
        fine: int = 32,
        scans: int = 16,
        dose_budget_e: float | None = None,
        acquisition_id: str = acquisition_id,
        **parameters: object,
    ) -> acquisition_pb2.AcquisitionStarted:
        """A survey at every 8th position, fine scans at every one, 100 e a frame."""
        plan = plan_pb2.Plan(
            plan_id="survey",
            scan=plan_pb2.Scan(size_y=size, size_x=size, origin_y_nm=3.5, origin_x_nm=3.5, step_nm=8.0),
            dose_e_per_frame=500,
            steering=plan_pb2.SteeringPlan(
                policy="look_closer",
                max_acquisitions=scans,
                dose_budget_e=scans * fine**2 * 100 if dose_budget_e is None else dose_budget_e,
                fine=plan_pb2.Plan(
                    scan=plan_pb2.Scan(size_y=fine, size_x=fine, step_nm=1.0),
                    dose_e_per_frame=100,
                    steering=plan_pb2.SteeringPlan(policy="look_closer"),
                ),
            ),
        )
        # values alone end these surveys; the default waits for the finished product too
        plan.steering.parameters.update({"final_on": "one_model", "early_fraction": 0.5, **parameters})
        return acquisition_pb2.AcquisitionStarted(
            acquisition_id=acquisition_id, instrument="scope", plan=plan, edge_boot_id="boot-1"
        )

    def update(
        self,
        values: np.ndarray,
        first: int,
        count: int,
        revision: int = 1,
        last_byte_ns: int = 0,
        acquisition_id: str = acquisition_id,
    ) -> product_pb2.LiveUpdate:
        """The update for frames ``first .. first + count - 1`` of the map ``values``."""
        part = values.ravel()[first : first + count].astype("<f4")
        return product_pb2.LiveUpdate(
            acquisition_id=acquisition_id,
            analysis="novelty",
            revision=revision,
            frames=[frames_pb2.FrameRange(first=first, count=part.size)],
            values=part.tobytes(),
            frames_covered=first + part.size,
            edge_boot_id="boot-1",
            last_byte_ns=last_byte_ns or first + part.size,
        )

    def updates(self, values: np.ndarray, chunk: int) -> Iterator[product_pb2.LiveUpdate]:
        for first in range(0, values.size, chunk):
            yield self.update(values, first, chunk)

    def finished(
        self, stored: int, reason: int = acquisition_pb2.FINISH_REASON_COMPLETE
    ) -> acquisition_pb2.AcquisitionFinished:
        return acquisition_pb2.AcquisitionFinished(
            acquisition_id=self.acquisition_id, reason=reason, frames_announced=stored, frames_stored=stored
        )

    def run(
        self, values: np.ndarray, chunk: int = 97, **plan: object
    ) -> tuple[list[Suggestion], list[Suggestion]]:
        """What a fresh policy suggests (while the survey runs, at its end)."""
        policy = LookCloser()
        policy.started(self.started(size=values.shape[0], **plan))
        early = []
        for update in self.updates(values, chunk):
            policy.ingest(update)
            early += policy.suggest()
        assert len(early) == plan.get("scans", 16) or not policy.done()
        policy.ingest(self.finished(values.size))
        late = policy.suggest()
        assert policy.done()
        assert policy.suggest() == []
        return early, late


@dataclass
class FakeLog:
    """One partition a topic; groups with commits; blocks in poll until something comes."""

    topics: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    commits: dict[tuple[str, str], int] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def append(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes = b"",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        with self.changed:
            self.topics[topic].append(value)
            self.changed.notify_all()

    def consumer(self, topics: Sequence[str], group: str | None, *, from_start: bool = True) -> FakeConsumer:
        with self.changed:
            start = {t: 0 if from_start else len(self.topics[t]) for t in topics}
            start |= {t: self.commits[g, t] + 1 for g, t in self.commits if g == group and t in topics}
        return FakeConsumer(self, group or "", start)


@dataclass
class FakeConsumer:
    log: FakeLog
    group: str
    next: dict[str, int]

    def poll(self, max_records: int = 500, timeout_s: float = 0.1) -> list[Record]:
        with self.log.changed:
            self.log.changed.wait_for(self._behind, timeout_s)
            records = []
            for topic, start in self.next.items():
                for offset in range(start, min(len(self.log.topics[topic]), start + max_records)):
                    records.append(Record(Position(topic, 0, offset), self.log.topics[topic][offset]))
                    self.next[topic] = offset + 1
            return records

    def _behind(self) -> bool:
        return any(len(self.log.topics[t]) > n for t, n in self.next.items())

    def commit(self, positions: Sequence[Position] | None = None) -> None:
        with self.log.changed:
            for position in positions or ():
                self.log.commits[self.group, position.topic] = position.offset
            self.log.changed.notify_all()

    def assigned(self) -> frozenset[tuple[str, int]]:
        return frozenset((topic, 0) for topic in self.next)

    def close(self) -> None:
        """Nothing is held."""


class FakeEdge:
    """An edge at the hub, without a socket: grants leases, keeps commands, answers as ``answer`` says."""

    def __init__(
        self,
        hub: Hub,
        boot_id: str = "boot-1",
        now_ns: int = 10**9,
        answer: Sequence[int] = (control_pb2.COMMAND_STATE_STARTED, control_pb2.COMMAND_STATE_DONE),
        refuse: str = "",
    ) -> None:
        self.hub, self.answer, self.refuse = hub, answer, refuse
        self.commands: list[control_pb2.Command] = []
        self.leases: list[control_pb2.LeaseRequest] = []
        self.changed = threading.Condition()
        hello = control_pb2.EdgeHello(instrument="scope", edge_boot_id=boot_id, edge_now_ns=now_ns)
        self.session: EdgeSession = hub.attach(hello)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                message = self.session.outbox.get()
            except MailboxClosed:
                return
            with self.changed:
                if message.WhichOneof("message") == "command":
                    self.commands.append(message.command)
                elif message.WhichOneof("message") == "lease_request":
                    self.leases.append(message.lease_request)
                self.changed.notify_all()
            self._answer(message)

    def _answer(self, message: control_pb2.SteeringMessage) -> None:
        if message.WhichOneof("message") == "command":
            for state in self.answer:
                outcome = control_pb2.Outcome(command_id=message.command.command_id, state=state)
                self.hub.receive(self.session, control_pb2.EdgeMessage(outcome=outcome))
        elif message.WhichOneof("message") == "lease_request":
            request = message.lease_request
            lease = control_pb2.Lease(request_id=request.request_id, refused=self.refuse)
            if not self.refuse:
                lease.lease_id, lease.epoch, lease.holder = "lease", 7, request.holder
            self.hub.receive(self.session, control_pb2.EdgeMessage(lease=lease))

    def wait(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s)

    def close(self) -> None:
        self.hub.detach(self.session)
        self.thread.join()


@pytest.fixture(scope="session")
def surveys() -> Surveys:
    return Surveys()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def fake_edge() -> Iterator[Callable[..., FakeEdge]]:
    edges: list[FakeEdge] = []

    def make(hub: Hub, **options: object) -> FakeEdge:
        edges.append(FakeEdge(hub, **options))  # type: ignore[arg-type]
        return edges[-1]

    yield make
    for edge in edges:
        edge.close()
