"""The plans of docs/plans are what the policies take."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from nextem.edge.control.limits import check_scan, default_limits
from nextem.steering.catalogue import POLICIES
from nextem.v1 import acquisition_pb2, plan_pb2

PLANS = sorted((Path(__file__).parents[3] / "docs" / "plans").glob("*.json"))


def test_there_is_one_for_each_policy_over_measured_values() -> None:
    assert {path.stem for path in PLANS} == set(POLICIES) - {"look_closer"}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_it_is_steered_on(path: Path) -> None:
    plan = json_format.Parse(path.read_text(), plan_pb2.Plan())
    assert plan.steering.policy == path.stem
    policy = POLICIES[path.stem]()
    policy.started(acquisition_pb2.AcquisitionStarted(acquisition_id="a", plan=plan, edge_boot_id="boot"))
    policy.ingest(acquisition_pb2.AcquisitionFinished(acquisition_id="a", reason=1))
    for suggestion in policy.suggest():
        assert check_scan(default_limits().scan, suggestion.action.scan, plan.dose_e_per_frame) is None
    assert not policy.done()
