"""The checks between a command and the driver: one pure function, one table of rules in order.

The first rule that says no decides. Stop passes through none of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nextem.edge.control.beam_guard import DARK_PURPOSE
from nextem.edge.control.capability import STAGE_WHILE_SCANNING, check_capability, check_rule
from nextem.edge.control.dose_map import DoseMap, on_sample
from nextem.edge.control.lease import Lease, check_lease
from nextem.edge.control.limits import (
    Limits,
    LimitsUnreadable,
    Refusal,
    Spent,
    check_change,
    check_forbidden,
    check_scan,
)
from nextem.edge.rules.plan import InvalidRule, read_rules, slowest
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2 import Command, InstrumentState

MAX_ID_LENGTH = 128
PLAN_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Context:
    """What the edge knows at the moment of a check. Times in ns on the edge's clock.

    ``state`` is the instrument's state, or why it cannot be read. ``acquisitions`` wait or run now.
    ``recent_commands`` came in during the last minute, this one included. ``spent`` is what commands have
    changed, by parameter; ``dose_map`` is None where nothing was exposed. ``own``: the command is a rule's of
    this edge; ``guarded``: why it may not turn the beam on.
    """

    instrument: str
    boot_id: str
    now_ns: int
    lease: Lease | None
    state: InstrumentState | Refusal
    limits: Limits | LimitsUnreadable
    dose_used_e: float
    acquisitions: int
    recent_commands: int
    mode: pb.Mode = pb.MODE_AUTOMATIC
    spent: Mapping[str, Spent] = field(default_factory=dict)
    dose_map: DoseMap | None = None
    own: bool = False
    guarded: Refusal | None = None


EDGE_ONLY = frozenset({"on_event", "switch_rule"})
"""Actions of commands that only the edge issues: for its rules, and for who is at its console."""


class Verdict(NamedTuple):
    """``refusal`` is None when the command may go on; ``dose_e`` are the electrons that it plans to use."""

    refusal: Refusal | None
    dose_e: float


def planned_dose_e(command: Command) -> float:
    """Electrons of all frames of an acquire command together, at the slowest; 0 for anything else."""
    plan = slowest(command.acquire)
    return plan.scan.size_y * plan.scan.size_x * plan.dose_e_per_frame


def planned_s(command: Command, state: InstrumentState | Refusal) -> float:
    """Seconds that a command would take, where the edge can tell; else 0.

    Of an acquire those of every frame, at the slowest; of a move what the instrument says of its stage.
    """
    if command.HasField("move_stage"):
        if isinstance(state, Refusal) or state.stage_speed_nm_s <= 0:
            return 0.0
        to, at = command.move_stage, state.stage
        distance_nm = math.hypot(to.y_nm - at.y_nm, to.x_nm - at.x_nm, to.z_nm - at.z_nm)
        return state.stage_latency_s + distance_nm / state.stage_speed_nm_s
    scan = slowest(command.acquire).scan
    return scan.size_y * scan.size_x * scan.dwell_s


def check(command: Command, context: Context) -> Verdict:
    """Applies :data:`RULES` in order. Pure: reads no clock, touches nothing."""
    for rule in RULES:
        if refusal := rule(command, context):
            return Verdict(refusal, 0.0)
    return Verdict(None, planned_dose_e(command))


def check_deadline(not_after_ns: int, now_ns: int) -> Refusal | None:
    """Refuses what is late, and by how much. A command without a deadline is refused too."""
    if not_after_ns == 0:
        return Refusal("deadline", "not_after_ns is 0: the command has no deadline")
    if now_ns > not_after_ns:
        return Refusal("deadline", f"{(now_ns - not_after_ns) / 1e6:.3f} ms late")
    return None


# ---- the rules, in order ------------------------------------------------------------------------


def _form(command: Command, context: Context) -> Refusal | None:
    if not 0 < len(command.command_id) <= MAX_ID_LENGTH:
        return Refusal("command_id", f"length {len(command.command_id)} is outside 1..{MAX_ID_LENGTH}")
    if command.instrument != context.instrument:
        return Refusal("instrument", f"{command.instrument!r} is not {context.instrument!r}")
    action = command.WhichOneof("action")
    if action is None:
        return Refusal("action", "the command asks for nothing that this edge knows")
    if action in EDGE_ONLY:
        return Refusal("edge_only", f"{action} is what the edge itself does, and nobody may ask for it")
    if action == "acquire" and command.acquire.schema_version != PLAN_SCHEMA_VERSION:
        return Refusal(
            "plan.schema_version", f"{command.acquire.schema_version} is not {PLAN_SCHEMA_VERSION}"
        )
    return None


def _observe(command: Command, context: Context) -> Refusal | None:
    if context.mode == pb.MODE_OBSERVE:
        return Refusal("mode", "observe: every command but stop is refused")
    return None


def _advise(command: Command, context: Context) -> Refusal | None:
    if context.mode == pb.MODE_ADVISE:
        return Refusal("mode", "advise: it passed every check, and commands are shown, not run")
    return None


def _boot_id(command: Command, context: Context) -> Refusal | None:
    if command.edge_boot_id != context.boot_id:
        return Refusal(
            "boot_id",
            f"the deadline is on the clock of edge boot {command.edge_boot_id!r}, not of {context.boot_id!r}",
        )
    return None


def _deadline(command: Command, context: Context) -> Refusal | None:
    return check_deadline(command.not_after_ns, context.now_ns)


def _lease(command: Command, context: Context) -> Refusal | None:
    if command.validate_only and not command.lease_id:
        return None  # asked before leading, so that nobody who leads now is disturbed
    return check_lease(command.lease_id, command.lease_epoch, context.lease, context.now_ns)


def _state_known(command: Command, context: Context) -> Refusal | None:
    return context.state if isinstance(context.state, Refusal) else None


def _expected_state(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    version = context.state.state_version
    if command.expected_state_version not in (0, version):
        return Refusal(
            "expected_state_version",
            f"{command.expected_state_version} was expected; the instrument is at {version}",
        )
    return None


def _capability(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    return check_capability(command, context.state)


def _edge_rules(command: Command, context: Context) -> Refusal | None:
    """The plan's own rules: each can be kept, by this instrument too."""
    assert isinstance(context.state, InstrumentState)
    try:
        rules = read_rules(command.acquire)
    except InvalidRule as error:
        return Refusal(f"rule:{error.name}", error.detail)
    for rule in rules:
        if refusal := check_rule(rule, context.state):
            return refusal
    return None


