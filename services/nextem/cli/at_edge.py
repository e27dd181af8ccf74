"""``nextem preempt | release | safe | rule``: the person at the microscope, on the edge's own machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from nextem.cli.home import Home
from nextem.cli.modes import name_of
from nextem.cli.words import leads, scopes_of, state_of
from nextem.v1 import control_pb2
from nextem.wire.console import ConsoleError, ask

F = TypeVar("F", bound=Callable[..., Any])

SCOPES: Mapping[str, control_pb2.LeaseScope] = {
    "stage": control_pb2.LEASE_SCOPE_STAGE,
    "optics": control_pb2.LEASE_SCOPE_OPTICS,
    "scan": control_pb2.LEASE_SCOPE_SCAN,
    "detector": control_pb2.LEASE_SCOPE_DETECTOR,
}


def at_edge(home: Path | None, request: control_pb2.ConsoleRequest) -> control_pb2.ConsoleReply:
    """What the edge of this home folder answers; raises :class:`click.ClickException` for a no."""
    place = Home.at(home)
    try:
        reply = ask(place.console, request)
    except ConsoleError as error:
        raise click.ClickException(f"{error}\n{_elsewhere(place)}") from error
    if reply.refused:
        raise click.ClickException(reply.refused)
    return reply


def _elsewhere(place: Home) -> str:
    """Where edges of this machine have their consoles, as far as one can tell from this home folder."""
    found = sorted(place.folder.glob(f"runs/*/{place.console.name}"))
    if found:
        return f"An edge of `nextem demo` has one: --home {found[-1].parent}"
    return "Name the home folder of the edge that runs on this machine: --home FOLDER"


def _here(function: F) -> F:
    for option in (
        click.option(
            "--home", type=click.Path(path_type=Path), help="Home folder.  [default: ./nextem-home]"
        ),
        click.option("--reason", default="", help="For the record."),
    ):
        function = option(function)
    return function


_scope = click.option(
    "--scope",
    "names",
    multiple=True,
    type=click.Choice(list(SCOPES)),
    help="Only this part; may be repeated.",
)


@click.command()
@_scope
@_here
def preempt(names: tuple[str, ...], reason: str, home: Path | None) -> None:
    """Take the instrument, or parts of it, into your own hands: at once, and until `nextem release`.

    Works at the edge's own machine, whether or not the steering service is there. Whoever led is refused from
    now on. What runs goes on: `nextem stop --local` ends it, `nextem safe` blanks the beam as well. It holds
    over a restart of the edge.

    \b
    nextem preempt --reason "changing the specimen"
    nextem preempt --scope stage --scope optics
    """
    request = control_pb2.ConsoleRequest(reason=reason)
    request.preempt.scopes.extend(SCOPES[name] for name in names)
    reply = at_edge(home, request)
    change = reply.lease
    click.echo(f"yours: {scopes_of(change.lease)} (epoch {change.lease.epoch}), until nextem release")
    for lease in change.taken_from:
        click.echo(f"  taken from {lease.holder}: {scopes_of(lease)} (epoch {lease.epoch})")
    if reply.heartbeat.state.scanning:
        click.echo(f"  scan {reply.heartbeat.state.scan_id} runs on; nextem stop --local ends it")


@click.command()
@_scope
@_here
def release(names: tuple[str, ...], reason: str, home: Path | None) -> None:
    """Give back what `nextem preempt` took. Others then have to ask for it anew.

    \b
    nextem release
    nextem release --scope stage
    """
    request = control_pb2.ConsoleRequest(reason=reason)
    request.release.scopes.extend(SCOPES[name] for name in names)
    reply = at_edge(home, request)
    click.echo(f"given back: {scopes_of(reply.lease.lease)}; mode {name_of(reply.heartbeat.mode)}")
    if still := [lease for lease in reply.heartbeat.leases if lease.epoch and lease.holder]:
        click.echo(f"  now: {'; '.join(map(leads, still))}")


@click.command()
@_here
def safe(reason: str, home: Path | None) -> None:
    """Bring the instrument into the safe state: what runs is stopped, the stage held, the beam blanked.

    Works at the edge's own machine, whether or not the steering service is there. Nothing can refuse it. Who
    leads goes on leading: `nextem preempt` first keeps others from letting the beam on again.

    \b
    nextem safe
    nextem safe --reason "the pressure rises"
    """
    tell_stop(at_edge(home, stop_request(reason, safe_state=True)))


@click.command()
@click.argument("name", metavar="[NAME]", default="")
@click.argument("switch", metavar="[off|on]", required=False, type=click.Choice(["off", "on"]))
@_here
def rule(name: str, switch: str | None, reason: str, home: Path | None) -> None:
    """Switch the edge rules of a name off, or on again, in the plan that runs and in those that follow.

    Without off or on it says which look at frames now, armed or spent, and which are off.

    Works at the edge's own machine, whether or not the steering service is there. A rule that is off does not
    act and tells what it would have done. To switch one off takes a --reason. Forgotten when the edge ends.

    \b
    nextem rule bright off --reason "flat field without a specimen"
    nextem rule bright on
    nextem rule                      which are armed, spent, or off, by whom and why
    """
    if switch is None:
        status = control_pb2.ConsoleRequest(status=control_pb2.ConsoleStatus())
        found = [line for line in rules_of(at_edge(home, status)) if name in ("", line[0])]
        for known, words in found:
            click.echo(f"{known}: {words}")
        if not found and name:
            click.echo(f"{name} looks at no frames now, and is not switched off")
        elif not found:
            click.echo("no rule looks at frames now, and none is switched off")
        return
    asked = control_pb2.ConsoleRule(name=name, on=switch == "on")
    outcome = at_edge(home, control_pb2.ConsoleRequest(reason=reason, rule=asked)).outcome
    click.echo(f"{outcome.command_id}  {outcome.detail}".rstrip(": "))


def rules_of(reply: control_pb2.ConsoleReply) -> list[tuple[str, str]]:
    """Each rule that looks at frames or is switched off: its name, and how it is, for people."""
    off = {each.name: each.why for each in reply.rules_off}
    found = []
    for each in reply.rules:
        words = ["armed" if each.armed else "spent"]
        if each.fired:
            words.append(f"fired {each.fired} times, last at frame {each.last_frame}")
        words.append(f"acquisition {each.acquisition_id}")
        found.append((each.name, ", ".join(words) + (f"; {off[each.name]}" if each.name in off else "")))
    watched = {name for name, _ in found}
    return sorted(found + [each for each in off.items() if each[0] not in watched])


def stop_request(reason: str, *, safe_state: bool = False) -> control_pb2.ConsoleRequest:
    """A stop, for :func:`at_edge`."""
    stop = control_pb2.Stop(reason=reason, safe_state=safe_state)
    return control_pb2.ConsoleRequest(reason=reason, stop=stop)


def tell_stop(reply: control_pb2.ConsoleReply) -> None:
    """Says what came of a stop; exit status 1 where the instrument could not be stopped."""
    outcome, optics = reply.outcome, reply.heartbeat.state.optics
    click.echo(f"{outcome.command_id}  {state_of(outcome)}  {outcome.rule} {outcome.detail}".rstrip())
    if reply.heartbeat.HasField("state"):
        doing = "a scan runs" if reply.heartbeat.state.scanning else "nothing runs"
        click.echo(f"  {doing}, the beam is {'blanked' if optics.beam_blanked else 'on'}")
    if outcome.state != control_pb2.COMMAND_STATE_DONE:
        sys.exit(1)
