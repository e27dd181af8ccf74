"""A beam that a rule of the edge or the safe state has blanked stays so until somebody who knows turns it on.

A client that keeps the optics as it last saw them would else undo the rule with its next change of focus, and
a policy that comes back after its service had died would undo the safe state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nextem.edge.control.limits import Refusal
from nextem.v1.control_pb2 import Command, InstrumentState
from nextem.v1.plan_pb2 import Plan

RULE = "beam_guard"
_UNDER_WAY = 1 << 63  # later than any time of the edge's clock
DARK_PURPOSE = "dark"
"""Purpose of a scan that is meant to be taken without the beam."""


@dataclass(frozen=True, slots=True)
class _Blanked:
    by: str
    command_id: str
    at_ns: int


class BeamGuard:
    """Written by the threads of rules and commands, read by any. After a restart only the blanker stays.

    A blank waits for no command under way. What had passed its checks before has an older epoch than the
    blank, and is fenced off by the instrument; what comes to its checks meanwhile is refused here.
    """

    def __init__(self) -> None:
        self._blanked: _Blanked | None = None
        self._safe_ns = 0  # when the instrument was made safe last
        self._writing = threading.Lock()

    @contextmanager
    def blanking(self, by: str, command_id: str, now_ns: Callable[[], int]) -> Iterator[None]:
        """Within, ``by`` ("rule:bright") blanks the beam by this command; after it the beam is guarded.

        When the block raises, it is guarded as before.
        """
        with self._writing:
            before, self._blanked = self._blanked, _Blanked(by, command_id, _UNDER_WAY)
        after = before
        try:
            yield
            after = _Blanked(by, command_id, now_ns())
        finally:
            with self._writing:
                self._blanked = after

    def turned_on(self, received_ns: int) -> None:
        """A command that came then has turned the beam on: nothing is guarded but a blank since."""
        with self._writing:
            if self._blanked is not None and self._blanked.at_ns < received_ns:
                self._blanked = None

    def made_safe(self, now_ns: int) -> None:
        """The safe state has blanked the beam: see :meth:`refuse_old`."""
        self._safe_ns = now_ns

    def refuse_old(self, command: Command, state: InstrumentState) -> Refusal | None:
        """Whether ``command`` would end the safe state, and was decided on frames from before it.

        Whoever leads since then may turn the beam on, but not by a decision that could not know of it.
        """
        cause = command.cause
        if not _turns_on(command) or not state.optics.beam_blanked or command.expected_state_version:
            return None
        if not cause.last_byte_ns or cause.last_byte_ns > self._safe_ns:
            return None
        late_s = (self._safe_ns - cause.last_byte_ns) / 1e9
        return Refusal(RULE, f"the beam was blanked {late_s:.3f} s after the frames that this was decided on")

    def refuse(self, command: Command, received_ns: int, undone_id: str = "") -> Refusal | None:
        """Whether ``command`` would turn the beam on without knowing of the rule.

        Whoever knows names the state seen since then (``expected_state_version``), or undoes the very command
        of the rule (``undone_id``).
        """
        last = self._blanked
        if last is None or not _turns_on(command):
            return None
        if received_ns <= last.at_ns:
            return Refusal(RULE, f"{last.by} blanked the beam after this command had come")
        if command.expected_state_version or undone_id == last.command_id:
            return None
        return Refusal(
            RULE,
            f"{last.by} blanked the beam (command {last.command_id}): expected_state_version is 0, and who"
            " turns it on again names the state that they saw",
        )

    def refuse_start(self, plan: Plan) -> Refusal | None:
        """Whether a scan that was accepted before would now run in the dark."""
        last = self._blanked
        if last is None or plan.scan.purpose == DARK_PURPOSE:
            return None
        return Refusal(RULE, f"{last.by} blanked the beam while this scan waited")


def _turns_on(command: Command) -> bool:
    """Whether it sets the optics with the beam on."""
    return command.HasField("set_optics") and not command.set_optics.beam_blanked
