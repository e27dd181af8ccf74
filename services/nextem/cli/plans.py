"""Plans: plain documents. What the demo and the replay run is made here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
from google.protobuf import json_format, struct_pb2

from nextem.v1 import plan_pb2
from nextem.wire.ids import uuid7

SCHEMA_VERSION = 1


def read_plan(file: Path) -> plan_pb2.Plan:
    """Raises :class:`click.ClickException`, which names what in the file is no plan."""
    try:
        return json_format.Parse(file.read_bytes(), plan_pb2.Plan())
    except (json_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise click.ClickException(f"{file}: {error}") from error


def parameters(values: Mapping[str, float | str | bool]) -> struct_pb2.Struct:
    """A protobuf Struct of JSON values."""
    struct = struct_pb2.Struct()
    struct.update(dict(values))
    return struct


def virtual_detectors(shape: tuple[int, int], disk_px: float) -> list[plan_pb2.Mask]:
    """Bright field (the direct disk, radius ``disk_px``) and annular dark field, round the middle (y, x)."""
    middle = {"center_y_px": (shape[0] - 1) / 2, "center_x_px": (shape[1] - 1) / 2}
    return [
        plan_pb2.Mask(name="bright", inner_px=0, outer_px=disk_px, **middle),
        plan_pb2.Mask(name="dark", inner_px=disk_px * 1.5, outer_px=-1, **middle),
    ]


def reduction(shape: tuple[int, int], disk_px: float) -> plan_pb2.Reduction:
    """The demo's reduction: sum, two virtual detectors, centre of mass, the smaller representation."""
    return plan_pb2.Reduction(masks=virtual_detectors(shape, disk_px), center_of_mass=True)


def analyses(novelty: bool) -> list[plan_pb2.Analysis]:
    """Virtual images, centre of mass and mean pattern; with ``novelty`` also what is unusual."""
    names = ["virtual_images", "center_of_mass", "mean_pattern", *(["novelty"] if novelty else [])]
    return [plan_pb2.Analysis(name=name) for name in names]


def survey_plan(
    *,
    title: str,
    field_nm: tuple[float, float],
    survey_step_nm: float,
    fine_step_nm: float,
    fine_size: int,
    fine_scans: int,
    survey_dose_e: float,
    fine_dose_e: float,
    shape: tuple[int, int],
    disk_px: float,
    dwell_s: float,
    steering: Mapping[str, float | str | bool],
) -> plan_pb2.Plan:
    """A coarse survey of the whole field that may command ``fine_scans`` fine scans of the best regions.

    The survey's positions lie in the middles of its steps. Doses are electrons a frame.
    ``steering``: parameters of the policy "look_closer".
    """
    ratio = survey_step_nm / fine_step_nm
    origin_nm = (ratio - 1) / 2 * fine_step_nm
    fine = plan_pb2.Plan(
        schema_version=SCHEMA_VERSION,
        title=f"look closer: {title}",
        scan=plan_pb2.Scan(
            size_y=fine_size, size_x=fine_size, step_nm=fine_step_nm, dwell_s=dwell_s, purpose="fine"
        ),
        dose_e_per_frame=fine_dose_e,
        reduction=reduction(shape, disk_px),
        analyses=analyses(novelty=False),
    )
    return plan_pb2.Plan(
        plan_id=uuid7(),
        schema_version=SCHEMA_VERSION,
        title=title,
        scan=plan_pb2.Scan(
            size_y=round(field_nm[0] / survey_step_nm),
            size_x=round(field_nm[1] / survey_step_nm),
            origin_y_nm=origin_nm,
            origin_x_nm=origin_nm,
            step_nm=survey_step_nm,
            dwell_s=dwell_s,
            purpose="survey",
        ),
        dose_e_per_frame=survey_dose_e,
        reduction=reduction(shape, disk_px),
        analyses=analyses(novelty=True),
        steering=plan_pb2.SteeringPlan(
            policy="look_closer",
            parameters=parameters(steering),
            max_acquisitions=fine_scans,
            dose_budget_e=fine_scans * fine_size**2 * fine_dose_e,
            fine=fine,
        ),
    )


def replay_plan(
    title: str, scan: tuple[int, int], shape: tuple[int, int], like: plan_pb2.Plan | None = None
) -> plan_pb2.Plan:
    """A plan for a file of this scan (y, x) and detector (y, x); the disk is a tenth of the shorter side.

    All but the scan is as in ``like``, where there is one, with an id of its own.
    """
    if like is None:
        like = plan_pb2.Plan(
            reduction=reduction(shape, disk_px=min(shape) / 10),
            analyses=analyses(novelty=scan[0] * scan[1] >= 64),
        )
    plan = plan_pb2.Plan()
    plan.CopyFrom(like)
    plan.plan_id, plan.schema_version, plan.title = uuid7(), SCHEMA_VERSION, like.title or title
    plan.scan.size_y, plan.scan.size_x = scan
    plan.scan.step_nm, plan.scan.purpose = like.scan.step_nm or 1.0, like.scan.purpose or "replay"
    return plan
