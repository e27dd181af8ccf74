"""What the audit tells in words, and what a replay finds."""

from __future__ import annotations

from typing import Any

import pytest

from nextem.cli.audit_replay import Difference, NothingToReplay, left_out, replay, steps_of
from nextem.cli.audit_story import NotRecorded, Stories
from nextem.edge.control.driver import DriverError, DriverRefused
from nextem.v1 import acquisition_pb2, frames_pb2, plan_pb2
from nextem.v1 import control_pb2 as pb

DONE, FAILED, STARTED = pb.COMMAND_STATE_DONE, pb.COMMAND_STATE_FAILED, pb.COMMAND_STATE_STARTED
PROPOSED, REJECTED = pb.COMMAND_STATE_PROPOSED, pb.COMMAND_STATE_REJECTED


def event(**fields: object) -> pb.SteeringEvent:
    made = pb.SteeringEvent(**fields)
    made.chain.chain_id, made.chain.unix_ns = "chain", 10**18
    return made


def state(x_nm: float) -> pb.InstrumentState:
    return pb.InstrumentState(stage=pb.Stage(x_nm=x_nm), optics=pb.Optics(energy_kv=200.0))


def moved(name: str, epoch: int, before: float, after: float, **fields: object) -> list[pb.SteeringEvent]:
    command = pb.Command(command_id=name, issuer="anna", move_stage=pb.Stage(x_nm=after), **fields)
    outcome = pb.Outcome(
        command_id=name,
        state=DONE,
        action="move_stage",
        command_epoch=epoch,
        state_before=state(before),
        state_after=state(after),
    )
    return [event(command=command), event(outcome=outcome)]


def scanned(
    name: str, epoch: int, acquisition_id: str, frames: int, rule: str = ""
) -> list[pb.SteeringEvent]:
    plan = plan_pb2.Plan(title="survey", scan=plan_pb2.Scan(size_y=4, size_x=5, step_nm=2.0))
    outcome = pb.Outcome(
        command_id=name,
        state=FAILED if rule else DONE,
        rule=rule,
        action="acquire",
        command_epoch=epoch,
        acquisition_id=acquisition_id,
        accounting=acquisition_pb2.AcquisitionFinished(frames_announced=frames, frames_stored=frames),
    )
    return [event(command=pb.Command(command_id=name, issuer="anna", acquire=plan)), event(outcome=outcome)]


class FakeDriver:
    """A stage and scans that end at once; ``runs`` is the scan that runs in their place."""

    def __init__(self, runs: str = "") -> None:
        self.state = pb.InstrumentState(command_epoch=40)
        self.runs = runs
        self.calls: list[str] = []
        self.error: DriverError | None = None

    def _call(self, name: str, epoch: int) -> pb.InstrumentState:
        assert epoch > self.state.command_epoch
        self.state.command_epoch = epoch
        self.calls.append(name)
        if self.error is not None and len(self.calls) > 2:
            raise self.error
        return self.get_state()

    def get_state(self) -> pb.InstrumentState:
        copy = pb.InstrumentState()
        copy.CopyFrom(self.state)
        return copy

    def move_stage(self, command_epoch: int, to: pb.Stage) -> pb.InstrumentState:
        self._call("move", command_epoch)
        self.state.stage.CopyFrom(to)
        return self.get_state()

    def set_optics(self, command_epoch: int, to: pb.Optics) -> pb.InstrumentState:
        self._call("optics", command_epoch)
        self.state.optics.CopyFrom(to)
        return self.get_state()

    def define_scan(
        self, command_epoch: int, scan_id: str, scan: plan_pb2.Scan, dose_e_per_frame: float
    ) -> pb.InstrumentState:
        return self._call(f"define {scan_id}", command_epoch)

    def start(self, command_epoch: int, scan_id: str) -> pb.InstrumentState:
        self.state.scan_id = self.runs or scan_id
        self.calls.append(f"start {scan_id}")
        return self.get_state()

    def stop(self, command_epoch: int, reason: str) -> pb.InstrumentState:
        self.calls.append("stop")
        return self.get_state()


def run(events: list[pb.SteeringEvent], driver: FakeDriver) -> list[str]:
    return [step.command_id for step in replay(steps_of(Stories(events)), driver)]


