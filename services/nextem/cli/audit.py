"""``nextem audit verify | why | replay``: the record of all commands."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from nextem.cli.audit_log import chains_of, read_audit
from nextem.cli.audit_signatures import NOT_CHECKED, doubts, signatures
from nextem.cli.audit_story import NotRecorded, Stories
from nextem.cli.home import Home
from nextem.cli.process_options import log_option
from nextem.v1.control_pb2 import SteeringEvent
from nextem.wire.audit_chain import Chain, ChainBroken, Verifier
from nextem.wire.key_folder import AUTHORITY
from nextem.wire.log import LogError

F = TypeVar("F", bound=Callable[..., Any])

_SIMULATOR_S = 120.0


_LOG = click.option(
    "--log", "log_address", help="The log: a folder, or kafka://HOST:PORT.  [default: HOME/log]"
)


def _where(function: F) -> F:
    for option in (
        click.option(
            "--home", type=click.Path(path_type=Path), help="Home folder.  [default: ./nextem-home]"
        ),
        partial(log_option, option=_LOG, name="log_address"),
    ):
        function = option(function)
    return function


_ca = click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate by which signatures are checked.  [default: HOME/keys/ca.crt, where it is]",
)


@click.group()
def audit() -> None:
    """Check the record of everything that was asked of an instrument; ask it why; replay it.

    \b
    nextem audit verify          is the record whole, and as the edge wrote it?
    nextem audit why ID          why did the stage move, or was this acquisition made?
    nextem audit replay          do the same commands lead a simulated instrument to the same states?
    """


@audit.command()
@click.option(
    "--edge", type=click.Path(path_type=Path), help="Folder of the edge's journal.  [default: HOME]"
)
@_ca
@click.option(
    "--signed/--unsigned-ok",
    default=None,
    help="Whether each record must be signed.  [default: where HOME/keys is, or with --ca]",
)
@_where
def verify(
    edge: Path | None, ca: Path | None, signed: bool | None, log_address: str | None, home: Path | None
) -> None:
    """Check that no record was changed, removed, swapped or put in; name the first that was.

    Each record carries the SHA-256 of the one before it. That the newest ones were not cut off is told by
    what the edge keeps beside its journal, where that can be read from here. An edge with a certificate signs
    each record; who checks that needs the authority's certificate and nothing secret.

    \b
    nextem audit verify
    nextem audit verify --unsigned-ok                 what was recorded before there were keys, too
    nextem audit verify --log kafka://broker:9092
    """
    from nextem.edge.control.audit_file import AuditFileError, audit_path, read_kept

    place = Home.at(home)
    ca = _authority(place, ca)
    if signed is None:
        signed = ca is not None or place.keys.folder.exists()
    try:
        verifier = Verifier(None if ca is None else ca.read_bytes())
        kept = read_kept(audit_path((edge or place.folder) / "journal.db"))  # first: the log only grows
        for _ in read_audit(log_address or str(place.log), verifier):
            pass
        if kept is not None:
            verifier.check_head(kept.chain_id, kept.head)
    except ChainBroken as error:
        raise click.ClickException(f"broken: {error}") from error
    except (LogError, AuditFileError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for chain in verifier.chains():
        click.echo(f"chain {chain.chain_id} of {chain.instrument}: {chain.head.sequence} records, whole")
        for line in signatures(chain, ca):
            click.echo(f"  {line}")
        if chain.copies:
            click.echo(f"  {chain.copies} are there twice, as an edge that was killed leaves them")
        if kept is not None and kept.chain_id == chain.chain_id:
            waiting = f", and has {kept.waiting} more that the log has not" if kept.waiting else ""
            click.echo(f"  the edge's own record agrees up to {kept.head.sequence}{waiting}")
        else:
            click.echo("  whether its end was cut off only its edge can tell: --edge FOLDER")
    if not verifier.chains():
        click.echo("the record is empty")
    if signed and not all(chain.all_signed for chain in verifier.chains()):
        raise click.ClickException(
            "not every record is known to be signed; --unsigned-ok where that is as it should be"
        )


@audit.command()
@click.argument("name", metavar="ID")
@_ca
@_where
def why(name: str, ca: Path | None, log_address: str | None, home: Path | None) -> None:
    """Tell why a command was given or an acquisition made: proposal, verdict, command, outcome, frames.

    ID is a command or an acquisition; its beginning will do. A record with a break is not believed, and it is
    said where what is told is not signed.

    \b
    nextem audit why 0198c2f1
    """
    place = Home.at(home)
    ca = _authority(place, ca)
    events, chains = _read(log_address or str(place.log), ca)
    try:
        for line in Stories(events, doubts(chains, ca)).tell(name):
            click.echo(line)
    except NotRecorded as error:
        raise click.ClickException(str(error)) from error
    if ca is None:
        click.echo(f"\n{NOT_CHECKED}")


@audit.command()
@click.option("--chain", "chain_id", default="", help="Which chain, where there are several: its beginning.")
@click.option(
    "--instrument", help="gRPC service Instrument, HOST:PORT.  [default: a simulated one, made for this]"
)
@_where
def replay(chain_id: str, instrument: str | None, log_address: str | None, home: Path | None) -> None:
    """Give an instrument the recorded commands again and report the first difference of state or outcome.

    Commands that were rejected never reached the instrument and are left out. Frames go nowhere. Never point
    --instrument at a real microscope: nothing checks these commands.

    \b
    nextem audit replay
    nextem audit replay --instrument 127.0.0.1:50061
    """
    from nextem.cli.audit_replay import Difference, NothingToReplay, left_out, steps_of
    from nextem.cli.audit_replay import replay as replay_steps
    from nextem.edge.control.driver import DriverError
    from nextem.edge.control.grpc_driver import GrpcDriver

    place = Home.at(home)
    events, chains = _read(log_address or str(place.log), _authority(place, None))
    chosen = _one_chain(chains, chain_id)
    try:
        stories = Stories(event for event in events if event.chain.chain_id == chosen.chain_id)
        steps = steps_of(stories)
    except NothingToReplay as error:
        raise click.ClickException(str(error)) from error
    done = 0
    with _instrument(instrument, chosen.instrument) as address:
        driver = GrpcDriver(address)
        try:
            for _ in replay_steps(steps, driver):
                done += 1
        except Difference as error:
            raise click.ClickException(f"after {done} of {len(steps)} the same: {error}") from error
        except (NothingToReplay, DriverError) as error:
            raise click.ClickException(str(error)) from error
        finally:
            driver.close()
    click.echo(f"{done} commands of {chosen.instrument} led to the same states and outcomes")
    if others := left_out(stories):
        click.echo(
            f"  {len(others)} acts of the edge's own rules and switches are left out: {', '.join(others)}"
        )


def _authority(place: Home, given: Path | None) -> Path | None:
    """The certificate by which signatures are checked, where there is one."""
    own = place.keys.certificate(AUTHORITY)
    return given if given is not None or not own.exists() else own


def _read(address: str, ca: Path | None) -> tuple[list[SteeringEvent], tuple[Chain, ...]]:
    try:
        return chains_of(address, None if ca is None else ca.read_bytes())
    except ChainBroken as error:
        raise click.ClickException(f"the record is broken: {error}") from error
    except (LogError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _one_chain(chains: tuple[Chain, ...], beginning: str) -> Chain:
    fits = [chain for chain in chains if chain.chain_id.startswith(beginning)]
    if len(fits) != 1:
        known = "\n".join(f"  {c.chain_id} of {c.instrument}, {c.head.sequence} records" for c in chains)
        raise click.ClickException(f"choose one with --chain; there are {len(chains)}:\n{known}")
    return fits[0]


@contextmanager
def _instrument(address: str | None, name: str) -> Iterator[str]:
    """The address given, or that of a simulated instrument as fast as it can, for as long as it takes."""
    if address is not None:
        yield address
        return
    from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator

    stop, ready = threading.Event(), queue.SimpleQueue[SimulatorPorts]()
    options = SimulatorOptions(
        name=name, detector_px=128, rate_fps=None, data_port=0, control_port=0, instrument_port=0
    )
    thread = threading.Thread(target=run_simulator, args=(options, stop, ready.put), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{ready.get(timeout=_SIMULATOR_S).instrument}"
    except queue.Empty:
        raise click.ClickException("the simulated instrument did not start") from None
    finally:
        stop.set()
        thread.join()
