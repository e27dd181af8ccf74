from __future__ import annotations

import threading

import pytest

from nextem.steering.errors import SlowWatcher
from nextem.steering.mailbox import Mailbox, MailboxClosed, MailboxFull
from nextem.steering.watch import WatchQueue
from nextem.v1 import control_pb2


def heartbeat(now_ns: int) -> control_pb2.SteeringEvent:
    return control_pb2.SteeringEvent(heartbeat=control_pb2.Heartbeat(edge_now_ns=now_ns))


def outcome(name: str) -> control_pb2.SteeringEvent:
    return control_pb2.SteeringEvent(outcome=control_pb2.Outcome(command_id=name))


def test_order_and_what_goes_first() -> None:
    box: Mailbox[str] = Mailbox()
    box.put("a")
    box.put("b")
    box.put("stop", first=True)
    assert [box.get(), box.get(), box.get()] == ["stop", "a", "b"]


def test_a_full_box_refuses_but_not_a_stop() -> None:
    box: Mailbox[str] = Mailbox(limit=1)
    box.put("a")
    with pytest.raises(MailboxFull, match="1 items wait"):
        box.put("b")
    box.put("stop", first=True)
    assert box.get() == "stop"


def test_closing_gives_out_the_rest_then_the_reason() -> None:
    box: Mailbox[str] = Mailbox()
    box.put("a")
    box.close(ValueError("why"))
    box.close(ValueError("too late"))
    assert not box.put("b")
    assert box.get() == "a"
    with pytest.raises(MailboxClosed, match="why"):
        box.get()


def test_closing_may_discard() -> None:
    box: Mailbox[str] = Mailbox()
    box.put("a")
    box.close(discard=True)
    with pytest.raises(MailboxClosed) as closed:
        box.get()
    assert closed.value.reason is None


def test_closing_wakes_whoever_waits() -> None:
    box: Mailbox[str] = Mailbox()
    ended: list[object] = []

    def wait() -> None:
        try:
            box.get()
        except MailboxClosed as closed:
            ended.append(closed.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    box.close()
    thread.join()
    assert ended == [None]


def test_time_out() -> None:
    with pytest.raises(TimeoutError):
        Mailbox().get(timeout_s=0)
    with pytest.raises(TimeoutError):
        WatchQueue().get(timeout_s=0)


def test_a_slow_watcher_misses_heartbeats_first(caplog: pytest.LogCaptureFixture) -> None:
    queue = WatchQueue(limit=3)
    for event in (heartbeat(1), outcome("a"), heartbeat(2), outcome("b"), heartbeat(3), outcome("c")):
        queue.put(event)
    queue.close()
    got = [queue.get(), queue.get(), queue.get()]
    assert [e.outcome.command_id for e in got] == ["a", "b", "c"]
    assert queue.dropped_heartbeats == 3
    assert "misses heartbeats" in caplog.text


def test_a_watcher_that_would_lose_an_outcome_is_ended() -> None:
    queue = WatchQueue(limit=2)
    for name in "abc":
        queue.put(outcome(name))
    queue.put(heartbeat(1))
    assert [queue.get().outcome.command_id, queue.get().outcome.command_id] == ["a", "b"]
    with pytest.raises(MailboxClosed) as closed:
        queue.get()
    assert isinstance(closed.value.reason, SlowWatcher)
