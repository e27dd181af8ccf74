"""What an instrument can do: names of the fields that may be commanded, "stage.y_nm" or "optics.defocus_nm",
and "scan" for running scans.

A command sets every field of stage or optics; it asks for those that differ from the state. An instrument
that tells no capabilities is asked for anything, and refuses itself what it cannot do.
"""

from __future__ import annotations

import math

from nextem.edge.control.limits import Refusal
from nextem.edge.rules.plan import Drift, Event, Rule
from nextem.v1 import control_pb2 as pb

SCAN = "scan"
DWELL = "scan.dwell_s"
"""The time per frame may be changed while a scan runs."""

STAGE_WHILE_SCANNING = "stage.while_scanning"
"""The stage may move while a scan runs. This one and :data:`DWELL` an instrument must tell."""

RULE = "capability"

_NO_BEAM = {
    pb.COLUMN_STATE_VACUUM: "the vacuum is bad",
    pb.COLUMN_STATE_GUN_OFF: "the gun is off",
}


def changes(group: str, wanted: pb.Stage | pb.Optics, now: pb.Stage | pb.Optics) -> dict[str, float]:
    """The fields of ``wanted`` that differ from ``now`` by more than rounding: "group.field" and value."""
    found: dict[str, float] = {}
    for field in wanted.DESCRIPTOR.fields:
        to, at = getattr(wanted, field.name), getattr(now, field.name)
        if not math.isclose(to, at, rel_tol=1e-9, abs_tol=1e-6):
            found[f"{group}.{field.name}"] = to
    return found


def check_capability(command: pb.Command, state: pb.InstrumentState) -> Refusal | None:
    """Refuses what the instrument cannot do, and beam while the column is not ready for it."""
    match command.WhichOneof("action"):
        case "move_stage":
            needed = set(changes("stage", command.move_stage, state.stage))
        case "set_optics":
            needed = set(changes("optics", command.set_optics, state.optics))
        case "acquire":
            needed = {SCAN}
        case _:
            return None
    if state.capabilities and (missing := sorted(needed - set(state.capabilities))):
        return Refusal(RULE, f"{state.instrument} cannot do {', '.join(missing)}")
    if command.HasField("acquire"):
        beam = command.acquire.scan.purpose != "dark"
    else:
        beam = command.HasField("set_optics") and not command.set_optics.beam_blanked
    if beam and state.column in _NO_BEAM:
        return Refusal("column", f"no beam: {_NO_BEAM[state.column]}")
    return None


def check_rule(rule: Rule, state: pb.InstrumentState) -> Refusal | None:
    """Refuses a rule of a plan that the instrument could not obey."""
    known, told = set(state.capabilities), bool(state.capabilities)
    match rule.what:
        case Drift():
            needed = {"stage.y_nm", "stage.x_nm", STAGE_WHILE_SCANNING}
        case Event(slow_dwell_s=slow_dwell_s):
            needed = {DWELL} if slow_dwell_s else set()
        case _:
            needed = {"optics.beam_blanked"} if told else set()
    if missing := sorted(needed - known):
        return Refusal(
            RULE, f"{state.instrument} cannot do {', '.join(missing)}, as rule {rule.name!r} needs"
        )
    return None
