"""Drives an instrument through the commands of an audit and finds the first difference."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nextem.cli.audit_story import Recorded, Stories
from nextem.edge.control.blanking import BLANK
from nextem.edge.control.driver import Driver, DriverError, DriverRefused
from nextem.edge.control.validate import EDGE_ONLY
from nextem.v1 import control_pb2 as pb

TOLERANCE = 1e-6
"""By how much two recorded numbers may differ and still be the same, in their own unit."""

_POLL_S = 0.005
_SCAN_S = 600.0


@dataclass(frozen=True, slots=True)
class Step:
    """One command that reached the driver. ``action`` is what it came to, also for an undo."""

    command_id: str
    action: pb.Command
    outcome: pb.Outcome


class Difference(Exception):
    """Where the replay went another way than the record."""

    def __init__(self, step: Step, what: str) -> None:
        self.step = step
        super().__init__(f"command {step.command_id} (epoch {step.outcome.command_epoch}): {what}")


class NothingToReplay(Exception):
    """No command of the record reached an instrument, or one cannot be known from it."""


def steps_of(stories: Stories) -> list[Step]:
    """What reached the driver, in the order in which it did. Rejected commands never did.

    Raises :class:`NothingToReplay` for an undo of what is not on record.
    """
    steps = []
    for command_id, found in stories.commands.items():
        last = found.outcomes[-1] if found.outcomes else pb.Outcome()
        if found.command is not None and last.command_epoch:
            steps.append(Step(command_id, _concrete(found, stories), last))
    return sorted(steps, key=lambda step: step.outcome.command_epoch)


def left_out(stories: Stories) -> list[str]:
    """Ids of what the edge itself did and no driver is asked for again: frames kept, scans slowed down, and
    rules switched. They change neither stage nor optics."""
    return [
        command_id
        for command_id, found in stories.commands.items()
        if found.command is not None
        and found.command.WhichOneof("action") in EDGE_ONLY
        and any(outcome.state == pb.COMMAND_STATE_DONE for outcome in found.outcomes)
    ]


def _concrete(found: Recorded, stories: Stories) -> pb.Command:
    action = pb.Command()
    assert found.command is not None
    action.CopyFrom(found.command)
    if action.HasField("undo"):
        known = stories.commands.get(action.undo.command_id)
        if known is None or not known.outcomes:
            raise NothingToReplay(
                f"what {action.command_id} undid, {action.undo.command_id}, is not on record"
            )
        undone = known.outcomes[-1]
        if undone.action == "move_stage":
            action.move_stage.CopyFrom(undone.state_before.stage)
        elif undone.action == BLANK:
            action.set_optics.CopyFrom(found.outcomes[-1].state_before.optics)
            action.set_optics.beam_blanked = False
        else:
            action.set_optics.CopyFrom(undone.state_before.optics)
    return action


def replay(steps: list[Step], driver: Driver) -> Iterator[Step]:
    """Yields each step once it went as recorded. Raises :class:`Difference` at the first that did not.

    The instrument is first brought to where the record begins. Raises :class:`NothingToReplay` and
    :class:`~nextem.edge.control.driver.DriverError`.
    """
    if not steps:
        raise NothingToReplay("no command on record reached an instrument")
    epoch = driver.get_state().command_epoch
    begin = next((s.outcome.state_before for s in steps if s.outcome.HasField("state_before")), None)
    if begin is not None:
        driver.set_optics(epoch := epoch + 1, begin.optics)
        driver.move_stage(epoch := epoch + 1, begin.stage)
    for step in steps:
        if step.outcome.HasField("state_before") and step.action.WhichOneof("action") != "acquire":
            _compare(step, "before it", step.outcome.state_before, driver.get_state())
        _drive(step, driver, epoch := epoch + 1)
        yield step


def _drive(step: Step, driver: Driver, epoch: int) -> None:
    refused = step.outcome.rule == "driver_refused"
    try:
        after = _act(step, driver, epoch)
    except DriverRefused as error:
        if not refused:
            raise Difference(step, f"refused now, and not then: {error}") from error
        return
    except DriverError as error:
        if step.outcome.state == pb.COMMAND_STATE_DONE:
            raise Difference(step, f"failed now, and not then: {error}") from error
        return
    if refused:
        raise Difference(step, f"done now, and refused then: {step.outcome.detail}")
    if after is not None and step.outcome.HasField("state_after"):
        _compare(step, "after it", step.outcome.state_after, after)


def _act(step: Step, driver: Driver, epoch: int) -> pb.InstrumentState | None:
    command = step.action
    match command.WhichOneof("action"):
        case "move_stage":
            return driver.move_stage(epoch, command.move_stage)
        case "set_optics":
            return driver.set_optics(epoch, command.set_optics)
        case "acquire":
            _scan(step, driver, epoch)
        case "stop":
            driver.stop(epoch, command.stop.reason)
    return None


def _scan(step: Step, driver: Driver, epoch: int) -> None:
    plan, scan_id = step.action.acquire, step.outcome.acquisition_id
    driver.define_scan(epoch, scan_id, plan.scan, plan.dose_e_per_frame)
    if not step.outcome.HasField("accounting"):
        return  # it was never started
    driver.start(epoch, scan_id)
    if step.outcome.rule == "stopped":
        driver.stop(epoch, "it was stopped then")
        return
    until_s = time.monotonic() + _SCAN_S
    while (state := driver.get_state()).scanning:
        if time.monotonic() > until_s:
            raise Difference(step, f"its scan still runs after {_SCAN_S:g} s")
        time.sleep(_POLL_S)
    # Frames are not compared: how many are sent depends on who reads them, and here nobody does.
    if state.scan_id != scan_id:
        raise Difference(step, f"scan {state.scan_id!r} ran last, not its own {scan_id!r}")


def _compare(step: Step, when: str, then: pb.InstrumentState, now: pb.InstrumentState) -> None:
    for part in ("stage", "optics"):
        old, new = getattr(then, part), getattr(now, part)
        for field in old.DESCRIPTOR.fields:
            before, after = getattr(old, field.name), getattr(new, field.name)
            if not (before == after or math.isclose(before, after, rel_tol=0.0, abs_tol=TOLERANCE)):
                text = f"{when}, {part}.{field.name} is {after!r} now and was {before!r} then"
                raise Difference(step, text)
