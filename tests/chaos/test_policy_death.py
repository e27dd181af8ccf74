"""The steering service is killed in the middle of a policy that goes on from what it measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_kit import NAME, Lab, Microscope, final, until
from measured_kit import Analysis, Measure, Steered, over, plan, steered

from nextem.client.client import FINAL_STATES
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2

pytestmark = pytest.mark.timeout(120)

FOCUS = {"images": 6, "search": 6, "tolerance_nm": 50.0, "defocus_nm": 1000.0, "astigmatism_nm": 100.0}
SPARSE = {"fraction": 0.5, "initial": 0.25, "batch": 1}
SCOPES = {
    "autofocus": {pb.LEASE_SCOPE_SCAN, pb.LEASE_SCOPE_OPTICS},
    "sparse": {pb.LEASE_SCOPE_SCAN},
}
SCANS = {"autofocus": 6, "sparse": 8}
PARAMETERS = {"autofocus": FOCUS, "sparse": SPARSE}
BEFORE = 2
"""So many scans have their value when the service dies; the next one runs."""


def sharpness(taken: plan_pb2.Plan, optics: pb.Optics) -> float:
    """The largest at a defocus of 600 nm."""
    return 1 / (1 + ((optics.defocus_nm - 600) / 300) ** 2)


def brightness(taken: plan_pb2.Plan, optics: pb.Optics) -> float:
    return taken.scan.origin_y_nm + 2 * taken.scan.origin_x_nm


MEASURES: dict[str, Measure] = {"autofocus": sharpness, "sparse": brightness}


@pytest.fixture
def lab(tmp_path: Path, microscope: Microscope) -> Iterator[Lab]:
    microscope.reset()
    lab = Lab(tmp_path / "lab", microscope, policies=True)
    yield lab
    lab.close()


@pytest.fixture
def analysis(lab: Lab, policy: str) -> Iterator[Analysis]:
    analysis = Analysis(lab, MEASURES[policy])
    yield analysis
    analysis.close()


def dies_in_the_middle(lab: Lab, analysis: Analysis, policy: str) -> pb.InstrumentState:
    """The scan that ran is whole, and its value is known, before the edge makes safe; returns how it was."""
    before = lab.microscope.state()
    assert final(lab.submit(lab.lease(), acquire=plan(policy, SCANS[policy], **PARAMETERS[policy]))).state
    lab.client.release_lease("anna")
    until(lambda: len(analysis.values) == BEFORE and lab.microscope.scans(), "a scan of the policy runs")
    lab.service.kill()
    until(lambda: len(analysis.values) == BEFORE + 1, "that scan has ended")
    until(lambda: lapsed(lab) == SCOPES[policy], "the safe state after each lease of the policy")
    assert lab.microscope.is_safe()
    return before


def lapsed(lab: Lab) -> set[pb.LeaseScope]:
    """What was led by who was lost, as far as the instrument was made safe since."""
    waiting, found = set[pb.LeaseScope](), set[pb.LeaseScope]()
    for event in lab.audit()[0]:
        if event.lease.kind == pb.LEASE_CHANGE_KIND_LAPSED:
            waiting |= set(event.lease.lease.scopes)
        elif event.outcome.action == "stop":
            found, waiting = found | waiting, set()
    return found


def comes_back(lab: Lab) -> None:
    lab.service.start("--port", lab.port)
    lab.client.heartbeat(NAME, timeout_s=60.0)
    until(lambda: over(lab), "the policy is over")


def scanned(steps: Steered) -> list[str]:
    """The acquisitions that were taken, as often as they were."""
    return [
        outcomes[-1].acquisition_id
        for command, outcomes in steps
        if command.HasField("acquire") and outcomes and outcomes[-1].state == pb.COMMAND_STATE_DONE
    ]


def ended(steps: Steered) -> bool:
    return all(outcomes and outcomes[-1].state in FINAL_STATES for _, outcomes in steps)


def done_once(outcomes: list[pb.Outcome]) -> bool:
    """Whether it came to the driver once, and ended well."""
    epochs = {outcome.command_epoch for outcome in outcomes if outcome.command_epoch}
    return len(epochs) == 1 and outcomes[-1].state == pb.COMMAND_STATE_DONE


@pytest.mark.parametrize("policy", sorted(SCANS))
def test_a_service_that_is_killed_goes_on_with_the_next_step(
    lab: Lab, analysis: Analysis, policy: str
) -> None:
    dies_in_the_middle(lab, analysis, policy)
    lab.microscope.reset()  # a person at the microscope turns the beam on
    comes_back(lab)
    steps = steered(lab, policy, lambda steps: len(scanned(steps)) == SCANS[policy] and ended(steps))
    assert all(done_once(outcomes) for _, outcomes in steps)
    assert sorted(scanned(steps)) == sorted(analysis.values)
    places = {
        (command.acquire.scan.origin_y_nm, command.acquire.scan.origin_x_nm)
        for command, _ in steps
        if command.HasField("acquire")
    }
    assert len(places) == (SCANS[policy] if policy == "sparse" else 1)
    if policy == "autofocus":
        left = sharpness(plan_pb2.Plan(), lab.microscope.state().optics)
        assert left == pytest.approx(max(analysis.values.values()))
    reasons = [e.command.stop.reason for e in lab.audit()[0] if e.command.stop.safe_state]
    assert reasons
    assert all("the lease of 'policy'" in reason for reason in reasons)


@pytest.mark.parametrize("policy", ["autofocus"])
def test_a_policy_that_comes_back_leaves_the_beam_off(lab: Lab, analysis: Analysis, policy: str) -> None:
    """Nobody has turned it on since the safe state: the policy puts the lenses back, and ends."""
    before = dies_in_the_middle(lab, analysis, policy)
    assert lab.microscope.state().optics.defocus_nm != before.optics.defocus_nm
    comes_back(lab)
    after = lab.microscope.state().optics
    assert after.beam_blanked
    assert after.defocus_nm == before.optics.defocus_nm
    assert len(analysis.values) == BEFORE + 1
    steps = steered(lab, policy, lambda steps: len(steps) > 2 * BEFORE + 2 and ended(steps))
    asked = [outcomes[-1] for _, outcomes in steps]
    assert {outcome.rule for outcome in asked if outcome.state == pb.COMMAND_STATE_REJECTED} == {"beam_guard"}
    lab.unblank(lab.lease())
