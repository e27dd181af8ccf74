from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nextem.steering.hub import Hub
from nextem.steering.runner import GROUP, MAX_CAUSE_AGE_NS, PolicyRunner
from nextem.v1 import acquisition_pb2, control_pb2, product_pb2
from nextem.wire import signing
from nextem.wire.ids import derived_id
from nextem.wire.log import ACQUISITIONS, PRODUCTS, FatalLogError
from nextem.wire.proof import Credential, signed_content

SIZE = 32


@pytest.fixture
def hub(clock) -> Iterator[Hub]:
    hub = Hub(clock)
    yield hub
    hub.close()


@pytest.fixture
def runner(log, hub: Hub) -> Iterator[Callable[..., PolicyRunner]]:
    made: list[PolicyRunner] = []

    def start(**options: object) -> PolicyRunner:
        runner = PolicyRunner(log, hub, **options)  # type: ignore[arg-type]
        made.append(runner)
        runner.start()
        return runner

    yield start
    for runner in made:
        runner.close()


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).gamma(2, 1, (SIZE, SIZE))


class Writer:
    """Puts the messages of one survey on the log."""

    def __init__(self, log, surveys, values: np.ndarray, **plan: object) -> None:
        self.log, self.surveys, self.values = log, surveys, values
        self.started_event = surveys.started(size=values.shape[0], scans=4, **plan)

    def started(self, event: acquisition_pb2.AcquisitionStarted | None = None) -> None:
        message = acquisition_pb2.AcquisitionEvent(started=event or self.started_event)
        self.log.append(ACQUISITIONS, message.SerializeToString())

    def updates(self, chunk: int = 128) -> None:
        for update in self.surveys.updates(self.values, chunk):
            self.log.append(PRODUCTS, product_pb2.ProductEvent(update=update).SerializeToString())

    def finished(self) -> None:
        message = acquisition_pb2.AcquisitionEvent(finished=self.surveys.finished(self.values.size))
        self.log.append(ACQUISITIONS, message.SerializeToString())

    def survey(self) -> None:
        self.started()
        self.updates()
        self.finished()

    def wait_committed(self) -> None:
        """Until the runner has nothing more to do with anything on the log."""
        with self.log.changed:
            assert self.log.changed.wait_for(self._committed, 30)

    def _committed(self) -> bool:
        return all(
            self.log.commits.get((GROUP, topic), -1) == len(self.log.topics[topic]) - 1
            for topic in (ACQUISITIONS, PRODUCTS)
        )


@pytest.fixture
def writer(log, surveys, values) -> Writer:
    return Writer(log, surveys, values)


def test_a_survey_becomes_commands(runner, hub, fake_edge, writer, surveys) -> None:
    edge = fake_edge(hub)
    runner()
    writer.survey()
    edge.wait(lambda: len(edge.commands) == 4)
    writer.wait_committed()
    assert {c.command_id for c in edge.commands} == {
        derived_id(surveys.acquisition_id, f"look_closer/{n}") for n in (1, 2, 3, 4)
    }
    for command in edge.commands:
        assert command.issuer == "policy:look_closer"
        assert (command.instrument, command.lease_id, command.lease_epoch) == ("scope", "lease", 7)
        assert command.acquire.scan.size_y == 32
        assert command.cause.acquisition_id == surveys.acquisition_id
        assert command.not_after_ns > 0
    assert edge.leases[0].holder == "policy"
    edge.wait(lambda: edge.leases[-1].ttl_ms == 100)  # nothing to steer: given back


def test_policies_say_who_they_are(runner, hub, fake_edge, writer) -> None:
    edge = fake_edge(hub)
    key, public = signing.new_key()
    runner(credential=lambda: Credential("token", key))
    writer.survey()
    edge.wait(lambda: len(edge.commands) == 4)
    writer.wait_committed()
    for command in edge.commands:
        assert command.token == "token"
        signing.verify(public, signed_content(command), command.proof)
    assert {lease.token for lease in edge.leases} == {"token"}


def test_a_restart_does_not_command_old_scans_again(runner, hub, fake_edge, writer, log) -> None:
    edge = fake_edge(hub)
    first = runner()
    writer.survey()
    writer.wait_committed()
    first.close()
    runner()
    writer.started(writer.surveys.started(size=SIZE, scans=4, acquisition_id="another"))
    for update in writer.surveys.updates(writer.values, 128):
        update.acquisition_id = "another"
        log.append(PRODUCTS, product_pb2.ProductEvent(update=update).SerializeToString())
    edge.wait(lambda: len(edge.commands) == 6)
    assert len({c.command_id for c in edge.commands}) == 6


def test_a_restart_in_between_goes_on_with_the_same_ids(runner, hub, fake_edge, writer, log) -> None:
    """Nothing is committed while a survey is steered: the next runner reads it again from its start."""
    edge = fake_edge(hub, answer=[control_pb2.COMMAND_STATE_STARTED])
    first = runner()
    writer.started()
    writer.updates()
    edge.wait(lambda: len(edge.commands) == 2)
    first.close()
    assert log.commits == {(GROUP, PRODUCTS): -1, (GROUP, ACQUISITIONS): -1}
    runner()
    edge.wait(lambda: len(edge.commands) == 4)
    writer.finished()
    edge.wait(lambda: len(edge.commands) == 6)
    before, again, rest = (
        {c.command_id: (c.acquire, c.cause) for c in edge.commands[part]}
        for part in (slice(2), slice(2, 4), slice(4, 6))
    )
    assert before == again
    assert len(before | rest) == 4


