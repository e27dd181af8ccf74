"""The hub between people and edges: modes, verdicts, and commands that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from nextem.steering.errors import AnswerTimeout, BadRequest
from nextem.steering.hub import Hub
from nextem.steering.mailbox import Mailbox
from nextem.steering.session import EdgeSession
from nextem.steering.watch import WatchQueue
from nextem.v1 import control_pb2

RECEIVED = control_pb2.COMMAND_STATE_RECEIVED
PROPOSED = control_pb2.COMMAND_STATE_PROPOSED
STARTED = control_pb2.COMMAND_STATE_STARTED
DONE = control_pb2.COMMAND_STATE_DONE
REJECTED = control_pb2.COMMAND_STATE_REJECTED


@pytest.fixture
def hub(clock: Callable[[], int]) -> Hub:
    return Hub(clock)


@pytest.fixture
def session(hub: Hub) -> EdgeSession:
    return hub.attach(control_pb2.EdgeHello(instrument="scope", edge_boot_id="boot", edge_now_ns=5_000))


def submit(hub: Hub, name: str = "c", **fields: object) -> Mailbox[control_pb2.Outcome]:
    box: Mailbox[control_pb2.Outcome] = Mailbox()
    command = control_pb2.Command(command_id=name, instrument="scope", token="secret", **fields)
    command.move_stage.x_nm = 1
    hub.submit(command, box)
    return box


def tell(hub: Hub, session: EdgeSession, name: str, *states: int) -> None:
    for state in states:
        outcome = control_pb2.Outcome(command_id=name, state=state)
        hub.receive(session, control_pb2.EdgeMessage(outcome=outcome))


def kinds(queue: WatchQueue) -> list[str | None]:
    queue.close()
    found = []
    while queue._events:
        found.append(queue.get().WhichOneof("event"))
    return found


def test_outcomes_come_in_the_order_of_a_commands_life(hub: Hub, session: EdgeSession) -> None:
    box = submit(hub)
    tell(hub, session, "c", RECEIVED, PROPOSED, PROPOSED, STARTED, PROPOSED, DONE)
    assert [box.get().state for _ in range(len(box))] == [RECEIVED, PROPOSED, STARTED, DONE]


def test_who_begins_to_watch_sees_what_waits_and_no_token(hub: Hub, session: EdgeSession) -> None:
    submit(hub)
    tell(hub, session, "c", PROPOSED)
    queue = hub.watch("scope")
    command = queue.get().command
    assert (command.command_id, command.token) == ("c", "")
    assert queue.get().outcome.state == PROPOSED
    assert kinds(hub.watch("other")) == []


@pytest.mark.parametrize("state", [STARTED, DONE, REJECTED])
def test_what_waits_no_longer_is_not_shown(hub: Hub, session: EdgeSession, state: int) -> None:
    submit(hub)
    tell(hub, session, "c", PROPOSED, state)
    assert kinds(hub.watch()) == []


def test_an_edge_that_goes_away_takes_what_waits_with_it(hub: Hub, session: EdgeSession) -> None:
    tell(hub, session, "unseen", PROPOSED)
    assert kinds(hub.watch()) == ["outcome"]
    hub.detach(session)
    assert kinds(hub.watch()) == []


def test_a_command_waits_longer_where_a_person_must_say_yes(hub: Hub, session: EdgeSession) -> None:
    beat = control_pb2.Heartbeat(edge_now_ns=7, mode=control_pb2.MODE_APPROVE)
    hub.receive(session, control_pb2.EdgeMessage(heartbeat=beat))
    session.outbox.get()
    submit(hub)
    assert session.outbox.get().command.not_after_ns == 7 + 120 * 10**9
    submit(hub, "short", valid_for_ms=10)
    assert session.outbox.get().command.not_after_ns == 7 + 10**7


def answering(hub: Hub, session: EdgeSession, refused: str) -> threading.Thread:
    def run() -> None:
        message = session.outbox.get(10)
        if message.HasField("set_mode"):
            change = control_pb2.ModeChange(request_id=message.set_mode.request_id, refused=refused)
            hub.receive(session, control_pb2.EdgeMessage(mode=change))
        else:
            reply = control_pb2.VerdictReply(request_id=message.verdict.request_id, refused=refused)
            hub.receive(session, control_pb2.EdgeMessage(verdict=reply))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(("refused", "told"), [("", ["mode", "verdict"]), ("role: no", [])])
def test_the_edge_answers_and_watchers_see_what_was_done(
    hub: Hub, session: EdgeSession, refused: str, told: list[str]
) -> None:
    queue = hub.watch()
    first = answering(hub, session, refused)
    assert hub.set_mode(control_pb2.SetModeRequest(request_id="m")).refused == refused
    first.join()
    second = answering(hub, session, refused)
    assert hub.decide(control_pb2.ProposalVerdict(request_id="v", command_id="c")).refused == refused
    second.join()
    assert kinds(queue) == told


def test_an_edge_that_does_not_answer_is_told(hub: Hub, session: EdgeSession) -> None:
    with pytest.raises(AnswerTimeout, match="did not answer about its mode in 0 s"):
        hub.set_mode(control_pb2.SetModeRequest(request_id="m"), timeout_s=0)
    with pytest.raises(BadRequest, match="must name the command"):
        hub.decide(control_pb2.ProposalVerdict(request_id="v"))
