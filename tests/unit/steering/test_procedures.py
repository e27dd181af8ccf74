"""Policies over measured values as a plan names them, driven with made-up outcomes and products."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from google.protobuf import struct_pb2

from nextem.steering.catalogue import POLICIES
from nextem.steering.policies.autofocus import tolerance_nm
from nextem.steering.policy import Answer, Following, PolicyError, Suggestion
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2

ACQUISITION = "01890a5d-ac96-774b-bcce-b302099a8057"
DONE, REJECTED = control_pb2.COMMAND_STATE_DONE, control_pb2.COMMAND_STATE_REJECTED
OPTICS = control_pb2.Optics(energy_kv=200, convergence_mrad=1, defocus_nm=500, probe_current_pa=7)
SCAN, OPTIC, STAGE = (
    control_pb2.LEASE_SCOPE_SCAN,
    control_pb2.LEASE_SCOPE_OPTICS,
    control_pb2.LEASE_SCOPE_STAGE,
)
ANALYSES = ("image_statistics", "shift", "virtual_images")
TOLERANCE = tolerance_nm(200, 1)

Measure = Callable[[Suggestion, control_pb2.InstrumentState], Mapping[str, float]]


def started(
    policy: str,
    scans: int = 30,
    fine: int = 4,
    size: int = 8,
    analyses: tuple[str, ...] = ANALYSES,
    **given: Any,
) -> acquisition_pb2.AcquisitionStarted:
    """A first scan of ``size``² positions, 8 nm apart; scans of ``fine``² positions, 2 nm apart."""
    parameters = struct_pb2.Struct()
    parameters.update(given)
    template = plan_pb2.Plan(
        scan=plan_pb2.Scan(size_y=fine, size_x=fine, step_nm=2, origin_y_nm=20, origin_x_nm=30),
        dose_e_per_frame=10,
        analyses=[plan_pb2.Analysis(name=name) for name in analyses],
        steering=plan_pb2.SteeringPlan(policy=policy),
    )
    plan = plan_pb2.Plan(
        scan=plan_pb2.Scan(size_y=size, size_x=size, step_nm=8, origin_y_nm=100, origin_x_nm=200),
        steering=plan_pb2.SteeringPlan(
            policy=policy,
            parameters=parameters,
            max_acquisitions=scans,
            dose_budget_e=scans * fine * fine * 10,
            fine=template,
        ),
    )
    return acquisition_pb2.AcquisitionStarted(
        acquisition_id=ACQUISITION, instrument="scope", plan=plan, edge_boot_id="boot"
    )


@dataclass
class Instrument:
    """Does what is suggested, at once, a second for each scan, and says so; ``refuse`` says which not."""

    measure: Measure
    refuse: Callable[[Suggestion], bool] = lambda suggestion: False
    dark_by: str = ""  # the rule by which a beam that somebody has blanked is not turned on, nor used
    state: control_pb2.InstrumentState = field(
        default_factory=lambda: control_pb2.InstrumentState(
            optics=OPTICS, stage=control_pb2.Stage(y_nm=1000, x_nm=2000, z_nm=5)
        )
    )
    now_ns: int = 10**9
    made: list[Suggestion] = field(default_factory=list)

    def do(self, suggestion: Suggestion) -> list[Answer]:
        self.made.append(suggestion)
        outcome = control_pb2.Outcome(command_id=str(suggestion.number), state=DONE)
        outcome.state_before.CopyFrom(self.state)
        on = not (isinstance(suggestion.action, control_pb2.Optics) and suggestion.action.beam_blanked)
        if self.refuse(suggestion) or (self.dark_by and on):
            outcome.state, outcome.rule = REJECTED, self.dark_by or "limit:optics.defocus_nm"
            return [Answer(suggestion.number, outcome)]
        answers = [Answer(suggestion.number, outcome)]
        if isinstance(suggestion.action, plan_pb2.Plan):
            self.now_ns = max(self.now_ns, suggestion.not_before_ns)
            outcome.accounting.first_byte_ns, self.now_ns = self.now_ns, self.now_ns + 10**9
            outcome.accounting.last_byte_ns = self.now_ns
            outcome.acquisition_id = f"scan-{suggestion.number}"
            answers.insert(0, Answer(suggestion.number, self._product(suggestion)))  # may come before
        elif isinstance(suggestion.action, control_pb2.Optics):
            self.state.optics.CopyFrom(suggestion.action)
        else:
            self.state.stage.CopyFrom(suggestion.action)
        return answers

    def _product(self, suggestion: Suggestion) -> product_pb2.Product:
        provenance = struct_pb2.Struct()
        provenance.update({"notes": {"values": dict(self.measure(suggestion, self.state))}})
        shifts = isinstance(suggestion.action, plan_pb2.Plan) and suggestion.reason.startswith("scan ")
        name = "shift" if shifts else "statistics/bright"
        return product_pb2.Product(
            product_id=f"scan-{suggestion.number}/{name}", name=name, kind="values", provenance=provenance
        )


def begun(event: acquisition_pb2.AcquisitionStarted, reason: int = 1) -> Any:
    policy = POLICIES[event.plan.steering.policy]()
    policy.started(event)
    assert policy.suggest() == []  # not before the first scan is over
    policy.ingest(
        acquisition_pb2.AcquisitionFinished(acquisition_id=ACQUISITION, reason=reason, last_byte_ns=7)
    )
    return policy


def run(policy: Any, instrument: Instrument, most: int = 1000) -> list[Suggestion]:
    """Until it is over, or ``most`` suggestions were made."""
    queue = policy.suggest()
    while queue and most > 0:
        most -= 1
        for answer in instrument.do(queue.pop(0)):
            policy.answered(answer)
            queue += policy.suggest()
    return instrument.made


def sharpness(suggestion: Suggestion, state: control_pb2.InstrumentState) -> Mapping[str, float]:
    """The largest at a defocus of -3500 nm and an astigmatism of (900, -400) nm."""
    optics = state.optics
    c1, a1 = optics.defocus_nm + 3500, np.hypot(optics.astigmatism_a_nm - 900, optics.astigmatism_b_nm + 400)
    foci = ((c1 + a1) / (4 * TOLERANCE), (c1 - a1) / (4 * TOLERANCE))
    return {"normalised_variance": 1 / np.sqrt((1 + foci[0] ** 2) * (1 + foci[1] ** 2))}


def shifted(suggestion: Suggestion, state: control_pb2.InstrumentState) -> Mapping[str, float]:
    """A sample that moves by (3, -2) nm with each scan, seen from where the scan was taken."""
    assert isinstance(suggestion.action, plan_pb2.Plan)
    scan, taken = suggestion.action.scan, int(suggestion.reason.split(",")[0].split()[1]) - 1
    corrected = (
        scan.origin_y_nm - 20 + state.stage.y_nm - 1000,
        scan.origin_x_nm - 30 + state.stage.x_nm - 2000,
    )
    return {"y_px": (3 * taken - corrected[0]) / 2, "x_px": (-2 * taken - corrected[1]) / 2, "peak": 0.9}


def bright_spot(suggestion: Suggestion, state: control_pb2.InstrumentState) -> Mapping[str, float]:
    assert isinstance(suggestion.action, plan_pb2.Plan)
    scan = suggestion.action.scan
    return {"mean": float(np.exp(-((scan.origin_y_nm - 140) ** 2 + (scan.origin_x_nm - 220) ** 2) / 400))}


CASES: dict[str, tuple[Measure, dict[str, Any], frozenset[int]]] = {
    "autofocus": (
        sharpness,
        {"defocus_nm": 8000.0, "astigmatism_nm": 2000.0, "images": 20},
        frozenset({SCAN, OPTIC}),
    ),
    "drift": (shifted, {"period_s": 2.0, "beam_range_nm": 12.0}, frozenset({SCAN, STAGE})),
    "active_learning": (bright_spot, {"batch": 3, "initial": 6}, frozenset({SCAN})),
    "sparse": (bright_spot, {"fraction": 0.4, "initial": 0.15, "batch": 3}, frozenset({SCAN})),
}


def case(name: str, **more: Any) -> tuple[acquisition_pb2.AcquisitionStarted, Instrument]:
    measure, given, _ = CASES[name]
    return started(name, **{**given, **more}), Instrument(measure)


@pytest.mark.parametrize("name", CASES)
def test_it_takes_only_what_it_uses_and_stays_within_its_budget(name: str) -> None:
    event, instrument = case(name, scans=24)
    policy = begun(event)
    assert isinstance(policy, Following)
    made = run(policy, instrument)
    assert policy.done()
    assert policy.suggest() == []
    assert policy.scopes == CASES[name][2]
    plans = [s.action for s in made if isinstance(s.action, plan_pb2.Plan)]
    assert 10 < len(plans) <= 24
    assert len({plan.plan_id for plan in plans}) == len(plans)
    assert {plan.scan.purpose for plan in plans} == {name}
    assert not any(plan.HasField("steering") for plan in plans)
    assert [s.number for s in made] == list(range(1, len(made) + 1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("most", [1, 6, 13])
def test_a_restored_policy_goes_on_with_the_same_suggestions(name: str, most: int) -> None:
    event, whole = case(name)
    run(begun(event), whole)
    _, instrument = case(name)
    policy = begun(event)
    run(policy, instrument, most)
    saved = json.loads(json.dumps(policy.checkpoint()))
    again = POLICIES[name]()
    again.started(event)
    again.restore(saved)
    again.ingest(acquisition_pb2.AcquisitionFinished(acquisition_id=ACQUISITION, reason=1))  # read again
    run(again, instrument)
    assert again.done()
    assert [(s.number, s.action) for s in whole.made] == [(s.number, s.action) for s in instrument.made]


@pytest.mark.parametrize("name", ["active_learning", "sparse"])
@pytest.mark.parametrize("seed", range(5))
def test_what_it_suggests_does_not_depend_on_how_answers_come(name: str, seed: int) -> None:
    """One by one as asked for, or several at once, in any order, and a restart while some are there."""
    event, prompt = case(name, batch=4)
    run(begun(event), prompt)
    _, instrument = case(name, batch=4)
    policy, rng, coming = begun(event), np.random.default_rng(seed), list[Answer]()
    queue = policy.suggest()
    while queue or coming:
        while queue:
            coming += instrument.do(queue.pop(0))
        rng.shuffle(coming)  # type: ignore[arg-type]
        for _ in range(rng.integers(1, len(coming) + 1)):
            policy.answered(coming.pop())
        if rng.random() < 0.2:
            saved = json.loads(json.dumps(policy.checkpoint()))
            policy = POLICIES[name]()
            policy.started(event)
            policy.restore(saved)
        found = policy.suggest()
        queue = [s for s in found if s.number > len(instrument.made)]  # others again, after a restart
    assert policy.done()
    assert [(s.number, s.action) for s in prompt.made] == [(s.number, s.action) for s in instrument.made]


@pytest.mark.parametrize("name", CASES)
def test_an_answer_that_comes_again_changes_nothing(name: str) -> None:
    event, instrument = case(name)
    policy = begun(event)
    (first, *_) = policy.suggest()
    answers = instrument.do(first)
    for answer in answers:
        policy.answered(answer)
    before = policy.checkpoint()
    for answer in answers:
        policy.answered(answer)
    assert policy.checkpoint() == before


@pytest.mark.parametrize("name", CASES)
def test_a_first_scan_that_was_stopped_is_left_alone(name: str) -> None:
    event, _ = case(name)
    policy = begun(event, acquisition_pb2.FINISH_REASON_STOPPED)
    assert policy.done()
    assert policy.suggest() == []


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("autofocus", {"defocs_nm": 3.0}, "unknown parameter 'defocs_nm', did you mean 'defocus_nm'"),
        ("autofocus", {"images": "many"}, "parameter 'images' must be of type int, not 'many'"),
        ("autofocus", {"tolerance_nm": -1.0}, "tolerance_nm must be >= 0, not -1.0"),
        ("autofocus", {"search": 4}, "search must lie in 6..images, not 4"),
        ("autofocus", {"analyses": ("shift",)}, r"must run the analyses \['image_statistics'\]"),
        ("drift", {"period_s": 0.0}, "period_s must be > 0, not 0.0"),
        ("drift", {"gate": 0.0}, "gate must be > 0, not 0.0"),
        ("drift", {"least_peak": 2.0}, "least_peak must lie in 0..1, not 2.0"),
        ("drift", {"analyses": ("shift",)}, r"must run the analyses \['virtual_images'\]"),
        ("active_learning", {"criterion": "luck"}, "criterion must be one of"),
        ("active_learning", {"batch": 0}, "batch must be >= 1, not 0"),
        ("active_learning", {"fine": 40}, "only 0 x 0 tiles of steering.fine fit the scan"),
        ("sparse", {"fraction": 0.0}, "0 < initial <= fraction <= 1 must hold"),
        ("sparse", {"fractions": 0.1}, "did you mean 'fraction'"),
        ("sparse", {"fine": 0}, "steering.fine must be a plan with positions"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(name: str, change: dict[str, Any], text: str) -> None:
    event, _ = case(name, **change)
    with pytest.raises(PolicyError, match=text):
        POLICIES[name]().started(event)


def test_autofocus_sets_the_sharpest_and_changes_nothing_else() -> None:
    event, instrument = case("autofocus", images=25)
    made = run(begun(event), instrument)
    assert isinstance(made[0].action, plan_pb2.Plan)  # at the present setting
    assert [type(s.action) for s in made[1:3]] == [control_pb2.Optics, plan_pb2.Plan]
    optics = instrument.state.optics
    assert abs(optics.defocus_nm + 3500) < TOLERANCE
    assert np.hypot(optics.astigmatism_a_nm - 900, optics.astigmatism_b_nm + 400) < TOLERANCE
    assert (optics.energy_kv, optics.convergence_mrad, optics.probe_current_pa) == (200, 1, 7)
    assert (made[2].cause.product_id, made[2].cause.last_byte_ns) == ("scan-1/statistics/bright", 2 * 10**9)


@pytest.mark.parametrize("at", [2, 5, 8])
def test_autofocus_puts_back_what_was_where_a_step_fails(at: int) -> None:
    event, instrument = case("autofocus")
    instrument.refuse = lambda suggestion: suggestion.number == at
    policy = begun(event)
    run(policy, instrument)
    assert policy.done()
    assert len(instrument.made) <= at + 1
    assert instrument.state.optics == OPTICS


@pytest.mark.parametrize("rule", ["beam_blanked", "beam_guard"])
@pytest.mark.parametrize("at", [4, 5])
def test_autofocus_puts_the_lenses_back_and_leaves_the_beam_off_that_somebody_blanked(
    rule: str, at: int
) -> None:
    event, instrument = case("autofocus")
    policy = begun(event)
    run(policy, instrument, at)
    instrument.dark_by, instrument.state.optics.beam_blanked = rule, True
    restored = POLICIES["autofocus"]()
    restored.started(event)
    restored.restore(json.loads(json.dumps(policy.checkpoint())))
    run(restored, instrument, 10)
    assert restored.done()
    dark = control_pb2.Optics()
    dark.CopyFrom(OPTICS)
    dark.beam_blanked = True
    assert instrument.state.optics == dark


def test_drift_is_followed_by_the_beam_and_then_by_the_stage() -> None:
    event, instrument = case("drift")
    made = run(begun(event), instrument)
    plans = [s.action for s in made if isinstance(s.action, plan_pb2.Plan)]
    references = [dict(a.parameters).get("reference") for p in plans for a in p.analyses if a.name == "shift"]
    assert references == ["", *["scan-1/virtual/bright"] * 29]
    moves = [s.action for s in made if isinstance(s.action, control_pb2.Stage)]
    assert moves
    assert all(move.z_nm == 5 for move in moves)
    assert all(abs(plan.scan.origin_y_nm - 20) <= 12 for plan in plans)
    left = [shifted(s, instrument.state) for s in made[-1:] if isinstance(s.action, plan_pb2.Plan)]
    assert all(abs(one["y_px"]) < 0.1 and abs(one["x_px"]) < 0.1 for one in left)
    scans = [s for s in made if isinstance(s.action, plan_pb2.Plan)]
    assert [s.not_before_ns for s in scans[:4]] == [0, *(10**9 * n for n in (3, 5, 7))]


def test_three_scans_without_a_shift_end_it() -> None:
    event, instrument = case("drift")
    instrument.measure = lambda s, state: {**shifted(s, state), "peak": 0.9 if s.number < 5 else 0.01}
    policy = begun(event)
    assert len(run(policy, instrument)) == 7
    assert policy.done()


def test_active_learning_gathers_where_the_value_is_high() -> None:
    event, instrument = case("active_learning", scans=24)
    plans = [s.action for s in run(begun(event), instrument) if isinstance(s.action, plan_pb2.Plan)]
    origins = [(plan.scan.origin_y_nm, plan.scan.origin_x_nm) for plan in plans]
    assert len(set(origins)) == 24
    assert all((y - 100) % 8 == (x - 200) % 8 == 0 and 100 <= y < 164 and 200 <= x < 264 for y, x in origins)
    near = [np.hypot(y - 140, x - 220) < 16 for y, x in origins]
    assert np.mean(near[12:]) > 2 * 12 / 64  # twice their share of the tiles


@pytest.mark.parametrize("name", ["active_learning", "sparse"])
def test_what_the_edge_refuses_is_left_out_and_not_asked_for_again(name: str) -> None:
    event, instrument = case(name)
    instrument.refuse = lambda suggestion: suggestion.number in (4, 9, 10)
    made = run(begun(event), instrument)
    assert len(made) > 15
    assert len({(s.action.scan.origin_y_nm, s.action.scan.origin_x_nm) for s in made}) == len(made)


@pytest.mark.parametrize("name", ["active_learning", "sparse"])
def test_three_refusals_in_a_row_end_it(name: str) -> None:
    event, instrument = case(name, batch=1)
    instrument.refuse = lambda suggestion: suggestion.number >= 8
    policy = begun(event)
    assert len(run(policy, instrument)) == 10
    assert policy.done()


def test_a_checkpoint_of_another_version_is_refused() -> None:
    policy = begun(case("sparse")[0])
    with pytest.raises(PolicyError, match="no checkpoint of version 1: 9"):
        policy.restore({"version": 9})


def test_an_analysis_that_failed_is_a_failure() -> None:
    event, instrument = case("autofocus")
    policy = begun(event)
    (first,) = policy.suggest()
    product, outcome = instrument.do(first)
    provenance = struct_pb2.Struct()
    provenance.update({"notes": {"error": "no such column"}})
    failed = product_pb2.Product(name="image_statistics/failed", kind="failed", provenance=provenance)
    policy.answered(outcome)
    policy.answered(Answer(1, failed))
    assert policy.suggest() == []
    assert policy.done()
    assert isinstance(product.item, product_pb2.Product)
