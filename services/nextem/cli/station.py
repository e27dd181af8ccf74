"""One microscope with its edge, log, analysis and steering, as processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from nextem.cli.home import Home
from nextem.cli.kafka_jars import BrokerUnavailable
from nextem.cli.launcher import Launcher
from nextem.v1 import plan_pb2
from nextem.wire.health import log_reached

HOST = "127.0.0.1"
PLANNED = "simulator"
"""Name of the instrument on one machine."""


@contextmanager
def log_at(choice: str, home: Home, folder: Path) -> Iterator[str]:
    """Address of the log for ``--log``: ``local``, ``kafka`` (started here if none runs), or an address.

    A broker that this function started is stopped at the end. Raises :class:`BrokerUnavailable`.
    """
    if choice == "local":
        yield str(folder / "log")
    elif choice == "kafka":
        from nextem.cli import broker

        found = broker.status(home.kafka)
        if found is not None and found.running:
            yield found.address
        else:
            with broker.running(home.kafka) as address:
                yield address
    else:
        if why := log_reached(choice)():
            raise BrokerUnavailable(f"{choice}: {why}")
        yield choice


@dataclass(frozen=True, slots=True)
class StationOptions:
    """What to start. ``folder`` takes spool, journal and the processes' logs."""

    log: str
    store: Path
    folder: Path
    specimen: str = "polycrystal"
    seed: int = 1
    detector_px: int = 256
    rate_fps: float = 2000.0
    workers: int = 1
    limits: Path | None = None
    fixed_ports: bool = False  # the documented ports instead of free ones
    mode: str | None = None  # how much others may command; None: as it was, automatic at first
    policies: bool = True  # whether the steering service may propose commands

    @property
    def truth(self) -> Path:
        """Where the simulator writes the specimen's ground truth."""
        return self.folder / "truth.json"


@dataclass(frozen=True, slots=True)
class Station:
    """Addresses of what runs, HOST:PORT."""

    steering: str
    instrument: str
    detector: str


def start_station(
    launcher: Launcher, options: StationOptions, reached: Callable[[str], str] = lambda address: address
) -> Station:
    """Starts simulator, steering, analysis and edge; waits until all are ready. Raises ``ChildFailed``.

    ``reached``: by which address the edge reaches that of the log and that of steering; it may lie apart.
    """
    home = ("--home", str(options.folder))
    log = ("--log", options.log)
    analysis = launcher.start(
        "analyse", *home, *log, "--store", str(options.store), "--workers", str(options.workers)
    )
    simulator = launcher.start("simulate", *home, *_simulator_arguments(options))
    steer = () if options.fixed_ports else ("--port", "0")
    policies = "--policies" if options.policies else "--no-policies"
    steering = launcher.start("steer", *home, *log, *steer, policies)
    sim_facts = launcher.wait_ready(simulator)
    station = Station(
        steering=f"{HOST}:{launcher.wait_ready(steering)['port']}",
        instrument=f"{HOST}:{sim_facts['instrument_port']}",
        detector=f"{HOST}:{sim_facts['data_port']}",
    )
    arguments = ["--detector", station.detector, "--instrument", station.instrument]
    arguments += ["--steering", reached(station.steering), "--name", PLANNED]
    if options.limits is not None:
        arguments += ["--limits", str(options.limits)]
    if options.mode is not None:
        arguments += ["--mode", options.mode]
    edge = launcher.start("edge", *home, "--log", reached(options.log), *arguments)
    launcher.wait_ready(edge)
    launcher.wait_ready(analysis)
    return station


def _simulator_arguments(options: StationOptions) -> list[str]:
    arguments = ["--specimen", options.specimen, "--seed", str(options.seed)]
    arguments += ["--detector-px", str(options.detector_px), "--rate", str(options.rate_fps)]
    arguments += ["--truth", str(options.truth)]
    if not options.fixed_ports:
        arguments += ["--data-port", "0", "--control-port", "0", "--instrument-port", "0"]
    return arguments


def serve_mib(launcher: Launcher, options: StationOptions, file: Path, rate_fps: float) -> str:
    """Starts a server that sends ``file`` as a Merlin would; returns the camera's address."""
    server = launcher.start(
        "simulate",
        *("--home", str(options.folder)),
        *("--replay", str(file), "--rate", str(rate_fps), "--data-port", "0"),
    )
    return f"{HOST}:{launcher.wait_ready(server)['data_port']}"


def start_replay(launcher: Launcher, options: StationOptions, detector: str, plan: plan_pb2.Plan) -> None:
    """Starts analysis, then an edge that listens to ``detector`` with ``plan``; waits for both."""
    home = ("--home", str(options.folder))
    log = ("--log", options.log)
    plan_file = options.folder / "plan.json"
    plan_file.write_text(json_format.MessageToJson(plan))
    analysis = launcher.start("analyse", *home, *log, "--store", str(options.store))
    launcher.wait_ready(analysis)
    edge = launcher.start(
        "edge", *home, *log, "--detector", detector, "--name", "replay", "--passive-plan", str(plan_file)
    )
    launcher.wait_ready(edge)
