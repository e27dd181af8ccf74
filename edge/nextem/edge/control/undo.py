"""The inverse of a command that moved the stage or set the optics: back to what was recorded before it.

The inverse of a rule's blank is the beam, with the lenses as they are now.
"""

from __future__ import annotations

from nextem.edge.control.blanking import BLANK
from nextem.edge.control.driver import Driver, DriverError
from nextem.edge.control.journal import Journal
from nextem.edge.control.limits import Refusal
from nextem.edge.control.states import DONE
from nextem.v1 import control_pb2 as pb


def resolved(command: pb.Command, journal: Journal, driver: Driver) -> pb.Command | Refusal:
    """``command`` itself, or, where it is an undo, what it comes to: checked and run as any other.

    Refuses by rule "undo", and by the driver's where the state is needed and cannot be read.
    Raises :class:`~nextem.edge.control.journal.JournalError`.
    """
    if not command.HasField("undo"):
        return command
    undone_id = command.undo.command_id
    entry = journal.lookup(undone_id)
    if entry is None:
        return Refusal("undo", f"no command {undone_id!r} is in the journal of this edge")
    undone = entry.outcome
    if entry.state != DONE:
        return Refusal("undo", f"command {undone_id} is {pb.CommandState.Name(entry.state)}, not done")
    if undone.action == BLANK:
        return _unblank(command, driver)
    if not undone.HasField("state_before"):
        return Refusal("undo", f"what was before command {undone_id} is not recorded")
    inverse = pb.Command()
    inverse.CopyFrom(command)
    match undone.action:
        case "move_stage":
            inverse.move_stage.CopyFrom(undone.state_before.stage)
        case "set_optics":
            inverse.set_optics.CopyFrom(undone.state_before.optics)
        case action:
            return Refusal("undo", f"command {undone_id} is {action}, which has no inverse")
    return inverse


def _unblank(command: pb.Command, driver: Driver) -> pb.Command | Refusal:
    inverse = pb.Command()
    inverse.CopyFrom(command)
    try:
        inverse.set_optics.CopyFrom(driver.get_state().optics)
    except DriverError as error:
        return Refusal(error.rule, str(error))
    inverse.set_optics.beam_blanked = False
    return inverse
