"""``nextem up``: every process on this machine, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from nextem.cli.console import screen, set_up_logging, stop_on_signals
from nextem.cli.home import Home
from nextem.cli.launcher import FIRST_START, ChildFailed, Launcher
from nextem.cli.modes import mode_option
from nextem.cli.process_options import log_choice_option
from nextem.cli.station import Station, StationOptions, log_at, start_station


@click.command()
@click.option(
    "--specimen", default="polycrystal", show_default=True, help="'polycrystal' or an alloy's folder."
)
@log_choice_option
@click.option("--seed", default=1, show_default=True)
@click.option("--rate", default=2000.0, show_default=True, help="Images a second of the simulated detector.")
@click.option("--detector-px", type=click.Choice(["128", "256"]), default="256", show_default=True)
@click.option("--workers", default=1, show_default=True, help="Ray actors that read frame blocks.")
@click.option(
    "--limits", type=click.Path(exists=True, path_type=Path), help="Limits file of the edge (JSON)."
)
@mode_option
@click.option("--any-ports", is_flag=True, help="Take free ports instead of the documented ones.")
@click.option("--home", type=click.Path(path_type=Path), help="Folder of everything NexTEM keeps.")
def up(
    specimen: str,
    log_choice: str,
    seed: int,
    rate: float,
    detector_px: str,
    workers: int,
    limits: Path | None,
    mode: str | None,
    any_ports: bool,
    home: Path | None,
) -> None:
    """Start simulator, edge, log, analysis and steering on this machine; Ctrl-C stops them in order.

    They listen on the documented ports of the loopback interface. The log, the spool and the journal are
    kept in the home folder, so that the next `nextem up` goes on where this one ended.
    """
    from nextem.cli.kafka_jars import BrokerUnavailable

    set_up_logging()
    place = Home.at(home)
    stop = stop_on_signals()
    try:
        with log_at(log_choice, place, place.folder) as address, Launcher(place.folder / "logs") as launcher:
            options = StationOptions(
                log=address,
                store=place.store,
                folder=place.folder,
                specimen=specimen,
                seed=seed,
                detector_px=int(detector_px),
                rate_fps=rate,
                workers=workers,
                limits=limits,
                mode=mode,
                fixed_ports=not any_ports,
            )
            with screen(stderr=True).status(f"starting all processes ({FIRST_START})"):
                station = start_station(launcher, options)
            _tell(station, address, place)
            while not stop.wait(0.5):
                launcher.check()
            statuses = launcher.stop()
    except (ChildFailed, BrokerUnavailable) as error:
        raise click.ClickException(str(error)) from error
    bad = {name: status for name, status in statuses.items() if status != 0}
    if bad:
        raise click.ClickException(f"did not stop cleanly: {bad}; see {place.folder / 'logs'}")
    click.echo("stopped")


def _tell(station: Station, log: str, place: Home) -> None:
    table = Table(box=None, show_header=False)
    table.add_row("steering service", station.steering)
    table.add_row("instrument", station.instrument)
    table.add_row("detector (Merlin)", station.detector)
    table.add_row("log", log)
    table.add_row("products", str(place.store))
    table.add_row("processes' logs", str(place.folder / "logs"))
    table.add_row("people", f"nextem watch --steering {station.steering}")
    table.add_row("at the microscope", f"nextem preempt, safe, stop --local: --home {place.folder}")
    screen().print(table)
    screen().print("Ctrl-C stops everything.")
