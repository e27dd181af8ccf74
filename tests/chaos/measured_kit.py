"""Policies that choose from measured values, and what analysis would say of each scan that they take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

from chaos_kit import Lab, until
from google.protobuf import struct_pb2

from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire.folder_store import PARTIAL
from nextem.wire.log import ACQUISITIONS, PRODUCTS, open_log

FINE = 8
"""Side of a scan: 0.6 s at the rate of the microscope, so that one ends while nobody leads yet."""
DOSE_E = 100.0
STATISTICS = "image_statistics"

Measure = Callable[[plan_pb2.Plan, control_pb2.Optics], float]


def plan(policy: str, scans: int, **parameters: float) -> plan_pb2.Plan:
    """A short first scan on which ``policy`` steers with ``scans`` scans."""
    given = struct_pb2.Struct()
    given.update({"image": "sum", **parameters})
    scan = plan_pb2.Scan(size_y=4, size_x=4, step_nm=4.0, dwell_s=1e-3)
    fine = plan_pb2.Plan(
        schema_version=1,
        scan=plan_pb2.Scan(size_y=FINE, size_x=FINE, step_nm=0.5, dwell_s=1e-3),
        dose_e_per_frame=DOSE_E,
        analyses=[plan_pb2.Analysis(name=STATISTICS)],
    )
    steering = plan_pb2.SteeringPlan(
        policy=policy,
        parameters=given,
        max_acquisitions=scans,
        dose_budget_e=scans * FINE**2 * DOSE_E,
        fine=fine,
    )
    return plan_pb2.Plan(
        schema_version=1, title=policy, scan=scan, dose_e_per_frame=DOSE_E, steering=steering
    )


class Analysis:
    """Tells of each whole scan of a policy what ``measure`` finds in it, whether or not anybody steers."""

    def __init__(self, lab: Lab, measure: Measure) -> None:
        self._lab, self._measure = lab, measure
        self._stop, self._up = threading.Event(), threading.Event()
        self.values: dict[str, float] = {}  # by acquisition
        self._plans: dict[str, plan_pb2.Plan] = {}
        self._thread = threading.Thread(target=self._run, name="analysis")
        self._thread.start()
        until(self._up.is_set, "the analysis reads the log")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with closing(open_log(self._lab.log)) as log, closing(log.consumer([ACQUISITIONS], None)) as reader:
            while not self._stop.is_set():
                for record in reader.poll(timeout_s=0.05):
                    self._take(log, acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value)))
                if reader.assigned():
                    self._up.set()

    def _take(self, log: Any, event: acquisition_pb2.AcquisitionEvent) -> None:
        started, name = event.started, event.finished.acquisition_id
        if event.HasField("started"):
            if any(analysis.name == STATISTICS for analysis in started.plan.analyses):
                self._plans[started.acquisition_id] = started.plan
        elif name in self._plans and event.finished.reason == acquisition_pb2.FINISH_REASON_COMPLETE:
            value = self._measure(self._plans[name], self._lab.microscope.state().optics)
            provenance = struct_pb2.Struct()
            provenance.update({"notes": {"values": {"mean": value, "normalised_variance": value}}})
            product = product_pb2.Product(
                product_id=f"{name}/statistics/sum",
                acquisition_id=name,
                analysis=STATISTICS,
                name="statistics/sum",
                kind="values",
                provenance=provenance,
            )
            log.append(PRODUCTS, product_pb2.ProductEvent(product=product).SerializeToString())
            log.flush()
            self.values[name] = value


def over(lab: Lab) -> bool:
    """Whether no policy has a checkpoint any more."""
    return not [path for path in (lab.home / "steering").iterdir() if path.name != PARTIAL]


Steered = list[tuple[control_pb2.Command, list[control_pb2.Outcome]]]


def steered(lab: Lab, policy: str, is_all: Callable[[Steered], bool]) -> Steered:
    """The commands of a policy, each with all that was told of it, once the audit has all of them."""
    until(lambda: is_all(_steered(lab, policy)), "the audit has all that the policy did")
    return _steered(lab, policy)


def _steered(lab: Lab, policy: str) -> Steered:
    events = lab.audit()[0]
    commands = {
        event.command.command_id: event.command
        for event in events
        if event.command.issuer == f"policy:{policy}"
    }
    outcomes = [event.outcome for event in events if event.HasField("outcome")]
    return [
        (command, [outcome for outcome in outcomes if outcome.command_id == name])
        for name, command in commands.items()
    ]
