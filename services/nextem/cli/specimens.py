"""What the demo does with each specimen: the plan of its survey, its limits, and its score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.cli.experiment import Record
from nextem.cli.plans import survey_plan
from nextem.cli.scoring import Inclusion, Rectangle, found, found_at_random, phase_scores
from nextem.edge.control.limits import Limits, default_limits
from nextem.simulator.specimen import GroundTruth, Specimen, SpecimenError, open_specimen
from nextem.v1 import acquisition_pb2, plan_pb2

FINE_SIZE = 32
FINE_SCANS = 16
MIN_DWELL_S = 1e-5


@dataclass(frozen=True, slots=True)
class Study:
    """One specimen and how the demo looks at it. Doses are electrons a frame.

    ``phases``: areas to score, name -> labels of the ground truth's phase map; empty where inclusions are
    counted instead. ``steering``: parameters of the policy; small objects are found by the peak of the
    novelty, extended ones by its mean over the fine scan.
    """

    specimen: Specimen
    title: str
    detector_px: int
    disk_px: float
    survey_every: int
    survey_dose_e: float
    fine_dose_e: float
    phases: Mapping[str, Sequence[int]]
    steering: Mapping[str, float | str | bool]

    @property
    def label(self) -> str:
        return self.specimen.label

    @property
    def field_nm(self) -> tuple[float, float]:
        return self.specimen.field_nm

    @property
    def truth(self) -> GroundTruth:
        return self.specimen.truth()

    def plan(self, dwell_s: float) -> plan_pb2.Plan:
        """The survey, and what it may command."""
        step_nm = self.truth.pixel_nm
        return survey_plan(
            title=f"{self.title} ({self.label})",
            field_nm=self.field_nm,
            survey_step_nm=step_nm * self.survey_every,
            fine_step_nm=step_nm,
            fine_size=FINE_SIZE,
            fine_scans=FINE_SCANS,
            survey_dose_e=self.survey_dose_e,
            fine_dose_e=self.fine_dose_e,
            shape=(self.detector_px, self.detector_px),
            disk_px=self.disk_px,
            dwell_s=max(dwell_s, MIN_DWELL_S),
            steering=self.steering,
        )

    def limits(self, plan: plan_pb2.Plan) -> Limits:
        """The edge's limits: exactly the dose of the survey and of the scans that it may command."""
        survey_e = plan.scan.size_y * plan.scan.size_x * plan.dose_e_per_frame
        return dataclasses.replace(default_limits(), dose_budget_e=survey_e + plan.steering.dose_budget_e)

    def fine_areas(self, record: Record) -> list[Rectangle]:
        """Where fine scans were made, in order; those that did not end well count for nothing."""
        done = (acquisition_pb2.FINISH_REASON_COMPLETE, acquisition_pb2.FINISH_REASON_INCOMPLETE)
        return [
            Rectangle.of(scan.started.plan.scan)
            for scan in record.scans.values()
            if scan.started.plan.scan.purpose == "fine" and scan.finished and scan.finished.reason in done
        ]

    def score(self, record: Record) -> dict[str, Any]:
        """The figures of the summary that come from the ground truth."""
        truth, areas = self.truth, self.fine_areas(record)
        if self.phases:
            return {"phases": phase_scores(truth.phase_map, truth.pixel_nm, self.phases, areas)}
        planted = self._planted()
        return {
            "inclusions_planted": len(planted),
            "inclusions_found": sum(found(planted, areas)),
            "inclusions_found_at_random": found_at_random(planted, areas, self.field_nm),
        }

    def truth_picture(self) -> NDArray[np.int16] | list[Inclusion]:
        """The ground truth to draw: the phase map, or the inclusions."""
        return self.truth.phase_map if self.phases else self._planted()

    def _planted(self) -> list[Inclusion]:
        return [Inclusion(i.center_y_nm, i.center_x_nm, i.radius_nm) for i in self.truth.inclusions]


def study_of(name: str, seed: int) -> Study:
    """The demo's study of a specimen. Raises ``SpecimenError`` for one that does not exist, or has none."""
    if name == "particles":
        raise SpecimenError('the demo studies "polycrystal" or the folder of an alloy, not "particles"')
    specimen = open_specimen(name, seed)
    if name == "polycrystal":
        return Study(
            specimen=specimen,
            title="survey of a polycrystal with rare inclusions",
            detector_px=256,
            disk_px=6.0,
            survey_every=4,
            survey_dose_e=1000.0,
            fine_dose_e=1000.0,
            phases={},
            steering={"score": "peak", "compress": False},
        )
    return Study(
        specimen=specimen,
        title="survey of an alloy with rare precipitates",
        detector_px=128,
        disk_px=5.0,
        survey_every=8,
        survey_dose_e=600.0,
        fine_dose_e=600.0,
        phases={"precipitates": (1, 2, 3), "θ′ variants": (1, 2)},
        steering={"score": "region_mean"},
    )
