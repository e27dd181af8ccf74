"""Policies named in a plan against a live edge, with simulator, local log and Ray; scored by the truth."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, struct_pb2

from nextem.analysis.options import AnalysisOptions
from nextem.analysis.service import run_analysis
from nextem.client import SteeringClient, SteeringUnavailable, acquire_command
from nextem.edge.service import EdgeOptions, run_edge
from nextem.simulator.optics import Aberrations, LensErrors, defocus_tolerance_nm
from nextem.simulator.physics import Physics
from nextem.simulator.polycrystal import Polycrystal
from nextem.simulator.sampler import Mixture
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.simulator.stage import Drift, DriftPath
from nextem.steering.policies.measured import Measured, run_loop
from nextem.steering.policies.sparse import Options as SparseOptions
from nextem.steering.policies.sparse import SparseScan
from nextem.steering.service import SteeringOptions, run_steering
from nextem.v1 import control_pb2, plan_pb2
from nextem.wire.folder_store import PARTIAL
from nextem.wire.ids import uuid7
from nextem.wire.store import open_store

pytestmark = pytest.mark.ray

DETECTOR_PX, RATE_FPS, WAIT_S = 128, 4000.0, 90.0
MIDDLE = (DETECTOR_PX - 1) / 2
DONE = control_pb2.COMMAND_STATE_DONE


@contextmanager
def service(run: Callable[..., Any], options: object) -> Iterator[Any]:
    """``run`` on a thread of its own from when it is ready; gives what it said then."""
    stop, up, said = threading.Event(), threading.Event(), list[Any]()

    def ready(*facts: Any) -> None:
        said.extend(facts)
        up.set()

    thread = threading.Thread(target=run, args=(options, stop, ready))
    thread.start()
    try:
        assert up.wait(WAIT_S)
        yield said[0] if said else None
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


@dataclass
class Station:
    """A microscope with all its services. ``commands`` and ``outcomes`` are what the service told, by id."""

    folder: Path
    store: Path
    log: str
    closing: ExitStack
    seed: int = 1
    commands: dict[str, control_pb2.Command] = field(default_factory=dict)
    outcomes: dict[str, control_pb2.Outcome] = field(default_factory=dict)
    client: SteeringClient | None = None
    running: ExitStack = field(default_factory=ExitStack)
    port: int = 0

    @property
    def progress(self) -> Path:
        return self.folder / "steering"

    def kept(self) -> list[Path]:
        """The checkpoints of what is steered now."""
        return [path for path in self.progress.iterdir() if path.name != PARTIAL]

    def steering(self, port: int = 0) -> None:
        """Starts the steering service; ``self.running`` stops it. ``self.client`` talks to it."""
        self.running = running = ExitStack()
        self.closing.callback(running.close)
        options = SteeringOptions(log=self.log, port=port, progress=self.progress)
        self.port = running.enter_context(service(run_steering, options))
        self.client = running.enter_context(SteeringClient(f"127.0.0.1:{self.port}"))
        events = running.enter_context(self.client.watch())
        listener = threading.Thread(target=self._listen, args=(events,))
        listener.start()
        running.callback(listener.join)
        running.callback(events.close)

    def _listen(self, events: Any) -> None:
        for event in events:
            if event.WhichOneof("event") == "command":
                self.commands[event.command.command_id] = event.command
            elif event.WhichOneof("event") == "outcome" and event.outcome.state >= DONE:
                self.outcomes[event.outcome.command_id] = event.outcome

    def acquire(self, plan: plan_pb2.Plan) -> None:
        assert self.client is not None
        self.wait(self._attached)
        lease = self.client.request_lease("person", 20_000)
        command = acquire_command(plan, "person", "simulator", lease)
        assert self.client.submit_and_wait(command, timeout_s=WAIT_S).state == DONE
        self.client.release_lease("person")

    def _attached(self) -> bool:
        assert self.client is not None
        try:
            return not self.client.request_lease("person", 20_000).refused
        except SteeringUnavailable:
            return False

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{len(self.outcomes)} of {len(self.commands)} commands"
            time.sleep(0.02)

    def wait_over(self) -> None:
        """Until the policy has commanded, every command has its outcome, and its checkpoint has gone."""

        def over() -> bool:
            heard = set(self.commands)
            begun = any(self.commands[each].issuer != "person" for each in heard)
            return begun and heard <= self.outcomes.keys() and not self.kept()

        self.wait(over)

    def steered(self, action: str) -> list[tuple[control_pb2.Command, control_pb2.Outcome]]:
        """The policy's commands of this action, in order, each with what became of it."""
        found = [
            c for c in self.commands.values() if c.WhichOneof("action") == action and c.issuer != "person"
        ]
        found.sort(key=lambda command: self.outcomes[command.command_id].received_ns)
        return [(command, self.outcomes[command.command_id]) for command in found]

    def values(self, outcome: control_pb2.Outcome, name: str) -> dict[str, float]:
        """A "values" product of what a command acquired."""
        product, _ = open_store(self.store).read(f"{outcome.acquisition_id}/{name}")
        found: dict[str, float] = json_format.MessageToDict(product.provenance)["notes"]["values"]
        return found


