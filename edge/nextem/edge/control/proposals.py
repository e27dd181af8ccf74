"""Commands that passed every check and wait for a person's yes or no, until their deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from nextem.edge.control.journal import Entry
from nextem.edge.control.limits import Refusal
from nextem.edge.control.validate import check_deadline
from nextem.v1 import control_pb2 as pb
from nextem.wire.clock import Clock

MOST = 100
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Proposal:
    """``outcome`` is what was told as PROPOSED; ``generation`` counts the stops before the command came."""

    command: pb.Command
    digest: bytes
    outcome: pb.Outcome
    generation: int


class Proposals:
    """Kept in memory only: what waits when the edge ends was never run, and its deadline ends with it.

    Thread-safe. One whose deadline passes is handed to ``ended``, which is called on a thread of its own.
    """

    def __init__(self, clock: Clock, ended: Callable[[Proposal, Refusal], None]) -> None:
        self._clock, self._ended = clock, ended
        self._changed = threading.Condition()
        self._waiting: dict[str, Proposal] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="control-proposals", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends what waits by rule "closing", and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self.drop(lambda _: Refusal("closing", "the edge is closing"))

    def put(self, proposal: Proposal) -> Refusal | None:
        """Lets it wait, unless too many do."""
        with self._changed:
            if len(self._waiting) >= MOST:
                return Refusal("proposals", f"{MOST} commands wait for a person already")
            self._waiting[proposal.command.command_id] = proposal
            self._changed.notify()
        return None

    def entry(self, command_id: str) -> Entry | None:
        """What waits under this id, in the form of the journal."""
        proposal = self._waiting.get(command_id)
        if proposal is None:
            return None
        return Entry(pb.COMMAND_STATE_PROPOSED, proposal.digest, proposal.outcome)

    def take(self, command_id: str) -> Proposal | None:
        """Gives out what waits under this id, once."""
        with self._changed:
            return self._waiting.pop(command_id, None)

    def drop(self, why: Callable[[Proposal], Refusal | None]) -> None:
        """Ends each for which ``why`` has a refusal."""
        ended: list[tuple[Proposal, Refusal]] = []
        with self._changed:
            for name, proposal in list(self._waiting.items()):
                if refusal := why(proposal):
                    ended.append((self._waiting.pop(name), refusal))
        for proposal, refusal in ended:
            self._ended(proposal, refusal)

    def outcomes(self) -> list[pb.Outcome]:
        """What was told of those that wait."""
        with self._changed:
            return [proposal.outcome for proposal in self._waiting.values()]

    def _run(self) -> None:
        while not self._closed:
            now_ns = self._clock.now_ns()
            self.drop(lambda proposal: _late(proposal, now_ns))  # noqa: B023 - called at once
            with self._changed:
                if not self._closed:
                    self._changed.wait(_LOOK_S if self._waiting else None)


def _late(proposal: Proposal, now_ns: int) -> Refusal | None:
    late = check_deadline(proposal.command.not_after_ns, now_ns)
    return late and Refusal(late.rule, f"nobody said yes or no in time; {late.detail}")


def effect(command: pb.Command, state: pb.InstrumentState, dose_e: float) -> str:
    """What a command would do to an instrument in ``state``, in words for a person who decides."""
    match command.WhichOneof("action"):
        case "move_stage":
            return _differences("stage", state.stage, command.move_stage)
        case "set_optics":
            return _differences("optics", state.optics, command.set_optics)
        case "acquire":
            scan = command.acquire.scan
            seconds = scan.size_y * scan.size_x * scan.dwell_s
            return (
                f"a scan of {scan.size_y} × {scan.size_x} positions, {scan.step_nm:g} nm apart, from"
                f" y {scan.origin_y_nm:g} nm, x {scan.origin_x_nm:g} nm off the stage:"
                f" {seconds:.3g} s, {dose_e:.4g} e"
            )
        case action:
            return str(action)


def _differences(what: str, before: pb.Stage | pb.Optics, after: pb.Stage | pb.Optics) -> str:
    changes = [
        f"{name} {getattr(before, name):g} → {getattr(after, name):g}"
        for name in (field.name for field in after.DESCRIPTOR.fields)
        if getattr(before, name) != getattr(after, name)
    ]
    return f"{what}: {', '.join(changes) or 'nothing changes'}"
