from __future__ import annotations

import threading

import pytest

from nextem.steering.errors import (
    BadRequest,
    EdgeBusy,
    HubClosed,
    LeaseTimeout,
    NotAttached,
    Replaced,
)
from nextem.steering.hub import Hub
from nextem.steering.mailbox import Mailbox, MailboxClosed
from nextem.v1 import control_pb2

RECEIVED = control_pb2.COMMAND_STATE_RECEIVED
STARTED = control_pb2.COMMAND_STATE_STARTED
DONE = control_pb2.COMMAND_STATE_DONE


@pytest.fixture
def hub(clock) -> Hub:
    return Hub(clock)


def hello(boot_id: str = "boot-1", instrument: str = "scope", now_ns: int = 5_000) -> control_pb2.EdgeHello:
    return control_pb2.EdgeHello(instrument=instrument, edge_boot_id=boot_id, edge_now_ns=now_ns)


def command(name: str = "c-1", **fields: object) -> control_pb2.Command:
    given = {"instrument": "scope", "move_stage": control_pb2.Stage(x_nm=1)} | fields
    return control_pb2.Command(command_id=name, **given)


def answer(hub: Hub, session, name: str, *states: int) -> None:
    for state in states:
        message = control_pb2.Outcome(command_id=name, state=state)
        hub.receive(session, control_pb2.EdgeMessage(outcome=message))


def states(box: Mailbox) -> list[int]:
    got = []
    while len(box):
        got.append(box.get().state)
    return got


def test_a_command_reaches_its_edge_and_outcomes_come_back(hub: Hub) -> None:
    session = hub.attach(hello())
    box: Mailbox[control_pb2.Outcome] = Mailbox()
    hub.submit(command(), box)
    assert session.outbox.get().command.command_id == "c-1"
    answer(hub, session, "c-1", RECEIVED, STARTED, DONE)
    assert states(box) == [RECEIVED, STARTED, DONE]
    with pytest.raises(MailboxClosed):
        box.get()
    assert hub.waiting() == 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"command_id": ""}, BadRequest, "command_id is empty"),
        ({"instrument": "other"}, NotAttached, "no edge is attached for instrument 'other'"),
        ({"move_stage": None}, BadRequest, "has no action"),
    ],
)
def test_what_is_refused(hub: Hub, change, error, text) -> None:
    hub.attach(hello())
    bad = command()
    for name, value in change.items():
        bad.ClearField(name) if value is None else setattr(bad, name, value)
    with pytest.raises(error, match=text):
        hub.submit(bad, Mailbox())
    assert hub.waiting() == 0


def test_without_an_edge_nothing_is_accepted(hub: Hub) -> None:
    with pytest.raises(NotAttached):
        hub.submit(command(instrument=""), Mailbox())
    with pytest.raises(BadRequest, match="must name instrument"):
        hub.attach(control_pb2.EdgeHello(instrument="scope"))


def test_the_only_instrument_need_not_be_named(hub: Hub) -> None:
    first = hub.attach(hello())
    hub.submit(command(instrument=""), Mailbox())
    assert first.outbox.get().command.instrument == "scope"
    hub.attach(hello(instrument="other"))
    with pytest.raises(BadRequest, match=r"one of \['other', 'scope'\]"):
        hub.submit(command(instrument=""), Mailbox())


def test_deadline_is_set_on_the_edges_clock(hub: Hub, clock) -> None:
    session = hub.attach(hello(now_ns=5_000))
    clock.advance_s(1)
    hub.submit(command("a"), Mailbox())
    sent = session.outbox.get().command
    assert (sent.not_after_ns, sent.edge_boot_id) == (5_000 + 6 * 10**9, "boot-1")
    beat = control_pb2.Heartbeat(edge_now_ns=70 * 10**9)
    hub.receive(session, control_pb2.EdgeMessage(heartbeat=beat))
    assert session.outbox.get().heartbeat.edge_now_ns == beat.edge_now_ns
    clock.advance_s(2)
    hub.submit(command("b", valid_for_ms=250), Mailbox())
    assert session.outbox.get().command.not_after_ns == 72 * 10**9 + 250 * 10**6
    hub.submit(command("c", not_after_ns=9, edge_boot_id="boot-0"), Mailbox())
    kept = session.outbox.get().command
    assert (kept.not_after_ns, kept.edge_boot_id) == (9, "boot-0")
    view = hub.edge("scope")
    assert view is not None
    assert (view.boot_id, view.now_ns) == ("boot-1", 72 * 10**9)
    assert hub.edge("other") is None


def test_a_newer_attachment_replaces_and_takes_over_what_waits(hub: Hub) -> None:
    old = hub.attach(hello("boot-1"))
    boxes: list[Mailbox[control_pb2.Outcome]] = [Mailbox(), Mailbox(), Mailbox()]
    hub.submit(command("a"), boxes[0])
    hub.submit(command("b"), boxes[1])
    answer(hub, old, "a", STARTED)
    answer(hub, old, "b", DONE)
    hub.submit(command("halt", move_stage=None, stop=control_pb2.Stop()), boxes[2])
    new = hub.attach(hello("boot-2"))
    with pytest.raises(MailboxClosed) as closed:
        old.outbox.get()
    assert isinstance(closed.value.reason, Replaced)
    assert "boot-2" in str(closed.value.reason)
    assert [new.outbox.get().command.command_id for _ in range(2)] == ["halt", "a"]
    answer(hub, new, "a", STARTED, DONE)
    assert states(boxes[0]) == [STARTED, DONE]
    hub.detach(old)
    assert hub.edge("scope") is not None


