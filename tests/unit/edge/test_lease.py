"""Leases: who may command, until when, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nextem.edge.control.lease import RETURN_TTL_MS, Leases, check_lease
from nextem.v1.control_pb2 import Lease as LeaseMessage
from nextem.v1.control_pb2 import LeaseRequest

MS = 1_000_000


@dataclass
class HandClock:
    """A clock that stands still until it is moved."""

    time_ns: int = 1_000 * MS
    boot_id: str = "boot"

    def now_ns(self) -> int:
        return self.time_ns


class Desk:
    """Leases with a clock and a counter at hand."""

    def __init__(self) -> None:
        self.clock, self.epoch = HandClock(), 0
        self.leases = Leases(self.clock, self._next)

    def _next(self) -> int:
        self.epoch += 1
        return self.epoch

    def ask(self, holder: str, ttl_ms: int = 1000) -> LeaseMessage:
        return self.leases.request(LeaseRequest(request_id="r", holder=holder, ttl_ms=ttl_ms))

    def check(self, lease: LeaseMessage) -> tuple[str, str] | None:
        return check_lease(lease.lease_id, lease.epoch, self.leases.newest(), self.clock.now_ns())


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_lease_is_good_until_it_expires(desk: Desk) -> None:
    lease = desk.ask("anna", 1000)
    assert (lease.request_id, lease.holder, lease.epoch, lease.refused) == ("r", "anna", 1, "")
    assert lease.expires_edge_ns == desk.clock.time_ns + 1000 * MS
    desk.clock.time_ns = lease.expires_edge_ns - 1
    assert desk.check(lease) is None
    desk.clock.time_ns = lease.expires_edge_ns + 5 * MS
    assert desk.check(lease) == ("lease", f"lease '{lease.lease_id}' epoch 1 expired 5.000 ms ago")


def test_the_holder_renews_and_keeps_the_epoch(desk: Desk) -> None:
    first = desk.ask("anna", 1000)
    desk.clock.time_ns += 400 * MS
    second = desk.ask("anna", 1000)
    assert (second.lease_id, second.epoch) == (first.lease_id, first.epoch)
    assert second.expires_edge_ns == first.expires_edge_ns + 400 * MS


def test_somebody_else_is_told_who_holds_it_and_until_when(desk: Desk) -> None:
    held = desk.ask("anna", 1000)
    refused = desk.ask("ben")
    assert refused.lease_id == ""
    assert refused.refused == (
        f"lease: held by 'anna' (epoch 1) until {held.expires_edge_ns} ns on the edge's clock,"
        " 1000 ms from now"
    )
    assert desk.check(held) is None


def test_after_expiry_the_next_one_gets_a_higher_epoch(desk: Desk) -> None:
    old = desk.ask("anna", 1000)
    desk.clock.time_ns += 1000 * MS
    new = desk.ask("ben")
    assert new.epoch == 2
    refusal = desk.check(old)
    assert refusal == ("lease", f"lease '{old.lease_id}' epoch 1 is not the newest one, epoch 2 of 'ben'")


def test_without_any_lease_nothing_is_commanded(desk: Desk) -> None:
    refusal = desk.check(LeaseMessage(lease_id="x", epoch=7))
    assert refusal == ("lease", "lease 'x' epoch 7: no lease was given since this edge started")


@pytest.mark.parametrize("ttl_ms", [0, RETURN_TTL_MS])
def test_given_back_is_free_at_once_and_what_was_accepted_may_start(desk: Desk, ttl_ms: int) -> None:
    old = desk.ask("anna")
    back = desk.ask("anna", ttl_ms)
    assert back.refused == ""
    assert back.expires_edge_ns == desk.clock.time_ns
    assert desk.check(old) == ("lease", f"lease '{old.lease_id}' epoch 1 was given back by 'anna'")
    assert desk.ask("ben").epoch == 2
    assert desk.leases.may_start(old.lease_id, old.epoch) is None


def test_what_waits_under_an_expired_lease_may_not_start(desk: Desk) -> None:
    lease = desk.ask("anna", 1000)
    assert desk.leases.may_start(lease.lease_id, lease.epoch) is None
    desk.clock.time_ns += 1000 * MS
    refusal = desk.leases.may_start(lease.lease_id, lease.epoch)
    assert refusal is not None
    assert refusal.rule == "lease"


@pytest.mark.parametrize(
    ("holder", "ttl_ms", "told"),
    [
        ("", 1000, "lease: the holder has no name"),
        ("anna", 4_000_000, "lease: ttl_ms 4000000 > 3600000"),
        ("anna", 0, "lease: ttl_ms 0 gives a lease back, and 'anna' holds none"),
    ],
)
def test_odd_requests_are_refused(desk: Desk, holder: str, ttl_ms: int, told: str) -> None:
    assert desk.ask(holder, ttl_ms).refused == told
    assert desk.epoch == 0


def test_no_lease_without_a_durable_epoch() -> None:
    def broken() -> int:
        raise OSError("disk full")

    leases = Leases(HandClock(), broken)
    with pytest.raises(OSError, match="disk full"):
        leases.request(LeaseRequest(holder="anna", ttl_ms=1000))
    assert leases.newest() is None


class OneHolderAtATime(RuleBasedStateMachine):
    """Whatever is asked and whenever: one holder at a time, and epochs that only grow."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.granted: list[LeaseMessage] = []

    @rule(holder=st.sampled_from(["anna", "ben", "eve"]), ttl_ms=st.sampled_from([0, 50, 200, 1000]))
    def ask(self, holder: str, ttl_ms: int) -> None:
        before = [lease for lease in self.granted if self.desk.check(lease) is None]
        answer = self.desk.ask(holder, ttl_ms)
        if answer.refused:
            return
        assert all(lease.holder == holder for lease in before)
        if self.granted:
            assert answer.epoch >= self.granted[-1].epoch
            assert (answer.epoch == self.granted[-1].epoch) == (answer.lease_id == self.granted[-1].lease_id)
        self.granted.append(answer)

    @rule(step_ms=st.integers(0, 600))
    def wait(self, step_ms: int) -> None:
        self.desk.clock.time_ns += step_ms * MS

    @invariant()
    def one_holder(self) -> None:
        assert len({lease.holder for lease in self.granted if self.desk.check(lease) is None}) <= 1


OneHolderAtATime.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestOneHolderAtATime = OneHolderAtATime.TestCase
