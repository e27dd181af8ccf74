"""``nextem edge``: the process beside the microscope."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli.home import Home
from nextem.cli.modes import MODES, mode_option
from nextem.cli.process_options import Running, common, log_option, secured
from nextem.cli.settings import Process
from nextem.cli.sizes import size


@click.command(cls=Process)
@log_option
@click.option(
    "--detector",
    default="127.0.0.1:6342",
    show_default=True,
    help="Where frames come from: HOST:PORT of a Merlin, dectris://HOST, tpx3://HOST, csr://HOST, file:///PATH.",
)
@click.option(
    "--instrument",
    help="HOST:PORT of the gRPC service Instrument, or autoscript://HOST, jeol://, ceos://HOST; "
    "without it the edge only listens.",
)
@click.option("--steering", help="Steering service to attach to, HOST:PORT.")
@click.option("--name", default="simulator", show_default=True, help="Name of the instrument.")
@click.option(
    "--limits", type=click.Path(path_type=Path), show_default="the simulator's", help="Limits file (JSON)."
)
@click.option(
    "--limits-key",
    type=click.Path(path_type=Path),
    show_default="limits.pub of the keys",
    help="Public key (PEM) that must have signed the limits, in FILE.sig.",
)
@click.option(
    "--passive-plan",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Plan (JSON) for acquisitions that somebody starts at the detector itself.",
)
@click.option(
    "--ring-mib",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Memory for raw frames between socket and reduction.",
)
@click.option(
    "--workers",
    default=0,
    type=click.IntRange(0),
    show_default="one a processor, at most 4",
    help="Threads that reduce frames.",
)
@click.option(
    "--calibrations",
    type=click.Path(path_type=Path),
    show_default="HOME/calibrations",
    help="Folder of dark, gain and bad pixels, named by their hash.",
)
@click.option(
    "--raw-ring",
    type=size,
    default="0",
    show_default="none",
    help="Disk for the newest raw frames of plans that say keep_raw, such as 4GiB.",
)
@click.option(
    "--raw-minutes",
    type=click.FloatRange(0, min_open=True),
    show_default="any age",
    help="Raw frames that are older are gone.",
)
@click.option("--store", show_default="HOME/store", help="Where asked-for raw frames go.")
@click.option(
    "--rule-off",
    multiple=True,
    metavar="NAME",
    help="Rules of plans by this name do not act; what they would have done is told.  [repeatable]",
)
@mode_option
@click.option(
    "--lost-after-s",
    default=6.0,
    show_default=True,
    type=click.FloatRange(1.0, 600.0),
    help="A steering service that is silent for so long is lost, and the instrument is made safe.",
)
@secured
@common
def edge(
    log: str | None,
    detector: str,
    instrument: str | None,
    steering: str | None,
    name: str,
    limits: Path | None,
    limits_key: Path | None,
    passive_plan: Path | None,
    ring_mib: int,
    workers: int,
    calibrations: Path | None,
    raw_ring: int,
    raw_minutes: float | None,
    store: str | None,
    rule_off: tuple[str, ...],
    mode: str | None,
    lost_after_s: float,
    tls: Path | None,
    process: Running,
) -> None:
    """The edge: runs beside the microscope and is the only authority over it.

    It receives frames from the detector, reduces and encodes them, spools the blocks on disk and publishes
    them on the log. With --steering and --instrument it attaches to the steering service (it dials out;
    nobody dials it), checks every command against limits, deadline, lease and state, journals it, and only
    then hands it to the instrument.

    \b
    Beside `nextem simulate` and `nextem steer`:
      nextem edge --instrument 127.0.0.1:50061 --steering 127.0.0.1:50051
    Listening only, to a camera that is started by hand:
      nextem edge --detector camera:6342 --passive-plan plan.json
    Without any service, acting by the rules of that plan:
      nextem edge --instrument 127.0.0.1:50061 --passive-plan plan.json

    \b
    The person at the microscope is never locked out, steering service or not (on this machine, same --home):
      nextem preempt | release | safe | stop --local | mode MODE --local
    """
    from nextem.cli.plans import read_plan
    from nextem.edge.control.drivers.address import UnknownAddress
    from nextem.edge.control.drivers.column import AdapterUnavailable
    from nextem.edge.detectors.base import DetectorError
    from nextem.edge.detectors.registry import BadAddress
    from nextem.edge.rules.plan import InvalidRule
    from nextem.edge.service import EdgeOptions, run_edge
    from nextem.edge.uplink.spool import SpoolBusy
    from nextem.wire.console import ConsoleError
    from nextem.wire.key_folder import BadName
    from nextem.wire.object_store import store_address
    from nextem.wire.tls import TlsError
    from nextem.wire.tokens import TokenRefused

    place = Home.at(process.home)
    keys = place.secured(tls)
    if limits is not None and limits_key is None and keys is not None and keys.limits.exists():
        limits_key = keys.limits  # whoever has keys has signed the limits
    options = EdgeOptions(
        instrument=name,
        log=log or str(place.log),
        detector=detector,
        spool_dir=place.folder / "spool",
        journal_path=place.folder / "journal.db",
        limits_path=limits,
        limits_key_path=limits_key,
        instrument_address=instrument,
        steering_address=steering,
        passive_plan=None if passive_plan is None else read_plan(passive_plan),
        ring_bytes=ring_mib << 20,
        workers=workers,
        calibrations=calibrations or place.folder / "calibrations",
        raw_ring_bytes=raw_ring,
        raw_ring_dir=place.folder / "raw-ring",
        raw_ring_age_s=None if raw_minutes is None else 60 * raw_minutes,
        store=store_address(store, place.store),
        rules_off=rule_off,
        mode=MODES[mode] if mode else None,
        lost_after_s=lost_after_s,
        keys=keys,
    )
    try:
        run_edge(options, process.stop, lambda: process.tell_ready({"instrument": name}), process.health)
    except (
        *(BadAddress, DetectorError, TlsError, BadName, TokenRefused),
        *(UnknownAddress, AdapterUnavailable, ConsoleError, InvalidRule, SpoolBusy),
    ) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error