def test_the_story_goes_from_proposal_to_frames_and_to_what_made_them() -> None:
    cause = pb.Cause(acquisition_id="scan-a", reason="bright", product_id="scan-a/novelty")
    cause.frames.append(frames_pb2.FrameRange(first=7, count=3))
    lease = pb.Lease(lease_id="l", epoch=9, holder="policy")
    command, outcome = moved("move-1", 2, 0.0, 5.0, cause=cause, lease_id="l", lease_epoch=9)
    outcome.outcome.loop_latency_ms = 12.5
    proposed = event(outcome=pb.Outcome(command_id="move-1", state=PROPOSED, detail="x_nm 0 → 5"))
    verdict = pb.ProposalVerdict(command_id="move-1", approved=True, issuer="ben", issuer_role="operator")
    told = list(
        Stories(
            [
                event(mode=pb.ModeChange(mode=pb.MODE_APPROVE)),
                event(lease=pb.LeaseChange(lease=lease, purpose="policies steer")),
                *scanned("survey-1", 1, "scan-a", 20),
                command,
                proposed,
                event(verdict=verdict),
                outcome,
            ]
        ).tell("move")
    )
    text = "\n".join(told)
    assert [line for line in told if line.startswith("Command")][1].startswith("Command survey-1")
    for words in (
        "move the stage to y 0, x 5, z 0 nm",
        "anna, under lease epoch 9 of policy (policies steer)",
        "because   bright",
        "acquisition scan-a, frames 7 to 9",
        "product scan-a/novelty",
        "mode      approve",
        "to a person: x_nm 0 → 5",
        "ben (operator) said yes",
        "DONE, command epoch 2",
        "12.5 ms after the newest of those frames",
        "stage: x_nm 0 → 5",
        "scan 4 × 5 positions, 2 nm apart (survey)",
        "acquisition scan-a: 20 of 20 frames stored",
    ):
        assert words in text, text


def test_an_acquisition_leads_to_its_command_and_a_beginning_must_be_unique() -> None:
    stories = Stories([*scanned("survey-1", 1, "scan-a", 20), *scanned("survey-2", 2, "scan-b", 20)])
    assert stories.find("scan-b") == "survey-2"
    assert stories.find("survey-1") == "survey-1"
    for name, words in (("s", "2 commands or"), ("survey", "2 commands or"), ("x", "nothing on record")):
        with pytest.raises(NotRecorded, match=words):
            stories.find(name)


def test_a_command_that_was_refused_is_told_with_its_rule() -> None:
    command = pb.Command(command_id="c", issuer="anna", stop=pb.Stop(reason="enough"))
    refused = pb.Outcome(command_id="c", state=REJECTED, rule="limit:stage.x_nm", detail="5 > 4")
    text = "\n".join(Stories([event(command=command), event(outcome=refused)]).tell("c"))
    assert "REJECTED, limit:stage.x_nm: 5 > 4" in text
    assert "no reason was given" in text


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (
            {
                "on_event": pb.OnEvent(
                    acquisition_id="scan-a", keep_raw=frames_pb2.FrameRange(first=7, count=3)
                )
            },
            "keep raw frames 7 to 9 of acquisition scan-a",
        ),
        (
            {"on_event": pb.OnEvent(acquisition_id="scan-a", dwell_s=4e-3)},
            "slow the scan down to 0.004 s a frame of acquisition scan-a",
        ),
        ({"switch_rule": pb.ConsoleRule(name="bright")}, "switch edge rule 'bright' off"),
    ],
)
def test_what_the_edge_itself_did_is_told_and_not_replayed(act: dict[str, Any], words: str) -> None:
    done = [
        event(command=pb.Command(command_id="c", issuer="rule:keep", **act)),
        event(outcome=pb.Outcome(command_id="c", state=DONE)),
    ]
    assert words in "\n".join(Stories(done).tell("c"))
    assert len(left_out(Stories(done))) == 1
    assert run([*moved("m", 3, 3.0, 8.0), *done], FakeDriver()) == ["m"]