@pytest.fixture(scope="module")
def log_and_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """One analysis service for all tests of this file."""
    folder = tmp_path_factory.mktemp("live")
    log, store = str(folder / "log"), folder / "store"
    with service(run_analysis, AnalysisOptions(log, store)):
        yield log, store


@pytest.fixture
def station(log_and_store: tuple[str, Path], tmp_path: Path) -> Iterator[Callable[..., Station]]:
    with ExitStack() as closing:

        def start(specimen: str, physics: Physics | None = None, seed: int = 1) -> Station:
            log, store = log_and_store
            made = Station(tmp_path, store, log, closing, seed)
            simulator = SimulatorOptions(
                specimen=specimen, seed=seed, detector_px=DETECTOR_PX, rate_fps=RATE_FPS, physics=physics,
                data_port=0, control_port=0, instrument_port=0, truth_path=tmp_path / "truth.json",
            )  # fmt: skip
            ports: SimulatorPorts = closing.enter_context(service(run_simulator, simulator))
            made.steering()
            edge = EdgeOptions(
                instrument="simulator", log=log, detector=f"127.0.0.1:{ports.data}",
                spool_dir=tmp_path / "spool", journal_path=tmp_path / "journal.db",
                instrument_address=f"127.0.0.1:{ports.instrument}",
                steering_address=f"127.0.0.1:{made.port}", workers=1,
            )  # fmt: skip
            closing.enter_context(service(run_edge, edge))
            return made

        yield start


def plan(
    policy: str,
    scan: plan_pb2.Scan,
    fine: plan_pb2.Scan,
    scans: int,
    analyses: tuple[str, ...],
    rings_px: tuple[float, float] = (0.0, 4.0),
    dose_e: float = 1000.0,
    **parameters: float | str,
) -> plan_pb2.Plan:
    """A first scan of ``scan`` on which ``policy`` steers; ``rings_px`` bound the detector "bright"."""
    given = struct_pb2.Struct()
    given.update(parameters)
    mask = plan_pb2.Mask(
        name="bright", center_y_px=MIDDLE, center_x_px=MIDDLE, inner_px=rings_px[0], outer_px=rings_px[1]
    )
    reduction = plan_pb2.Reduction(masks=[mask])
    return plan_pb2.Plan(
        plan_id=uuid7(),
        schema_version=1,
        scan=scan,
        dose_e_per_frame=dose_e,
        reduction=reduction,
        steering=plan_pb2.SteeringPlan(
            policy=policy,
            parameters=given,
            max_acquisitions=scans,
            dose_budget_e=scans * fine.size_y * fine.size_x * dose_e,
            fine=plan_pb2.Plan(
                schema_version=1,
                scan=fine,
                dose_e_per_frame=dose_e,
                reduction=reduction,
                analyses=[plan_pb2.Analysis(name=name) for name in analyses],
            ),
        ),
    )


