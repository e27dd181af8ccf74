"""Why the instrument did something, in words: from proposal to frames, as the audit has it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from nextem.cli.modes import name_of
from nextem.v1 import control_pb2, frames_pb2

_FINAL_ACTIONS = ("move_stage", "set_optics")


class NotRecorded(Exception):
    """The audit has no such command, and no command that made such an acquisition."""


@dataclass(slots=True)
class Recorded:
    """All that the audit has about one command, each in the order of the log."""

    command: control_pb2.Command | None = None
    unix_ns: int = 0
    mode: control_pb2.Mode = control_pb2.MODE_UNSPECIFIED
    outcomes: list[control_pb2.Outcome] = field(default_factory=list)
    verdicts: list[control_pb2.ProposalVerdict] = field(default_factory=list)
    links: list[control_pb2.ChainLink] = field(default_factory=list)  # of all these

    @property
    def acquisition_id(self) -> str:
        """Of the acquisition that it made; empty: none."""
        return next((o.acquisition_id for o in self.outcomes if o.acquisition_id), "")


class Stories:
    """The commands of a log."""

    def __init__(
        self,
        events: Iterable[control_pb2.SteeringEvent],
        doubt: Callable[[control_pb2.ChainLink], str] = lambda link: "",
    ) -> None:
        """``doubt`` says what speaks against believing a record; empty: nothing."""
        self.commands: dict[str, Recorded] = {}
        self._doubt = doubt
        self._holders: dict[tuple[str, int], control_pb2.LeaseChange] = {}
        modes: dict[str, control_pb2.Mode] = {}
        for event in events:
            chain = event.chain.chain_id
            match event.WhichOneof("event"):
                case "command":
                    found = self._at(event.command.command_id, event.chain)
                    if found.command is None:
                        found.command, found.unix_ns = event.command, event.chain.unix_ns
                        found.mode = modes.get(chain, control_pb2.MODE_UNSPECIFIED)
                case "outcome":
                    self._at(event.outcome.command_id, event.chain).outcomes.append(event.outcome)
                case "verdict":
                    self._at(event.verdict.command_id, event.chain).verdicts.append(event.verdict)
                case "mode":
                    modes[chain] = event.mode.mode
                case "lease":
                    lease = event.lease.lease  # the first word is how it was given out
                    self._holders.setdefault((lease.lease_id, lease.epoch), event.lease)

    def _at(self, command_id: str, link: control_pb2.ChainLink) -> Recorded:
        found = self.commands.setdefault(command_id, Recorded())
        found.links.append(link)
        return found

    def find(self, name: str) -> str:
        """Id of the command that ``name`` is, or that made the acquisition ``name``.

        A unique beginning will do. Raises :class:`NotRecorded`.
        """
        ids = {command_id: command_id for command_id in self.commands}
        made = {found.acquisition_id: name for name, found in self.commands.items() if found.acquisition_id}
        ids.update(made)
        if name in ids:
            return ids[name]
        fits = {command_id for key, command_id in ids.items() if name and key.startswith(name)}
        if len(fits) != 1:
            many = f"{len(fits)} commands or acquisitions begin" if fits else "nothing on record begins"
            raise NotRecorded(f"{many} with {name!r}")
        return fits.pop()

    def tell(self, name: str) -> Iterator[str]:
        """Lines: the command, then what made the acquisition in which its cause was seen, and so on."""
        told: set[str] = set()
        command_id = self.find(name)
        while command_id and command_id not in told:
            if told:
                yield ""
            told.add(command_id)
            found = self.commands[command_id]
            yield from self._one(command_id, found)
            seen_in = found.command.cause.acquisition_id if found.command else ""
            command_id = next(
                (
                    other
                    for other, made in self.commands.items()
                    if seen_in and made.acquisition_id == seen_in
                ),
                "",
            )

    def _one(self, command_id: str, found: Recorded) -> Iterator[str]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.unix_ns / 1e9))
        yield f"Command {command_id}" + (f", {when}" if found.unix_ns else "")
        if found.command is None:
            yield _line("asked", "the audit does not have the command itself")
        else:
            yield from self._asked(found.command)
        if found.mode:
            yield _line("mode", name_of(found.mode))
        for outcome in found.outcomes:
            if outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
                yield _line("proposed", f"to a person: {outcome.detail}")
        for verdict in found.verdicts:
            said = f"{verdict.issuer} ({verdict.issuer_role}) said {'yes' if verdict.approved else 'no'}"
            yield _line("verdict", ": ".join(filter(None, (said, verdict.reason))))
        yield from _ends(found.outcomes)
        doubted = [doubt for link in found.links if (doubt := self._doubt(link))]
        for doubt in sorted(set(doubted)):
            yield _line("doubt", f"{doubted.count(doubt)} of these {len(found.links)} records: {doubt}")

    def _asked(self, command: control_pb2.Command) -> Iterator[str]:
        yield _line("what", in_words(command))
        by = command.issuer or "somebody without a name"
        if held := self._holders.get((command.lease_id, command.lease_epoch)):
            by += f", under lease epoch {command.lease_epoch} of {held.lease.holder}"
            by += f" ({held.purpose})" if held.purpose else ""
        yield _line("asked by", by)
        cause = command.cause
        yield _line("because", cause.reason or "no reason was given")
        if cause.acquisition_id:
            yield _line("seen in", f"acquisition {cause.acquisition_id}, {_frames(cause.frames)}")
        if cause.product_id:
            yield _line("", f"product {cause.product_id}")


def _ends(outcomes: list[control_pb2.Outcome]) -> Iterator[str]:
    """What the edge decided and what came of it."""
    told: set[int] = set()
    for outcome in outcomes:
        if outcome.state in told or outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
            continue
        told.add(outcome.state)
        state = control_pb2.CommandState.Name(outcome.state).removeprefix("COMMAND_STATE_")
        why = ": ".join(filter(None, (outcome.rule, outcome.detail)))
        epoch = f"command epoch {outcome.command_epoch}" if outcome.command_epoch else ""
        yield _line("outcome", ", ".join(filter(None, (state, epoch, why))))
        if outcome.loop_latency_ms:
            yield _line(
                "", f"at the instrument {outcome.loop_latency_ms:.1f} ms after the newest of those frames"
            )
        if outcome.action in _FINAL_ACTIONS and outcome.HasField("state_after"):
            yield _line("", _moved(outcome))
        if outcome.HasField("accounting"):
            made = outcome.accounting
            stored = f"{made.frames_stored} of {made.frames_announced} frames stored"
            yield _line("made", f"acquisition {outcome.acquisition_id}: {stored}")
    if not told:
        yield _line("outcome", "none on record")


def in_words(command: control_pb2.Command) -> str:
    """What a command asks for."""
    match command.WhichOneof("action"):
        case "move_stage":
            to = command.move_stage
            return f"move the stage to y {to.y_nm:g}, x {to.x_nm:g}, z {to.z_nm:g} nm"
        case "set_optics":
            to_optics = command.set_optics
            beam = ", beam blanked" if to_optics.beam_blanked else ""
            return f"set the optics: defocus {to_optics.defocus_nm:g} nm, {to_optics.energy_kv:g} kV{beam}"
        case "acquire":
            scan, title = command.acquire.scan, command.acquire.title
            size = f"scan {scan.size_y} × {scan.size_x} positions, {scan.step_nm:g} nm apart"
            return f"{size} ({title})" if title else size
        case "stop":
            return "stop" + (f": {command.stop.reason}" if command.stop.reason else "")
        case "undo":
            return f"undo command {command.undo.command_id}"
        case "on_event":
            return _on_event(command.on_event)
        case "switch_rule":
            rule = command.switch_rule
            return f"switch edge rule {rule.name!r} {'on' if rule.on else 'off'}"
        case None:
            return "an act of the edge itself, which its outcome tells"
        case action:
            return str(action)


def _on_event(wanted: control_pb2.OnEvent) -> str:
    kept, dwell_s = wanted.keep_raw, wanted.dwell_s
    keep = f"keep raw {_frames([kept])}" if kept.count else ""
    slow = f"slow the scan down to {dwell_s:g} s a frame" if dwell_s else ""
    return f"{' and '.join(filter(None, (keep, slow)))} of acquisition {wanted.acquisition_id}"


def _moved(outcome: control_pb2.Outcome) -> str:
    part = "stage" if outcome.action == "move_stage" else "optics"
    before, after = getattr(outcome.state_before, part), getattr(outcome.state_after, part)
    changes = [
        f"{f.name} {getattr(before, f.name):g} → {getattr(after, f.name):g}"
        for f in after.DESCRIPTOR.fields
        if getattr(before, f.name) != getattr(after, f.name)
    ]
    return f"{part}: {', '.join(changes) or 'nothing changed'}"


def _frames(ranges: Iterable[frames_pb2.FrameRange]) -> str:
    shown = [f"{r.first} to {r.first + r.count - 1}" for r in ranges]
    return f"frames {', '.join(shown)}" if shown else "no frames named"


def _line(head: str, text: str) -> str:
    return f"  {head:<10}{text}"
