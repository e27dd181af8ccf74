"""``nextem replay``: a real file through the same edge, log and analysis."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import click
from rich.table import Table

from nextem.cli.console import frames_bar, screen
from nextem.cli.experiment import STALL_S, Record, Scan
from nextem.cli.home import Home
from nextem.cli.launcher import FIRST_START, ChildFailed, Launcher
from nextem.cli.plans import read_plan, replay_plan
from nextem.cli.process_options import log_choice_option
from nextem.cli.station import StationOptions, log_at, serve_mib, start_replay
from nextem.v1 import acquisition_pb2, plan_pb2
from nextem.wire.log import ACQUISITIONS, PRODUCTS, open_log
from nextem.wire.store import open_store


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rate", default=1000.0, show_default=True, help="Images a second; 0: as fast as it can.")
@click.option("--scan", help="Scan size, ROWSxCOLUMNS, as 2x4.  [default: the file's own, else one row]")
@click.option(
    "-p",
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="How to read the file: format, dataset, scale, offset, unsigned, loops, reader.",
)
@click.option(
    "--plan",
    "plan_file",
    metavar="PLAN.json",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="How to reduce and analyse; the scan is the file's.  [default: virtual images and what is unusual]",
)
@log_choice_option
@click.option("--home", type=click.Path(path_type=Path), help="Folder of everything NexTEM keeps.")
def replay(
    file: Path,
    rate: float,
    scan: str | None,
    parameters: tuple[str, ...],
    plan_file: Path | None,
    log_choice: str,
    home: Path | None,
) -> None:
    """Send a file through edge, log and analysis, and leave its products and pictures.

    A MIB file is served over TCP as the camera would send it. Others the edge reads itself: HDF5 of DECTRIS
    and stempy, EMPAD, MRC, TIFF, npy, and with a reader of your own any.

    \b
    nextem replay scan.mib --scan 128x128
    nextem replay scan_master.h5 --scan 64x64 --rate 0
    nextem replay empad_x64_y64.raw -p scale=0.0066 -p offset=10
    nextem replay scan.xyz -p reader=package.module:function
    nextem replay movie.mrc --plan movie.json
    """  # fmt: skip
    place = Home.at(home)
    name = "replay-" + time.strftime("%Y%m%d-%H%M%S")
    like = read_plan(plan_file) if plan_file else None
    try:
        source = _source(file.absolute(), rate, scan, parameters)
        plan = replay_plan(f"replay of {file.name}", source.scan, source.shape, like)
        done = _run(source, plan, log_choice, place, name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{file.name} needs the package {error.name!r}: pip install 'nextem[files]'"
        ) from error
    except _failures() as error:
        raise click.ClickException(str(error)) from error
    _leave(done, place, place.report(name))
    if done.finished is None or done.finished.reason == acquisition_pb2.FINISH_REASON_FAILED:
        raise SystemExit(1)


def _failures() -> tuple[type[Exception], ...]:
    from nextem.cli.kafka_jars import BrokerUnavailable
    from nextem.edge.detectors.base import DetectorError
    from nextem.edge.detectors.registry import BadAddress
    from nextem.simulator.mib import MibError
    from nextem.wire.log import LogError

    return (ChildFailed, BrokerUnavailable, MibError, DetectorError, BadAddress, LogError, ReplayFailed)


class ReplayFailed(Exception):
    """The replay did not come to its end."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What is replayed: ``detector`` is an address, or None where ``file`` is served as a Merlin would."""

    file: Path
    rate_fps: float
    detector: str | None
    frames: int
    scan: tuple[int, int]
    shape: tuple[int, int]


def _source(file: Path, rate: float, scan: str | None, parameters: tuple[str, ...]) -> _Source:
    given = dict(part.partition("=")[::2] for part in parameters)
    if file.suffix.lower() == ".mib" and not given:
        return _merlin(file, rate, scan)
    from nextem.edge.detectors.files import read_file
    from nextem.edge.detectors.files.parameters import parse_parameters

    if scan is not None:
        given["scan"] = scan
    parsed = parse_parameters({"rate": str(rate)} | given)
    recording = read_file(file, parsed)
    frames = recording.frames * parsed.loops
    if not frames:
        raise ReplayFailed(f"{file.name} does not say how many frames it holds: say --scan")
    rows, columns = recording.scan or (1, recording.frames)
    address = f"{file.as_uri()}?{urlencode({'rate': str(rate)} | given)}"
    return _Source(file, rate, address, frames, (rows * parsed.loops, columns), recording.format.shape)


