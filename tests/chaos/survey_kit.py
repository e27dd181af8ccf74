"""A survey on which the policy "look_closer" steers, and what analysis would say of it."""

from __future__ import annotations

from contextlib import closing

import numpy as np
from chaos_kit import NAME, Lab, until

from nextem.cli.plans import survey_plan
from nextem.v1 import acquisition_pb2, frames_pb2, product_pb2
from nextem.wire.log import ACQUISITIONS, PRODUCTS, open_log

SIDE = 8
FINE = 16
SCANS = 2
SURVEY = survey_plan(
    title="survey", field_nm=(8.0 * SIDE, 8.0 * SIDE), survey_step_nm=8.0, fine_step_nm=0.5,
    fine_size=FINE, fine_scans=SCANS, survey_dose_e=100.0, fine_dose_e=100.0, shape=(128, 128), disk_px=4.0,
    dwell_s=0.001, steering={"final_on": "one_model"},
)  # fmt: skip


def events(lab: Lab) -> list[acquisition_pb2.AcquisitionEvent]:
    with closing(open_log(lab.log)) as log, closing(log.consumer([ACQUISITIONS], None)) as reader:
        until(reader.assigned, "the topic is read")
        found = []
        while records := reader.poll(timeout_s=0.5):
            found += [acquisition_pb2.AcquisitionEvent.FromString(bytes(r.value)) for r in records]
        return found


def analysed(lab: Lab, acquisition_id: str) -> None:
    """What analysis finds in the survey: two places that are unlike the rest."""
    values = np.zeros(SIDE * SIDE, "<f4")
    values[[9, 54]] = 50.0
    (boot_id,) = {e.started.edge_boot_id for e in events(lab) if e.started.acquisition_id == acquisition_id}
    update = product_pb2.LiveUpdate(
        acquisition_id=acquisition_id,
        analysis="novelty",
        revision=1,
        frames=[frames_pb2.FrameRange(first=0, count=values.size)],
        values=values.tobytes(),
        frames_covered=values.size,
        edge_boot_id=boot_id,
        last_byte_ns=lab.client.heartbeat(NAME).edge_now_ns,
    )
    with closing(open_log(lab.log)) as log:
        log.append(PRODUCTS, product_pb2.ProductEvent(update=update).SerializeToString())
        log.flush()
