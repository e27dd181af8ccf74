"""The description of the physics, and the microscope that it makes."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nextem.simulator.column import Column, PressureBurst
from nextem.simulator.damage import BeamDamage
from nextem.simulator.detector import Progress
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import FrameFormat
from nextem.simulator.optics import Aberrations, LensErrors
from nextem.simulator.physics import TYPICAL, Physics, PhysicsError, load_physics, to_json
from nextem.simulator.polycrystal import Polycrystal
from nextem.simulator.sampler import Mixture, build_tables
from nextem.simulator.service import ScanSource, write_truth
from nextem.simulator.settings import Interrupted, OpticsSetting, Refused, ScanDefinition, StagePosition
from nextem.simulator.stage import Drift, Jump, StageMechanics
from nextem.simulator.world import World

MODE = FrameFormat(128, 12)
SCAN = ScanDefinition("a", (4, 5), (50.0, 60.0), 2.0, 1e-3, 1000.0)


class HandClock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def __call__(self) -> float:
        return self.time_s


class IdleDetector:
    progress = Progress(0)

    def begin(self, exposure: object) -> None:
        return

    def stop(self) -> None:
        return


def instrument(world: World) -> Instrument:
    return Instrument("simulator", IdleDetector(), MODE, lambda scan, mode: None, world)  # type: ignore[arg-type, return-value]


# ---- the description --------------------------------------------------------------------------------


def test_a_description_comes_back_from_json(tmp_path: Path) -> None:
    rich = replace(
        TYPICAL,
        drift=Drift(jumps=(Jump(1.0, 2.0, 3.0),)),
        column=Column(bursts=(PressureBurst(5.0, 1e-3),), gun_off_s=((1.0, 2.0),)),
    )
    file = tmp_path / "physics.json"
    file.write_text(json.dumps(to_json(rich)))
    assert load_physics(str(file)) == rich
    assert load_physics("typical") == TYPICAL


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", 'physics is "typical" or a JSON file'),
        ("[]", "physics: [] is not an object"),
        ('{"magic": 1}', "physics.magic is not known"),
        ('{"stage": {"backlash": 1}}', "physics.stage.backlash is not known"),
        ('{"seed": true}', "physics.seed: True is not a number"),
        ('{"drift": {"linear_nm_s": [1]}}', "does not have 2 parts"),
        ('{"drift": {"linear_nm_s": 1}}', "physics.drift.linear_nm_s: 1 is not a list"),
        ('{"drift": {"jumps": [{"at_s": 1}]}}', "physics.drift.jumps[0]: "),
    ],
)
def test_a_description_that_cannot_be_read_says_why(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "physics.json"
    file.write_text(text)
    with pytest.raises(PhysicsError) as caught:
        load_physics(str(file))
    assert error in str(caught.value)


# ---- the stage --------------------------------------------------------------------------------------


def test_a_move_with_latency_arrives_and_has_backlash() -> None:
    world = World(Physics(stage=StageMechanics(backlash_nm=10.0, latency_s=0.01)), (100.0, 100.0))
    view = instrument(world).move_stage(1, StagePosition(50.0, 0.0, 0.0))
    assert view.stage == StagePosition(50.0, 0.0, 0.0)
    assert world.stage.at(world.now_s())[0] == 45.0


def test_a_stop_ends_a_move_where_it_is_and_nothing_else_starts_meanwhile() -> None:
    world = World(Physics(stage=StageMechanics(speed_nm_s=1.0)), (100.0, 100.0))
    microscope = instrument(world)
    microscope.define_scan(1, SCAN)
    caught: list[Exception] = []

    def move() -> None:
        try:
            microscope.move_stage(2, StagePosition(1e5, 0.0, 0.0))
        except Interrupted as error:
            caught.append(error)

    mover = threading.Thread(target=move)
    mover.start()
    _until(lambda: microscope.view().command_epoch == 2)
    for refused in (lambda: microscope.start(3, "a"), lambda: microscope.move_stage(3, StagePosition())):
        with pytest.raises(Refused, match="while the stage moves"):
            refused()
    after = microscope.stop(9, "test")
    mover.join()
    assert "the stage was stopped at" in str(caught[0])
    assert 0.0 <= after.stage.y_nm < 1e5
    assert microscope.view().stage == after.stage
    assert microscope.view().command_epoch == 9
    with pytest.raises(Refused, match="older than 9"):
        microscope.move_stage(5, StagePosition())


def test_the_epoch_does_not_fall_when_the_optics_are_set_while_the_stage_moves() -> None:
    world = World(Physics(stage=StageMechanics(speed_nm_s=1000.0)), (100.0, 100.0))
    microscope = instrument(world)
    mover = threading.Thread(target=microscope.move_stage, args=(2, StagePosition(100.0, 0.0, 0.0)))
    mover.start()
    _until(lambda: microscope.view().command_epoch == 2)
    microscope.set_optics(7, OpticsSetting(defocus_nm=1.0))
    mover.join()
    view = microscope.view()
    assert (view.stage.y_nm, view.optics.defocus_nm, view.command_epoch) == (100.0, 1.0, 7)


def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        threading.Event().wait(0.001)


# ---- optics, column ---------------------------------------------------------------------------------


def test_what_is_set_adds_to_what_is_planted() -> None:
    world = World(Physics(lenses=LensErrors(Aberrations(12.0, 3 - 4j, 5j))), (100.0, 100.0))
    setting = OpticsSetting(
        defocus_nm=-12.0, astigmatism_a_nm=-3.0, astigmatism_b_nm=4.0, coma_a_nm=1.0, coma_b_nm=-5.0
    )
    instrument(world).set_optics(1, setting)
    assert world.lenses.aberrations == Aberrations(b2_nm=1.0)


def test_without_vacuum_there_is_no_beam_and_it_can_be_blanked() -> None:
    clock = HandClock()
    world = World(Physics(column=Column(bursts=(PressureBurst(10.0, 1e-3, 10.0),))), (100.0, 100.0), clock)
    microscope = instrument(world)
    microscope.define_scan(1, SCAN)
    clock.time_s += 11.0
    with pytest.raises(Refused, match="no scan starts: vacuum"):
        microscope.start(2, "a")
    with pytest.raises(Refused, match="the beam stays blanked: vacuum"):
        microscope.set_optics(2, OpticsSetting(defocus_nm=1.0))
    assert microscope.set_optics(2, OpticsSetting(beam_blanked=True)).optics.beam_blanked
    clock.time_s += 100.0
    assert not microscope.set_optics(3, OpticsSetting()).optics.beam_blanked


# ---- frames -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specimen() -> Polycrystal:
    return Polycrystal.plant(1)


def frames(specimen: Polycrystal, scan: ScanDefinition, world: World | None) -> np.ndarray:
    tables = build_tables(specimen.components(MODE.size_px))
    source = ScanSource(specimen, tables, scan, MODE, 1, world)
    rows = np.zeros((scan.frames, MODE.message_bytes), np.uint8)
    source.fill(rows, 0)
    return rows


def test_without_physics_the_frames_are_what_they_were_and_drift_moves_the_scan(
    specimen: Polycrystal,
) -> None:
    still = frames(specimen, SCAN, None)
    assert np.array_equal(frames(specimen, SCAN, World(Physics(), specimen.field_nm)), still)
    jumped = World(Physics(drift=Drift(jumps=(Jump(0.0, 30.0, -20.0),))), specimen.field_nm)
    moved = frames(specimen, replace(SCAN, origin_nm=(80.0, 40.0)), None)
    assert np.array_equal(frames(specimen, SCAN, jumped), moved)
    assert not np.array_equal(moved, still)


def test_drift_goes_on_from_frame_to_frame(specimen: Polycrystal) -> None:
    """A drift of one step a frame undoes the scan's steps along a row."""
    world = World(Physics(drift=Drift(linear_nm_s=(0.0, -2.0))), specimen.field_nm, HandClock())
    scan = ScanDefinition("a", (1, 5), (50.0, 60.0), 2.0, 1.0, 1000.0)
    standing = replace(scan, step_nm=0.0)
    assert np.array_equal(frames(specimen, scan, world), frames(specimen, standing, None))


