"""The states of a command, and from which it may go to which."""

from __future__ import annotations

from collections.abc import Mapping

from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2 import CommandState

RECEIVED = pb.COMMAND_STATE_RECEIVED
VALIDATED = pb.COMMAND_STATE_VALIDATED
STARTED = pb.COMMAND_STATE_STARTED
DONE = pb.COMMAND_STATE_DONE
FAILED = pb.COMMAND_STATE_FAILED
REJECTED = pb.COMMAND_STATE_REJECTED
UNKNOWN = pb.COMMAND_STATE_UNKNOWN
PROPOSED = pb.COMMAND_STATE_PROPOSED  # waits in memory, not in the journal

TRANSITIONS: Mapping[CommandState | None, frozenset[CommandState]] = {
    None: frozenset({RECEIVED}),
    RECEIVED: frozenset({VALIDATED, REJECTED}),
    VALIDATED: frozenset({STARTED}),
    STARTED: frozenset({DONE, FAILED, UNKNOWN}),
    DONE: frozenset(),
    FAILED: frozenset(),
    REJECTED: frozenset(),
    UNKNOWN: frozenset(),
}
"""From which state a command may go to which; None is a command not seen yet."""

FINAL = frozenset(state for state, onward in TRANSITIONS.items() if state is not None and not onward)
