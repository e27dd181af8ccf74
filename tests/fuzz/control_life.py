"""One random life of a control agent: its messages, its clock, its doors, and its death anywhere between."""

from __future__ import annotations

import queue
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

from control_letters import SECOND_NS, Clock, Letters
from control_operator import Operator
from control_world import LIMITS, Column, Crash, Held, Ledger, Told, Violation

from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.driver import DriverError
from nextem.edge.control.link import LinkCalls, LinkTimes
from nextem.edge.control.states import FINAL
from nextem.v1 import control_pb2 as pb
from nextem.v1.acquisition_pb2 import (
    FINISH_REASON_COMPLETE,
    FINISH_REASON_STOPPED,
    AcquisitionFinished,
)
from nextem.v1.plan_pb2 import Plan
from nextem.wire.ids import uuid7

STEPS = 40
ANSWERED = {*FINAL, pb.COMMAND_STATE_VALIDATED, pb.COMMAND_STATE_PROPOSED}
JOURNAL_DOORS = ("start", "amend", "reject", "record_stop", "finish", "lookup", "record_local_scopes")


class Acquisition:
    """Ends as soon as somebody waits for it."""

    def __init__(self, world: World) -> None:
        self._world, self._reason = world, FINISH_REASON_COMPLETE

    def wait(self, timeout_s: float) -> AcquisitionFinished | None:
        self._world.hook("wait")
        return AcquisitionFinished(reason=self._reason, frames_announced=20, frames_stored=20)

    def trigger(self) -> None:
        self._world.hook("trigger")

    def stop(self, reason: str) -> None:
        self._reason = FINISH_REASON_STOPPED


