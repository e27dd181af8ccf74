"""The inverse of a command that moved the stage or set the optics: back to what was recorded before it."""

from __future__ import annotations

from nextem.edge.control.journal import Journal
from nextem.edge.control.limits import Refusal
from nextem.edge.control.states import DONE
from nextem.v1 import control_pb2 as pb


def resolved(command: pb.Command, journal: Journal) -> pb.Command | Refusal:
    """``command`` itself, or, where it is an undo, what it comes to: checked and run as any other.

    Refuses by rule "undo". Raises :class:`~nextem.edge.control.journal.JournalError`.
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
