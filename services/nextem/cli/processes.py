"""``nextem simulate | analyse | steer``: each one process, with its own log and clean stop."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli.home import Home
from nextem.cli.observing import PORT
from nextem.cli.process_options import Running, common, log_option, secured
from nextem.cli.settings import Process


@click.command(cls=Process)
@click.option(
    "--specimen",
    default="polycrystal",
    show_default=True,
    help="'polycrystal', 'particles', or the folder of an alloy (as sped-alculi: factors, loadings, truth).",
)
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Serve this MIB file instead of a specimen.",
)
@click.option(
    "--loops",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="With --replay: how many times over.",
)
@click.option("--seed", default=1, show_default=True, help="Same seed, same specimen and same noise.")
@click.option("--detector-px", type=click.Choice(["128", "256"]), default="256", show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=2000.0,
    show_default=True,
    help="Images a second; 0: as fast as it can.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--data-port", type=PORT, default=6342, show_default=True, help="Merlin data socket; 0: any free one."
)
@click.option("--control-port", type=PORT, default=6341, show_default=True, help="Merlin control socket.")
@click.option(
    "--instrument-port", type=PORT, default=50061, show_default=True, help="gRPC service Instrument."
)
@click.option("--instrument", default="simulator", show_default=True, help="Name of the instrument.")
@click.option("--physics", help='"typical", or a JSON file: drift, backlash, aberrations, damage, vacuum.')
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Write the specimen's ground truth here (JSON)."
)
@click.option(
    "--tls",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    show_default="beyond loopback HOME/keys",
    help="Folder of `nextem keys`: only the instrument's edge may command.",
)
@common
def simulate(
    specimen: str,
    replay: Path | None,
    loops: int,
    seed: int,
    detector_px: str,
    rate: float,
    host: str,
    data_port: int,
    control_port: int,
    instrument_port: int,
    instrument: str,
    physics: str | None,
    truth: Path | None,
    tls: Path | None,
    process: Running,
) -> None:
    """A simulated microscope: stage, optics, scan, and a detector that speaks Merlin's TCP protocol.

    The edge connects to its data socket as to a real Merlin, and commands it by the gRPC service Instrument.
    Every frame can be made again from the seed, the acquisition and its index.

    \b
    A microscope on the standard ports:        nextem simulate
    The same at 5,000 images a second:         nextem simulate --rate 5000
    One that drifts and has backlash:          nextem simulate --physics typical
    A real file as if it came from a camera:   nextem simulate --replay scan.mib --rate 100
    For an edge on another machine:            nextem simulate --host 0.0.0.0 --tls keys
    """
    from nextem.simulator.physics import PhysicsError, load_physics
    from nextem.simulator.service import SimulatorOptions, run_simulator
    from nextem.simulator.specimen import SpecimenError
    from nextem.wire.key_folder import BadName
    from nextem.wire.tls import TlsError, is_loopback

    rate_fps = rate or None
    if replay is not None:
        _serve_file(replay, rate_fps, host, data_port, loops, process)
        return
    try:
        described = None if physics is None else load_physics(physics)
    except PhysicsError as error:
        raise click.BadParameter(str(error), param_hint="--physics") from error
    options = SimulatorOptions(
        specimen=specimen,
        seed=seed,
        detector_px=int(detector_px),
        rate_fps=rate_fps,
        host=host,
        data_port=data_port,
        control_port=control_port,
        instrument_port=instrument_port,
        truth_path=truth,
        name=instrument,
        physics=described,
        # the edge dials loopback in plain text unless it is told otherwise
        keys=Home.at(process.home).secured(tls) if tls or not is_loopback(host) else None,
    )
    try:
        run_simulator(
            options,
            process.stop,
            lambda ports: process.tell_ready(
                {"data_port": ports.data, "control_port": ports.control, "instrument_port": ports.instrument}
            ),
            process.health,
        )
    except SpecimenError as error:
        raise click.BadParameter(str(error), param_hint="--specimen") from error
    except (TlsError, BadName) as error:
        raise click.ClickException(f"{error}; `nextem keys init` makes what is needed") from error


def _serve_file(
    file: Path, rate_fps: float | None, host: str, data_port: int, loops: int, process: Running
) -> None:
    from nextem.simulator.mib import MibError
    from nextem.simulator.replay import ReplayOptions, run_replay

    try:
        run_replay(
            ReplayOptions(path=file, rate_fps=rate_fps, host=host, data_port=data_port, loops=loops),
            process.stop,
            lambda port: process.tell_ready({"data_port": port}),
        )
    except MibError as error:
        raise click.BadParameter(str(error), param_hint="--replay") from error


@click.command(cls=Process)
@log_option
@click.option(
    "--store", show_default="HOME/store", help="Products and checkpoints: a folder, or s3://BUCKET/PREFIX."
)
@click.option("--workers", default=1, show_default=True, help="Ray actors that read frame blocks, at least.")
@click.option(
    "--max-workers",
    type=click.IntRange(1),
    show_default="--workers",
    help="On a cluster: as many as it has processors for, up to this.",
)
@click.option("--ray-address", show_default="Ray is started in place", help="An existing Ray cluster.")
@click.option("--ray-head", is_flag=True, help="Be the head of a Ray cluster that other nodes may join.")
@click.option("--ray-port", type=PORT, default=6379, show_default=True, help="Where the head listens.")
@common
def analyse(
    log: str | None,
    store: str | None,
    workers: int,
    max_workers: int | None,
    ray_address: str | None,
    ray_head: bool,
    ray_port: int,
    process: Running,
) -> None:
    """Analysis: Ray actors that read frame blocks and make products while the scan still runs.

    Which analyses run is said by each acquisition's plan. Any process may be killed at any moment: work
    goes on from the last checkpoint and the products are the same.

    \b
    On one machine:            nextem analyse
    From Kafka, two workers:   nextem analyse --log kafka://broker:9092 --workers 2
    On a cluster, as its head: nextem analyse --ray-head --max-workers 8 --log ... --store s3://...
    """
    from nextem.analysis.options import AnalysisOptions
    from nextem.analysis.service import run_analysis
    from nextem.wire.object_store import store_address

    if ray_head and ray_address is not None:
        raise click.UsageError("--ray-head starts a cluster, --ray-address joins one: give one of them")
    place = Home.at(process.home)
    run_analysis(
        AnalysisOptions(
            log=log or str(place.log),
            store=store_address(store, place.store),
            workers=workers,
            max_workers=max_workers,
            ray_address=ray_address,
            ray_head=ray_port if ray_head else None,
        ),
        process.stop,
        lambda: process.tell_ready({"workers": workers}),
        process.health,
    )


@click.command(cls=Process)
@log_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=PORT, default=50051, show_default=True, help="gRPC service Steering; 0: any free one."
)
@click.option(
    "--policies/--no-policies", default=True, show_default=True, help="Let policies propose commands."
)
@secured
@common
def steer(
    log: str | None,
    host: str,
    port: int,
    policies: bool,
    tls: Path | None,
    process: Running,
) -> None:
    """The steering service: the edge attaches to it; people and policies submit commands and watch.

    A policy runs when an acquisition's plan names it, and only within the plan's budget. The service
    proposes; the edge decides.

    \b
    On one machine:    nextem steer
    People only:       nextem steer --no-policies
    """
    from nextem.steering.service import SteeringOptions, run_steering
    from nextem.wire.tls import TlsError
    from nextem.wire.tokens import TokenRefused

    place = Home.at(process.home)
    options = SteeringOptions(
        log=log or str(place.log),
        host=host,
        port=port,
        policies=policies,
        keys=place.secured(tls),
        progress=place.folder / "steering",
    )
    try:
        run_steering(options, process.stop, lambda bound: process.tell_ready({"port": bound}), process.health)
    except (TlsError, TokenRefused) as error:
        raise click.ClickException(f"{error}; `nextem keys init` makes what is needed") from error
