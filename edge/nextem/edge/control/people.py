"""What people decide at the edge: the mode, and yes or no to a command that waits."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nextem.edge.control.at_driver import Received
from nextem.edge.control.audit import AuditTrail
from nextem.edge.control.commands import CommandHandler
from nextem.edge.control.limits import Refusal
from nextem.edge.control.modes import APPROVE, MEANING, Modes, RoleOf, mode_name, refuse_role
from nextem.v1 import control_pb2 as pb
from nextem.wire.clock import Clock
from nextem.wire.proof import Request

logger = logging.getLogger(__name__)

CONSOLE = "console"


class People:
    """Each method on the desk's thread, and :meth:`console` on any."""

    def __init__(
        self,
        modes: Modes,
        handler: CommandHandler,
        audit: AuditTrail,
        clock: Clock,
        *,
        role_of: RoleOf,
        replay: Callable[[Request], Refusal | None],
        run: Callable[[Received], bool],
        send: Callable[[pb.EdgeMessage], object],
    ) -> None:
        """``replay`` refuses what was asked before; asked once the role is known to be good.

        ``run`` queues a command again, False when too many wait; ``send`` is the link's.
        """
        self._modes, self._handler, self._audit, self._clock = modes, handler, audit, clock
        self._role_of, self._replay, self._run, self._send = role_of, replay, run, send

    def console(self, mode: pb.Mode, reason: str, who: str = CONSOLE) -> pb.ModeChange:
        """Somebody at this machine changes the mode; nobody asks for a role."""
        request = pb.SetModeRequest(mode=mode, issuer=who, issuer_role=CONSOLE, reason=reason)
        return self._changed(self._modes.change(request))

    def set_mode(self, asked: pb.SetModeRequest) -> None:
        """Somebody elsewhere changes the mode, if the role allows it; answered either way."""
        request = pb.SetModeRequest()
        request.CopyFrom(asked)
        request.issuer_role = self._role_of(asked)
        refusal = refuse_role(request.issuer_role, "change the mode") or self._replay(asked)
        self._changed(self._modes.change(request, refusal))

    def _changed(self, change: pb.ModeChange) -> pb.ModeChange:
        self._audit.mode(change)
        name = mode_name(change.mode)
        if change.refused:
            logger.warning("the mode stays %s: %s", name, change.refused)
        else:
            logger.info("the mode is %s: %s (%s)", name, MEANING[change.mode], change.issuer)
            if change.mode != APPROVE:
                self._handler.proposals.drop(lambda _: Refusal("mode", f"the mode is {name} now"))
        self._send(pb.EdgeMessage(mode=change))
        return change

    def decide(self, asked: pb.ProposalVerdict) -> None:
        """A yes lets the command go on, through every check once more; a no ends it. Answered either way."""
        verdict = pb.ProposalVerdict()
        verdict.CopyFrom(asked)
        verdict.issuer_role = self._role_of(asked)
        verdict.ClearField("token")
        refusal = refuse_role(verdict.issuer_role, "decide") or self._replay(asked) or self._decide(verdict)
        reply = pb.VerdictReply(request_id=asked.request_id, verdict=verdict)
        if refusal is not None:
            logger.warning("no verdict on command %s: %s", asked.command_id, refusal.detail)
            reply.refused = f"{refusal.rule}: {refusal.detail}"
        self._send(pb.EdgeMessage(verdict=reply))

    def _decide(self, verdict: pb.ProposalVerdict) -> Refusal | None:
        proposal = self._handler.proposals.take(verdict.command_id)
        if proposal is None:
            return Refusal("proposal", f"no command {verdict.command_id!r} waits for an answer")
        self._audit.verdict(verdict)
        if not verdict.approved:
            why = f"by {verdict.issuer}" + (f": {verdict.reason}" if verdict.reason else "")
            self._handler.end_proposal(proposal, Refusal("refused", why))
            return None
        received = Received(proposal.command, self._clock.now_ns(), proposal.generation, approved=True)
        if not self._run(received):
            self._handler.end_proposal(proposal, Refusal("inbox", "too many commands wait already"))
        return None
