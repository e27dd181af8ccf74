"""What an instrument cannot do is refused before anything else is looked at."""

from __future__ import annotations

import pytest

from nextem.edge.control.capability import changes, check_capability
from nextem.v1 import control_pb2 as pb
from nextem.v1.plan_pb2 import Plan, Scan

OPTICS = pb.Optics(energy_kv=200.0, convergence_mrad=1.0, probe_current_pa=10.0)
STATE = pb.InstrumentState(
    instrument="tem",
    stage=pb.Stage(y_nm=5.0),
    optics=OPTICS,
    capabilities=["stage.y_nm", "stage.x_nm", "optics.defocus_nm", "optics.beam_blanked"],
)


def optics(**changed: float | bool) -> pb.Optics:
    made = pb.Optics()
    made.CopyFrom(OPTICS)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def state(**changed: object) -> pb.InstrumentState:
    made = pb.InstrumentState()
    made.CopyFrom(STATE)
    made.MergeFrom(pb.InstrumentState(**changed))  # type: ignore[arg-type]
    return made


def test_only_what_differs_is_asked_for() -> None:
    assert changes("stage", pb.Stage(y_nm=5.0, x_nm=1.0), STATE.stage) == {"stage.x_nm": 1.0}
    assert changes("optics", optics(), OPTICS) == {}


def test_what_the_instrument_can_do_passes() -> None:
    assert check_capability(pb.Command(move_stage=pb.Stage(y_nm=7.0, x_nm=1.0)), STATE) is None
    assert check_capability(pb.Command(set_optics=optics(defocus_nm=3.0)), STATE) is None
    assert check_capability(pb.Command(stop=pb.Stop()), STATE) is None


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (pb.Command(move_stage=pb.Stage(y_nm=5.0, z_nm=1.0)), "stage.z_nm"),
        (pb.Command(set_optics=optics(defocus_nm=3.0, energy_kv=300.0)), "optics.energy_kv"),
        (pb.Command(set_optics=optics(coma_b_nm=1.0)), "optics.coma_b_nm"),
        (pb.Command(acquire=Plan()), "scan"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(command: pb.Command, missing: str) -> None:
    refusal = check_capability(command, STATE)
    assert refusal is not None
    assert refusal == ("capability", f"tem cannot do {missing}")


def test_an_instrument_that_tells_nothing_is_asked_for_anything() -> None:
    untold = pb.InstrumentState(instrument="tem")
    assert check_capability(pb.Command(acquire=Plan()), untold) is None


@pytest.mark.parametrize("column", [pb.COLUMN_STATE_VACUUM, pb.COLUMN_STATE_GUN_OFF])
def test_without_vacuum_or_gun_there_is_no_beam_but_it_may_be_blanked(column: pb.ColumnState) -> None:
    bad = state(column=column, capabilities=["scan"])
    refusal = check_capability(pb.Command(acquire=Plan()), bad)
    assert refusal is not None
    assert refusal.rule == "column"
    assert check_capability(pb.Command(set_optics=optics()), bad) is not None
    assert check_capability(pb.Command(set_optics=optics(beam_blanked=True)), bad) is None
    assert check_capability(pb.Command(move_stage=pb.Stage()), bad) is None
    assert check_capability(pb.Command(acquire=Plan(scan=Scan(purpose="dark"))), bad) is None
