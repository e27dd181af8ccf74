"""The bluesky devices against a steering service that is played: leases, stops, old states, mock mode."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import grpc
import numpy as np
import pytest
from bluesky.run_engine import RunEngine
from bluesky.utils import FailedStatus, RunEngineInterrupted
from engine_kit import run_engine
from ophyd_async.core import NotConnectedError, init_devices

from nextem.client import SteeringClient
from nextem.client.bluesky import (
    CommandFailed,
    LeaseLost,
    LeaseRefused,
    Microscope,
    NoResult,
    ProductsMissing,
    Stopped,
    session,
)
from nextem.client.bluesky.session import Session
from nextem.v1 import control_pb2 as pb
from nextem.v1 import control_pb2_grpc, plan_pb2
from nextem.v1.product_pb2 import Product
from nextem.wire.store import open_store

WAIT_S = 20.0


class Scope(control_pb2_grpc.SteeringServicer):
    """A service with an instrument. ``slow``: actions that only a stop ends; ``deaf``: stops without effect.

    ``shown`` is what heartbeats tell, which may be old; a refusal for an old state brings it up to date.
    """

    def __init__(self) -> None:
        self.state = pb.InstrumentState(state_version=5)
        self.shown = pb.InstrumentState(state_version=5)
        self.commands: list[pb.Command] = []
        self.leases: list[pb.LeaseRequest] = []
        self.lease_id, self.refused, self.noise_nm = "first", "", 0.0
        self.slow: set[str] = set()
        self.stops, self.deaf = 0, 0
        self.news = threading.Condition()

    def wait(self, holds: Callable[[], object]) -> None:
        with self.news:
            assert self.news.wait_for(holds, WAIT_S)

    def RequestLease(self, request: pb.LeaseRequest, context: Any) -> pb.Lease:
        with self.news:
            self.leases.append(request)
            self.news.notify_all()
        return pb.Lease(lease_id=self.lease_id, epoch=1, holder=request.holder, refused=self.refused)

    def Watch(self, request: Any, context: Any) -> Iterator[pb.SteeringEvent]:
        context.send_initial_metadata(())
        yield pb.SteeringEvent(heartbeat=pb.Heartbeat(edge_now_ns=1000, state=self.shown))

    def Submit(self, command: pb.Command, context: Any) -> Iterator[pb.Outcome]:
        action = command.WhichOneof("action")
        with self.news:
            if action == "stop":
                self.stops += 1
                self.news.notify_all()
                yield pb.Outcome(state=pb.COMMAND_STATE_DONE)
                return
            self.commands.append(command)
            self.news.notify_all()
        if command.expected_state_version not in (0, self.state.state_version):
            self.shown.CopyFrom(self.state)
            yield pb.Outcome(state=pb.COMMAND_STATE_REJECTED, rule="expected_state_version")
            return
        yield pb.Outcome(state=pb.COMMAND_STATE_STARTED)
        if action in self.slow:
            stops = self.stops
            self.wait(lambda: self.stops > max(stops, self.deaf))
            yield pb.Outcome(state=pb.COMMAND_STATE_FAILED, rule="stopped", detail="by us")
            return
        self._apply(command)
        yield pb.Outcome(
            state=pb.COMMAND_STATE_DONE, state_after=self.state, at_driver_ns=1001, acquisition_id="a1"
        )

    def _apply(self, command: pb.Command) -> None:
        self.state.state_version += 1
        if command.HasField("move_stage"):
            self.state.stage.CopyFrom(command.move_stage)
            self.state.stage.y_nm += self.noise_nm
        if command.HasField("set_optics"):
            self.state.optics.CopyFrom(command.set_optics)


@pytest.fixture
def scope() -> Scope:
    return Scope()


@pytest.fixture
def address(scope: Scope) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(16))
    control_pb2_grpc.add_SteeringServicer_to_server(scope, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def anna(address: str) -> Iterator[Session]:
    with SteeringClient(address) as client:
        made = Session(client, "anna", lease_ttl_ms=300)
        yield made
        made.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[RunEngine]:
    with run_engine() as made:
        yield made


@pytest.fixture
def tem(address: str, engine: RunEngine) -> Iterator[Microscope]:
    with init_devices():
        tem = Microscope(address, "anna")
    with tem:
        yield tem


def background(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Starts ``call`` in a thread, and keeps what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def pause_at_the_first_command(scope: Scope, engine: RunEngine) -> threading.Thread:
    """Starts the thread that asks the engine to pause once a command has come."""

    def pause() -> None:
        scope.wait(lambda: scope.commands)
        engine.request_pause()

    thread, _ = background(pause)
    return thread


# ---- the lease -----------------------------------------------------------------------------------


def test_the_lease_is_renewed_while_it_is_held_and_given_back(scope: Scope, anna: Session) -> None:
    anna.stage()
    scope.wait(lambda: len(scope.leases) >= 4)
    anna.run(move_stage=pb.Stage(x_nm=1.0))
    anna.unstage()
    anna.unstage()
    assert [request.ttl_ms for request in scope.leases if request.ttl_ms != 300] == [100]
    assert scope.leases[-1].ttl_ms == 100
    assert {request.holder for request in scope.leases} == {anna.holder}
    assert (scope.commands[0].lease_id, scope.commands[0].issuer) == ("first", "anna")


def test_a_command_outside_of_staging_takes_the_lease_for_itself(scope: Scope, anna: Session) -> None:
    anna.run(move_stage=pb.Stage())
    assert [request.ttl_ms for request in scope.leases] == [300, 100]


def test_two_sessions_of_one_user_are_two_holders(address: str) -> None:
    with SteeringClient(address) as client:
        holders = [Session(client, "anna").holder for _ in range(2)]
    assert len(set(holders)) == 2
    assert all(holder.startswith("anna:") for holder in holders)


def test_a_lease_of_somebody_else_is_named(scope: Scope, anna: Session) -> None:
    scope.refused = "ben holds it"
    with pytest.raises(LeaseRefused, match="ben holds it"):
        anna.stage()
    with pytest.raises(LeaseRefused):
        anna.run(move_stage=pb.Stage())
    assert scope.commands == []


def test_after_a_lost_lease_nothing_is_commanded_until_it_is_staged_again(
    scope: Scope, anna: Session
) -> None:
    anna.stage()
    scope.lease_id = "second"
    asked = len(scope.leases)
    scope.wait(lambda: len(scope.leases) > asked)
    anna._renewer.join(WAIT_S)  # type: ignore[union-attr]
    with pytest.raises(LeaseLost, match="'first' lapsed"):
        anna.run(move_stage=pb.Stage())
    anna.unstage()
    anna.stage()
    anna.run(move_stage=pb.Stage())
    assert [command.lease_id for command in scope.commands] == ["second"]


# ---- what a change of one axis commands ---------------------------------------------------------


def test_the_noise_of_a_readback_moves_no_other_axis(scope: Scope, anna: Session) -> None:
    scope.noise_nm = 0.25
    anna.stage()
    anna.change("stage", "y_nm", 10.0)
    anna.change("stage", "x_nm", 20.0)
    assert scope.commands[-1].move_stage == pb.Stage(y_nm=10.0, x_nm=20.0)
    assert anna.state().stage.y_nm == 10.25
    anna.unstage()
    anna.stage()  # somebody else may have moved it meanwhile
    anna.change("stage", "z_nm", 30.0)
    assert scope.commands[-1].move_stage == pb.Stage(y_nm=10.25, x_nm=20.0, z_nm=30.0)


def test_an_old_state_is_read_again_before_anything_moves(scope: Scope, anna: Session) -> None:
    scope.state.state_version, scope.state.stage.y_nm = 6, 77.0
    anna.change("stage", "x_nm", 1.0)
    assert [command.expected_state_version for command in scope.commands] == [5, 6]
    assert scope.commands[-1].move_stage == pb.Stage(y_nm=77.0, x_nm=1.0)


def test_a_heartbeat_older_than_our_command_is_not_believed(scope: Scope, anna: Session) -> None:
    anna.change("stage", "x_nm", 4.0)
    assert scope.shown.stage.x_nm == 0.0
    assert anna.state().stage.x_nm == 4.0


# ---- stop ----------------------------------------------------------------------------------------


def test_what_a_stop_overtook_is_stopped_again(
    scope: Scope, anna: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "DRAIN_S", 0.05)
    scope.slow, scope.deaf = {"move_stage"}, 1
    thread, raised = background(lambda: anna.run(move_stage=pb.Stage()))
    scope.wait(lambda: scope.commands)
    anna.stop("enough")
    thread.join(WAIT_S)
    assert scope.stops >= 2
    assert isinstance(raised[0], Stopped)


def test_an_instrument_that_does_not_stop_is_told(
    scope: Scope, anna: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "DRAIN_S", 0.02)
    scope.slow, scope.deaf = {"move_stage"}, session.STOPS
    thread, _ = background(lambda: anna.run(move_stage=pb.Stage()))
    scope.wait(lambda: scope.commands)
    with pytest.raises(CommandFailed, match=f"after {session.STOPS} stops"):
        anna.stop("enough")
    anna.stop("once more")
    thread.join(WAIT_S)


def test_nothing_is_stopped_where_nothing_is_under_way(scope: Scope, anna: Session) -> None:
    anna.stage()
    anna.run(move_stage=pb.Stage())
    anna.stop("enough")
    anna.unstage()
    assert scope.stops == 0


def test_an_abort_while_the_stage_moves_stops_it(scope: Scope, engine: RunEngine, tem: Microscope) -> None:
    scope.slow = {"move_stage"}

    thread = pause_at_the_first_command(scope, engine)
    with pytest.raises(RunEngineInterrupted):
        engine(bp.scan([tem.optics], tem.sample_stage.x_nm, 0, 10, 2))
    thread.join(WAIT_S)
    assert scope.stops >= 1
    assert scope.leases[-1].ttl_ms > 100  # a paused plan goes on holding it
    engine.abort()
    assert scope.leases[-1].ttl_ms == 100


def test_a_paused_move_is_made_when_the_plan_goes_on(
    scope: Scope, engine: RunEngine, tem: Microscope
) -> None:
    scope.slow = {"move_stage"}

    thread = pause_at_the_first_command(scope, engine)
    with pytest.raises(RunEngineInterrupted):
        engine(bp.scan([tem.optics], tem.sample_stage.x_nm, 5, 10, 2))
    thread.join(WAIT_S)
    scope.slow = set()
    engine.resume()
    assert [command.move_stage.x_nm for command in scope.commands] == [5.0, 5.0, 10.0]
    assert scope.state.stage.x_nm == 10.0


def test_a_stopped_move_has_ended_before_the_next_begins(
    scope: Scope, engine: RunEngine, tem: Microscope
) -> None:
    """An engine that goes on at once, as fast as it can be."""
    axis = tem.sample_stage.x_nm
    scope.slow = {"move_stage"}

    async def stop_and_go_on() -> None:
        before = axis.set(5.0)
        await asyncio.to_thread(scope.wait, lambda: scope.commands)
        await axis.stop(success=True)
        scope.slow = set()
        after = axis.set(6.0)
        await before
        await after

    asyncio.run_coroutine_threadsafe(stop_and_go_on(), engine.loop).result(WAIT_S)
    assert scope.state.stage.x_nm == 6.0


def test_a_paused_acquisition_is_made_anew_and_told_once(
    scope: Scope, engine: RunEngine, tem: Microscope
) -> None:
    survey, events = tem.add_acquisition("survey", plan_pb2.Plan(title="x")), []
    token = engine.subscribe(lambda _, event: events.append(event), "event")
    scope.slow = {"acquire"}

    thread = pause_at_the_first_command(scope, engine)
    with pytest.raises(RunEngineInterrupted):
        engine(bp.count([survey]))
    thread.join(WAIT_S)
    scope.slow = set()
    engine.resume()
    engine.unsubscribe(token)
    assert [command.acquire.title for command in scope.commands] == ["x", "x"]
    assert len(events) == 1


# ---- the devices ---------------------------------------------------------------------------------


def test_both_axes_of_one_step_are_moved(scope: Scope, engine: RunEngine, tem: Microscope) -> None:
    stage = tem.sample_stage
    engine(bps.mv(stage.x_nm, 3.0, stage.y_nm, 4.0))
    assert (scope.state.stage.x_nm, scope.state.stage.y_nm) == (3.0, 4.0)
    where = asyncio.run_coroutine_threadsafe(stage.x_nm.locate(), engine.loop).result(WAIT_S)
    assert where == {"setpoint": 3.0, "readback": 3.0}


def test_an_acquisition_without_a_result_is_not_read(engine: RunEngine, tem: Microscope) -> None:
    survey = tem.add_acquisition("survey", plan_pb2.Plan(title="x"))
    assert (survey.name, survey.parent) == ("tem-survey", tem)
    with pytest.raises(NoResult, match="tem-survey"):
        engine(bps.read(survey))
    with pytest.raises(FailedStatus):
        engine(bps.complete(survey, wait=True))


def test_products_need_a_store(tem: Microscope) -> None:
    with pytest.raises(ValueError, match="com without a store"):
        tem.add_acquisition("survey", plan_pb2.Plan(), products=["com"])


def test_a_failed_analysis_and_a_late_product_fail_the_trigger(
    address: str, engine: RunEngine, tmp_path: Path
) -> None:
    plan = plan_pb2.Plan(analyses=[plan_pb2.Analysis(name="novelty")])
    with init_devices():
        tem = Microscope(address, "anna", store=tmp_path)
    with tem:
        late = tem.add_acquisition("late", plan, products=["novelty"], products_timeout_s=0.1)
        with pytest.raises(FailedStatus, match=r"novelty: not there 0.1 s after acquisition a1"):
            engine(bp.count([late]))
        product = Product(product_id="a1/novelty/failed", acquisition_id="a1", name="novelty/failed")
        product.kind = "failed"
        product.provenance.update({"notes": {"error": "it rains"}})
        open_store(tmp_path).write(product, np.empty(0))
        with pytest.raises(FailedStatus, match="novelty: novelty failed: it rains") as failed:
            engine(bp.count([late]))
    assert isinstance(failed.value.__cause__, ProductsMissing)


def test_mock_mode_moves_without_a_service(engine: RunEngine) -> None:
    with init_devices(mock=True):
        played = Microscope("127.0.0.1:1", "anna")
    with played:
        engine(bps.mv(played.sample_stage.x_nm, 7.0))
        assert engine.loop.is_running()
        read = asyncio.run_coroutine_threadsafe(played.sample_stage.x_nm.read(), engine.loop)
        assert read.result(WAIT_S)["played-sample_stage-x_nm"]["value"] == 7.0


def test_an_instrument_that_nobody_hears_does_not_connect(engine: RunEngine) -> None:
    lonely = Microscope("127.0.0.1:1", "anna", name="lonely")
    with lonely, pytest.raises(NotConnectedError, match="lonely"):
        asyncio.run_coroutine_threadsafe(lonely.connect(timeout=5), engine.loop).result(WAIT_S)


def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nextem.client.bluesky")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bluesky", None)
    with pytest.raises(ImportError, match=r"pip install 'nextem\[bluesky\]'"):
        importlib.import_module("nextem.client.bluesky")
