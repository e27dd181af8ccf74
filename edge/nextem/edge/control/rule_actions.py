"""What the edge does when a rule of a plan fires. Nobody beyond this machine is asked or needed.

Saturation blanks the beam and an event keeps frames and slows down: such actions protect, so that they need
no lease and no mode, overtake every command that waits, and are journalled when they are done, as a stop is.
To bring the stage back after a drift is an ordinary command, by way of every check, under a lease of the
edge's own that is only to be had where nobody else holds the stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from nextem.edge.control.at_driver import Parts, Received
from nextem.edge.control.blanking import BLANK, blank
from nextem.edge.control.driver import CapabilityMissing, DriverError, SlowsDown
from nextem.edge.control.journal import JournalError
from nextem.edge.control.lease import STAGE, Lease
from nextem.edge.control.limits import Refusal
from nextem.edge.control.modes import AUTOMATIC, mode_name
from nextem.edge.control.outcomes import digest, note_at_driver, note_state, with_state
from nextem.edge.control.states import DONE, FAILED, FINAL, REJECTED
from nextem.edge.control.worker import Worker
from nextem.edge.rules.plan import Drift, Event, Saturation
from nextem.edge.rules.watch import Firing, RuleStatus
from nextem.v1.control_pb2 import (
    Command,
    CommandState,
    ConsoleRule,
    OnEvent,
    Outcome,
    RuleOff,
    RuleState,
    Stage,
)
from nextem.v1.frames_pb2 import FrameRange
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)

SET_DWELL, KEEP_RAW, SWITCH = "set_dwell", "keep_raw", "switch_rule"
"""What an outcome calls the acts of the edge itself."""

_RECENTRE_WITHIN_NS = 1_000_000_000
_AT_MOST = 1000

KeepRaw = Callable[[str, int, int], None]
"""Keeps raw frames of an acquisition, from the second number to before the third, from being written over."""


def keeps_nothing(acquisition_id: str, first: int, stop: int) -> None:
    """For an edge without a ring of raw frames: its plans with such rules are refused."""


WatchedRules = Callable[[], list[RuleStatus]]
"""The rules that look at frames now."""


class RuleActions:
    """Public methods from any thread; the rest on one of its own."""

    def __init__(
        self,
        parts: Parts,
        *,
        admit: Callable[[Received], bool],
        generation: Callable[[], int],
        tell: Callable[[Command], None],
        later: Callable[[Callable[[], object]], object],
        keep_raw: KeepRaw,
        watched: WatchedRules,
    ) -> None:
        """``admit`` queues a command; ``generation`` counts the stops so far; ``tell`` audits a command;
        ``later`` does the book-keeping on a thread that may wait."""
        self._parts, self._admit, self._generation = parts, admit, generation
        self._tell, self._later, self._keep_raw, self._watched = tell, later, keep_raw, watched
        self._off: dict[str, str] = {}  # by rule: why
        self._moves: dict[str, tuple[Lease, Firing]] = {}  # by command
        self._began: tuple[str, Stage] = ("", Stage())  # of the newest acquisition that drifted
        self._worker = Worker("control-rules", self._act, at_most=_AT_MOST)

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Acts on what has fired, then ends the thread. Harmless when it never started."""
        self._worker.close()

    def fire(self, firing: Firing) -> None:
        """Returns at once."""
        if not self._worker.put(firing):
            logger.error("rule %r: %d firings wait already, this one is lost", firing.rule.name, _AT_MOST)

    def switch(self, name: str, *, on: bool, who: str, reason: str) -> Outcome:
        """Somebody at the console switches the rules of this name off or on, until the edge ends; audited."""
        if on:
            self._off.pop(name, None)
        else:
            self._off[name] = f"switched off by {who}: {reason}"
        command = Command(command_id=uuid7(), issuer=who, instrument=self._parts.instrument)
        command.cause.reason = f"rule {name!r} {'on' if on else 'off'}: {reason}"
        command.switch_rule.CopyFrom(ConsoleRule(name=name, on=on))
        self._tell(command)
        return self._ended(command, with_detail(self._outcome(command, SWITCH), DONE, command.cause.reason))

    def off(self) -> list[RuleOff]:
        """What is switched off now, and why, by name."""
        return [RuleOff(name=name, why=why) for name, why in sorted(self._off.copy().items())]

    def states(self) -> list[RuleState]:
        """The rules that look at frames now: which are armed, and which are spent."""
        return [
            RuleState(
                name=each.name,
                acquisition_id=each.acquisition_id,
                armed=each.armed,
                fired=each.fired,
                last_frame=each.last_frame,
            )
            for each in self._watched()
        ]

    def ended(self, outcome: Outcome) -> None:
        """Before an outcome of any command is told: the stage is given back when a rule's move has ended.

        A rule whose move was done looks again, at frames after it; one that was refused waits until the scene
        is back by itself, so that it does not ask again and again.
        """
        if outcome.state in FINAL and (move := self._moves.get(outcome.command_id)):
            lease, firing = move
            self._parts.leases.give_back(lease, [STAGE])
            del self._moves[outcome.command_id]
            if outcome.state == DONE:
                firing.again(outcome.at_driver_ns)

    # ---- on the rules' thread ---------------------------------------------------------------------

    def _act(self, firing: Firing) -> None:
        command = self._command(firing)
        if isinstance(firing.rule.what, Event):
            command.on_event.CopyFrom(_wanted(firing, firing.rule.what))
        if why := self._off.get(firing.rule.name):
            self._refuse(command, Refusal("switched_off", why))
            return
        match firing.rule.what:
            case Saturation():
                self._blank(firing, command)
            case Drift():
                self._recentre(firing, firing.rule.what, command)
            case Event():
                self._event(command)

    def _command(self, firing: Firing) -> Command:
        command = Command(command_id=uuid7(), issuer=firing.rule.issuer, instrument=self._parts.instrument)
        command.edge_boot_id = self._parts.clock.boot_id
        cause = command.cause
        cause.acquisition_id, cause.edge_boot_id = firing.acquisition_id, self._parts.clock.boot_id
        cause.frames.append(
            FrameRange(first=firing.first_frame, count=firing.last_frame + 1 - firing.first_frame)
        )
        cause.last_byte_ns, cause.reason = firing.last_byte_ns, in_words(firing)
        return command

    def _blank(self, firing: Firing, command: Command) -> None:
        parts, outcome = self._parts, self._outcome(command, BLANK)
        try:
            with parts.beam.blanking(firing.rule.issuer, command.command_id, parts.clock.now_ns):
                after = blank(parts.driver, parts.driver_lock, parts.journal.command_epoch + 1)
        except DriverError as error:
            self._tell(command)
            self._ended(command, with_state(outcome, FAILED, Refusal(error.rule, str(error))))
            return
        outcome.at_driver_ns, outcome.command_epoch = parts.clock.now_ns(), after.command_epoch
        note_state(outcome.state_after, after)
        command.set_optics.CopyFrom(after.optics)
        self._tell(command)
        self._ended(command, with_detail(outcome, DONE, command.cause.reason))

    def _event(self, command: Command) -> None:
        parts, wanted = self._parts, command.on_event
        outcome = self._outcome(command, SET_DWELL if wanted.dwell_s else KEEP_RAW)
        self._tell(command)
        done = [command.cause.reason]
        if kept := wanted.keep_raw.count:
            first = wanted.keep_raw.first
            self._keep_raw(wanted.acquisition_id, first, first + kept)
            done.append(f"raw frames {first}..{first + kept - 1} are kept")
        try:
            if wanted.dwell_s:
                if not isinstance(parts.driver, SlowsDown):
                    raise CapabilityMissing("this driver cannot change the dwell of a scan")
                with parts.driver_lock:
                    note_state(
                        outcome.state_after, parts.driver.set_dwell(wanted.acquisition_id, wanted.dwell_s)
                    )
                outcome.at_driver_ns = parts.clock.now_ns()
                done.append(f"frames take {wanted.dwell_s:g} s")
        except DriverError as error:
            self._ended(
                command, with_state(outcome, FAILED, Refusal(error.rule, "; ".join([*done, str(error)])))
            )
            return
        self._ended(command, with_detail(outcome, DONE, "; ".join(done)))

    def _recentre(self, firing: Firing, drift: Drift, command: Command) -> None:
        looking = firing.acquisition_id, firing.rule.name
        if any(looking == (one.acquisition_id, one.rule.name) for _, one in self._moves.copy().values()):
            # These frames show the scene on its way: the rule looks again at those after its move.
            logger.info("%s, while the stage is on its way", command.cause.reason)
            return
        parts = self._parts
        off_nm = drift.off_nm(firing.values[0], firing.values[1])
        try:
            stage = parts.driver.get_state().stage
        except DriverError as error:
            self._refuse(command, Refusal(error.rule, str(error)))
            return
        if self._began[0] != firing.acquisition_id:
            self._began = firing.acquisition_id, stage
        if refusal := self._prepare(command, drift, stage, off_nm) or self._lead(firing, command):
            self._refuse(command, refusal)
            return
        self._tell(command)
        if not self._admit(Received(command, parts.clock.now_ns(), self._generation(), own=True)):
            outcome = self._outcome(command, "move_stage")
            self._ended(command, with_state(outcome, REJECTED, Refusal("inbox", "too many commands wait")))

    def _prepare(
        self, command: Command, drift: Drift, stage: Stage, off_nm: tuple[float, float]
    ) -> Refusal | None:
        """Where the stage is to go, and whether a rule may bring it there now."""
        to = command.move_stage
        to.CopyFrom(stage)
        to.y_nm, to.x_nm = stage.y_nm + off_nm[0], stage.x_nm + off_nm[1]
        command.not_after_ns = self._parts.clock.now_ns() + _RECENTRE_WITHIN_NS
        began = self._began[1]
        away_nm = ((to.y_nm - began.y_nm) ** 2 + (to.x_nm - began.x_nm) ** 2) ** 0.5
        if away_nm > drift.max_nm:
            return Refusal("rule.max_nm", f"{away_nm:.6g} nm from where it began > {drift.max_nm!r}")
        if (mode := self._parts.modes.current) != AUTOMATIC:
            return Refusal("mode", f"{mode_name(mode)}: a rule moves the stage in automatic only")
        return None

    def _lead(self, firing: Firing, command: Command) -> Refusal | None:
        """Takes the stage for this one command, if nobody else holds it."""
        try:
            lease = self._parts.leases.hold(firing.rule.issuer, [STAGE])
        except JournalError as error:
            return Refusal("journal", str(error))
        if isinstance(lease, str):
            return Refusal("lease", lease)
        self._moves[command.command_id] = lease, firing
        command.lease_id, command.lease_epoch = lease.lease_id, lease.epoch
        return None

    # ---- what is told -----------------------------------------------------------------------------

    def _outcome(self, command: Command, action: str) -> Outcome:
        return Outcome(command_id=command.command_id, received_ns=self._parts.clock.now_ns(), action=action)

    def _refuse(self, command: Command, refusal: Refusal) -> None:
        self._tell(command)
        action = command.WhichOneof("action") or ""
        detail = f"{refusal.detail} ({command.cause.reason})"
        self._ended(
            command, with_state(self._outcome(command, action), REJECTED, Refusal(refusal.rule, detail))
        )

    def _ended(self, command: Command, outcome: Outcome) -> Outcome:
        if outcome.at_driver_ns:
            note_at_driver(outcome, command, outcome.at_driver_ns, self._parts.clock.boot_id, "edge rule")
        self._parts.emit(outcome)
        self._later(partial(self._record, command, outcome))
        return outcome

    def _record(self, command: Command, outcome: Outcome) -> None:
        try:
            if outcome.state == REJECTED:
                self._parts.journal.reject(outcome, digest(command), self._parts.clock.now_ns())
            else:
                now_ns = self._parts.clock.now_ns()
                self._parts.journal.record_stop(outcome, digest(command), outcome.received_ns, now_ns)
        except JournalError as error:
            logger.error(
                "command %s of %s is not in the journal: %s", command.command_id, command.issuer, error
            )


