"""What should be, as a table: no cluster, no log, no microscope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.operator.desired import PRODUCTS_S, SETTLE_S, Decision, DryRun, Stop, Submit, desired
from nextem.operator.experiment import Experiment, Frames, Product, Status
from nextem.operator.observed import Instrument, MadeProduct, Observed, Seen
from nextem.v1 import control_pb2 as pb

NOW = "2026-01-01T00:00:00Z"
PLAN: dict[str, Any] = {
    "schemaVersion": 1,
    "scan": {"sizeY": 2, "sizeX": 5, "stepNm": 1, "dwellS": 0.001},
    "doseEPerFrame": 10,
    "analyses": [{"name": "mean_pattern"}],
}
WHOLE = MadeProduct(Product("a/mean_pattern", "mean_pattern", "mean_pattern", "pattern", "p"), 10)
STARTED, DONE, FAILED = pb.COMMAND_STATE_STARTED, pb.COMMAND_STATE_DONE, pb.COMMAND_STATE_FAILED
REJECTED, UNKNOWN = pb.COMMAND_STATE_REJECTED, pb.COMMAND_STATE_UNKNOWN
ALL = Frames(10, 10, 0)


def experiment(status: Status | None = None, **changes: Any) -> Experiment:
    made = Experiment(
        namespace="em",
        name="one",
        uid="6f1f3c2e-0c5b-4b57-9f0a-1f6f0b2b9f11",
        created_ms=1_700_000_000_000,
        generation=1,
        instrument="tem",
        plan=PLAN,
        waits=True,
        retries=2,
        stop=False,
        status=status or Status(),
    )
    return replace(made, **changes)


def see(seen: Seen | None = None, **changes: Any) -> Observed:
    return replace(Observed(now=NOW, seen=seen, quiet_s=SETTLE_S), **changes)


def done(**changes: Any) -> Seen:
    return replace(
        Seen(state=DONE, acquisition_id="a", finished=True, frames=ALL, products=(WHOLE,)), **changes
    )


SENT = Status(phase="Waiting", submissions=1)
STEERED = {**PLAN, "steering": {"policy": "look_closer", "fine": {"analyses": [{"name": "mean_pattern"}]}}}
CUT = Seen(state=FAILED, rule="incomplete", detail="5 of 10", acquisition_id="a", frames=Frames(10, 5, 5))
AT = Instrument
PASSED = Seen(state=pb.COMMAND_STATE_VALIDATED)


def refused_by(rule: str) -> Seen:
    return Seen(state=REJECTED, rule=rule, detail="2.0 > 1.0")


NO = refused_by("dose_budget")

TABLE: list[tuple[str, Experiment, Observed, tuple[str, str], tuple[object, ...]]] = [
    ("free", experiment(), see(), ("Waiting", "Submitting"), (Submit(1),)),
    ("no edge", experiment(), see(instrument=AT(attached=False)), ("Waiting", "NotAttached"), ()),
    ("scanning", experiment(), see(instrument=AT(scanning=True)), ("Waiting", "Busy"), (DryRun(),)),
    ("led", experiment(), see(instrument=AT(led_by="anna")), ("Waiting", "Busy"), (DryRun(),)),
    ("mode", experiment(), see(instrument=AT(takes_commands=False)), ("Waiting", "Busy"), (DryRun(),)),
    ("blanked", experiment(), see(instrument=AT(blanked=True)), ("Waiting", "Busy"), (DryRun(),)),
    ("queue", experiment(), see(ahead="em/zero"), ("Waiting", "Busy"), (DryRun(),)),
    ("lease refused", experiment(), see(refused="held by 'anna'"), ("Waiting", "Busy"), (DryRun(),)),
    ("dry run passed", experiment(), see(ahead="em/zero", dry_run=PASSED), ("Waiting", "Busy"), ()),
    *(
        (f"dry run refused by {rule}", experiment(), see(ahead="em/zero", dry_run=refused_by(rule)), end, ())
        for rule, end in [
            ("limit:scan.dose_e_per_frame", ("Failed", "Refused")),
            ("dose_budget", ("Failed", "Refused")),
            ("rule:bright", ("Failed", "Refused")),
            ("capability", ("Failed", "Refused")),
            ("limit:dose_map", ("Waiting", "Busy")),  # the stage may be elsewhere then
            ("limit:commands_per_minute", ("Waiting", "Busy")),
            ("beam_blanked", ("Waiting", "Busy")),
            ("column", ("Waiting", "Busy")),
            ("mode", ("Waiting", "Busy")),
        ]
    ),
    (
        "a dry run counts only while it waits",
        experiment(),
        see(dry_run=NO),
        ("Waiting", "Submitting"),
        (Submit(1),),
    ),
    ("refuses", experiment(waits=False), see(ahead="em/zero"), ("Failed", "Busy"), ()),
    (
        "refuses, no edge",
        experiment(waits=False),
        see(instrument=AT(attached=False)),
        ("Waiting", "NotAttached"),
        (),
    ),
    ("no plan", experiment(plan={"scan": 1}), see(), ("Failed", "InvalidPlan"), ()),
    ("stop before", experiment(stop=True), see(), ("Stopped", "Stopped"), ()),
    ("sending", experiment(SENT), see(sending=True), ("Waiting", "Submitting"), ()),
    (
        "asked to stop while sending",
        experiment(SENT, stop=True),
        see(sending=True),
        ("Waiting", "Submitting"),
        (),
    ),
    ("lost on its way", experiment(SENT), see(), ("Waiting", "Submitting"), (Submit(1),)),
    (
        "a person",
        experiment(SENT),
        see(Seen(state=pb.COMMAND_STATE_PROPOSED)),
        ("Waiting", "NeedsApproval"),
        (),
    ),
    (
        "limit",
        experiment(SENT),
        see(Seen(state=REJECTED, rule="limit:scan.frames")),
        ("Failed", "Refused"),
        (),
    ),
    (
        "no by a person",
        experiment(SENT),
        see(Seen(state=REJECTED, rule="refused")),
        ("Failed", "Refused"),
        (),
    ),
    (
        "passing",
        experiment(SENT),
        see(Seen(state=REJECTED, rule="lease")),
        ("Waiting", "Submitting"),
        (Submit(2),),
    ),
    ("running", experiment(SENT), see(Seen(state=STARTED, acquisition_id="a")), ("Running", "Scanning"), ()),
    (
        "stop",
        experiment(SENT, stop=True),
        see(Seen(state=STARTED, acquisition_id="a")),
        ("Waiting", "Stopping"),
        (Stop("experiment em/one was stopped"),),
    ),
    ("stopped", experiment(SENT, stop=True), see(replace(CUT, rule="stopped")), ("Stopped", "Stopped"), ()),
    (
        "by a person",
        experiment(SENT),
        see(replace(CUT, rule="stopped", stopped_by="anna")),
        ("Stopped", "Stopped"),
        (),
    ),
    ("cut", experiment(SENT), see(CUT), ("Waiting", "Submitting"), (Submit(2),)),
    (
        "cut by the edge",
        experiment(SENT),
        see(replace(CUT, rule="stopped", stopped_by="edge")),
        ("Waiting", "Submitting"),
        (Submit(2),),
    ),
    ("the edge died", experiment(SENT), see(Seen(state=UNKNOWN)), ("Waiting", "Submitting"), (Submit(2),)),
    (
        "cut, blanked",
        experiment(SENT),
        see(CUT, instrument=AT(blanked=True, safe_by="edge")),
        ("Waiting", "Submitting"),
        (Submit(2, unblank=True),),
    ),
    (
        "blanked by a person",
        experiment(SENT),
        see(CUT, instrument=AT(blanked=True, safe_by="anna")),
        ("Waiting", "Busy"),
        (DryRun(),),
    ),
    (
        "cut too often",
        experiment(replace(SENT, submissions=3, cut_short=2)),
        see(CUT),
        ("Failed", "CutShort"),
        (),
    ),
    (
        "cut, and now busy",
        experiment(SENT, waits=False),
        see(CUT, instrument=AT(scanning=True)),
        ("Waiting", "Busy"),
        (DryRun(),),
    ),
    ("analysing", experiment(SENT), see(done(products=())), ("Analysing", "Analysing"), ()),
    (
        "partial",
        experiment(SENT),
        see(done(products=(replace(WHOLE, covered=9),))),
        ("Analysing", "Analysing"),
        (),
    ),
    (
        "partial for long",
        experiment(SENT),
        see(done(products=(replace(WHOLE, covered=9),)), quiet_s=PRODUCTS_S + 1),
        ("Waiting", "Submitting"),
        (Submit(2),),
    ),
    (
        "frames lost",
        experiment(SENT),
        see(done(frames=Frames(10, 9, 1))),
        ("Waiting", "Submitting"),
        (Submit(2),),
    ),
    (
        "another of the same analysis",
        experiment(SENT),
        see(done(products=(replace(WHOLE, made_with=2),))),
        ("Analysing", "Analysing"),
        (),
    ),
    ("more may come", experiment(SENT), see(done(), quiet_s=0.1), ("Analysing", "Analysing"), ()),
    (
        "broken",
        experiment(SENT),
        see(done(products=(MadeProduct(replace(WHOLE.product, kind="failed"), 0),))),
        ("Failed", "AnalysisFailed"),
        (),
    ),
    ("complete", experiment(SENT), see(done()), ("Complete", "Complete"), ()),
    (
        "a policy leads",
        experiment(SENT, plan=STEERED),
        see(done(), policy_leads=True),
        ("Running", "Steering"),
        (),
    ),
    (
        "a fine scan",
        experiment(SENT, plan=STEERED),
        see(done(steered=(Seen(state=STARTED),))),
        ("Running", "Steering"),
        (),
    ),
    (
        "a fine scan's products",
        experiment(SENT, plan=STEERED),
        see(done(steered=(done(products=()),))),
        ("Analysing", "Analysing"),
        (),
    ),
    (
        "all steered",
        experiment(SENT, plan=STEERED),
        see(done(steered=(done(),))),
        ("Complete", "Complete"),
        (),
    ),
    ("over", experiment(Status(phase="Complete", reason="Complete")), see(CUT), ("Complete", "Complete"), ()),
]


@pytest.mark.parametrize(
    ("what", "asked", "observed", "wanted", "actions"), TABLE, ids=[row[0] for row in TABLE]
)
def test_table(
    what: str, asked: Experiment, observed: Observed, wanted: tuple[str, str], actions: tuple[object, ...]
) -> None:
    decision = desired(asked, observed)
    assert (decision.status.phase, decision.status.reason, decision.actions) == (*wanted, actions)
    assert decision == desired(asked, observed)


def step(asked: Experiment, observed: Observed) -> tuple[Experiment, Decision]:
    """As the object is after the status was written and read again."""
    decision = desired(asked, observed)
    return replace(asked, status=Status.of(decision.status.to_object(1))), decision


def test_a_scan_that_was_cut_short_counts_once_however_often_it_is_looked_at() -> None:
    busy = see(CUT, instrument=Instrument(scanning=True), dry_run=PASSED)
    asked, _ = step(experiment(SENT), busy)
    for _ in range(3):
        asked, decision = step(asked, replace(busy, seen=None))
        assert (decision.status.cut_short, decision.status.submissions, decision.actions) == (1, 2, ())
    asked, decision = step(asked, see(None))
    assert decision.actions == (Submit(2),)


def test_a_dry_run_that_is_refused_is_told_with_the_rule_and_the_value() -> None:
    status = desired(experiment(), see(ahead="em/zero", dry_run=NO)).status
    assert (status.message, status.submissions) == ("dose_budget: 2.0 > 1.0", 0)
    assert status.conditions["Accepted"].status == "False"


def test_what_was_read_again_is_what_was_written() -> None:
    asked, decision = step(experiment(SENT), see(done()))
    assert asked.status == decision.status


def test_command_ids_are_uuid7_of_the_object_s_age_and_never_the_same() -> None:
    one, other = experiment(), experiment(uid="00000000-0c5b-4b57-9f0a-1f6f0b2b9f12")
    ids = [each.command_id(number) for each in (one, other) for number in range(20)]
    assert len(set(ids)) == 40
    assert {int(each.replace("-", "")[:12], 16) for each in ids} == {one.created_ms}
    assert one.command_id(3) == experiment().command_id(3)


@given(
    state=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 40]),
    rule=st.sampled_from(["", "stopped", "lease", "limit:scan.frames", "incomplete"]),
    by=st.sampled_from(["", "edge", "anna"]),
    attached=st.booleans(),
    scanning=st.booleans(),
    stop=st.booleans(),
    sending=st.booleans(),
    submissions=st.integers(1, 4),
    cut_short=st.integers(0, 2),
)
def test_it_never_commands_two_at_once_and_never_beyond_its_retries(
    state: int, rule: str, by: str, attached: bool, scanning: bool, stop: bool, sending: bool,
    submissions: int, cut_short: int,
) -> None:  # fmt: skip
    status = Status(submissions=submissions, cut_short=cut_short)
    seen = Seen(state=state, rule=rule, stopped_by=by, acquisition_id="a")  # type: ignore[arg-type]
    instrument = Instrument(attached=attached, scanning=scanning)
    decision = desired(experiment(status, stop=stop), see(seen, instrument=instrument, sending=sending))
    given = [action for action in decision.actions if isinstance(action, Submit)]
    assert len(decision.actions) <= 1
    if given:
        assert attached
        assert not scanning
        assert not stop
        assert state in (0, REJECTED, FAILED, UNKNOWN, DONE)
        assert given[0].number in (max(submissions, 1), submissions + 1)
    assert decision.status.cut_short in (cut_short, cut_short + 1)
    assert decision.status.cut_short <= 2 or decision.status.phase == "Failed"
