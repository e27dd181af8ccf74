"""A lease is renewed while it is needed, and given back."""

from __future__ import annotations

import queue
from typing import Any

import grpc
import pytest

from nextem.v1.control_pb2 import LEASE_SCOPE_SCAN, Lease
from nextem.wire.leading import LeaseRefused, leading

WAIT_S = 30.0
SCOPES = [LEASE_SCOPE_SCAN]


class Away(grpc.RpcError):
    def __str__(self) -> str:
        return "away"


class Service:
    """Answers as ``answers`` say, the last one again and again."""

    def __init__(self, *answers: Lease | Away) -> None:
        self.answers = list(answers)
        self.asked = queue.SimpleQueue[tuple[str, int]]()
        self.given_back = 0

    def request_lease(self, holder: str, ttl_ms: int, **more: Any) -> Lease:
        self.asked.put((holder, ttl_ms))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Away):
            raise answer
        return answer

    def release_lease(self, holder: str, **more: Any) -> None:
        self.given_back += 1


LED = Lease(lease_id="l", epoch=7)


def test_it_is_renewed_and_given_back_also_when_the_work_fails() -> None:
    service = Service(LED)

    def work() -> None:
        with leading(service, "me", "tem", SCOPES, "", warn=print, ttl_ms=30) as lease:
            for _ in range(4):
                assert service.asked.get(timeout=WAIT_S) == ("me", 30)
            assert (lease.epoch, service.given_back) == (7, 0)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert service.given_back == 1


def test_a_refusal_says_who_leads() -> None:
    service = Service(Lease(refused="anna leads"))
    with (
        pytest.raises(LeaseRefused, match="anna leads"),
        leading(service, "me", "tem", SCOPES, "", warn=print),
    ):
        pass
    assert service.given_back == 0


def test_what_hinders_renewal_is_told_and_a_lost_lease_is_asked_for_no_more() -> None:
    service = Service(LED, Away(), Lease(refused="anna leads"))
    told = queue.SimpleQueue[str]()
    with leading(service, "me", "tem", SCOPES, "", warn=told.put, ttl_ms=30):
        assert told.get(timeout=WAIT_S) == "the lease is not renewed: away"
        assert told.get(timeout=WAIT_S) == "the lease is lost: anna leads"
    assert service.asked.qsize() == 3


def test_one_that_was_held_before_is_kept() -> None:
    service = Service(LED)
    with leading(service, "me", "tem", SCOPES, "", warn=print, held=frozenset({7})):
        pass
    assert service.given_back == 0
