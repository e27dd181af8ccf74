"""The control agent keeps what it counts: rate, dose by region, and limits that must be signed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from agent_kit import DOSE_E, PLAN, WAIT_S, MakeRig, Rig

from nextem.edge.control.driver import DriverRefused
from nextem.edge.control.limits import Axis, DoseMapLimits, Forbidden, Range, default_limits
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    Stage,
    Stop,
)
from nextem.wire.signing import new_key, sign

TWICE = DoseMapLimits(cell_nm=100.0, max_e_per_nm2=2 * DOSE_E / 100.0**2, max_cells=4)


def test_moves_are_slowed_down_to_the_rate(make_rig: MakeRig) -> None:
    axis = Axis(min=-1e6, max=1e6, max_step=100.0, max_rate=10.0)
    limits = replace(default_limits(), stage=replace(default_limits().stage, x_nm=axis))
    rig = make_rig(limits=limits)
    assert rig.until(rig.send(rig.command(move_stage=Stage(x_nm=100.0)))).state == COMMAND_STATE_DONE
    rig.driver.state.stage.x_nm = 100.0
    refused = rig.until(rig.send(rig.command(move_stage=Stage(x_nm=50.0))))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "limit:stage.x_nm.rate")
    rig.clock.time_ns += 5_000_000_000
    assert rig.until(rig.send(rig.command(move_stage=Stage(x_nm=50.0)))).state == COMMAND_STATE_DONE


def test_dose_counts_for_the_region_that_it_goes_to_over_a_restart(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(limits=replace(default_limits(), dose_map=TWICE))
    for _ in range(2):
        rig.until(rig.acquire(), COMMAND_STATE_STARTED)
    assert rig.until(rig.acquire()).rule == "limit:dose_map"
    rig.acquisitions.next().end()
    rig.acquisitions.next().end()
    rig.close()
    after = make_rig(tmp_path, limits=replace(default_limits(), dose_map=TWICE))
    assert after.until(after.acquire()).rule == "limit:dose_map"
    after.driver.state.stage.x_nm = 500.0
    assert after.until(after.acquire(), COMMAND_STATE_STARTED).rule == ""


def test_dose_of_what_never_ran_comes_back_to_its_region(make_rig: MakeRig) -> None:
    rig = make_rig(limits=replace(default_limits(), dose_map=TWICE))
    rig.driver.errors["define_scan"] = DriverRefused("no")
    for _ in range(3):
        assert rig.until(rig.acquire()).state == COMMAND_STATE_FAILED
    del rig.driver.errors["define_scan"]
    assert rig.until(rig.acquire(), COMMAND_STATE_STARTED).rule == ""


def test_a_command_into_a_forbidden_combination_is_refused(make_rig: MakeRig) -> None:
    box = Forbidden("high and left", {"stage.z_nm": Range(50.0, 1e5), "stage.x_nm": Range(-1e6, 0.0)})
    rig = make_rig(limits=replace(default_limits(), forbidden=(box,)))
    refused = rig.until(rig.send(rig.command(move_stage=Stage(z_nm=60.0, x_nm=-1.0))))
    assert (refused.rule, refused.detail) == ("forbidden:high and left", "stage.x_nm -1.0, stage.z_nm 60.0")
    assert rig.until(rig.send(rig.command(move_stage=Stage(z_nm=60.0, x_nm=1.0)))).state == COMMAND_STATE_DONE


def signed(folder: Path) -> tuple[Path, Path]:
    """A limits file and the key that signed it."""
    private, public = new_key()
    path, key = folder / "limits.json", folder / "limits.pub"
    path.write_text(default_limits().to_json())
    path.with_name("limits.json.sig").write_bytes(sign(private, path.read_bytes()))
    key.write_bytes(public)
    return path, key


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"600")] ^= 1
    path.write_bytes(content)


DAMAGE = [
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-40]), id="truncated"),
    pytest.param(_flip, id="bit-flipped"),
    pytest.param(lambda path: path.with_name("limits.json.sig").unlink(), id="unsigned"),
    pytest.param(lambda path: path.unlink(), id="removed"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
]


def test_signed_limits_are_in_force(make_rig: MakeRig, tmp_path: Path) -> None:
    path, key = signed(tmp_path)
    rig = make_rig(limits=path, limits_key=key)
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE


def refuses_everything_but_stop(rig: Rig) -> None:
    refused = rig.until(rig.send(rig.command(acquire=PLAN)))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "limits_unreadable")
    assert rig.until(rig.send(rig.command(stop=Stop()))).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop"]


def test_limits_that_somebody_changed_mean_no_writes(make_rig: MakeRig, tmp_path: Path) -> None:
    path, key = signed(tmp_path)
    path.write_text(path.read_text().replace("600", "6000"))
    refuses_everything_but_stop(make_rig(limits=path, limits_key=key))


def test_unsigned_limits_mean_no_writes(make_rig: MakeRig, tmp_path: Path) -> None:
    path, key = signed(tmp_path)
    path.with_name("limits.json.sig").unlink()
    refuses_everything_but_stop(make_rig(limits=path, limits_key=key))


def test_limits_that_cannot_be_signed_mean_no_writes(make_rig: MakeRig, tmp_path: Path) -> None:
    refuses_everything_but_stop(make_rig(limits_key=signed(tmp_path)[1]))


@pytest.mark.parametrize("damage", DAMAGE)
def test_limits_that_are_damaged_while_in_force_mean_no_writes(
    make_rig: MakeRig, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """What waits in the queue does not start either; what the file said is in force again once it says so."""
    path, key = signed(tmp_path)
    good, signature = path.read_bytes(), path.with_name("limits.json.sig").read_bytes()
    rig = make_rig(limits=path, limits_key=key)
    at_instrument = threading.Event()
    rig.driver.hooks["start"] = at_instrument.set
    running, waiting = rig.command(acquire=PLAN), rig.command(acquire=PLAN)
    rig.send(running)
    rig.send(waiting)
    first = rig.acquisitions.next()
    assert at_instrument.wait(WAIT_S)
    damage(path)
    refused = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "limits_unreadable")
    assert "limits.json" in refused.detail
    first.end()  # it was checked, and is at the instrument
    assert rig.until(running.command_id).state == COMMAND_STATE_DONE
    assert rig.until(waiting.command_id).rule == "limits_unreadable"
    assert rig.until(rig.send(rig.command(stop=Stop()))).state == COMMAND_STATE_DONE
    path.write_bytes(good)
    path.with_name("limits.json.sig").write_bytes(signature)
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE


def test_other_limits_take_a_start_of_the_edge(make_rig: MakeRig, tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    path.write_text(default_limits().to_json())
    rig = make_rig(limits=path)
    path.write_text(replace(default_limits(), commands_per_minute=1000).to_json())
    refused = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (refused.rule, "restart" in refused.detail) == ("limits_unreadable", True)
