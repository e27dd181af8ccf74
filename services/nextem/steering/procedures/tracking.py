"""Drift on a live instrument: the same small scan again and again, each where the sample will be by then.

The beam shift of the policy is the origin of its scans, which the scan unit adds to the stage's position;
where it would leave ``beam_range_nm`` the stage is moved, and then all other scans follow the sample too.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nextem.steering.policies.drift import NAME, Correction, DriftTracker, Options, Seen
from nextem.steering.policy import PolicyError, read_parameters
from nextem.steering.procedure import Procedure, Result, Step, Task
from nextem.v1 import acquisition_pb2, control_pb2

SCOPES = frozenset({control_pb2.LEASE_SCOPE_SCAN, control_pb2.LEASE_SCOPE_STAGE})
SHIFT, IMAGES = "shift", "virtual_images"
_SCAN, _STAGE = 0.0, 1.0  # kinds of steps, in front of their keys
MOST_FAILED = 3
"""So many scans in a row without a shift end it."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What ``plan.steering.parameters`` may set; see :class:`nextem.steering.policies.drift.Options`.

    image: the virtual detector whose picture is compared. period_s: from the start of one scan to the next,
    at least. least_peak: of the correlation, 0..1; a shift that is less sure is left out.
    """

    image: str = "bright"
    period_s: float = 1.0
    least_peak: float = 0.1
    beam_range_nm: float = 100.0
    noise_nm: float = 0.2
    walk_nm: float = 0.05
    rate_nm_s: float = 1.0
    settling_nm: float = 20.0
    gate: float = 5.0


class Tracking:
    """Implements :class:`nextem.steering.procedure.Procedure`.

    The first scan is the reference that all others are compared with, so that errors do not add up. It ends
    after as many scans as the budget allows.
    """

    def __init__(self, task: Task, tracker: DriftTracker) -> None:
        self._task, self._tracker = task, tracker
        self._now = Correction(0.0, 0.0, 0.0, 0.0, 0.0, True)
        self._stage = control_pb2.Stage()  # as it was at the first scan
        self._stage_set = (0.0, 0.0)  # how far off that it is now, (y, x) in nm
        self._reference = ""  # product id
        self._reference_ns = self._next_ns = 0
        self._taken = self._failed = 0

    def next(self, open_steps: int) -> list[Step]:
        if open_steps or self.done():
            return []
        wanted = (self._now.stage_y_nm, self._now.stage_x_nm)
        return [self._scan_step() if wanted == self._stage_set else self._stage_step(wanted)]

    def took(self, key: tuple[float, ...], result: Result) -> None:
        if key[0] == _STAGE:
            if result.failure:
                raise PolicyError(f"{NAME}: the stage did not follow: {result.failure}")
            self._stage_set = (key[1], key[2])
            return
        self._taken += 1
        if result.failure or result.value("peak") < self._task.parameters["least_peak"]:
            self._failed += 1
            if self._failed >= MOST_FAILED or not self._reference:
                raise PolicyError(f"{NAME}: {self._failed} scans in a row told no shift: {result.failure}")
            return
        self._failed = 0
        self._saw(key, result)

    def _saw(self, key: tuple[float, ...], result: Result) -> None:
        first_ns, last_ns = result.outcome.accounting.first_byte_ns, result.outcome.accounting.last_byte_ns
        middle_ns = (first_ns + last_ns) // 2
        if not self._reference:
            self._reference = f"{result.outcome.acquisition_id}/virtual/{self._task.parameters['image']}"
            self._reference_ns = middle_ns
            self._stage.CopyFrom(result.outcome.state_before.stage)
        self._next_ns = first_ns + round(self._task.parameters["period_s"] * 1e9)
        step_nm = self._task.fine.scan.step_nm
        y_nm, x_nm = (result.value(name) * step_nm for name in ("y_px", "x_px"))
        t_s = (middle_ns - self._reference_ns) / 1e9
        self._tracker.ingest(Seen(t_s, y_nm + key[1], x_nm + key[2]))
        (self._now,) = self._tracker.suggest()

    def done(self) -> bool:
        return self._taken >= self._task.scans

    # ---- steps ---------------------------------------------------------------------------------

    def _scan_step(self) -> Step:
        scan, now = self._task.fine.scan, self._now
        plan = self._task.fine_at(scan.origin_y_nm + now.beam_y_nm, scan.origin_x_nm + now.beam_x_nm)
        for analysis in plan.analyses:
            if analysis.name == SHIFT:
                given = {"image": self._task.parameters["image"], "reference": self._reference}
                analysis.parameters.update(given)
        at = (now.beam_y_nm + self._stage_set[0], now.beam_x_nm + self._stage_set[1])
        reason = f"scan {self._taken + 1}, the sample is expected at ({at[0]:.4g}, {at[1]:.4g}) nm by then"
        return Step(plan, (_SCAN, *at), reason, SHIFT, SHIFT, self._next_ns)

    def _stage_step(self, wanted: tuple[float, float]) -> Step:
        stage = control_pb2.Stage()
        stage.CopyFrom(self._stage)
        stage.y_nm += wanted[0]
        stage.x_nm += wanted[1]
        reason = f"the beam shift ends: the stage follows by ({wanted[0]:.4g}, {wanted[1]:.4g}) nm"
        return Step(stage, (_STAGE, *wanted), reason)

    # ---- checkpoint ----------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "tracker": self._tracker.checkpoint(),
            "now": list(asdict(self._now).values()),
            "stage": base64.b64encode(self._stage.SerializeToString()).decode(),
            "stage_set": list(self._stage_set),
            "reference": [self._reference, self._reference_ns, self._next_ns],
            "taken": [self._taken, self._failed],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._tracker.restore(saved["tracker"])
        self._now = Correction(*saved["now"])
        self._stage = control_pb2.Stage.FromString(base64.b64decode(saved["stage"]))
        y_nm, x_nm = saved["stage_set"]
        self._stage_set = (float(y_nm), float(x_nm))
        self._reference, self._reference_ns, self._next_ns = saved["reference"]
        self._taken, self._failed = saved["taken"]


def drift(event: acquisition_pb2.AcquisitionStarted) -> tuple[Procedure, int]:
    """Raises :class:`PolicyError`."""
    values: dict[str, Any] = read_parameters(event.plan.steering.parameters, asdict(Parameters()))
    if not 0 <= values["least_peak"] <= 1:
        raise PolicyError(f"{NAME}: least_peak must lie in 0..1, not {values['least_peak']!r}")
    if not values["period_s"] > 0:
        raise PolicyError(f"{NAME}: period_s must be > 0, not {values['period_s']!r}")
    task = Task.of(NAME, event.plan, values)
    task.needs(NAME, SHIFT, IMAGES)
    own = ("image", "period_s", "least_peak")
    options = Options(
        latency_s=values["period_s"], **{name: value for name, value in values.items() if name not in own}
    )
    return Tracking(task, DriftTracker(options)), task.scans