def _beam_guard(command: Command, context: Context) -> Refusal | None:
    return context.guarded


def _limits(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    if isinstance(context.limits, LimitsUnreadable):
        return Refusal("limits_unreadable", str(context.limits))
    if context.recent_commands > context.limits.commands_per_minute:
        return Refusal(
            "limit:commands_per_minute", f"{context.recent_commands} > {context.limits.commands_per_minute}"
        )
    match command.WhichOneof("action"):
        case "move_stage":
            to, at = command.move_stage, context.state.stage
            return check_change("stage", context.limits.stage, to, at, context.spent, context.now_ns)
        case "set_optics":
            optics, now = command.set_optics, context.state.optics
            return check_change("optics", context.limits.optics, optics, now, context.spent, context.now_ns)
        case _:
            plan = slowest(command.acquire)
            return check_scan(context.limits.scan, plan.scan, plan.dose_e_per_frame)


def _forbidden(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    assert isinstance(context.limits, Limits)
    if command.HasField("acquire"):
        return None  # it changes no parameter
    after = InstrumentState()
    after.CopyFrom(context.state)
    if command.HasField("move_stage"):
        after.stage.CopyFrom(command.move_stage)
    else:
        after.optics.CopyFrom(command.set_optics)
    return check_forbidden(context.limits.forbidden, after)


def _duration(command: Command, context: Context) -> Refusal | None:
    planned_ms = planned_s(command, context.state) * 1e3
    if command.max_duration_ms and planned_ms > command.max_duration_ms:
        return Refusal("max_duration", f"{planned_ms:.6g} ms planned > {command.max_duration_ms} ms")
    return None


def _dose_budget(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.limits, Limits)
    planned = planned_dose_e(command)
    if planned and context.dose_used_e + planned > context.limits.dose_budget_e:
        return Refusal(
            "dose_budget",
            f"{context.dose_used_e:.6g} used + {planned:.6g} planned > {context.limits.dose_budget_e:.6g} e",
        )
    return None


def _dose_map(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    assert isinstance(context.limits, Limits)
    if not command.HasField("acquire"):
        return None
    limits = context.limits.dose_map
    dose_map = context.dose_map or DoseMap(limits.cell_nm)
    return dose_map.check(on_sample(command.acquire, context.state.stage), limits)


def _queue(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.limits, Limits)
    if command.HasField("acquire") and context.acquisitions >= context.limits.max_acquisitions:
        return Refusal(
            "limit:max_acquisitions",
            f"{context.acquisitions} wait or run, {context.limits.max_acquisitions} are allowed",
        )
    return None


def _beam(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    if not command.HasField("acquire") or not context.state.optics.beam_blanked:
        return None
    if command.acquire.scan.purpose == DARK_PURPOSE:
        return None
    return Refusal("beam_blanked", f"the beam is blanked, and the scan's purpose is not {DARK_PURPOSE!r}")


def _instrument_free(command: Command, context: Context) -> Refusal | None:
    assert isinstance(context.state, InstrumentState)
    if not command.HasField("move_stage"):
        return None  # an acquire waits its turn; focus is corrected while the scan runs
    if context.own and STAGE_WHILE_SCANNING in context.state.capabilities:
        return None  # it follows the sample of that very scan
    # Moving under a scan would spoil it, and under a waiting one would put its dose in another place.
    if context.state.scanning:
        return Refusal("instrument_busy", f"scan {context.state.scan_id!r} is running")
    if context.acquisitions:
        return Refusal("instrument_busy", f"{context.acquisitions} acquisitions wait or run")
    return None


RULES: tuple[Callable[[Command, Context], Refusal | None], ...] = (
    _form,
    _observe,
    _boot_id,
    _deadline,
    _lease,
    _state_known,
    _expected_state,
    _capability,
    _edge_rules,
    _beam_guard,
    _limits,
    _forbidden,
    _duration,
    _dose_budget,
    _dose_map,
    _queue,
    _beam,
    _instrument_free,
    _advise,
)