def _merlin(file: Path, rate: float, scan: str | None) -> _Source:
    from nextem.edge.detectors.merlin import parse_frame_header, pixel_format
    from nextem.simulator.mib import MibFile

    with MibFile(file) as mib:
        announced = len(mib) if mib.announced is None else mib.announced
        shape = pixel_format(parse_frame_header(mib.frame(0))).shape
    return _Source(file, rate, None, announced, _scan_size(scan, announced), shape)


def _scan_size(text: str | None, frames: int) -> tuple[int, int]:
    if text is None:
        return 1, frames
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdigit() and columns.isdigit()) or int(rows) * int(columns) != frames:
        raise ReplayFailed(
            f"--scan {text}: the file holds {frames} frames, so ROWSxCOLUMNS must multiply to that"
        )
    return int(rows), int(columns)


def _run(source: _Source, plan: plan_pb2.Plan, log_choice: str, place: Home, name: str) -> Scan:
    folder = place.run(name)
    with log_at(log_choice, place, folder) as address, Launcher(folder) as launcher:
        log = open_log(address)
        reader = log.consumer([ACQUISITIONS, PRODUCTS], None, from_start=False)
        try:
            options = StationOptions(log=address, store=place.store, folder=folder)
            with screen(stderr=True).status(f"starting edge and analysis ({FIRST_START})"):
                detector = source.detector or serve_mib(launcher, options, source.file, source.rate_fps)
                start_replay(launcher, options, detector, plan)
            record = Record()
            with frames_bar() as progress:
                frames = progress.add_task("frames", total=source.frames)
                quiet_since, changes = time.monotonic(), -1
                while True:
                    launcher.check()
                    record.read(reader, timeout_s=0.1)
                    if record.changes != changes:
                        quiet_since, changes = time.monotonic(), record.changes
                    scans = list(record.scans.values())
                    if scans and scans[0].finished is not None:
                        progress.update(frames, completed=scans[0].finished.frames_stored)
                        if scans[0].complete or not scans[0].finished.frames_stored:
                            return scans[0]
                    if time.monotonic() - quiet_since > STALL_S:
                        raise ReplayFailed(f"nothing has come for {STALL_S:.0f} s; see the logs in {folder}")
        finally:
            reader.close()
            log.close()


def _leave(done: Scan, place: Home, folder: Path) -> None:
    """Pictures, summary and a table of what came out."""
    from nextem.cli.pictures import save_picture

    store = open_store(place.store)
    folder.mkdir(parents=True, exist_ok=True)
    for product_id in sorted(done.products):
        product, array = store.read(product_id)
        if product.kind == "failed":
            continue
        save_picture(
            product, array, folder / (product.name.replace("/", "_") + ".png"), done.started.plan.title
        )
    finished = done.finished or acquisition_pb2.AcquisitionFinished()
    facts = {
        "acquisition_id": done.started.acquisition_id,
        "frames_announced": finished.frames_announced,
        "frames_stored": finished.frames_stored,
        "frames_lost": finished.frames_lost,
        "bytes_raw": finished.bytes_raw,
        "bytes_sent": finished.bytes_encoded,
        "products": sorted(done.products),
        "error": finished.error,
    }
    (folder / "summary.json").write_text(json.dumps(facts, indent=2))
    table = Table(box=None, show_header=False)
    table.add_row(
        "frames",
        f"{finished.frames_announced:,} announced, {finished.frames_stored:,} stored, "
        f"{finished.frames_lost:,} lost",
    )
    table.add_row("bytes", f"{finished.bytes_raw:,} raw, {finished.bytes_encoded:,} sent")
    table.add_row("products", "\n".join(sorted(done.products)) or "none")
    table.add_row("pictures", str(folder))
    if finished.error:
        table.add_row("error", finished.error)
    screen().print(table)