def test_spots_fade_with_the_dose_and_electrons_are_kept() -> None:
    world = World(Physics(damage=BeamDamage(critical_e_nm2=100.0, hole_e_nm2=1e3, cell_nm=1.0)), (10.0, 10.0))
    fresh = Mixture.from_slots(np.array([[0, 1, 2], [0, 1, 3]]), np.array([[0.5, 0.2, 0.3], [0.6, 0.0, 0.4]]))
    y, x = np.array([0.5, 5.5]), np.array([0.5, 5.5])
    assert world.expose(y[:1], x[:1], 100.0) == 100.0
    dense = _dense(world.damaged(fresh, y, x))
    left = 0.3 * math.exp(-1)
    assert dense[0] == pytest.approx([0.5, 0.2 + 0.3 - left, left, 0.0])
    assert dense[1] == pytest.approx([0.6, 0.0, 0.0, 0.4])
    world.expose(y[1:], x[1:], 2e3)
    assert _dense(world.damaged(fresh, y, x))[1] == pytest.approx([1.0, 0.0, 0.0, 0.0])


def _dense(mixture: Mixture) -> np.ndarray:
    dense = np.zeros((len(mixture), 4))
    rows = np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr))
    np.add.at(dense, (rows, mixture.component), mixture.weight)
    return dense


def test_scanned_places_have_had_their_dose_and_a_weak_gun_gives_less(specimen: Polycrystal) -> None:
    clock = HandClock()
    physics = Physics(damage=BeamDamage(), column=Column(current_decay_s=10.0))
    world = World(physics, specimen.field_nm, clock)
    clock.time_s += 10.0
    rows = frames(specimen, SCAN, world)
    assert world.dose.fluence_e_nm2.sum() * 25.0 == pytest.approx(20 * 1000.0 * math.exp(-1))
    counts = rows[:, MODE.pixels_at :].view(">u2").sum() / 20
    assert counts == pytest.approx(1000.0 * math.exp(-1), rel=0.1)


def test_the_truth_tells_the_physics_and_when_it_began(specimen: Polycrystal, tmp_path: Path) -> None:
    world = World(TYPICAL, specimen.field_nm)
    write_truth(specimen, tmp_path / "truth.json", world)
    told = json.loads((tmp_path / "truth.json").read_text())
    assert told["physics_started_ns"] == round(world.started_s * 1e9)
    (tmp_path / "physics.json").write_text(json.dumps(told["physics"]))
    assert load_physics(str(tmp_path / "physics.json")) == TYPICAL


def test_the_description_on_the_page_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "simulator-instrument.md"
    (text,) = re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "physics.json").write_text(text)
    read = load_physics(str(tmp_path / "physics.json"))
    assert read.stage == TYPICAL.stage
    assert read.drift is not None
    assert read.drift.jumps == (Jump(60.0, 5.0, 0.0),)