def test_a_detached_edge_loses_no_outcome(hub: Hub) -> None:
    first = hub.attach(hello())
    box: Mailbox[control_pb2.Outcome] = Mailbox()
    hub.submit(command(), box)
    hub.detach(first)
    assert hub.waiting() == 1
    with pytest.raises(NotAttached):
        hub.submit(command("late"), Mailbox())
    again = hub.attach(hello())
    assert again.outbox.get().command.command_id == "c-1"
    answer(hub, again, "c-1", DONE)
    assert states(box) == [DONE]


def test_two_callers_of_one_command_both_hear(hub: Hub) -> None:
    session = hub.attach(hello())
    one: Mailbox[control_pb2.Outcome] = Mailbox()
    two: Mailbox[control_pb2.Outcome] = Mailbox()
    gone: Mailbox[control_pb2.Outcome] = Mailbox()
    hub.submit(command(), one)
    hub.submit(command(), two)
    hub.forget(hub.submit(command(), gone))
    answer(hub, session, "c-1", DONE)
    assert states(one) == states(two) == [DONE]
    assert states(gone) == []


def test_a_stop_goes_before_everything(hub: Hub) -> None:
    session = hub.attach(hello())
    hub.submit(command("a"), Mailbox())
    hub.submit(command("halt", move_stage=None, stop=control_pb2.Stop()), Mailbox())
    assert session.outbox.get().command.command_id == "halt"


def test_an_edge_that_does_not_read_is_busy(hub: Hub) -> None:
    session = hub.attach(hello())
    session.outbox._limit = 2
    for name in "ab":
        hub.submit(command(name), Mailbox())
    with pytest.raises(EdgeBusy, match="2 items wait"):
        hub.submit(command("c"), Mailbox())
    with pytest.raises(EdgeBusy):
        hub.request_lease(control_pb2.LeaseRequest(request_id="r"))
    assert hub.waiting() == 2


def test_lease_is_routed_by_request_id(hub: Hub, fake_edge) -> None:
    edge = fake_edge(hub)
    lease = hub.request_lease(control_pb2.LeaseRequest(request_id="r-1", holder="me", ttl_ms=100))
    assert (lease.request_id, lease.holder, lease.epoch) == ("r-1", "me", 7)
    assert edge.leases[0].ttl_ms == 100
    with pytest.raises(BadRequest):
        hub.request_lease(control_pb2.LeaseRequest())
    assert hub.waiting() == 0


def test_a_lease_that_is_not_answered_times_out(hub: Hub) -> None:
    session = hub.attach(hello())
    with pytest.raises(LeaseTimeout, match="'scope' did not answer"):
        hub.request_lease(control_pb2.LeaseRequest(request_id="r-1"), timeout_s=0)
    late = control_pb2.Lease(request_id="r-1")
    hub.receive(session, control_pb2.EdgeMessage(lease=late))
    assert hub.waiting() == 0


def test_watchers_hear_the_newest_heartbeat_then_everything(hub: Hub) -> None:
    session = hub.attach(hello())
    other = hub.attach(hello(instrument="other"))
    for now_ns in (1, 2):
        hub.receive(session, control_pb2.EdgeMessage(heartbeat=control_pb2.Heartbeat(edge_now_ns=now_ns)))
    everything, one = hub.watch(), hub.watch("scope")
    hub.submit(command("a"), Mailbox())
    hub.submit(command("b", instrument="other"), Mailbox())
    answer(hub, session, "a", DONE)
    answer(hub, other, "b", DONE)
    for queue, names in ((everything, ["a", "b", "a", "b"]), (one, ["a", "a"])):
        assert queue.get().heartbeat.edge_now_ns == 2
        events = [queue.get(0) for _ in names]
        assert [e.command.command_id or e.outcome.command_id for e in events] == names
        hub.unwatch(queue)
    assert hub.waiting() == 0


def test_an_older_session_no_longer_moves_the_clock(hub: Hub) -> None:
    old = hub.attach(hello("boot-1"))
    hub.attach(hello("boot-2", now_ns=77))
    queue = hub.watch()
    hub.receive(old, control_pb2.EdgeMessage(heartbeat=control_pb2.Heartbeat(edge_now_ns=10**15)))
    view = hub.edge("scope")
    assert view is not None
    assert view.now_ns == 77
    with pytest.raises(TimeoutError):
        queue.get(0)


def test_a_second_hello_is_ignored(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    session = hub.attach(hello())
    hub.receive(session, control_pb2.EdgeMessage(hello=hello("boot-9")))
    hub.receive(session, control_pb2.EdgeMessage())
    assert "sent hello after its hello" in caplog.text
    view = hub.edge("scope")
    assert view is not None
    assert view.boot_id == "boot-1"


def test_closing_tells_everybody(hub: Hub) -> None:
    session, queue = hub.attach(hello()), hub.watch()
    box: Mailbox[control_pb2.Outcome] = Mailbox()
    hub.submit(command(), box)
    queue.get()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            hub.request_lease(control_pb2.LeaseRequest(request_id="r"))
        except HubClosed as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    session.outbox.get()
    session.outbox.get()  # the lease request: the thread waits now
    hub.close()
    thread.join()
    assert len(errors) == 1
    for source in (session.outbox, box, queue):
        with pytest.raises(MailboxClosed) as closed:
            source.get()
        assert isinstance(closed.value.reason, HubClosed)
    for call in (lambda: hub.submit(command(), box), lambda: hub.attach(hello()), hub.watch):
        with pytest.raises(HubClosed):
            call()
