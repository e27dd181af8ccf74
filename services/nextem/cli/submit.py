"""``nextem submit PLAN.json``: a person has a plan carried out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from nextem.cli.console import frames_bar
from nextem.cli.leading import leading
from nextem.cli.plans import read_plan
from nextem.cli.steer import STEERING, Person, person, steering_of
from nextem.cli.words import lines_of
from nextem.client import SteeringClient, SteeringError, acquire_command
from nextem.client.client import FINAL_STATES
from nextem.v1 import control_pb2, plan_pb2

_STARTED, _DONE = control_pb2.COMMAND_STATE_STARTED, control_pb2.COMMAND_STATE_DONE
_GOOD = frozenset({_STARTED, _DONE, control_pb2.COMMAND_STATE_VALIDATED})


@click.command()
@click.argument("file", metavar="PLAN.json", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--wait", is_flag=True, help="Until the scan has ended, with a bar of its frames.")
@click.option("--reason", default="", help="For the record.  [default: the plan's title]")
@person
def submit(file: Path, wait: bool, reason: str, who: Person) -> None:
    """Have a plan carried out: one scan, reduced, analysed and steered as the plan says.

    Without --wait it returns once the edge has accepted the plan, which it carries out when the instrument is
    free. The scan is led by you until then, or with --wait until the scan has ended; where the plan names a
    policy, the policy may have it as soon as the plan is accepted. Ctrl-C asks whether to stop.

    \b
    nextem submit plan.json --wait
    nextem submit plan.json --reason "the left edge once more"
    """
    plan = read_plan(file)
    with steering_of(who) as client:
        last = carry_out(client, who, plan, reason or plan.title, wait)
    if not is_well(last, wait):
        raise SystemExit(1)


def is_well(last: control_pb2.Outcome, wait: bool) -> bool:
    """Whether that is how a plan should end, or for whoever does not ``wait`` begin."""
    return last.state in (_GOOD - {_STARTED} if wait else _GOOD)


def carry_out(
    client: SteeringClient, who: Person, plan: plan_pb2.Plan, reason: str, wait: bool
) -> control_pb2.Outcome:
    scopes = [control_pb2.LEASE_SCOPE_SCAN]
    with ExitStack() as stack:
        led = stack.enter_context(ExitStack())
        lease = led.enter_context(leading(client, who.name, who.instrument, scopes, f"submit {plan.title}"))
        cause = control_pb2.Cause(reason=reason)
        command = acquire_command(plan, who.name, who.instrument, lease, cause=cause)
        followed = stack.enter_context(_Followed(client, command, who))
        try:
            followed.until(FINAL_STATES | {_STARTED})
            if wait and followed.last.state == _STARTED:
                if plan.steering.policy:
                    led.close()
                with frames_bar() as bar:
                    frames = bar.add_task("frames", total=plan.scan.size_y * plan.scan.size_x)
                    followed.until(FINAL_STATES, lambda sent: bar.update(frames, completed=sent))
        except KeyboardInterrupt:
            _interrupted(client, who, followed)
    return followed.last


def _interrupted(client: SteeringClient, who: Person, followed: _Followed) -> None:
    try:
        stop = click.confirm("\nStop the instrument? All that waits there ends too.", err=True)
    except click.Abort:  # a second Ctrl-C, or nobody is there to answer
        stop = False
    if stop:
        outcome = client.stop(who.name, "Ctrl-C at nextem submit", instrument=who.instrument)
        _tell(outcome, who)
        followed.until(FINAL_STATES)
    elif followed.last.state == _STARTED:
        click.echo("it goes on; nextem stop ends it")
    elif followed.last.state not in FINAL_STATES:
        click.echo("what is not accepted yet will be refused, as its lease is given back")


class _Followed:
    """What becomes of a command, and how many frames its scan has sent. A context manager."""

    def __init__(self, client: SteeringClient, command: control_pb2.Command, who: Person) -> None:
        self.last = control_pb2.Outcome(command_id=command.command_id)
        self._who = who
        self._inbox = queue.SimpleQueue[control_pb2.Outcome | control_pb2.Heartbeat | SteeringError]()
        self._events, self._outcomes = client.watch(who.instrument), client.submit(command)
        for read in (self._watch, self._listen):
            threading.Thread(target=read, name="submit", daemon=True).start()

    def __enter__(self) -> _Followed:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        self._outcomes.close()

    def until(self, states: frozenset[int], sent: Callable[[int], object] = lambda frames: None) -> None:
        """Tells each outcome until one is in ``states``; ``sent`` is told of frames. Raises SteeringError."""
        while self.last.state not in states:
            match self._inbox.get():
                case control_pb2.Heartbeat() as beat:
                    if self.last.acquisition_id and beat.state.scan_id == self.last.acquisition_id:
                        sent(beat.state.frames_sent)
                case control_pb2.Outcome() as outcome:
                    self.last = outcome
                    sent(outcome.accounting.frames_stored)
                    _tell(outcome, self._who)
                case SteeringError() as error:
                    raise error

    def _listen(self) -> None:
        try:
            for outcome in self._outcomes:
                self._inbox.put(outcome)
        except SteeringError as error:
            self._inbox.put(error)

    def _watch(self) -> None:
        """A watch that ends leaves the bar where it is; the outcome comes all the same."""
        try:
            for event in self._events:
                if event.HasField("heartbeat"):
                    self._inbox.put(event.heartbeat)
        except SteeringError as error:
            click.echo(f"the frames are not counted any more: {error}", err=True)


def _tell(outcome: control_pb2.Outcome, who: Person) -> None:
    where = "" if who.steering == STEERING else f" --steering {who.steering}"
    for line in lines_of(control_pb2.SteeringEvent(outcome=outcome), where):
        click.echo(line)
    if outcome.acquisition_id:
        made = outcome.accounting
        stored = f": {made.frames_stored} of {made.frames_announced} frames stored"
        click.echo(f"  acquisition {outcome.acquisition_id}{stored if made.frames_announced else ''}")
