"""What edge rules look for and do, in the simulated microscope."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nextem.simulator.column import Column, Flare
from nextem.simulator.film import FilmOptions, film_microscope
from nextem.simulator.merlin import EPOCH_DIGITS
from nextem.simulator.movie import MovieOptions, MovieScene
from nextem.simulator.optics import LensErrors
from nextem.simulator.physics import Physics, load_physics
from nextem.simulator.settings import OutOfRange, Refused, ScanDefinition, StagePosition


def test_a_flare_multiplies_the_current_while_it_lasts() -> None:
    column = Column(flares=(Flare(1.0, 0.5, 20.0), Flare(1.2, 0.1, 2.0, every_s=1.0)))
    at = {0.0: 1.0, 1.0: 20.0, 1.25: 40.0, 1.49: 20.0, 1.6: 1.0, 2.25: 2.0, 3.35: 1.0}
    assert {time_s: column.current_part(time_s) for time_s in at} == at


def test_flares_are_read_from_a_description(tmp_path: Path) -> None:
    flare = {"at_s": 1, "lasts_s": 0.01, "factor": 50, "every_s": 2}
    path = tmp_path / "physics.json"
    path.write_text(json.dumps({"column": {"flares": [flare]}}))
    assert load_physics(str(path)) == Physics(column=Column(flares=(Flare(1.0, 0.01, 50.0, 2.0),)))


def test_a_scene_that_was_moved_is_what_drift_makes_of_it() -> None:
    options = MovieOptions((32, 32), drift_px_per_frame=(0.5, -0.25))
    scene = MovieScene(options, 10)
    np.testing.assert_array_equal(scene.moved(*scene.drift_px[7]), scene.expected(7))
    with pytest.raises(ValueError, match="64 px are there"):
        scene.moved(64.0, 0.0)


def test_a_blank_touches_no_lens_and_a_change_of_lenses_under_way_does_not_turn_the_beam_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = FilmOptions(Physics(lenses=LensErrors(latency_s=60.0)), detector_px=64)
    with film_microscope(options) as scope:
        instrument = scope.instrument
        was = instrument.view()

        def blanked_while_the_lenses_settle(duration_s: float) -> bool:
            assert duration_s == 60.0
            blanked = instrument.blank_beam(0)
            assert (blanked.command_epoch, blanked.state_version) == (1, was.state_version + 1)
            return True

        monkeypatch.setattr(instrument, "_wait", blanked_while_the_lenses_settle)
        with pytest.raises(Refused, match="command_epoch 0 is older than 1"):
            instrument.set_optics(0, replace(was.optics, defocus_nm=5.0))
        again = instrument.blank_beam(7)
        assert (again.command_epoch, again.state_version) == (7, was.state_version + 1)
        assert again.optics == replace(was.optics, beam_blanked=True)
        assert instrument.blank_beam(10**EPOCH_DIGITS).command_epoch == 8


def test_the_dwell_of_the_running_scan_changes_and_of_no_other() -> None:
    options = FilmOptions(Physics(), detector_px=64, rate_fps=500.0)
    with film_microscope(options) as scope:
        scan = ScanDefinition("a", (1, 60_000), (0.0, 0.0), 1.0, 2e-3, 100.0)
        scope.instrument.define_scan(1, scan)
        with pytest.raises(Refused, match="scan 'a' does not run"):
            scope.instrument.set_dwell("a", 4e-3)
        scope.instrument.start(1, "a")
        with pytest.raises(Refused, match="scan 'b' does not run"):
            scope.instrument.set_dwell("b", 4e-3)
        with pytest.raises(OutOfRange, match="dwell_s=11"):
            scope.instrument.set_dwell("a", 11.0)
        version = scope.instrument.view().state_version
        assert scope.instrument.set_dwell("a", 4e-3).state_version > version
        moved = scope.instrument.move_stage(2, StagePosition(10.0, 0.0, 0.0))
        assert moved.scanning
        np.testing.assert_allclose(scope.look().place_nm, (10.0, 0.0))
        scope.instrument.stop(3, "enough")