def square(size: int, step_nm: float, origin_nm: tuple[float, float]) -> plan_pb2.Scan:
    return plan_pb2.Scan(
        size_y=size, size_x=size, step_nm=step_nm, dwell_s=1 / RATE_FPS,
        origin_y_nm=origin_nm[0], origin_x_nm=origin_nm[1],
    )  # fmt: skip


PLANTED = Aberrations(4200.0, 1100 - 800j)
FOCUS = {"images": 25, "defocus_nm": 8000.0, "astigmatism_nm": 2000.0, "seed": 3}


def focus_plan() -> plan_pb2.Plan:
    fine = square(32, 2.0, (100.0, 100.0))
    return plan("autofocus", square(2, 2.0, (0.0, 0.0)), fine, 25, ("image_statistics",), **FOCUS)


def left_nm(station: Station) -> tuple[float, float]:
    """|C1| and |A1| with the optics that were set last."""
    optics = station.steered("set_optics")[-1][1].state_after.optics
    left = PLANTED + Aberrations(optics.defocus_nm, complex(optics.astigmatism_a_nm, optics.astigmatism_b_nm))
    return abs(left.c1_nm), abs(left.a1_nm)


def test_autofocus(station: Callable[..., Station], capsys: pytest.CaptureFixture[str]) -> None:
    scope = station("particles", Physics(lenses=LensErrors(PLANTED)))
    scope.acquire(focus_plan())
    scope.wait_over()
    images = scope.steered("acquire")
    assert len(images) == 25
    assert all(outcome.state == DONE for outcome in scope.outcomes.values())
    sharp = [scope.values(outcome, "statistics/bright")["normalised_variance"] for _, outcome in images]
    c1_nm, a1_nm = left_nm(scope)
    tolerance = defocus_tolerance_nm(200.0, 1.0)
    with capsys.disabled():
        print(f"\nautofocus: left C1 {c1_nm:.0f} nm, A1 {a1_nm:.0f} nm, λ/4α² {tolerance:.0f} nm")
    assert max(sharp) > 2 * sharp[0]
    assert max(c1_nm, a1_nm) < 1.5 * tolerance < 0.3 * abs(PLANTED.c1_nm)


def test_a_restart_in_between_goes_on_with_the_same_images(station: Callable[..., Station]) -> None:
    """The service is stopped after some images; what was measured is kept, and nothing is done twice."""
    scope = station("particles", Physics(lenses=LensErrors(PLANTED)))
    scope.acquire(focus_plan())
    scope.wait(lambda: len(scope.outcomes) >= 14)
    port = scope.port
    scope.running.close()
    before = len(scope.outcomes)
    (kept,) = scope.kept()
    scope.steering(port)
    scope.wait_over()
    assert before < len(scope.outcomes)
    images = scope.steered("acquire")
    assert len(images) == 25
    assert len({outcome.acquisition_id for _, outcome in images}) == 25
    assert {outcome.state for outcome in scope.outcomes.values()} == {DONE}
    tolerance = defocus_tolerance_nm(200.0, 1.0)
    assert max(left_nm(scope)) < 1.5 * tolerance
    assert not kept.exists()


