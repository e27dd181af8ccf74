"""Leases: who may command, until when, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nextem.edge.control.lease import (
    ALL_SCOPES,
    OPTICS,
    SCAN,
    STAGE,
    Leases,
    check_lease,
)
from nextem.v1.control_pb2 import Lease as LeaseMessage
from nextem.v1.control_pb2 import LeaseRequest, LeaseScope
from nextem.wire.roles import RETURN_TTL_MS

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

    def ask(self, holder: str, ttl_ms: int = 1000, *scopes: LeaseScope) -> LeaseMessage:
        request = LeaseRequest(request_id="r", holder=holder, ttl_ms=ttl_ms, scopes=scopes)
        return self.leases.request(request)

    def check(self, lease: LeaseMessage, scope: LeaseScope = STAGE) -> tuple[str, str] | None:
        newest = self.leases.newest(scope)
        return check_lease(lease.lease_id, lease.epoch, newest, self.clock.now_ns())


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
    assert refused.refused == "lease: stage is held by 'anna' (epoch 1), for 1 s more unless renewed"
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
    assert desk.check(old) == ("lease", f"lease '{old.lease_id}' epoch 1 of 'anna' was given back")
    assert desk.ask("ben").epoch == 2
    assert desk.leases.may_start(old.lease_id, old.epoch, SCAN) is None


def test_what_waits_under_an_expired_lease_may_not_start(desk: Desk) -> None:
    lease = desk.ask("anna", 1000)
    assert desk.leases.may_start(lease.lease_id, lease.epoch, SCAN) is None
    desk.clock.time_ns += 1000 * MS
    refusal = desk.leases.may_start(lease.lease_id, lease.epoch, SCAN)
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
    assert leases.newest(STAGE) is None


def test_two_holders_share_the_instrument_by_scope(desk: Desk) -> None:
    agent = desk.ask("agent", 1000, SCAN)
    person = desk.ask("anna", 1000, STAGE, OPTICS)
    assert (list(agent.scopes), list(person.scopes)) == ([SCAN], [STAGE, OPTICS])
    assert desk.check(agent, SCAN) is None
    assert desk.check(person, STAGE) is None
    refusal = desk.check(agent, STAGE)
    assert refusal == ("lease", f"lease '{agent.lease_id}' epoch 1 is not the newest one, epoch 2 of 'anna'")
    assert desk.ask("agent", 1000, SCAN, STAGE).refused.startswith("lease: stage is held by 'anna' (epoch 2)")
    assert desk.ask("agent").refused.startswith("lease: stage is held by 'anna'")


def test_who_asks_for_more_gets_a_new_lease_and_who_asks_for_a_part_renews_the_whole(desk: Desk) -> None:
    small = desk.ask("anna", 1000, SCAN)
    large = desk.ask("anna", 1000, SCAN, STAGE)
    assert (small.epoch, large.epoch) == (1, 2)
    assert desk.check(small, SCAN) is not None
    part = desk.ask("anna", 2000, STAGE)
    assert (part.epoch, list(part.scopes)) == (2, [STAGE, SCAN])
    desk.clock.time_ns += 1500 * MS
    assert desk.check(large, SCAN) is None


def test_a_part_of_a_lease_is_given_back(desk: Desk) -> None:
    lease = desk.ask("anna", 1000, STAGE, SCAN)
    assert list(desk.ask("anna", 0, STAGE).scopes) == [STAGE]
    assert desk.check(lease, SCAN) is None
    assert desk.ask("ben", 1000, STAGE).refused == ""
    assert desk.ask("anna", 0).refused.startswith("lease: stage is held by 'ben'")
    assert desk.ask("anna", 0, SCAN).refused == ""


def test_a_scope_that_there_is_not_is_refused(desk: Desk) -> None:
    request = LeaseRequest(holder="anna", ttl_ms=1000)
    request.scopes.append(77)  # type: ignore[arg-type]  # as a newer service might
    assert desk.leases.request(request).refused == "lease: no scope has the number 77"


def test_the_operator_at_the_instrument_takes_a_scope_at_once_and_keeps_it(desk: Desk) -> None:
    lease = desk.ask("agent", 1000)
    local = desk.leases.preempt("operator", [STAGE])
    assert local.epoch == 2
    assert desk.check(lease, STAGE) is not None
    assert desk.leases.may_start(lease.lease_id, lease.epoch, STAGE) is not None
    assert desk.check(lease, SCAN) is None
    told = desk.ask("agent", 1000, STAGE).refused
    assert told == "lease: stage is held by 'operator' (epoch 2) at the instrument, until given back"
    desk.clock.time_ns += 10_000_000 * MS
    assert [x.holder for x in desk.leases.lapse("silence")] == ["agent"]
    assert desk.ask("operator", 0, STAGE).refused  # who only says to be the operator
    desk.leases.release()
    desk.leases.release()
    assert desk.ask("agent", 1000, STAGE).epoch == 3


def test_a_lapse_is_told_once_for_each_lease(desk: Desk) -> None:
    desk.ask("anna", 1000, STAGE)
    desk.ask("ben", 5000, SCAN, OPTICS)
    assert desk.leases.lapse() == []
    desk.clock.time_ns += 1000 * MS
    assert [(x.holder, x.ended) for x in desk.leases.lapse()] == [("anna", "expired")]
    assert desk.leases.any_remote()
    assert [(x.holder, x.ended) for x in desk.leases.lapse("no word")] == [("ben", "ended: no word")]
    assert desk.leases.lapse("no word") == []
    assert not desk.leases.any_remote()


def test_a_lapse_is_told_although_somebody_has_the_scope_already(desk: Desk) -> None:
    desk.ask("anna", 1000)
    desk.clock.time_ns += 1000 * MS
    desk.ask("ben")
    assert [x.holder for x in desk.leases.lapse()] == ["anna"]


def test_what_was_given_back_never_lapses(desk: Desk) -> None:
    desk.ask("anna", 1000)
    desk.ask("anna", 0)
    desk.clock.time_ns += 2000 * MS
    assert desk.leases.lapse("no word") == []


SCOPES = st.lists(st.sampled_from(sorted(ALL_SCOPES)), max_size=4, unique=True)


class OneHolderForEachScope(RuleBasedStateMachine):
    """Whatever is asked and whenever: one holder for each scope at a time, and epochs that only grow."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.granted: list[LeaseMessage] = []

    def good(self, lease: LeaseMessage, scope: LeaseScope) -> bool:
        return self.desk.check(lease, scope) is None

    @rule(
        holder=st.sampled_from(["anna", "ben", "eve"]),
        ttl_ms=st.sampled_from([0, 50, 200, 1000]),
        scopes=SCOPES,
    )
    def ask(self, holder: str, ttl_ms: int, scopes: list[LeaseScope]) -> None:
        wanted = scopes or sorted(ALL_SCOPES)
        before = {lease.holder for lease in self.granted for s in wanted if self.good(lease, s)}
        answer = self.desk.ask(holder, ttl_ms, *scopes)
        if answer.refused:
            return
        assert before <= {holder}
        known = {lease.epoch: lease.lease_id for lease in self.granted}
        assert known.get(answer.epoch, answer.lease_id) == answer.lease_id
        assert answer.epoch in known or answer.epoch > max(known, default=0)
        self.granted.append(answer)

    @rule(scopes=SCOPES)
    def preempt(self, scopes: list[LeaseScope]) -> None:
        self.desk.leases.preempt("operator", scopes)
        assert not any(self.good(lease, s) for lease in self.granted for s in scopes)

    @rule()
    def release(self) -> None:
        self.desk.leases.release()

    @rule(unheard=st.sampled_from(["", "silence"]))
    def lapse(self, unheard: str) -> None:
        self.desk.leases.lapse(unheard)
        if unheard:
            assert not any(self.good(lease, s) for lease in self.granted for s in ALL_SCOPES)

    @rule(step_ms=st.integers(0, 600))
    def wait(self, step_ms: int) -> None:
        self.desk.clock.time_ns += step_ms * MS

    @invariant()
    def one_holder(self) -> None:
        for scope in ALL_SCOPES:
            assert len({lease.holder for lease in self.granted if self.good(lease, scope)}) <= 1


OneHolderForEachScope.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestOneHolderForEachScope = OneHolderForEachScope.TestCase
