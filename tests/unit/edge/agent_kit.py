"""What the tests of the control agent share: fakes at every boundary, and the agent between them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.driver import DriverError, DriverRefused
from nextem.edge.control.limits import Limits, default_limits
from nextem.edge.control.link import LinkCalls, LinkTimes
from nextem.edge.control.modes import RoleOf
from nextem.edge.control.rule_actions import KeepRaw, WatchedRules, keeps_nothing
from nextem.v1.acquisition_pb2 import (
    FINISH_REASON_COMPLETE,
    FINISH_REASON_STOPPED,
    AcquisitionFinished,
    FinishReason,
)
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_UNKNOWN,
    Command,
    EdgeMessage,
    Heartbeat,
    InstrumentState,
    Lease,
    LeaseRequest,
    Mode,
    Optics,
    Outcome,
    Stage,
    SteeringEvent,
    SteeringMessage,
)
from nextem.v1.plan_pb2 import Plan, Scan
from nextem.wire.ids import uuid7
from nextem.wire.log import AUDIT, Consumer, Position, Record
from nextem.wire.tokens import KeySet

WAIT_S = 20.0
DOSE_E = 2000.0  # of PLAN
PLAN = Plan(
    schema_version=1, scan=Scan(size_y=4, size_x=5, step_nm=1.0, dwell_s=1e-3), dose_e_per_frame=100.0
)


@dataclass
class HandClock:
    """A clock that stands still until it is moved, or goes on by ``step_ns`` with each look."""

    time_ns: int = 1_000_000_000_000
    boot_id: str = "boot-1"
    step_ns: int = 0

    def now_ns(self) -> int:
        self.time_ns += self.step_ns
        return self.time_ns


class FakeDriver:
    """Writes down every call; refuses stale epochs, as the contract allows; fails where it is told to."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.state = InstrumentState(instrument="tem", state_version=7)
        self.errors: dict[str, DriverError] = {}
        self.hooks: dict[str, Callable[[], object]] = {}
        self._lock = threading.Lock()

    def _do(self, name: str, epoch: int, scan_id: str = "") -> InstrumentState:
        if hook := self.hooks.get(name):
            hook()
        with self._lock:
            self.calls.append(f"{name} {scan_id}".strip())
            if error := self.errors.get(name):
                raise error
            if epoch < self.state.command_epoch and name != "stop":
                raise DriverRefused(f"{name}: command_epoch {epoch} is older than {self.state.command_epoch}")
            self.state.command_epoch = max(epoch, self.state.command_epoch)
        return self.get_state()

    def get_state(self) -> InstrumentState:
        if hook := self.hooks.get("get_state"):
            hook()
        if error := self.errors.get("get_state"):
            raise error
        state = InstrumentState()
        state.CopyFrom(self.state)
        return state

    def move_stage(self, command_epoch: int, to: Stage) -> InstrumentState:
        self._do("move_stage", command_epoch)
        self.state.stage.CopyFrom(to)
        return self.get_state()

    def set_optics(self, command_epoch: int, to: Optics) -> InstrumentState:
        self._do("set_optics", command_epoch)
        self.state.optics.CopyFrom(to)
        return self.get_state()

    def define_scan(
        self, command_epoch: int, scan_id: str, scan: Scan, dose_e_per_frame: float
    ) -> InstrumentState:
        return self._do("define_scan", command_epoch, scan_id)

    def start(self, command_epoch: int, scan_id: str) -> InstrumentState:
        return self._do("start", command_epoch, scan_id)

    def stop(self, command_epoch: int, reason: str) -> InstrumentState:
        return self._do("stop", command_epoch)

    def blank_beam(self, command_epoch: int) -> InstrumentState:
        self._do("blank_beam", max(command_epoch, self.state.command_epoch + 1))
        self.state.optics.beam_blanked = True
        return self.get_state()


class FakeAcquisition:
    def __init__(self, acquisition_id: str) -> None:
        self.acquisition_id = acquisition_id
        self._finished: queue.Queue[AcquisitionFinished] = queue.Queue()
        self.stopped_for: list[str] = []
        self.ends_on_stop = True
        self.triggered = False

    def end(self, reason: FinishReason = FINISH_REASON_COMPLETE, stored: int = 20, error: str = "") -> None:
        self._finished.put(
            AcquisitionFinished(
                acquisition_id=self.acquisition_id,
                reason=reason,
                error=error,
                frames_announced=20,
                frames_stored=stored,
                frames_lost=20 - stored,
                summed_pattern=b"large",
            )
        )

    def trigger(self) -> None:
        self.triggered = True

    def wait(self, timeout_s: float) -> AcquisitionFinished | None:
        try:
            return self._finished.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def stop(self, reason: str) -> None:
        self.stopped_for.append(reason)
        if self.ends_on_stop and len(self.stopped_for) == 1:
            self.end(FINISH_REASON_STOPPED, stored=3)