def test_drift(station: Callable[..., Station], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Residual of where the scans were taken, against no correction at all."""
    drift = Drift(linear_nm_s=(0.9, -0.6), exponential_nm=(8.0, 5.0), exponential_s=6.0, walk_nm_sqrt_s=0.05)
    scope = station("particles", Physics(drift=drift, seed=5))
    fine = square(32, 2.0, (150.0, 150.0))
    scope.acquire(
        plan(
            "drift", square(2, 2.0, (0.0, 0.0)), fine, 14, ("virtual_images", "shift"),
            period_s=0.8, rate_nm_s=2.0,
        )
    )  # fmt: skip
    scope.wait_over()
    scans = scope.steered("acquire")
    assert len(scans) == 14
    began_ns = json.loads((tmp_path / "truth.json").read_text())["physics_started_ns"]
    times_ns = [(o.accounting.first_byte_ns + o.accounting.last_byte_ns) / 2 for _, o in scans]
    true_nm = DriftPath(drift, 5).at((np.array(times_ns) - began_ns) / 1e9)
    origins_nm = np.array([(c.acquire.scan.origin_y_nm, c.acquire.scan.origin_x_nm) for c, _ in scans])
    moved_nm = true_nm - true_nm[0]
    left = moved_nm + origins_nm - origins_nm[0]
    rms = [float(np.sqrt((part[5:] ** 2).sum(1).mean())) for part in (left, moved_nm)]
    with capsys.disabled():
        print(f"\ndrift: {rms[0]:.2f} nm left, {rms[1]:.2f} nm without")
    assert rms[0] < 0.2 * rms[1]


def share(mixture: Mixture, component: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    rows = np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr))
    there = component(mixture.component)
    return np.bincount(rows[there], mixture.weight[there], minlength=len(mixture))


def test_active_learning(station: Callable[..., Station], capsys: pytest.CaptureFixture[str]) -> None:
    """An inclusion in a grain: tiles scanned on it, against as many drawn at random."""
    specimen = Polycrystal.plant(1)
    at = specimen.inclusions[0]
    corner = (at.center_y_nm - 58.0, at.center_x_nm - 30.0)
    fine, scans = square(4, 2.0, (0.0, 0.0)), 30
    scope = station("polycrystal")
    scope.acquire(
        plan(
            "active_learning", square(10, 8.0, corner), fine, scans, ("image_statistics",), (8.0, 17.0),
            beta=1.0, initial=12, batch=2,
        )
    )  # fmt: skip
    scope.wait_over()
    tiles = scope.steered("acquire")
    assert len(tiles) == scans

    def on(y_nm: float, x_nm: float) -> bool:
        return np.hypot(y_nm + 3 - at.center_y_nm, x_nm + 3 - at.center_x_nm) < at.radius_nm

    found = sum(on(c.acquire.scan.origin_y_nm, c.acquire.scan.origin_x_nm) for c, _ in tiles)
    by_chance = (
        scans / 100 * sum(on(corner[0] + 8 * i, corner[1] + 8 * j) for i in range(10) for j in range(10))
    )
    with capsys.disabled():
        print(f"\nactive learning: {found} tiles on the inclusion, {by_chance:.1f} at random")
    assert found >= 2 * by_chance


def test_sparse(station: Callable[..., Station], capsys: pytest.CaptureFixture[str]) -> None:
    """A bright-field image from a third of its pixels, against as many spread evenly."""
    size, step_nm, corner = 12, 16.0, (300.0, 200.0)
    specimen = Polycrystal.plant(1)
    field_nm = np.stack(np.mgrid[0:size, 0:size], -1).reshape(-1, 2) * step_nm + corner
    truth = share(specimen.mixture(*field_nm.T), lambda component: component == 0).reshape(size, size)
    scans = int(size * size / 3)
    scope = station("polycrystal")
    scope.acquire(
        plan(
            "sparse", square(size, step_nm, corner), square(1, 1.0, (0.0, 0.0)), scans, ("image_statistics",),
            dose_e=20_000.0, fraction=1 / 3, initial=0.1, batch=4,
        )
    )  # fmt: skip
    scope.wait_over()
    pixels = scope.steered("acquire")
    assert len(pixels) == scans
    policy = SparseScan(SparseOptions((size, size), 1 / 3))
    for command, outcome in pixels:
        scan = command.acquire.scan
        at = (
            round((scan.origin_y_nm - corner[0]) / step_nm),
            round((scan.origin_x_nm - corner[1]) / step_nm),
        )
        policy.ingest(Measured(at, scope.values(outcome, "statistics/bright")["mean"] / 20_000))
    even = SparseScan(SparseOptions((size, size), 1 / 3, initial=1 / 3))
    run_loop(even, lambda at: float(truth[int(at[0]), int(at[1])]), 8)
    picture = policy.picture()
    errors = [float(np.corrcoef(p.ravel(), truth.ravel())[0, 1]) for p in (picture, even.picture())]
    with capsys.disabled():
        print(f"\nsparse scan: correlation with the truth {errors[0]:.3f}, even pixels {errors[1]:.3f}")
    assert errors[0] > 0.8
