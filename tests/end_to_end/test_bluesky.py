"""A bluesky RunEngine drives everything that ``nextem up`` starts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
import pytest
from bluesky.run_engine import RunEngine
from bluesky.utils import FailedStatus, RunEngineInterrupted
from engine_kit import run_engine
from event_model import Filler
from ophyd_async.core import init_devices
from up_kit import up_running

from nextem.cli.plans import survey_plan
from nextem.client import SteeringClient
from nextem.client.bluesky import HANDLERS, CommandFailed, CommandRefused, LeaseRefused, Microscope
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

PRODUCTS = ("virtual/bright", "mean_pattern")


@dataclass
class Place:
    """A running NexTEM, a microscope with two acquisitions, and an engine whose documents are kept."""

    home: Path
    client: SteeringClient
    engine: RunEngine
    tem: Microscope
    documents: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def run(self, plan: Any) -> list[tuple[str, dict[str, Any]]]:
        """The documents of one plan."""
        self.documents.clear()
        self.engine(plan)
        return list(self.documents)

    @property
    def survey(self) -> Any:
        return self.tem.survey  # type: ignore[attr-defined]

    def lease_is_free(self) -> bool:
        """Whether somebody else gets the lease at once; given back at once."""
        lease = self.client.request_lease("somebody", 1000)
        self.client.release_lease("somebody")
        return not lease.refused


def plan(side: int, dwell_s: float) -> plan_pb2.Plan:
    return survey_plan(
        title="bluesky", field_nm=(4.0 * side, 4.0 * side), survey_step_nm=4.0, fine_step_nm=2.0, fine_size=4,
        fine_scans=0, survey_dose_e=100.0, fine_dose_e=100.0, shape=(128, 128), disk_px=6.0, dwell_s=dwell_s,
        steering={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("home")
    up = up_running(home, "--detector-px", "128", timeout_s=230)
    with run_engine() as engine, up as (_, address), SteeringClient(address) as client:
        with init_devices():
            tem = Microscope(address, "anna", store=home / "store")
        tem.add_acquisition("survey", plan(8, 0.001), products=PRODUCTS)
        tem.add_acquisition("long", plan(64, 0.05))
        made = Place(home, client, engine, tem)
        engine.subscribe(lambda name, doc: made.documents.append((name, doc)))
        yield made
        tem.close()


def named(documents: list[tuple[str, dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    return [doc for found, doc in documents if found == name]


def test_count_points_at_the_products(place: Place) -> None:
    documents = place.run(bp.count([place.survey], 2))
    store = open_store(place.home / "store")
    events = named(documents, "event")
    assert len({event["data"]["tem-survey-acquisition_id"] for event in events}) == 2
    for event in events:
        assert (event["data"]["tem-survey-frames_stored"], event["data"]["tem-survey-frames_lost"]) == (64, 0)
        assert event["data"]["tem-survey-dose_e"] == 6400.0
    (descriptor,) = named(documents, "descriptor")
    keys = descriptor["data_keys"]
    assert keys["tem-survey-virtual_bright"]["shape"] == [8, 8]
    assert keys["tem-survey-mean_pattern"]["shape"] == [128, 128]
    text = descriptor["configuration"]["tem-survey"]["data"]["tem-survey-plan"]
    assert json.loads(text)["scan"]["sizeX"] == 8
    with Filler(dict(HANDLERS), inplace=False) as filler:
        filled = named([filler(*one) for one in documents], "event")
    for event in filled:
        for name in PRODUCTS:
            array = store.read(f"{event['data']['tem-survey-acquisition_id']}/{name}")[1]
            np.testing.assert_array_equal(event["data"][f"tem-survey-{name.replace('/', '_')}"], array)
    assert place.lease_is_free()


def test_scan_and_grid_scan_acquire_at_every_point(place: Place) -> None:
    stage = place.tem.sample_stage
    events = named(place.run(bp.scan([place.survey], stage.x_nm, 0, 200, 3)), "event")
    assert [event["data"]["tem-sample_stage-x_nm"] for event in events] == [0.0, 100.0, 200.0]
    grid = bp.grid_scan([place.survey, stage.z_nm], stage.y_nm, 0, 30, 2, stage.x_nm, 10, 20, 2)
    events = named(place.run(grid), "event")
    found = [(e["data"]["tem-sample_stage-y_nm"], e["data"]["tem-sample_stage-x_nm"]) for e in events]
    assert found == [(0.0, 10.0), (0.0, 20.0), (30.0, 10.0), (30.0, 20.0)]
    assert all(event["data"]["tem-survey-frames_lost"] == 0 for event in events)
    assert place.lease_is_free()


def test_fly_gives_one_event_for_the_acquisition(place: Place) -> None:
    documents = place.run(bp.fly([place.survey]))
    (page,) = named(documents, "event_page")
    assert page["data"]["tem-survey-frames_stored"] == [64]
    assert {doc["spec"] for doc in named(documents, "resource")} == {"NEXTEM_PRODUCT"}
    assert [doc["datum_id"] for doc in named(documents, "datum")] == [
        page["data"][f"tem-survey-{name.replace('/', '_')}"][0] for name in PRODUCTS
    ]


def test_an_abort_while_a_scan_runs_leaves_the_instrument_stopped(place: Place) -> None:
    stage = place.tem.sample_stage
    watcher = threading.Thread(target=_pause_when_scanning, args=(place,))
    watcher.start()
    with pytest.raises(RunEngineInterrupted):
        place.engine(bp.scan([place.tem.long], stage.x_nm, 0, 10, 2))  # type: ignore[attr-defined]
    watcher.join()
    assert not _settled(place).scanning
    assert not place.lease_is_free()  # a paused plan goes on holding it
    place.documents.clear()
    place.engine.abort("enough")
    (stop,) = named(place.documents, "stop")
    assert stop["exit_status"] == "abort"
    state = _settled(place)
    assert (state.scanning, list(state.defined_scans)) == (False, [])
    assert place.lease_is_free()


def test_a_stop_by_a_person_fails_the_plan(place: Place) -> None:
    with place.client.watch() as events:
        watcher = threading.Thread(target=_stop_in_mid_scan, args=(place, events))
        watcher.start()
        with pytest.raises(FailedStatus) as failed:
            place.engine(bp.count([place.tem.long]))  # type: ignore[attr-defined]
        watcher.join()
    cause = failed.value.__cause__
    assert isinstance(cause, CommandFailed)
    assert (cause.action, cause.rule) == ("acquire", "stopped")
    assert cause.accounting is not None
    assert cause.accounting.frames_announced == 4096
    assert place.lease_is_free()


def test_a_refusal_names_rule_and_value(place: Place) -> None:
    with pytest.raises(FailedStatus) as failed:
        place.engine(bps.mv(place.tem.sample_stage.x_nm, 2e6))
    cause = failed.value.__cause__
    assert isinstance(cause, CommandRefused)
    assert (cause.rule, "2000000.0 > 1000000.0" in cause.detail) == ("limit:stage.x_nm", True)
    assert place.lease_is_free()


def test_whoever_holds_the_lease_is_named(place: Place) -> None:
    assert not place.client.request_lease("ben", 60_000).refused
    with pytest.raises(FailedStatus) as failed:
        place.engine(bp.count([place.survey]))
    assert isinstance(failed.value.__cause__, LeaseRefused)
    assert "ben" in str(failed.value.__cause__)
    place.client.release_lease("ben")


def test_optics_are_set_and_read_back(place: Place) -> None:
    optics = place.tem.optics
    before = place.client.state().optics
    place.engine(bps.mv(optics.defocus_nm, 120.0, optics.beam_blanked, True))
    (event,) = named(place.run(bp.count([optics])), "event")
    assert event["data"]["tem-optics-defocus_nm"] == 120.0
    assert event["data"]["tem-optics-beam_blanked"] is True
    assert event["data"]["tem-optics-energy_kv"] == before.energy_kv
    place.engine(bps.mv(optics.defocus_nm, before.defocus_nm, optics.beam_blanked, False))


def _is_of_acquire(event: pb.SteeringEvent, state: int) -> bool:
    outcome = event.outcome
    return event.WhichOneof("event") == "outcome" and (outcome.action, outcome.state) == ("acquire", state)


def _pause_when_scanning(place: Place) -> None:
    with place.client.watch(timeout_s=60) as events:
        for event in events:
            if _is_of_acquire(event, pb.COMMAND_STATE_STARTED):
                break
    place.engine.request_pause()


def _stop_in_mid_scan(place: Place, events: Any) -> None:
    acquisition_id = ""
    for event in events:
        if _is_of_acquire(event, pb.COMMAND_STATE_STARTED):
            acquisition_id = event.outcome.acquisition_id
        state = event.heartbeat.state
        if acquisition_id and state.scan_id == acquisition_id and state.frames_sent > 5:
            place.client.stop("ben", "the specimen drifts")
            return


def _settled(place: Place) -> pb.InstrumentState:
    """The state as a heartbeat tells it that began after now: the second one from here."""
    with place.client.watch(timeout_s=10) as events:
        beats = (event.heartbeat for event in events if event.WhichOneof("event") == "heartbeat")
        next(beats)
        next(beats)
        return next(beats).state
