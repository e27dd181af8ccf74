"""``nextem watch | approve | refuse | undo | stop | mode``: people act at the terminal."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from nextem.cli.at_edge import at_edge, stop_request, tell_stop
from nextem.cli.connect import as_whom, connect
from nextem.cli.home import Home
from nextem.cli.leading import leading
from nextem.cli.modes import MEANING, MODES, name_of
from nextem.cli.words import heartbeat_line, lines_of, outcome_line
from nextem.client import DecisionRefused, SteeringClient, SteeringError, undo_command
from nextem.v1 import control_pb2
from nextem.wire.key_folder import OPERATOR

STEERING = "127.0.0.1:50051"
_UNDONE = (control_pb2.LEASE_SCOPE_STAGE, control_pb2.LEASE_SCOPE_OPTICS)


@dataclass(frozen=True, slots=True)
class Person:
    """Where the steering service is, which instrument is meant, and who asks."""

    steering: str
    instrument: str
    name: str
    home: Path | None
    tls: Path | None
    token: Path | None


def person(function: Callable[..., None]) -> Callable[..., None]:
    """The options that everything which a person does has; ``function`` gets them as ``who``."""

    @wraps(function)
    def call(
        steering: str,
        instrument: str,
        name: str | None,
        home: Path | None,
        tls: Path | None,
        token: Path | None,
        **more: Any,
    ) -> None:
        # The service puts the name of a token in the place of none.
        keys = Home.at(home).secured(tls)
        by_token = token is not None or (keys is not None and keys.token(OPERATOR).exists())
        named = name or ("" if by_token else getpass.getuser())
        function(who=Person(steering, instrument, named, home, tls, token), **more)

    with_options: Callable[..., None] = as_whom(call)
    for option in (
        click.option(
            "--home", type=click.Path(path_type=Path), help="Home folder.  [default: ./nextem-home]"
        ),
        click.option("--name", help="Who you are.  [default: as your token says, else your login]"),
        click.option("--instrument", default="", help="Which instrument, where several are attached."),
        click.option("--steering", default=STEERING, show_default=True, help="Steering service, HOST:PORT."),
    ):
        with_options = option(with_options)
    return with_options


_ID_LENGTH = len("0198c2f1-8a4e-7cc2-9d1b-0f6f2a9be5aa")
_all = click.option("--all", "all_of_them", is_flag=True, help="Every command that waits now.")
local = click.option(
    "--local", "at_console", is_flag=True, help="At the edge's own machine (--home), without the service."
)


@contextmanager
def steering_of(who: Person) -> Iterator[SteeringClient]:
    """A client; what goes wrong is told in a line."""
    try:
        with connect(who.steering, who.home, who.tls, who.token) as client:
            yield client
    except (SteeringError, DecisionRefused) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@person
def watch(who: Person) -> None:
    """Show what is asked of the instrument, what waits for you, and what becomes of it; Ctrl-C ends it.

    In mode approve each command waits for a person: answer with `nextem approve ID` or `nextem refuse ID`.

    \b
    nextem watch
    nextem watch --steering scope-7:50051
    """
    shown = control_pb2.Heartbeat()
    where = "" if who.steering == STEERING else f" --steering {who.steering}"
    with suppress(KeyboardInterrupt), steering_of(who) as client, client.watch(who.instrument) as events:
        for event in events:
            if event.WhichOneof("event") == "heartbeat":
                if event.heartbeat.mode != shown.mode or not shown.HasField("state"):
                    click.echo(f"{_clock()}  {heartbeat_line(event.heartbeat)}")
                shown = event.heartbeat
                continue
            for line in lines_of(event, where):
                click.echo(f"{_clock()}  {line}")


@click.command()
@click.argument("beginning", metavar="[ID]", default="")
@_all
@click.option("--reason", default="", help="For the record.")
@person
def approve(beginning: str, all_of_them: bool, reason: str, who: Person) -> None:
    """Say yes to a command that waits. The edge checks it once more and runs it.

    Without an ID it lists what waits. The beginning of an ID will do, where only one begins so.

    \b
    nextem approve
    nextem approve 0198c2f1-8a4e-7cc2-9d1b-0f6f2a9be5aa
    nextem approve --all --reason "as planned"
    """
    with steering_of(who) as client:
        for command_id in _meant(client, who, beginning, all_of_them):
            client.approve(command_id, who.name, reason, instrument=who.instrument)
            click.echo(f"{command_id}: yes; nextem watch shows what becomes of it")


@click.command()
@click.argument("beginning", metavar="[ID]", default="")
@_all
@click.option("--reason", default="", help="Told to whoever asked, and kept.")
@person
def refuse(beginning: str, all_of_them: bool, reason: str, who: Person) -> None:
    """Say no to a command that waits. It is not run.

    Without an ID it lists what waits. The beginning of an ID will do, where only one begins so.

    \b
    nextem refuse 0198c2f1-8a4e-7cc2-9d1b-0f6f2a9be5aa --reason "the specimen drifts"
    nextem refuse --all
    """
    with steering_of(who) as client:
        for command_id in _meant(client, who, beginning, all_of_them):
            client.refuse(command_id, who.name, reason, instrument=who.instrument)
            click.echo(f"{command_id}: no")


def _meant(client: SteeringClient, who: Person, beginning: str, all_of_them: bool) -> list[str]:
    """Ids of the commands that a person means; where no ID is given, lists what waits and means none."""
    if len(beginning) == _ID_LENGTH:
        return [beginning]
    waiting = client.waiting(who.instrument)
    if not waiting:
        click.echo("nothing waits for a yes or no")
        return []
    fits = [outcome for outcome in waiting if outcome.command_id.startswith(beginning)]
    if all_of_them or (beginning and len(fits) == 1):
        return [outcome.command_id for outcome in fits]
    for outcome in waiting:
        click.echo(outcome_line(outcome))
    if beginning:
        raise click.ClickException(f"{len(fits)} of them begin with {beginning!r}")
    return []


@click.command()
@click.argument("command_id", metavar="ID")
@person
def undo(command_id: str, who: Person) -> None:
    """Bring the stage or the optics back to what was recorded before a command.

    It is a command like any other: it takes the lease, passes every check, and waits for a person in mode
    approve. An acquisition has no inverse, and neither has a stop.

    \b
    nextem undo 0198c2f1-8a4e-7cc2-9d1b-0f6f2a9be5aa
    """
    with (
        steering_of(who) as client,
        leading(client, who.name, who.instrument, _UNDONE, f"undo {command_id}") as lease,
    ):
        last = control_pb2.Outcome()
        for last in client.submit(undo_command(command_id, who.name, who.instrument, lease)):
            click.echo(outcome_line(last))
    if last.state != control_pb2.COMMAND_STATE_DONE:
        raise SystemExit(1)


@click.command()
@click.option("--reason", default="", help="For the record.")
@local
@person
def stop(reason: str, at_console: bool, who: Person) -> None:
    """Stop the instrument now. No lease, no mode and no rule is in its way; twice does no harm.

    \b
    nextem stop
    nextem stop --reason "the specimen is breaking"
    nextem stop --local                             at the edge's own machine, without the steering service
    """
    if at_console:
        tell_stop(at_edge(who.home, stop_request(reason)))
        return
    try:
        with steering_of(who) as client:
            outcome = client.stop(who.name, reason, instrument=who.instrument)
    except click.ClickException as error:
        hint = "At the edge's own machine it works without the service: nextem stop --local, nextem safe"
        raise click.ClickException(f"{error.message}\n{hint}") from error
    click.echo(outcome_line(outcome))
    if outcome.state != control_pb2.COMMAND_STATE_DONE:
        raise SystemExit(1)


@click.command()
@click.argument("wanted", metavar="[MODE]", required=False, type=click.Choice(list(MODES)))
@click.option("--reason", default="", help="For the record.")
@local
@person
def mode(wanted: str | None, reason: str, at_console: bool, who: Person) -> None:
    """Show or change how much others may command. Changing it takes the role of an operator.

    \b
    observe     every command but stop is refused
    advise      commands are checked and shown, and none is run
    approve     each command waits for a person's yes
    automatic   what passes the checks is run
    """
    if at_console:
        request = control_pb2.ConsoleRequest(reason=reason, status=control_pb2.ConsoleStatus())
        if wanted is not None:
            request.mode = MODES[wanted]
        reply = at_edge(who.home, request)
        _tell_mode(reply.heartbeat.mode, reply.mode if wanted else None)
        return
    with steering_of(who) as client:
        if wanted is None:
            _tell_mode(client.heartbeat(who.instrument).mode)
            return
        change = client.set_mode(MODES[wanted], who.name, reason, instrument=who.instrument)
    _tell_mode(change.mode, change)


def _tell_mode(now: control_pb2.Mode, change: control_pb2.ModeChange | None = None) -> None:
    before = f"{name_of(change.before)} → " if change is not None else ""
    click.echo(f"{before}{name_of(now)}: {MEANING[name_of(now)]}")


def _clock() -> str:
    return time.strftime("%H:%M:%S")
