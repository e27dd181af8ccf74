"""The runner with a policy that goes on from what its own commands brought."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nextem.steering.hub import Hub
from nextem.steering.policy import Answer, Evidence, Suggestion
from nextem.steering.runner import MAX_CAUSE_AGE_NS, PolicyRunner
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire import checkpoints
from nextem.wire.ids import derived_id
from nextem.wire.log import ACQUISITIONS, PRODUCTS
from nextem.wire.object_store import open_objects

NAME = "01890a5d-ac96-774b-bcce-b302099a8057"
OPTICS, STAGE, SCAN = (
    control_pb2.LEASE_SCOPE_OPTICS,
    control_pb2.LEASE_SCOPE_STAGE,
    control_pb2.LEASE_SCOPE_SCAN,
)
ACTIONS = (control_pb2.Optics(defocus_nm=5), control_pb2.Stage(y_nm=7), plan_pb2.Plan(title="a scan"))


class Follower:
    """Three commands, each after the answer to the one before; the last one's is a product."""

    scopes = frozenset({OPTICS, STAGE, SCAN})

    def __init__(self, not_before_ns: int = 0) -> None:
        self.answers: list[str] = []
        self.suggested = 0
        self.not_before_ns = not_before_ns

    def started(self, event: acquisition_pb2.AcquisitionStarted) -> None:
        """Nothing yet."""

    def ingest(self, item: Evidence) -> None:
        """Nothing of this is needed."""

    def answered(self, answer: Answer) -> None:
        product = isinstance(answer.item, product_pb2.Product)
        if answer.number == len(self.answers) + 1 and product == (answer.number == 3):
            self.answers.append(type(answer.item).__name__)

    def suggest(self, n: int | None = None) -> list[Suggestion]:
        number = len(self.answers) + 1
        if number <= self.suggested or number > 3:
            return []
        self.suggested = number
        cause = control_pb2.Cause(acquisition_id=NAME, last_byte_ns=1)
        return [Suggestion(number, ACTIONS[number - 1], cause, 0.0, "because", self.not_before_ns)]

    def done(self) -> bool:
        return len(self.answers) == 3

    def checkpoint(self) -> dict[str, Any]:
        return {"answers": self.answers}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.answers = list(saved["answers"])


@pytest.fixture
def policy() -> Follower:
    return Follower()


@pytest.fixture
def start(log, clock, policy: Follower, tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """``start(now_ns)``: the runner and its hub, in which an edge may attach."""
    hub = Hub(clock)
    made: list[PolicyRunner] = []

    def run(policy: Follower = policy) -> Hub:
        made.append(PolicyRunner(log, hub, {"follower": lambda: policy}, progress=tmp_path / "progress"))
        made[-1].start()
        return hub

    yield run
    for runner in made:
        runner.close()
    hub.close()


def started(log, name: str = NAME, command_id: str = "", policy: str = "follower") -> None:
    plan = plan_pb2.Plan(steering=plan_pb2.SteeringPlan(policy=policy))
    event = acquisition_pb2.AcquisitionStarted(
        acquisition_id=name, instrument="scope", plan=plan, edge_boot_id="boot-1", command_id=command_id
    )
    finished = acquisition_pb2.AcquisitionFinished(acquisition_id=name)
    for message in ({"started": event}, {"finished": finished}):
        log.append(ACQUISITIONS, acquisition_pb2.AcquisitionEvent(**message).SerializeToString())


def product(log, name: str) -> None:
    event = product_pb2.ProductEvent(product=product_pb2.Product(acquisition_id=name, name="shift"))
    log.append(PRODUCTS, event.SerializeToString())


def test_answers_come_back_to_the_policy(start, fake_edge, log, policy, tmp_path: Path) -> None:
    edge = fake_edge(start())
    started(log)
    edge.wait(lambda: len(edge.commands) == 3)
    assert [c.WhichOneof("action") for c in edge.commands] == ["set_optics", "move_stage", "acquire"]
    assert [c.command_id for c in edge.commands] == [derived_id(NAME, f"follower/{n}") for n in (1, 2, 3)]
    assert (tmp_path / "progress" / NAME).is_dir()
    product(log, "made")  # before its acquisition is known
    started(log, "made", edge.commands[2].command_id, policy="")
    edge.wait(lambda: policy.done() and edge.leases[-1].ttl_ms == 100)
    assert policy.answers == ["Outcome", "Outcome", "Product"]
    assert {tuple(lease.scopes) for lease in edge.leases} == {(OPTICS,), (STAGE,), (SCAN,)}


def test_a_restarted_runner_goes_on_from_the_checkpoint(start, fake_edge, log, tmp_path: Path) -> None:
    """Also where what was sent is older than what would be acted on anew."""
    meta = {"name": "follower", "policy": {"answers": ["Outcome"]}, "sent": [1, 2]}
    checkpoints.write(open_objects(tmp_path / "progress"), NAME, {}, meta)
    edge = fake_edge(start(), now_ns=2 * MAX_CAUSE_AGE_NS)
    started(log)
    edge.wait(lambda: len(edge.commands) == 1)
    assert edge.commands[0].WhichOneof("action") == "move_stage"


def test_what_is_too_old_ends_it(start, fake_edge, log, caplog) -> None:
    edge = fake_edge(start(), now_ns=2 * MAX_CAUSE_AGE_NS)
    started(log)
    edge.wait(lambda: len(edge.leases) > 3 and edge.leases[-1].ttl_ms == 100)
    assert edge.commands == []
    assert "its cause is" in caplog.text


def test_a_command_waits_for_its_time(start, fake_edge, log, clock) -> None:
    edge = fake_edge(start(Follower(not_before_ns=3 * 10**9)), now_ns=10**9)
    started(log)
    edge.wait(lambda: len(edge.leases) >= 3)
    assert edge.commands == []
    clock.advance_s(2.5)
    edge.wait(lambda: len(edge.commands) > 0)


def test_a_checkpoint_that_cannot_be_read_is_told(start, fake_edge, log, tmp_path: Path, caplog) -> None:
    folder = tmp_path / "progress" / NAME
    folder.mkdir(parents=True)
    (folder / checkpoints.FILE).write_text(json.dumps({"format": "another"}) + "\n")
    edge = fake_edge(start())
    started(log)
    with log.changed:
        assert log.changed.wait_for(lambda: log.commits.get(("steering", ACQUISITIONS)) == 1, 30)
    assert "its checkpoint cannot be read" in caplog.text
    assert edge.commands == []