class World:
    """One sequence. It is also the agent's link, its detector side, and everybody who sends."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder = Random(seed), folder
        self.clock = Clock()
        self.ledger = Ledger(self.clock.now_ns)
        self.column = Column(self.ledger, self.hook, self._journalled, older=seed % 2 == 1)
        self.network: list[pb.SteeringMessage] = []
        self.history: list[pb.SteeringMessage] = []
        self.given: list[pb.Lease] = []  # over all boots
        self.letters = Letters(self.random, self.clock, self.column, self.ledger, self.given)
        self.operator = Operator(self)
        self.boots = self.crashes = self.number = 0
        self.fuse, self.surprise = -1, ""
        self.boot()

    # ---- the edge's life --------------------------------------------------------------------------

    def boot(self) -> None:
        self.boots += 1
        self.dead, self.fuse = False, -1
        self.clock.boot_id = f"boot-{self.boots}"
        self.clock.time_ns = self.random.randrange(SECOND_NS, 100 * SECOND_NS)
        self.ledger.reboot(self.clock.boot_id)
        self.column.told = None
        self.sent: queue.SimpleQueue[pb.EdgeMessage] = queue.SimpleQueue()
        self.inbox: deque[int] = deque()  # numbers of the commands that wait at the agent
        self.jobs: deque[Told] = deque()
        self.heard_ns = self.unled_ns = self.clock.time_ns
        self.asked: set[str] = set()
        self.answered: set[str] = set()
        options = ControlOptions("tem", "", "", self.folder / "journal.db", LIMITS)
        self.agent = ControlAgent(options, self.column, self, self.clock, None, make_link=self._link)  # type: ignore[arg-type]
        for name in JOURNAL_DOORS:
            setattr(self.agent._journal, name, self._door(name, getattr(self.agent._journal, name)))
        self.operator.after_boot()
        for command_id in self.ledger.executed:
            entry = self.agent._journal.lookup(command_id)
            if entry is None or entry.state not in FINAL:
                raise Violation(f"after a restart {command_id} is {entry and entry.state}")

    def crash(self) -> None:
        self.crashes += 1
        self.agent._journal._file.connection.close()  # what a dead process leaves behind
        self.boot()

    def _door(self, name: str, call: Any) -> Any:
        def through(*args: Any, **kwargs: Any) -> Any:
            self.hook(f"before {name}")
            result = call(*args, **kwargs)
            self.hook(f"after {name}")
            return result

        return through

    def hook(self, where: str) -> None:
        """A door of the agent. When the fuse has burnt down, something happens here."""
        if self.dead:
            raise Crash
        self.fuse -= 1
        if self.fuse:
            return
        match self.surprise:
            case "crash":
                self.dead = True
                raise Crash
            case "jump":
                self.clock.time_ns += self.random.choice((SECOND_NS, 10 * SECOND_NS, 100 * SECOND_NS))
            case "stop" if where != "stop":
                self.stop(safe_state=False)
            case "preempt" if not (self.operator.busy or self.agent._lease_desk._lock.locked()):
                self.operator.preempt()
            case "fail" if where in (
                "get_state",
                "move_stage",
                "set_optics",
                "blank_beam",
                "define_scan",
                "start",
            ):
                raise DriverError("the column failed")

    def _journalled(self, command_id: str) -> bool:
        query = "SELECT state FROM commands WHERE command_id = ?"
        row = self.agent._journal._file.connection.execute(query, (command_id,)).fetchone()
        return row is not None and row[0] == pb.COMMAND_STATE_STARTED

    # ---- the agent's surroundings -----------------------------------------------------------------

    def _link(self, address: str, calls: LinkCalls, times: LinkTimes) -> World:
        self.calls = calls
        return self

    def start(self) -> None: ...

    def close(self) -> None: ...

    def send(self, message: pb.EdgeMessage) -> bool:
        if self.dead:
            raise Crash
        if message.HasField("outcome") and message.outcome.state in ANSWERED:
            self.answered.add(message.outcome.command_id)
        elif message.HasField("lease") and not message.lease.refused:
            self._given(message.lease)
        self.hook("send")
        return True

    def expect(self, acquisition_id: str, plan: Plan, command_id: str) -> Acquisition:
        self.hook("expect")
        return Acquisition(self)

    def _given(self, lease: pb.Lease) -> None:
        now_ns = self.clock.now_ns()
        returned = lease.expires_edge_ns <= now_ns
        for scope in lease.scopes:
            held = self.ledger.leases.get(scope)
            good = held and not held.ended and not held.returned and now_ns < held.expires_ns
            if held and good and held.holder != lease.holder:
                raise Violation(f"scope {scope} of {held} is given to {lease.holder}")
            if returned and held:
                held.returned = True
                self.ledger.returned_epochs[scope].add(held.epoch)
            elif not returned:
                held = Held(lease.lease_id, lease.epoch, lease.holder, lease.expires_edge_ns)
                self.ledger.leases[scope] = held
        if not returned:
            newest = max((one.epoch for one in self.given), default=0)
            known = any(one.lease_id == lease.lease_id for one in self.given)
            if not known and lease.epoch <= newest:
                raise Violation(f"epoch {lease.epoch} after {newest}")
            self.given.append(lease)

    # ---- what people and networks do ----------------------------------------------------------------

    def new_command(self) -> None:
        self.network.append(pb.SteeringMessage(command=self.letters.command()))

    def new_lease_request(self) -> None:
        self.network.append(pb.SteeringMessage(lease_request=self.letters.lease_request()))

    def replay(self) -> None:
        if self.history:
            message = pb.SteeringMessage()
            message.CopyFrom(self.random.choice(self.history))
            if message.HasField("command") and self.random.random() < 0.4:
                self.letters.change(message.command)
            self.network.append(message)

    def deliver(self) -> None:
        if not self.network:
            return
        place = self.random.randrange(len(self.network)) if self.random.random() < 0.3 else 0
        message = self.network.pop(place)
        self.history.append(message)
        if self.random.random() < 0.1:
            self.network.append(message)
        self.heard()
        waiting = self.agent._commands._queue.qsize()
        self.calls.receive(message)
        if self.agent._commands._queue.qsize() > waiting:
            self.number += 1
            self.inbox.append(self.number)
            self.asked.add(message.command.command_id)

    def ordinary(self) -> None:
        """A command that comes in and is worked on, as on any day."""
        self.new_command()
        self.deliver()
        self.step_commands()

    def greet(self) -> None:
        """Somebody takes the whole instrument; a beam that was blanked comes back."""
        request = pb.LeaseRequest(request_id=uuid7(), holder="a", ttl_ms=self.random.choice((2000, 60_000)))
        self.network.insert(0, pb.SteeringMessage(lease_request=request))
        self.deliver()
        while self.agent._desk._queue.qsize():
            self.step_desk()
        self.column.state.optics.beam_blanked = False

    def heard(self) -> None:
        self.heard_ns = self.clock.time_ns
        self.calls.heard()

    def stop(self, *, safe_state: bool) -> None:
        command = pb.Command(command_id=uuid7(), stop=pb.Stop(safe_state=safe_state))
        before, handled = self.column.stops, self.column.told
        self.number += 1
        self.ledger.last_stop = self.number
        if self.random.random() < 0.1:
            self.column.refuse_stops = self.random.randrange(1, 3)
        self.calls.receive(pb.SteeringMessage(command=command))
        self.column.told, self.column.refuse_stops = handled, 0
        if self.column.stops == before:
            raise Violation("a stop that does not reach the driver")

    def wait(self) -> None:
        steps = (10**7, 10**8, SECOND_NS, SECOND_NS, SECOND_NS, 3 * SECOND_NS, 7 * SECOND_NS, 61 * SECOND_NS)
        self.clock.time_ns += self.random.choice(steps)
        if self.random.random() < 0.9:
            self.heard()

    # ---- the agent's threads, one step at a time ------------------------------------------------------

    def step_commands(self) -> None:
        if (received := _next(self.agent._commands)) is None:
            return
        self.column.told = told = Told(received.command, self.inbox.popleft())
        jobs = self.agent._runner._worker._queue
        waiting = jobs.qsize()
        self.agent._handler.handle(received)
        self.column.told = None
        if jobs.qsize() > waiting:
            self.jobs.append(told)

    def step_runner(self) -> None:
        if (job := _next(self.agent._runner._worker)) is not None:
            self.jobs.popleft()
            self.agent._runner._handle(job)

    def step_desk(self) -> None:
        if (task := _next(self.agent._desk)) is not None:
            task()

    def look(self) -> None:
        if not (self.agent._leases.any_remote() or self.agent._runner.pending):
            self.unled_ns = self.clock.time_ns
        silent = self.clock.time_ns - max(self.heard_ns, self.unled_ns) > 6 * SECOND_NS
        lost = [x for x in self.ledger.leases.values() if x.holder != "operator" and not x.ended]
        over = [x for x in lost if not x.returned and (silent or self.clock.time_ns >= x.expires_ns)]
        before = self.column.stops
        self.number += 1
        if over:
            self.ledger.last_stop = self.number
        self.agent._watch._look()
        if over and self.column.stops == before:
            raise Violation(f"nobody made the instrument safe: {over}")
        if self.column.stops > before:
            self.ledger.last_stop = self.number
        for lease in over:
            lease.ended = True

    def light_fuse(self) -> None:
        self.fuse = self.random.randrange(1, 12)
        self.surprise = self.random.choice(("crash", "crash", "jump", "stop", "preempt", "fail"))

    def run(self) -> None:
        acts = (
            [self.ordinary] * 14
            + [self.greet] * 2
            + [self.new_command] * 3
            + [self.new_lease_request]
            + [self.deliver] * 6
        )
        acts += [self.step_commands] * 6 + [self.step_desk] * 4 + [self.step_runner] * 3
        acts += [
            self.replay,
            self.wait,
            self.wait,
            self.look,
            self.light_fuse,
            self.light_fuse,
            self.operator.release,
        ]
        rare = [
            self.operator.mode,
            self.operator.preempt,
            lambda: self.stop(safe_state=False),
            lambda: self.stop(safe_state=True),
        ]
        self._guarded(self.greet)
        for _ in range(STEPS):
            act = self.random.choice(acts if self.random.random() < 0.97 else rare)
            self._guarded(act)
            if self.random.random() < 0.01:
                self.crash()
        self.fuse = -1
        while self._guarded(self._drain):
            pass
        if missing := self.asked - self.answered:
            raise Violation(f"no word about {missing}")

    def _guarded(self, act: Any) -> bool:
        """Whether ``act`` has to be done again, because the edge died in it."""
        try:
            act()
        except Crash:
            self.crash()
            return True
        return False

    def _drain(self) -> None:
        for step, worker in (
            (self.step_desk, self.agent._desk),
            (self.step_commands, self.agent._commands),
            (self.step_runner, self.agent._runner._worker),
        ):
            while worker._queue.qsize():  # type: ignore[attr-defined]
                step()


def _next(worker: Any) -> Any:
    try:
        return worker._queue.get_nowait()
    except queue.Empty:
        return None
