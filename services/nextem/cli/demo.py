"""``nextem demo``: one closed-loop experiment, from an empty folder to a report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from nextem.cli.console import screen
from nextem.cli.experiment import Experiment, ExperimentFailed, Record
from nextem.cli.home import Home
from nextem.cli.launcher import FIRST_START, ChildFailed, Launcher
from nextem.cli.modes import mode_option
from nextem.cli.process_options import log_choice_option
from nextem.cli.report import Summary, survey_picture, write_report
from nextem.cli.specimens import Study, study_of
from nextem.cli.station import PLANNED, StationOptions, log_at, start_station
from nextem.client.client import SteeringClient
from nextem.client.errors import SteeringError
from nextem.v1 import control_pb2, plan_pb2
from nextem.wire.log import ACQUISITIONS, PRODUCTS, LogError, open_log
from nextem.wire.store import ProductStore, open_store


@click.command()
@click.option(
    "--specimen",
    default="polycrystal",
    show_default=True,
    help="'polycrystal' (simulated), or the folder of a real alloy: factors, loadings and ground truth.",
)
@log_choice_option
@click.option("--seed", default=1, show_default=True, help="Another seed, another specimen and other noise.")
@click.option("--rate", default=2000.0, show_default=True, help="Images a second of the simulated detector.")
@mode_option
@click.option("--home", type=click.Path(path_type=Path), help="Folder of everything NexTEM keeps.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the report.  [default: HOME/reports/NAME]"
)
def demo(
    specimen: str,
    log_choice: str,
    seed: int,
    rate: float,
    mode: str | None,
    home: Path | None,
    out: Path | None,
) -> None:
    """Run a closed-loop experiment on a simulated microscope; nothing to set up.

    The microscope surveys a thin film coarsely. The edge reduces the frames as they arrive, Ray workers
    find what is unusual while the survey still runs, and a policy commands fine scans of the best regions
    over gRPC, within its budget. The products, a picture of each and a report are left in a folder.

    \b
    nextem demo                            a polycrystal with a few rare inclusions
    nextem demo --specimen FOLDER          a real alloy (derived from a model of measured data)
    nextem demo --log kafka                the same through a real Apache Kafka (needs Java and Maven)
    nextem demo --mode approve             each scan waits for your yes, which you say in another terminal
    """
    from nextem.cli.kafka_jars import BrokerUnavailable

    place = Home.at(home)
    name = "demo-" + time.strftime("%Y%m%d-%H%M%S")
    folder = (out or place.report(name)).resolve()
    try:
        summary, page = _demo(place, name, folder, specimen, log_choice, seed, rate, mode)
    except (ChildFailed, BrokerUnavailable, ExperimentFailed, LogError, SteeringError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    _tell(summary, page)
    if summary.frames_announced != summary.frames_stored:
        raise SystemExit(1)


def _demo(
    place: Home,
    name: str,
    folder: Path,
    specimen: str,
    log_choice: str,
    seed: int,
    rate: float,
    mode: str | None,
) -> tuple[Summary, Path]:
    study = study_of(specimen, seed)
    plan = study.plan(dwell_s=1 / rate if rate else 0.0)
    run = place.run(name)
    run.mkdir(parents=True, exist_ok=True)
    limits = run / "limits.json"
    limits.write_text(study.limits(plan).to_json())
    with log_at(log_choice, place, run) as address, Launcher(run) as launcher:
        options = StationOptions(
            log=address,
            store=place.store,
            folder=run,
            specimen=specimen,
            seed=seed,
            detector_px=study.detector_px,
            rate_fps=rate,
            limits=limits,
            mode=mode,
        )
        with screen(stderr=True).status(f"starting microscope, edge, log, Ray and steering ({FIRST_START})"):
            station = start_station(launcher, options)
        record = _run(address, station.steering, plan, launcher.check)
        statuses = launcher.stop()
    with screen(stderr=True).status("drawing the report"):
        summary = _summary(record, study, statuses)
        page = _report(folder, study, summary, record, open_store(place.store))
    return summary, page


def _run(address: str, steering: str, plan: plan_pb2.Plan, alive: Callable[[], None]) -> Record:
    """The experiment with a progress bar for each of its parts."""
    log = open_log(address)
    consumer = log.consumer([ACQUISITIONS, PRODUCTS], None, from_start=False)
    asked = itertools.count()
    try:
        with SteeringClient(steering) as client, _progress() as progress:
            survey = progress.add_task("survey", total=plan.scan.size_y * plan.scan.size_x)
            fine = progress.add_task("fine scans", total=plan.steering.max_acquisitions)
            done = progress.add_task("analysed", total=1 + plan.steering.max_acquisitions)
            experiment = Experiment(
                client,
                consumer,
                lambda r: _show(progress, r, survey, fine, done),
                alive,
                lambda proposed: progress.console.print(
                    question(proposed, steering, first=next(asked) == 0), soft_wrap=True
                ),
            )
            return experiment.run(plan, PLANNED)
    finally:
        consumer.close()
        log.close()


def question(proposed: control_pb2.Outcome, steering: str, *, first: bool) -> str:
    """A command that waits for a person, and, the ``first`` time, what to type in another terminal."""
    line = f"waits for your yes: {proposed.command_id}: {proposed.detail}"
    if not first:
        return line
    return (
        f"{line}\nIn another terminal, within two minutes:\n"
        f"  nextem watch --steering {steering}            what is asked, and what becomes of it\n"
        f"  nextem approve ID --steering {steering}       yes; or --all for all that waits\n"
        f"  nextem refuse ID --steering {steering}        no"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen(stderr=True),
    )


def _show(progress: Progress, record: Record, survey: TaskID, fine: TaskID, done: TaskID) -> None:
    scans = list(record.scans.values())
    if scans:
        total = progress.tasks[survey].total or 0
        progress.update(survey, completed=total if scans[0].finished else record.heartbeat.state.frames_sent)
    progress.update(fine, completed=sum(scan.finished is not None for scan in scans[1:]))
    progress.update(done, completed=sum(scan.complete for scan in scans))


def _summary(record: Record, study: Study, statuses: dict[str, int]) -> Summary:
    finished = [scan.finished for scan in record.scans.values() if scan.finished is not None]
    latencies = sorted(o.loop_latency_ms for o in record.steered() if o.loop_latency_ms > 0)
    stored = sum(f.frames_stored for f in finished)
    span_s = (max(f.last_byte_ns for f in finished) - min(f.first_byte_ns for f in finished)) / 1e9
    return Summary(
        frames_announced=sum(f.frames_announced for f in finished),
        frames_stored=stored,
        frames_lost=sum(f.frames_lost for f in finished),
        images_per_s=stored / span_s if span_s else 0.0,
        bytes_raw=sum(f.bytes_raw for f in finished),
        bytes_sent=sum(f.bytes_encoded for f in finished),
        loop_latency_ms={"p50": _percentile(latencies, 50), "p99": _percentile(latencies, 99)},
        dose_used=sum(_dose_e(scan.started.plan) for scan in record.scans.values()),
        dose_budget=record.heartbeat.dose_budget_e,
        more={
            "specimen": study.label,
            "commands": {"accepted": len(record.accepted), "final": len(record.final)},
            "commands_during_survey": _during_survey(record),
            "exit_statuses": statuses,
        },
        **study.score(record),
    )


def _dose_e(plan: plan_pb2.Plan) -> float:
    return float(plan.scan.size_y * plan.scan.size_x * plan.dose_e_per_frame)


def _during_survey(record: Record) -> int:
    """Commands that reached the instrument before the survey's last frame came in."""
    survey = next(iter(record.scans.values())).finished
    return sum(o.at_driver_ns < survey.last_byte_ns for o in record.steered()) if survey else 0


def _percentile(values: list[float], percent: float) -> float | None:
    import numpy as np

    return round(float(np.percentile(values, percent)), 3) if values else None


def _report(folder: Path, study: Study, summary: Summary, record: Record, store: ProductStore) -> Path:
    survey = next(iter(record.scans.values()))
    novelty = next(p for p in survey.products.values() if p.analysis == "novelty" and p.kind == "map")
    _, array = store.read(novelty.product_id)
    survey_picture(
        array,
        study.field_nm,
        study.fine_areas(record),
        study.truth_picture(),
        folder / "survey.png",
        study.label,
    )
    return write_report(folder, "A steered experiment", study.label, summary, record, store)


def _tell(summary: Summary, page: Path) -> None:
    table = Table(box=None, show_header=False)
    for name, value in summary.rows():
        table.add_row(name, f"[bold]{value}[/bold]")
    terminal = screen()
    terminal.print(table)
    terminal.print(f"report    {page}", soft_wrap=True)
    terminal.print(f"summary   {page.parent / 'summary.json'}", soft_wrap=True)