class FakeAcquisitions:
    """``each`` sees every acquisition as it is expected; without it the test takes it from ``expected``."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.expected: queue.Queue[FakeAcquisition] = queue.Queue()
        self.each: Callable[[FakeAcquisition], None] | None = None

    def expect(self, acquisition_id: str, plan: Plan, command_id: str) -> FakeAcquisition:
        self.calls.append(f"expect {acquisition_id}")
        acquisition = FakeAcquisition(acquisition_id)
        if self.each is not None:
            self.each(acquisition)
        self.expected.put(acquisition)
        return acquisition

    def next(self) -> FakeAcquisition:
        return self.expected.get(timeout=WAIT_S)


class FakeAppended:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def done(self) -> bool:
        return True

    def result(self, timeout_s: float | None = None) -> Position:
        if self.error:
            raise self.error
        return Position(AUDIT, 0, 0)


class FakeLog:
    def __init__(self) -> None:
        self.events: list[SteeringEvent] = []
        self.records: list[Record] = []
        self.append_error: Exception | None = None
        self.promise_error: Exception | None = None

    def append(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes = b"",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> FakeAppended:
        assert topic == AUDIT
        if self.append_error:
            raise self.append_error
        if self.promise_error:
            return FakeAppended(self.promise_error)
        self.records.append(Record(Position(AUDIT, 0, len(self.records)), value, key, headers or {}))
        self.events.append(SteeringEvent.FromString(value))
        return FakeAppended()

    def flush(self, timeout_s: float = 30.0) -> None:
        raise AssertionError("nobody needs it")

    def partitions(self, topic: str) -> int:
        return 1

    def consumer(self, topics: object, group: str | None, *, from_start: bool = True) -> Consumer:
        raise AssertionError("the agent reads nothing")

    def close(self) -> None:
        raise AssertionError("the log is its owner's")


class FakeLink:
    """Keeps what the agent sends; hands over what a test receives."""

    def __init__(self, address: str, calls: LinkCalls, times: LinkTimes) -> None:
        self.calls = calls
        self.sent: queue.Queue[EdgeMessage] = queue.Queue()

    def start(self) -> None:
        pass

    def send(self, message: EdgeMessage) -> bool:
        self.sent.put(message)
        return True

    @property
    def answered(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass
class Rig:
    """One agent and all that is played around it."""

    folder: Path
    limits: Limits | Path = field(default_factory=default_limits)
    limits_key: Path | None = None
    margin_s: float = WAIT_S
    clock: HandClock = field(default_factory=HandClock)
    mode: Mode | None = None
    role_of: RoleOf | None = None
    keep_raw: KeepRaw = keeps_nothing
    watched_rules: WatchedRules = list
    key_set: KeySet | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        self.calls: list[str] = []
        self.driver = FakeDriver(self.calls)
        self.acquisitions = FakeAcquisitions(self.calls)
        self.log = FakeLog()
        self.seen: list[Outcome] = []
        options = ControlOptions(
            instrument="tem",
            steering="nowhere:1",
            instrument_address="nowhere:2",
            journal_path=self.folder / "journal.db",
            limits=self.limits,
            limits_key=self.limits_key,
            margin_s=self.margin_s,
            key_set=self.key_set,
            mode=self.mode,
        )
        self.agent = ControlAgent(
            options,
            self.driver,
            self.acquisitions,
            self.clock,
            self.log,
            make_link=self._make_link,
            role_of=self.role_of,
            keep_raw=self.keep_raw,
            watched_rules=self.watched_rules,
        )
        self.agent.start()
        self.lease = Lease()

    def _make_link(self, address: str, calls: LinkCalls, times: LinkTimes) -> FakeLink:
        self.link = FakeLink(address, calls, times)
        return self.link

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.agent.close()

    def ask_lease(self, holder: str = "anna", ttl_ms: int = 60_000) -> Lease:
        request = LeaseRequest(request_id="r", holder=holder, ttl_ms=ttl_ms)
        self.link.calls.receive(SteeringMessage(lease_request=request))
        while not (message := self.link.sent.get(timeout=WAIT_S)).HasField("lease"):
            self.seen.append(message.outcome)
        return message.lease

    def command(self, **changes: Any) -> Command:
        if not self.lease.lease_id:
            self.lease = self.ask_lease()
        fields: dict[str, Any] = {
            "command_id": uuid7(),
            "issuer": "test",
            "instrument": "tem",
            "lease_id": self.lease.lease_id,
            "lease_epoch": self.lease.epoch,
            "edge_boot_id": self.clock.boot_id,
            "not_after_ns": self.clock.time_ns + 5_000_000_000,
        }
        fields.update(changes)
        return Command(**fields)

    def send(self, command: Command) -> str:
        self.link.calls.receive(SteeringMessage(command=command))
        return command.command_id

    def acquire(self, **changes: Any) -> str:
        return self.send(self.command(acquire=PLAN, **changes))

    def until(self, command_id: str, *states: int) -> Outcome:
        """The first outcome of a command in one of ``states``; final ones unless told."""
        wanted = states or (
            COMMAND_STATE_DONE,
            COMMAND_STATE_FAILED,
            COMMAND_STATE_REJECTED,
            COMMAND_STATE_UNKNOWN,
        )
        while True:
            for place, outcome in enumerate(self.seen):
                if outcome.command_id == command_id and outcome.state in wanted:
                    return self.seen.pop(place)
            message = self.link.sent.get(timeout=WAIT_S)
            if message.HasField("outcome"):
                self.seen.append(message.outcome)

    def heartbeat(self) -> Heartbeat:
        return self.link.calls.heartbeat()


MakeRig = Callable[..., Rig]


def control_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("control-")]