def test_updates_that_come_before_their_acquisition_wait_for_it(runner, hub, fake_edge, writer) -> None:
    edge = fake_edge(hub)
    runner()
    writer.updates()
    writer.started()
    edge.wait(lambda: len(edge.commands) == 2)


def test_what_began_before_we_read_is_left_alone(runner, hub, fake_edge, writer, log, clock) -> None:
    edge = fake_edge(hub)
    runner(now_ns=clock)
    writer.updates()
    with log.changed:
        assert log.changed.wait_for(lambda: (GROUP, PRODUCTS) in log.commits, 30)
    clock.advance_s(31)
    writer.wait_committed()
    assert edge.commands == []


def test_commands_wait_for_lease_and_edge(runner, hub, fake_edge, writer) -> None:
    runner()
    writer.survey()
    other = fake_edge(hub, refuse="lease: held by 'somebody' until 99 ns")
    other.wait(lambda: len(other.leases) > 0)
    assert other.commands == []
    edge = fake_edge(hub)
    edge.wait(lambda: len(edge.commands) == 4)


def test_another_life_of_the_edge_is_not_commanded(runner, hub, fake_edge, writer, caplog) -> None:
    edge = fake_edge(hub, boot_id="boot-2")
    runner()
    writer.survey()
    writer.wait_committed()
    assert edge.commands == []
    assert "the edge has restarted" in caplog.text


def test_an_old_cause_is_not_acted_on(runner, hub, fake_edge, writer, caplog) -> None:
    edge = fake_edge(hub, now_ns=MAX_CAUSE_AGE_NS + 10**9)
    runner()
    writer.survey()
    writer.wait_committed()
    assert edge.commands == []
    assert "its cause is" in caplog.text


def test_refused_commands_are_reported_and_not_repeated(runner, hub, fake_edge, writer, caplog) -> None:
    edge = fake_edge(hub, answer=[control_pb2.COMMAND_STATE_REJECTED])
    runner()
    writer.survey()
    writer.wait_committed()
    assert len(edge.commands) == 4
    assert caplog.text.count("REJECTED") == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"policy": "unheard_of"}, "unknown policy 'unheard_of'; known are"),
        ({"dose_budget_e": 1.0}, "allows no scan"),
        ({"fine": None}, "steering.fine must be a plan"),
    ],
)
def test_a_plan_that_cannot_be_steered_is_said(runner, hub, fake_edge, writer, caplog, change, text) -> None:
    steering = writer.started_event.plan.steering
    for name, value in change.items():
        steering.ClearField(name) if value is None else setattr(steering, name, value)
    edge = fake_edge(hub)
    runner()
    writer.survey()
    writer.wait_committed()
    assert edge.commands == []
    assert text in caplog.text


def test_rubbish_on_the_log_is_said_and_left_out(runner, hub, fake_edge, writer, log, caplog) -> None:
    edge = fake_edge(hub)
    runner()
    log.append(PRODUCTS, b"\xff\xff\xff")
    bad = writer.surveys.update(writer.values, 0, 10)
    bad.values = b"12345"
    writer.started()
    log.append(PRODUCTS, product_pb2.ProductEvent(update=bad).SerializeToString())
    writer.updates()
    edge.wait(lambda: len(edge.commands) == 2)
    assert "is no event of ours" in caplog.text
    assert "left something out" in caplog.text


class Broken:
    """A policy with a fault."""

    scopes = frozenset({control_pb2.LEASE_SCOPE_SCAN})

    def started(self, event: acquisition_pb2.AcquisitionStarted) -> None:
        """Nothing yet."""

    def ingest(self, item: object) -> None:
        raise ZeroDivisionError("a fault")

    def suggest(self) -> list:
        return []

    def done(self) -> bool:
        return False


def test_a_broken_policy_is_ended_and_the_rest_lives(runner, hub, fake_edge, writer, caplog) -> None:
    fake_edge(hub)
    running = runner(policies={"look_closer": Broken})
    writer.survey()
    writer.wait_committed()
    running.check()
    assert "policy look_closer broke" in caplog.text
    assert "a fault" in caplog.text


def test_silence_is_forgotten(runner, hub, writer, clock, caplog) -> None:
    runner(now_ns=clock)
    writer.started()
    with writer.log.changed:
        assert writer.log.changed.wait_for(lambda: (GROUP, ACQUISITIONS) in writer.log.commits, 30)
    clock.advance_s(601)
    writer.wait_committed()
    assert "forgotten" in caplog.text


def test_a_log_that_fails_for_good_is_raised(log, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FatalLogError("the log is broken")

    monkeypatch.setattr(log, "consumer", fail)
    runner = PolicyRunner(log, hub)
    with pytest.raises(FatalLogError, match="the log is broken"):
        runner.start()
    runner.close()
