"""Leases that the edge takes for a rule of its own."""

from __future__ import annotations

from itertools import count

from agent_kit import HandClock

from nextem.edge.control.lease import OPTICS, STAGE, Lease, Leases
from nextem.v1.control_pb2 import LeaseRequest


def leases() -> tuple[Leases, HandClock]:
    clock, numbers = HandClock(), count(1)
    return Leases(clock, lambda: next(numbers)), clock


def test_the_edge_takes_only_what_nobody_holds() -> None:
    made, clock = leases()
    made.request(LeaseRequest(request_id="r", holder="anna", ttl_ms=1000, scopes=[STAGE]))
    assert isinstance(refused := made.hold("rule:follow", [STAGE]), str)
    assert refused.startswith("stage is held by 'anna'")
    assert isinstance(made.hold("rule:other", [OPTICS]), Lease)
    clock.time_ns += 2_000_000_000
    assert isinstance(made.hold("rule:follow", [STAGE]), Lease)


def test_while_a_rule_moves_nobody_else_gets_the_stage_and_no_holder_can_be_lost() -> None:
    made, clock = leases()
    lease = made.hold("rule:follow", [STAGE])
    assert isinstance(lease, Lease)
    asked = made.request(LeaseRequest(request_id="r", holder="anna", ttl_ms=1000, scopes=[STAGE]))
    assert "held by 'rule:follow'" in asked.refused
    clock.time_ns += 3_600_000_000_000
    assert made.lapse("silence") == []
    assert not made.any_remote()
    made.give_back(lease, [STAGE])
    assert made.request(LeaseRequest(request_id="r", holder="anna", ttl_ms=1000, scopes=[STAGE])).lease_id


def test_a_rule_never_gives_back_what_the_operator_has_taken_since() -> None:
    made, _ = leases()
    lease = made.hold("rule:follow", [STAGE])
    assert isinstance(lease, Lease)
    made.preempt("the operator", [STAGE])
    made.give_back(lease, [STAGE])
    newest = made.newest(STAGE)
    assert newest is not None
    assert (newest.holder, newest.ended) == ("the operator", "")
