"""The control agent with everything around it played: driver, detector side, link, clock and log."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nextem.edge.control import agent as agent_module
from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.driver import DriverError, DriverRefused, DriverUnreachable
from nextem.edge.control.limits import Limits, default_limits
from nextem.edge.control.link import LinkCalls, LinkTimes
from nextem.v1.acquisition_pb2 import (
    FINISH_REASON_COMPLETE,
    FINISH_REASON_FAILED,
    FINISH_REASON_INCOMPLETE,
    FINISH_REASON_STOPPED,
    AcquisitionFinished,
    FinishReason,
)
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    COMMAND_STATE_UNKNOWN,
    Cause,
    Command,
    EdgeMessage,
    Heartbeat,
    InstrumentState,
    Lease,
    LeaseRequest,
    Optics,
    Outcome,
    Stage,
    SteeringEvent,
    SteeringMessage,
    Stop,
)
from nextem.v1.plan_pb2 import Plan, Scan
from nextem.wire.ids import uuid7
from nextem.wire.log import AUDIT, Consumer, FatalLogError, LogUnavailable, Position

WAIT_S = 20.0
DOSE_E = 2000.0  # of PLAN
PLAN = Plan(
    schema_version=1, scan=Scan(size_y=4, size_x=5, step_nm=1.0, dwell_s=1e-3), dose_e_per_frame=100.0
)


@dataclass
class HandClock:
    """A clock that stands still until it is moved."""

    time_ns: int = 1_000_000_000_000
    boot_id: str = "boot-1"

    def now_ns(self) -> int:
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
        return self._do("move_stage", command_epoch)

    def set_optics(self, command_epoch: int, to: Optics) -> InstrumentState:
        return self._do("set_optics", command_epoch)

    def define_scan(
        self, command_epoch: int, scan_id: str, scan: Scan, dose_e_per_frame: float
    ) -> InstrumentState:
        return self._do("define_scan", command_epoch, scan_id)

    def start(self, command_epoch: int, scan_id: str) -> InstrumentState:
        return self._do("start", command_epoch, scan_id)

    def stop(self, command_epoch: int, reason: str) -> InstrumentState:
        return self._do("stop", command_epoch)


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
        self.events.append(SteeringEvent.FromString(value))
        return FakeAppended(self.promise_error)

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

    def close(self) -> None:
        pass


@dataclass
class Rig:
    """One agent and all that is played around it."""

    folder: Path
    limits: Limits | Path = field(default_factory=default_limits)
    margin_s: float = WAIT_S
    clock: HandClock = field(default_factory=HandClock)
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
            margin_s=self.margin_s,
        )
        self.agent = ControlAgent(
            options, self.driver, self.acquisitions, self.clock, self.log, make_link=self._make_link
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


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(folder: Path = tmp_path, **fields: Any) -> Rig:
        rigs.append(Rig(folder, **fields))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
    assert control_threads() == []


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()


# ---- the good way -------------------------------------------------------------------------------


def test_an_acquire_is_defined_then_expected_then_started_then_done(rig: Rig) -> None:
    cause = Cause(edge_boot_id="boot-1", last_byte_ns=rig.clock.time_ns - 12_500_000)
    command_id = rig.acquire(cause=cause)
    started = rig.until(command_id, COMMAND_STATE_STARTED)
    assert started.at_driver_ns == started.received_ns == rig.clock.time_ns
    assert started.loop_latency_ms == 12.5
    assert started.command_epoch == 1
    running = rig.acquisitions.next()
    running.end()
    done = rig.until(command_id)
    assert running.triggered
    name = done.acquisition_id
    assert rig.calls == [f"define_scan {name}", f"expect {name}", f"start {name}"]
    assert (done.state, done.rule, done.detail) == (COMMAND_STATE_DONE, "", "")
    assert (done.loop_latency_ms, done.command_epoch) == (12.5, 1)
    assert done.accounting.frames_stored == 20
    assert done.accounting.summed_pattern == b""  # it is on the log, and too large for here
    assert rig.heartbeat().dose_used_e == DOSE_E


@pytest.mark.parametrize(
    "action",
    [
        {"move_stage": Stage(x_nm=5.0)},
        {"set_optics": Optics(energy_kv=200.0, convergence_mrad=1.0)},
    ],
)
def test_a_move_is_done_when_the_driver_has_done_it(rig: Rig, action: dict[str, Any]) -> None:
    outcome = rig.until(rig.send(rig.command(**action)))
    assert outcome.state == COMMAND_STATE_DONE
    assert rig.calls == list(action)
    assert rig.heartbeat().dose_used_e == 0.0


def test_acquisitions_run_one_at_a_time_in_order(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    rig.until(second, COMMAND_STATE_STARTED)
    running = rig.acquisitions.next()
    assert [call.split()[0] for call in rig.calls].count("start") <= 1
    running.end()
    one = rig.until(first)
    rig.acquisitions.next().end()
    two = rig.until(second)
    starts = [call for call in rig.calls if call.startswith("start")]
    assert starts == [f"start {one.acquisition_id}", f"start {two.acquisition_id}"]


def test_a_latency_is_only_told_on_our_own_clock(rig: Rig) -> None:
    cause = Cause(edge_boot_id="another", last_byte_ns=5)
    assert rig.until(rig.acquire(cause=cause), COMMAND_STATE_STARTED).loop_latency_ms == 0.0
    rig.acquisitions.next().end()


def test_the_epoch_goes_on_above_what_the_instrument_remembers(rig: Rig) -> None:
    rig.driver.state.command_epoch = 500
    outcome = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (outcome.state, outcome.command_epoch) == (COMMAND_STATE_DONE, 501)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rule", "detail"),
    [
        ({"not_after_ns": 999_990_000_000}, "deadline", "10.000 ms late"),
        ({"edge_boot_id": "old"}, "boot_id", "not of 'boot-1'"),
        ({"lease_epoch": 99}, "lease", "epoch 99 is not the newest one"),
        ({"expected_state_version": 6}, "expected_state_version", "the instrument is at 7"),
        ({"acquire": None, "move_stage": Stage(x_nm=1.2e6)}, "limit:stage.x_nm", "1200000.0 > 1000000.0"),
        ({"command_id": ""}, "command_id", "length 0"),
        ({"acquire": None}, "action", "nothing that this edge knows"),
    ],
)
def test_a_refused_command_never_reaches_the_driver(
    rig: Rig, changes: dict[str, Any], rule: str, detail: str
) -> None:
    outcome = rig.until(rig.send(rig.command(**{"acquire": PLAN, **changes})))
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_REJECTED, rule)
    assert detail in outcome.detail
    assert rig.calls == []
    assert rig.heartbeat().dose_used_e == 0.0


def test_the_dose_budget_counts_what_was_accepted_before(make_rig: MakeRig) -> None:
    rig = make_rig(limits=replace(default_limits(), dose_budget_e=1.5 * DOSE_E))
    rig.until(rig.acquire(), COMMAND_STATE_STARTED)
    refused = rig.until(rig.acquire())
    assert (refused.rule, refused.detail) == ("dose_budget", "2000 used + 2000 planned > 3000 e")


def test_commands_a_minute_are_counted_and_forgotten_after_one(make_rig: MakeRig) -> None:
    rig = make_rig(limits=replace(default_limits(), commands_per_minute=2))
    outcomes = [rig.until(rig.send(rig.command(move_stage=Stage()))) for _ in range(3)]
    assert [outcome.rule for outcome in outcomes] == ["", "", "limit:commands_per_minute"]
    rig.clock.time_ns += 61_000_000_000
    rig.lease = Lease()
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE


def test_without_readable_limits_everything_but_stop_is_refused(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(limits=tmp_path / "missing.json")
    refused = rig.until(rig.acquire())
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "limits_unreadable")
    assert "missing.json" in refused.detail
    assert rig.until(rig.send(rig.command(stop=Stop()))).state == COMMAND_STATE_DONE
    assert rig.link.calls.hello().limits_digest == ""


def test_an_instrument_whose_state_cannot_be_read_is_not_commanded(rig: Rig) -> None:
    rig.driver.errors["get_state"] = DriverUnreachable("gone")
    refused = rig.until(rig.acquire())
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "driver_unreachable")
    assert not rig.heartbeat().HasField("state")
    assert rig.calls == []


def test_late_after_the_journal_is_late(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    start = rig.agent._journal.start

    def slow(*args: Any, **kwargs: Any) -> Outcome:
        rig.clock.time_ns += 6_000_000_000
        return start(*args, **kwargs)

    monkeypatch.setattr(rig.agent._journal, "start", slow)
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "deadline")
    assert outcome.detail == "1000.000 ms late"
    assert rig.calls == []
    assert rig.heartbeat().dose_used_e == 0.0


def test_without_a_journal_nothing_but_stop_works(rig: Rig) -> None:
    command = rig.command(acquire=PLAN)
    rig.agent._journal.close()
    refused = rig.until(rig.send(command))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "journal")
    assert rig.calls == []
    assert rig.ask_lease("ben", 1000).refused.startswith("lease: held by 'anna'")
    rig.clock.time_ns += 120_000_000_000
    assert "the journal is closed" in rig.ask_lease("ben", 1000).refused
    assert rig.until(rig.send(rig.command(stop=Stop()))).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop"]


def test_too_many_waiting_commands_are_refused_at_the_door(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_MOST_COMMANDS", 1)
    rig = make_rig()
    entered, go_on = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    rig.driver.hooks["move_stage"] = block
    slow = rig.send(rig.command(move_stage=Stage()))
    assert entered.wait(WAIT_S)
    waiting, refused = rig.acquire(not_after_ns=1), rig.acquire()
    assert rig.until(refused).rule == "inbox"
    go_on.set()
    assert rig.until(slow).state == COMMAND_STATE_DONE
    assert rig.until(waiting).rule == "deadline"


# ---- never twice --------------------------------------------------------------------------------


def test_a_repeat_is_answered_from_the_record(rig: Rig) -> None:
    command = rig.command(acquire=PLAN)
    rig.send(command)
    rig.acquisitions.next().end()
    done = rig.until(command.command_id)
    again = Command()
    again.CopyFrom(command)
    again.not_after_ns, again.lease_epoch, again.edge_boot_id = 1, 99, "boot-0"  # none changes what it does
    rig.send(again)
    assert rig.until(command.command_id) == done
    assert [call.split()[0] for call in rig.calls] == ["define_scan", "expect", "start"]


def test_a_repeat_while_it_runs_says_started(rig: Rig) -> None:
    command = rig.command(acquire=PLAN)
    rig.send(command)
    running = rig.acquisitions.next()
    started = rig.until(command.command_id, COMMAND_STATE_STARTED)
    rig.send(command)
    assert rig.until(command.command_id, COMMAND_STATE_STARTED) == started
    running.end()
    assert rig.until(command.command_id).state == COMMAND_STATE_DONE


def test_an_id_with_other_content_is_refused_and_the_record_stays(rig: Rig) -> None:
    command = rig.command(move_stage=Stage(x_nm=1.0))
    rig.send(command)
    rig.until(command.command_id)
    other = Command()
    other.CopyFrom(command)
    other.move_stage.x_nm = 2.0
    rig.send(other)
    refused = rig.until(command.command_id)
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "digest")
    assert command.command_id in refused.detail
    rig.send(command)
    assert rig.until(command.command_id).state == COMMAND_STATE_DONE
    assert rig.calls == ["move_stage"]


def test_after_a_crash_a_started_command_is_unknown_and_not_run_again(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    rig = make_rig()
    command = rig.command(acquire=PLAN)
    rig.send(command)
    running = rig.acquisitions.next()
    rig.until(command.command_id, COMMAND_STATE_STARTED)
    folder = tmp_path / "as the disk had it"
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(tmp_path / f"journal.db{suffix}", folder / f"journal.db{suffix}")
    running.end()

    after = make_rig(folder, clock=HandClock(boot_id="boot-2"))
    assert [(o.command_id, o.state) for o in after.link.calls.undelivered()] == [
        (command.command_id, COMMAND_STATE_UNKNOWN)
    ]
    after.send(command)
    outcome = after.until(command.command_id)
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_UNKNOWN, "edge_restarted")
    assert after.calls == []
    assert after.heartbeat().dose_used_e == DOSE_E  # it may have run


# ---- failures -----------------------------------------------------------------------------------


def test_a_scan_that_the_driver_refuses_costs_nothing(rig: Rig) -> None:
    rig.driver.errors["define_scan"] = DriverRefused("DefineScan: OUT_OF_RANGE: step_nm")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "driver_refused")
    assert outcome.detail == "DefineScan: OUT_OF_RANGE: step_nm"
    assert rig.heartbeat().dose_used_e == 0.0


def test_a_refused_start_ends_what_the_detector_side_expects(rig: Rig) -> None:
    rig.driver.errors["start"] = DriverRefused("busy")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "driver_refused")
    expected = rig.acquisitions.next()
    assert (expected.stopped_for, expected.triggered) == (["busy"], False)
    assert rig.heartbeat().dose_used_e == 0.0


def test_a_start_without_an_answer_is_stopped_and_keeps_its_dose(rig: Rig) -> None:
    rig.driver.errors["start"] = DriverUnreachable("DEADLINE_EXCEEDED")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "driver_unreachable")
    assert rig.calls[-1] == "stop"
    assert rig.heartbeat().dose_used_e == DOSE_E


def test_a_busy_detector_side_fails_the_command_and_the_next_one_runs(rig: Rig) -> None:
    def busy(acquisition: FakeAcquisition) -> None:
        raise RuntimeError("a passive acquisition is in progress")

    rig.acquisitions.each = busy
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "detector")
    assert outcome.detail == "RuntimeError: a passive acquisition is in progress"
    assert rig.heartbeat().dose_used_e == 0.0
    rig.acquisitions.each = FakeAcquisition.end
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE


@pytest.mark.parametrize(
    ("reason", "rule"),
    [
        (FINISH_REASON_INCOMPLETE, "incomplete"),
        (FINISH_REASON_FAILED, "detector"),
        (FINISH_REASON_STOPPED, "stopped"),
    ],
)
def test_an_acquisition_that_is_not_whole_fails_with_its_accounting(
    rig: Rig, reason: FinishReason, rule: str
) -> None:
    rig.acquisitions.each = lambda acquisition: acquisition.end(reason, 17, "Truncated: header 18")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, rule)
    assert outcome.detail == "Truncated: header 18; 17 of 20 frames stored"
    assert (outcome.accounting.frames_stored, outcome.accounting.frames_lost) == (17, 3)


def test_an_acquisition_in_which_nothing_moves_is_given_up(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "time_out")
    assert outcome.accounting.frames_stored == 3
    assert rig.calls[-1] == "stop"


def test_a_detector_side_that_never_answers_does_not_hang_the_runner(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    rig.acquisitions.each = lambda acquisition: setattr(acquisition, "ends_on_stop", False)
    outcome = rig.until(rig.acquire())
    assert outcome.rule == "time_out"
    assert not outcome.HasField("accounting")
    rig.acquisitions.each = FakeAcquisition.end
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE


def test_a_slow_scan_is_waited_for_as_long_as_frames_come(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    running: list[FakeAcquisition] = []
    state = rig.driver.state

    def begin() -> None:
        state.scanning, state.scan_id = True, running[0].acquisition_id

    def advance() -> None:
        """Every look at the running scan finds more frames; at the third it is over."""
        state.frames_sent += state.scanning
        if state.frames_sent == 3:
            state.scanning = False
            running[0].end()

    rig.acquisitions.each = running.append
    rig.driver.hooks.update(start=begin, get_state=advance)
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE
    assert state.frames_sent == 3
    assert "stop" not in rig.calls


def test_a_scan_by_hand_is_waited_for_and_then_reported(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    rig.driver.state.MergeFrom(InstrumentState(scanning=True, scan_id="by hand"))
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "instrument_busy")
    assert outcome.detail == "scan 'by hand' is still running after 0.05 s"
    assert rig.heartbeat().dose_used_e == 0.0


# ---- leases -------------------------------------------------------------------------------------


def test_what_waits_under_an_expired_lease_does_not_start(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    rig.until(second, COMMAND_STATE_STARTED)
    running = rig.acquisitions.next()
    rig.clock.time_ns += 61_000_000_000
    running.end()
    assert rig.until(first).state == COMMAND_STATE_DONE
    outcome = rig.until(second)
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "lease")
    assert "expired 1000.000 ms ago" in outcome.detail
    assert rig.heartbeat().dose_used_e == DOSE_E


def test_what_waits_under_a_lease_given_back_does_start(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    rig.until(second, COMMAND_STATE_STARTED)
    assert rig.ask_lease("anna", 0).refused == ""
    assert rig.ask_lease("ben").epoch == 2
    rig.acquisitions.next().end()
    rig.acquisitions.next().end()
    assert rig.until(first).state == rig.until(second).state == COMMAND_STATE_DONE


# ---- stop ---------------------------------------------------------------------------------------


def test_stop_overtakes_a_running_queue(rig: Rig) -> None:
    queued = [rig.acquire() for _ in range(4)]
    for command_id in queued:
        rig.until(command_id, COMMAND_STATE_STARTED)
    running = rig.acquisitions.next()
    stop = Command(command_id=uuid7(), stop=Stop(reason="drift"))  # no lease, no deadline, no name
    rig.send(stop)
    stopped = rig.until(stop.command_id)
    assert stopped.state == COMMAND_STATE_DONE
    assert stopped.command_epoch == 5
    outcomes = [rig.until(command_id) for command_id in queued]
    assert {(o.state, o.rule) for o in outcomes} == {(COMMAND_STATE_FAILED, "stopped")}
    assert running.stopped_for[0] == "drift"
    assert outcomes[0].detail.startswith("drift")
    assert outcomes[0].accounting.frames_stored == 3
    assert [o.detail for o in outcomes[1:]] == ["drift"] * 3
    assert len([call for call in rig.calls if call.startswith("start")]) <= 1
    assert "stop" in rig.calls
    rig.acquisitions.each = FakeAcquisition.end
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE


def test_stop_does_not_wait_for_a_slow_driver_call(rig: Rig) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    rig.driver.hooks["move_stage"] = block
    moving = rig.send(rig.command(move_stage=Stage()))
    behind = rig.acquire()
    assert entered.wait(WAIT_S)
    assert rig.until(rig.send(rig.command(stop=Stop(reason="no")))).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop"]
    go_on.set()
    fenced = rig.until(moving)  # its epoch is older than the stop's
    assert (fenced.state, fenced.rule, fenced.detail) == (COMMAND_STATE_FAILED, "stopped", "no")
    refused = rig.until(behind)
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "stopped")


def test_a_stop_while_a_scan_is_being_started_wins(rig: Rig) -> None:
    rig.driver.hooks["start"] = lambda: rig.agent.stop("from the console")
    command_id = rig.acquire()
    outcome = rig.until(command_id)
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
    assert "from the console" in outcome.detail


def test_a_start_that_crossed_the_stop_is_stopped_after_it(rig: Rig) -> None:
    """An instrument without a memory for epochs starts all the same; it is then stopped again."""

    def stop_and_forget() -> None:
        rig.agent.stop("from the console")
        rig.driver.state.command_epoch = 0

    rig.driver.hooks["start"] = stop_and_forget
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
    assert [call.split()[0] for call in rig.calls][-3:] == ["stop", "start", "stop"]


def test_a_stop_that_the_driver_does_not_take_is_tried_thrice_and_told(rig: Rig) -> None:
    rig.driver.errors["stop"] = DriverUnreachable("gone")
    outcome = rig.until(rig.send(rig.command(stop=Stop())))
    assert (outcome.state, outcome.rule, outcome.detail) == (
        COMMAND_STATE_FAILED,
        "driver_unreachable",
        "gone",
    )
    assert rig.calls == ["stop"] * 3


def test_a_repeated_stop_stops_again(rig: Rig) -> None:
    command = rig.command(stop=Stop())
    for _ in range(2):
        assert rig.until(rig.send(command)).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop", "stop"]


# ---- the edges of a life ------------------------------------------------------------------------


def test_close_stops_what_runs_and_tells_it(rig: Rig) -> None:
    running_id, waiting_id = rig.acquire(), rig.acquire()
    rig.until(waiting_id, COMMAND_STATE_STARTED)
    rig.acquisitions.next()
    rig.close()
    assert "stop" in rig.calls
    for command_id in (running_id, waiting_id):
        outcome = rig.until(command_id)
        assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
        assert outcome.detail.startswith("the edge is closing")
    assert rig.until(rig.acquire()).rule == "closing"
    assert control_threads() == []


def test_close_of_an_idle_agent_leaves_the_instrument_alone(rig: Rig) -> None:
    rig.close()
    assert rig.calls == []


def test_the_heartbeat_tells_state_dose_and_budget(rig: Rig) -> None:
    heartbeat = rig.heartbeat()
    assert heartbeat.edge_now_ns == rig.clock.time_ns
    assert heartbeat.state.state_version == 7
    assert heartbeat.dose_budget_e == default_limits().dose_budget_e
    hello = rig.link.calls.hello()
    assert (hello.instrument, hello.edge_boot_id) == ("tem", "boot-1")
    assert hello.limits_digest == default_limits().digest()


def test_confirmed_outcomes_are_not_sent_again(rig: Rig) -> None:
    command_id = rig.send(rig.command(move_stage=Stage()))
    rig.until(command_id)
    assert [o.command_id for o in rig.link.calls.undelivered()] == [command_id]
    rig.link.calls.delivered([command_id])
    rig.ask_lease()  # the desk answers in order, so the note is written
    assert rig.link.calls.undelivered() == []


# ---- audit --------------------------------------------------------------------------------------


def test_every_command_and_outcome_is_on_the_audit_topic(rig: Rig) -> None:
    done = rig.send(rig.command(move_stage=Stage()))
    refused = rig.acquire(not_after_ns=1)
    stop = rig.send(rig.command(stop=Stop()))
    for command_id in (done, refused, stop):
        rig.until(command_id)
    rig.close()
    commands = [event.command.command_id for event in rig.log.events if event.HasField("command")]
    outcomes = [event.outcome.command_id for event in rig.log.events if event.HasField("outcome")]
    assert sorted(commands) == sorted(outcomes) == sorted([done, refused, stop])


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("append_error", LogUnavailable("away")),
        ("append_error", FatalLogError("never")),
        ("promise_error", LogUnavailable("window full")),
    ],
)
def test_a_log_that_fails_stops_no_command_and_is_counted(rig: Rig, where: str, error: Exception) -> None:
    setattr(rig.log, where, error)
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE
    rig.close()
    assert rig.agent._audit.missed == 2
