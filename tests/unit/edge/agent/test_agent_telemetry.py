"""A command goes on with the trace of its cause, and its outcome is counted by its rule."""

from __future__ import annotations

from agent_kit import Rig
from telemetry_kit import heard

from nextem.v1.control_pb2 import COMMAND_STATE_DONE, COMMAND_STATE_REJECTED, Cause, Stage

PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def test_a_command_goes_on_with_its_cause_to_the_driver(rig: Rig) -> None:
    cause = Cause(edge_boot_id="boot-1", last_byte_ns=rig.clock.time_ns - 12_500_000, traceparent=PARENT)
    with heard() as told:
        command = rig.command(move_stage=Stage(x_nm=5.0), cause=cause)
        assert rig.until(rig.send(command)).state == COMMAND_STATE_DONE
        rig.close()
        spans, figures = told.spans(), told.figures()
    span, effect = spans["command"], spans["driver move_stage"]
    assert f"{span.context.trace_id:032x}" == "ab" * 16
    assert f"{span.parent.span_id:016x}" == "cd" * 8
    assert span.attributes["nextem.command.id"] == command.command_id
    assert effect.parent.span_id == span.context.span_id
    assert effect.attributes["nextem.loop.latency"] == 0.0125
    assert spans["outcome done"].parent.span_id == span.context.span_id
    (latency,) = figures["nextem.control.loop.latency"]
    assert (latency.count, latency.sum) == (1, 0.0125)
    assert latency.attributes == {"nextem.loop.by": "service"}


def test_a_refusal_is_an_error_of_the_trace_and_counted_by_its_rule(rig: Rig) -> None:
    with heard() as told:
        command = rig.command(move_stage=Stage(x_nm=1e12), cause=Cause(traceparent=PARENT))
        outcome = rig.until(rig.send(command))
        rig.close()
        assert outcome.state == COMMAND_STATE_REJECTED
        counted = told.value(
            "nextem.control.commands",
            nextem__command__rule=outcome.rule,
            nextem__command__state="rejected",
            nextem__command__action="move_stage",
        )
        spans = told.spans()
    assert counted == 1
    assert spans["outcome rejected"].status.description == outcome.detail
    assert "driver move_stage" not in spans


def test_the_trace_does_not_change_what_a_command_means(rig: Rig) -> None:
    command = rig.command(move_stage=Stage(x_nm=5.0), cause=Cause(traceparent=PARENT))
    first = rig.until(rig.send(command))
    command.cause.traceparent = PARENT.replace("cd", "ef")
    assert rig.until(rig.send(command)) == first
