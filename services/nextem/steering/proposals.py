"""Commands that wait for a person, as their edges told: shown to whoever begins to watch."""

from __future__ import annotations

from collections.abc import Iterator

from nextem.v1 import control_pb2

STAGES = (
    control_pb2.COMMAND_STATE_UNSPECIFIED,
    control_pb2.COMMAND_STATE_RECEIVED,
    control_pb2.COMMAND_STATE_PROPOSED,
    control_pb2.COMMAND_STATE_STARTED,
)
"""The states that are not final, in the order in which a command comes through them."""


def is_news(state: int, known: int) -> bool:
    """Whether a command known in one of :data:`STAGES` has come further; an edge repeats itself."""
    return state not in STAGES or STAGES.index(state) > STAGES.index(known)


class OpenProposals:
    """Not thread-safe: the hub holds its lock."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, control_pb2.Command | None, control_pb2.Outcome]] = {}

    def outcome(
        self, instrument: str, outcome: control_pb2.Outcome, command: control_pb2.Command | None
    ) -> None:
        """``command`` is None where this service did not see it pass."""
        if outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
            known = self._open.get(outcome.command_id)
            self._open[outcome.command_id] = (instrument, command or (known and known[1]), outcome)
        else:
            self._open.pop(outcome.command_id, None)

    def forget(self, instrument: str) -> None:
        """Its edge went away; it tells those that still wait when it comes back."""
        for name, (owner, _, _) in list(self._open.items()):
            if owner == instrument:
                del self._open[name]

    def events(self, instrument: str) -> Iterator[control_pb2.SteeringEvent]:
        """Command and outcome of each, oldest first; ``instrument`` "" means of all."""
        for owner, command, outcome in self._open.values():
            if instrument in ("", owner):
                if command is not None:
                    yield control_pb2.SteeringEvent(command=command)
                yield control_pb2.SteeringEvent(outcome=outcome)
