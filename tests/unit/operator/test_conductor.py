"""Commands on their way to a steering service that is played."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from nextem.operator.conductor import DRY_RUN_S, REFUSED_S, STALE_S, Conductor
from nextem.operator.desired import Submit
from nextem.operator.experiment import Experiment
from nextem.operator.ledger import Ledger
from nextem.operator.observed import Instrument, Seen
from nextem.v1 import control_pb2 as pb

WAIT_S = 30.0


class Away(grpc.RpcError):
    """The service cannot be reached."""

    def __str__(self) -> str:
        return "away"


class Events:
    def __init__(self, heartbeat: pb.Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[pb.SteeringEvent]:
        yield pb.SteeringEvent(heartbeat=self._heartbeat)
        self._closed.wait(WAIT_S)

    def close(self) -> None:
        self._closed.set()


class FakeSteering:
    """Notes what it is asked. ``errors`` are raised by the next calls of ``submit``."""

    def __init__(self) -> None:
        self.heartbeat = pb.Heartbeat(mode=pb.MODE_AUTOMATIC)
        self.heartbeat.state.instrument = "tem"
        self.commands: list[pb.Command] = []
        self.errors: list[grpc.RpcError] = []
        self.dry_run = pb.Outcome(state=pb.COMMAND_STATE_VALIDATED)
        self.refuses = ""
        self.led: list[tuple[pb.LeaseScope, ...]] = []
        self.given_back = 0

    def watch(self, instrument: str = "") -> Events:
        return Events(self.heartbeat)

    @contextmanager
    def submit(self, command: pb.Command) -> Iterator[Iterable[pb.Outcome]]:
        self.commands.append(command)
        if self.errors:
            raise self.errors.pop()
        if command.validate_only:
            yield [self.dry_run]
            return
        done = command.HasField("set_optics")
        state = pb.COMMAND_STATE_DONE if done else pb.COMMAND_STATE_STARTED
        yield [pb.Outcome(command_id=command.command_id, state=state, acquisition_id="" if done else "a")]

    def request_lease(self, holder: str, ttl_ms: int, **more: Any) -> pb.Lease:
        if not self.refuses:
            self.led.append(tuple(more["scopes"]))
        return pb.Lease(holder=holder, lease_id="l", epoch=7, refused=self.refuses)

    def release_lease(self, holder: str, **more: Any) -> None:
        self.given_back += 1

    def stop(self, issuer: str, reason: str = "", *, instrument: str = "") -> pb.Outcome:
        return pb.Outcome(state=pb.COMMAND_STATE_DONE)


@pytest.fixture
def steering() -> FakeSteering:
    return FakeSteering()


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def conductor(steering: FakeSteering, ledger: Ledger, clock: list[float]) -> Iterator[Conductor]:
    conductor = Conductor(steering, ledger, "experiments", now_s=lambda: clock[0])
    yield conductor
    conductor.close()


EXPERIMENT = Experiment.of(
    {
        "metadata": {
            "namespace": "em", "name": "one", "uid": "6f1f3c2e-0c5b-4b57-9f0a-1f6f0b2b9f11",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"instrument": "tem", "plan": {"title": "t"}},
    }
)  # fmt: skip
FIRST = EXPERIMENT.command_id(1)


def until(holds: Callable[[], object]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def test_a_command_goes_under_a_lease_that_is_given_back_once_accepted(
    conductor: Conductor, steering: FakeSteering, ledger: Ledger
) -> None:
    conductor.submit(EXPERIMENT, Submit(1))
    until(lambda: steering.given_back)
    (command,) = steering.commands
    assert (command.command_id, command.issuer, command.lease_id, command.acquire.title) == (
        FIRST, "experiments", "l", "t",
    )  # fmt: skip
    assert steering.led == [(pb.LEASE_SCOPE_SCAN,)]
    seen = ledger.seen(FIRST)
    assert seen is not None
    assert seen.state == pb.COMMAND_STATE_STARTED
    until(lambda: not conductor.sending(FIRST))


def test_what_was_sent_in_vain_is_sent_again_under_the_same_id(
    conductor: Conductor, steering: FakeSteering
) -> None:
    steering.errors = [Away()]
    conductor.submit(EXPERIMENT, Submit(1))
    until(lambda: steering.given_back)
    assert [command.command_id for command in steering.commands] == [FIRST, FIRST]


def test_a_refused_lease_is_told_and_tried_again_later(
    conductor: Conductor, steering: FakeSteering, clock: list[float]
) -> None:
    steering.refuses = "the scan is held by 'anna'"
    conductor.submit(EXPERIMENT, Submit(1))
    until(lambda: conductor.refused(EXPERIMENT))
    assert "anna" in conductor.refused(EXPERIMENT)
    assert (steering.commands, steering.given_back) == ([], 0)
    clock[0] += REFUSED_S
    assert conductor.refused(EXPERIMENT) == ""


def test_a_dry_run_asks_for_no_lease_and_is_in_no_ledger(
    conductor: Conductor, steering: FakeSteering, ledger: Ledger
) -> None:
    assert conductor.verdict(EXPERIMENT) is None
    conductor.dry_run(EXPERIMENT)
    until(lambda: conductor.verdict(EXPERIMENT))
    (command,) = steering.commands
    assert (command.validate_only, command.lease_id, command.acquire.title) == (True, "", "t")
    assert command.command_id != FIRST
    assert (steering.led, ledger.seen(command.command_id)) == ([], None)


def test_a_dry_run_that_is_refused_is_tried_again_much_later_and_one_that_passed_is_not(
    conductor: Conductor, steering: FakeSteering, clock: list[float]
) -> None:
    steering.dry_run = pb.Outcome(state=pb.COMMAND_STATE_REJECTED, rule="mode", detail="observe")
    conductor.dry_run(EXPERIMENT)
    until(lambda: conductor.verdict(EXPERIMENT))
    assert conductor.verdict(EXPERIMENT) == Seen(pb.COMMAND_STATE_REJECTED, "mode", "observe")
    clock[0] += DRY_RUN_S
    assert conductor.verdict(EXPERIMENT) is None
    steering.dry_run = pb.Outcome(state=pb.COMMAND_STATE_VALIDATED)

    def asked() -> Seen | None:
        conductor.dry_run(EXPERIMENT)
        return conductor.verdict(EXPERIMENT)

    until(asked)
    clock[0] += DRY_RUN_S
    assert conductor.verdict(EXPERIMENT) == Seen(pb.COMMAND_STATE_VALIDATED)


def test_a_dry_run_that_nobody_answers_says_nothing(conductor: Conductor, steering: FakeSteering) -> None:
    steering.errors = [Away()]
    conductor.dry_run(EXPERIMENT)
    until(lambda: steering.commands)
    assert conductor.verdict(EXPERIMENT) is None


def test_the_beam_is_turned_on_with_the_optics_as_they_are(
    conductor: Conductor, steering: FakeSteering
) -> None:
    steering.heartbeat.state.optics.CopyFrom(pb.Optics(energy_kv=300.0, beam_blanked=True))
    until(lambda: conductor.instrument("tem").blanked)
    conductor.submit(EXPERIMENT, Submit(2, unblank=True))
    until(lambda: steering.given_back)
    first, second = steering.commands
    assert (first.set_optics.energy_kv, first.set_optics.beam_blanked) == (300.0, False)
    assert first.expected_state_version == 0  # a rule's blank is so not undone
    assert second.HasField("acquire")
    assert steering.led == [(pb.LEASE_SCOPE_SCAN, pb.LEASE_SCOPE_OPTICS)]


def test_an_instrument_is_as_its_last_heartbeat_says_while_that_is_new(
    conductor: Conductor, steering: FakeSteering, clock: list[float]
) -> None:
    steering.heartbeat.state.scanning = True
    steering.heartbeat.leases.add(holder="policy", scopes=[pb.LEASE_SCOPE_SCAN])
    steering.heartbeat.leases.add(holder="experiments", scopes=[pb.LEASE_SCOPE_SCAN])
    until(lambda: conductor.instrument("tem").attached)
    assert conductor.instrument("tem") == Instrument(scanning=True, led_by="policy")
    assert conductor.policy_leads("tem")
    clock[0] += STALE_S
    gone = conductor.instrument("tem")
    assert (gone.attached, "'tem'" in gone.why) == (False, True)