def _wanted(firing: Firing, event: Event) -> OnEvent:
    wanted = OnEvent(acquisition_id=firing.acquisition_id, dwell_s=event.slow_dwell_s)
    if event.keeps_raw:
        first = max(0, firing.first_frame - event.pre_frames)
        wanted.keep_raw.first = first
        wanted.keep_raw.count = firing.last_frame + 1 + event.post_frames - first
    return wanted


def with_detail(outcome: Outcome, state: CommandState, detail: str) -> Outcome:
    """A copy in another state that no rule refused, with words for people."""
    return with_state(outcome, state, Refusal("", detail))


def in_words(firing: Firing) -> str:
    """What the rule saw: "rule 'bright': 1200 saturated pixels in frame 17"."""
    match firing.rule.what:
        case Saturation(pixel_value=value):
            saw = f"{firing.values[0]:.0f} pixels at or above {value}"
        case Drift() as drift:
            y_nm, x_nm = drift.off_nm(firing.values[0], firing.values[1])
            saw = f"the scene is y {y_nm:.4g} nm, x {x_nm:.4g} nm off, further than {drift.threshold_nm:g} nm"
        case Event() as event:
            saw = f"{event.column} {firing.values[0]:.6g} is above {event.above:g}"
    return f"rule {firing.rule.name!r}: {saw} in frame {firing.last_frame}"