def test_a_replay_of_the_same_goes_through_in_the_order_of_the_epochs() -> None:
    undo = pb.Command(command_id="u", issuer="anna", undo=pb.Undo(command_id="m"))
    undone = moved("u", 5, 8.0, 3.0)[1]
    events = [*scanned("s", 4, "scan-a", 20), *moved("m", 3, 3.0, 8.0), event(command=undo), undone]
    driver = FakeDriver()
    assert run(events, driver) == ["m", "s", "u"]
    assert driver.calls == ["optics", "move", "move", "define scan-a", "start scan-a", "move"]
    assert driver.state.stage.x_nm == 3.0


def test_the_first_difference_ends_a_replay_and_names_the_command() -> None:
    events = [*moved("m", 3, 3.0, 8.0), *moved("n", 4, 9.0, 1.0)]
    with pytest.raises(
        Difference, match=r"command n \(epoch 4\): before it, stage.x_nm is 8.0 now and was 9"
    ):
        run(events, FakeDriver())
    wrong = moved("m", 3, 3.0, 8.0)
    wrong[1].outcome.state_after.stage.x_nm = 7.0
    with pytest.raises(Difference, match=r"after it, stage.x_nm is 8.0 now and was 7.0 then"):
        run(wrong, FakeDriver())
    with pytest.raises(Difference, match="scan 'by hand' ran last, not its own 'scan-a'"):
        run([*moved("m", 3, 3.0, 8.0), *scanned("s", 4, "scan-a", 20)], FakeDriver(runs="by hand"))


def test_what_was_refused_then_must_be_refused_now_and_the_other_way_round() -> None:
    refused = moved("m", 3, 3.0, 8.0)
    refused[1].outcome.state, refused[1].outcome.rule = FAILED, "driver_refused"
    with pytest.raises(Difference, match="done now, and refused then"):
        run(refused, FakeDriver())
    driver = FakeDriver()
    driver.error = DriverRefused("no")
    assert run(refused, driver) == ["m"]
    driver = FakeDriver()
    driver.error = DriverRefused("no")
    with pytest.raises(Difference, match="refused now, and not then: no"):
        run(moved("m", 3, 3.0, 8.0), driver)


def test_a_stopped_scan_is_stopped_again_and_what_never_reached_the_driver_is_left_out() -> None:
    late = pb.Outcome(command_id="late", state=REJECTED, rule="deadline")
    events = [
        *moved("m", 3, 3.0, 8.0),
        *scanned("s", 4, "scan-a", 20, "stopped"),
        event(command=pb.Command(command_id="late", move_stage=pb.Stage())),
        event(outcome=late),
    ]
    driver = FakeDriver()
    assert run(events, driver) == ["m", "s"]
    assert driver.calls[-2:] == ["start scan-a", "stop"]
    with pytest.raises(NothingToReplay):
        run(events[-2:], driver)


def test_a_blank_of_a_rule_and_its_undo_are_replayed() -> None:
    lit, dark = state(8.0), state(8.0)
    dark.optics.beam_blanked = True
    blank = pb.Command(command_id="b", issuer="rule:bright", set_optics=dark.optics)
    undo = pb.Command(command_id="u", issuer="anna", undo=pb.Undo(command_id="b"))
    blanked = pb.Outcome(command_id="b", state=DONE, action="blank_beam", command_epoch=4, state_after=dark)
    undone = pb.Outcome(
        command_id="u", state=DONE, action="set_optics", command_epoch=5, state_before=dark, state_after=lit
    )
    told = [event(command=blank), event(outcome=blanked), event(command=undo), event(outcome=undone)]
    driver = FakeDriver()
    assert run([*moved("m", 3, 3.0, 8.0), *told], driver) == ["m", "b", "u"]
    assert driver.calls[-2:] == ["optics", "optics"]
    assert driver.state.optics == lit.optics


def test_an_undo_of_what_is_not_on_record_cannot_be_replayed() -> None:
    undo = pb.Command(command_id="u", issuer="anna", undo=pb.Undo(command_id="gone"))
    with pytest.raises(NothingToReplay, match="what u undid, gone, is not on record"):
        run([event(command=undo), moved("u", 5, 8.0, 3.0)[1]], FakeDriver())
