"""How much others may command: observe, advise, approve, automatic.

The edge holds the mode and keeps it in its journal, so that it survives a restart. It is changed at the
console, which is a call on this machine, or by a message of somebody whose role allows it. Stop passes in
every mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from nextem.edge.control.journal import Journal, JournalError
from nextem.edge.control.limits import Refusal
from nextem.v1 import control_pb2 as pb
from nextem.wire.roles import OPERATORS

OBSERVE = pb.MODE_OBSERVE
ADVISE = pb.MODE_ADVISE
APPROVE = pb.MODE_APPROVE
AUTOMATIC = pb.MODE_AUTOMATIC

MEANING: Mapping[pb.Mode, str] = {
    OBSERVE: "every command but stop is refused",
    ADVISE: "commands are checked and shown, and none is run",
    APPROVE: "each command waits for a person's yes until its deadline",
    AUTOMATIC: "what passes the checks is run",
}

RoleOf = Callable[[pb.SetModeRequest | pb.ProposalVerdict], str]
"""The role of whoever sent a message, on this instrument; empty: none."""


def claimed_role(message: pb.SetModeRequest | pb.ProposalVerdict) -> str:
    """The role that the message itself names: for where nobody is told apart by a token."""
    return message.issuer_role


def mode_name(mode: pb.Mode) -> str:
    """Such as "approve"."""
    return pb.Mode.Name(mode).removeprefix("MODE_").lower()


def refuse_role(role: str, what: str) -> Refusal | None:
    """Whether somebody of ``role`` may not do ``what`` ("change the mode")."""
    if role in OPERATORS:
        return None
    return Refusal("role", f"{role or 'nobody'!r} may not {what}; {' or '.join(sorted(OPERATORS))} may")


class Modes:
    """The mode in force. Thread-safe."""

    def __init__(self, journal: Journal) -> None:
        """What the journal has; automatic in a new one. Raises :class:`JournalError`."""
        self._journal, self._lock = journal, threading.Lock()
        kept = journal.mode
        self._mode = next((mode for mode in MEANING if mode == kept), AUTOMATIC)

    @property
    def current(self) -> pb.Mode:
        return self._mode

    def change(self, request: pb.SetModeRequest, refusal: Refusal | None = None) -> pb.ModeChange:
        """Changes the mode, durable before it is in force, or says in ``refused`` why not.

        ``refusal``: what is known against it already.
        """
        with self._lock:
            return self._change(request, refusal)

    def _change(self, request: pb.SetModeRequest, refusal: Refusal | None) -> pb.ModeChange:
        change = pb.ModeChange(
            request_id=request.request_id,
            before=self._mode,
            mode=self._mode,
            issuer=request.issuer,
            issuer_role=request.issuer_role,
            reason=request.reason,
        )
        if refusal is None and request.mode not in MEANING:
            known = ", ".join(mode_name(mode) for mode in MEANING)
            refusal = Refusal("mode", f"{request.mode} is no mode; they are {known}")
        if refusal is None:
            try:
                self._journal.record_mode(request.mode)
                self._mode = change.mode = request.mode
            except JournalError as error:
                refusal = Refusal("journal", str(error))
        if refusal is not None:
            change.refused = f"{refusal.rule}: {refusal.detail}"
        return change
