"""The person at the microscope in a random life: takes over, gives back, changes the mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from control_world import Held, Violation

from nextem.edge.control.lease import ALL_SCOPES
from nextem.v1 import control_pb2 as pb

if TYPE_CHECKING:
    from control_life import World

MODES = (pb.MODE_OBSERVE, pb.MODE_ADVISE, pb.MODE_APPROVE) + (pb.MODE_AUTOMATIC,) * 9


class Operator:
    """Knows what is in its own hands; the edge may die before it has said so, and then either is right."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken: frozenset[pb.LeaseScope] = frozenset()
        self.perhaps: frozenset[pb.LeaseScope] | None = None  # in doubt: asked for, and not answered

    @property
    def busy(self) -> bool:
        """One thing at a time: the last is asked for, and not answered."""
        return self.perhaps is not None

    def preempt(self) -> None:
        random = self.world.random
        scopes = random.sample(sorted(ALL_SCOPES), random.randrange(1, 5))
        request = pb.ConsoleRequest(preempt=pb.ConsolePreempt(scopes=scopes))
        self._ask(request, self.taken | frozenset(scopes), scopes)

    def release(self) -> None:
        random = self.world.random
        some = random.sample(sorted(ALL_SCOPES), random.choice((0, 0, 2)))
        request = pb.ConsoleRequest(release=pb.ConsoleRelease(scopes=some))
        self._ask(request, self.taken - frozenset(some or ALL_SCOPES), ())

    def mode(self) -> None:
        agent = self.world.agent
        try:
            agent.console.answer(pb.ConsoleRequest(mode=self.world.random.choice(MODES)))
        finally:  # it is durable before it is told, and the edge may die in telling it
            self.world.ledger.mode = agent._modes.current

    def _ask(
        self, request: pb.ConsoleRequest, then: frozenset[pb.LeaseScope], new: Iterable[pb.LeaseScope]
    ) -> None:
        self.perhaps = then
        try:
            self.world.agent.console.answer(request)
        finally:  # as the edge has it, which may die in telling it
            self._see(new)
        if self._held() != then:
            raise Violation(f"the operator holds {self._held()}, not {then}")
        self.taken, self.perhaps = then, None

    def after_boot(self) -> None:
        """What the operator took before the edge died is the operator's still."""
        if self._held() not in (self.taken, self.perhaps):
            raise Violation(f"after a restart the operator holds {self._held()}, not {self.taken}")
        self.taken, self.perhaps = self._held(), None
        self._see(self.taken)

    def _held(self) -> frozenset[pb.LeaseScope]:
        newest = {scope: self.world.agent._leases.newest(scope) for scope in ALL_SCOPES}
        return frozenset(
            scope for scope, lease in newest.items() if lease and lease.local and not lease.ended
        )

    def _see(self, new: Iterable[pb.LeaseScope]) -> None:
        """Enters into the ledger what the agent says of ``new``, and what is given back."""
        ledger, held = self.world.ledger, self._held()
        for scope in held.intersection(new):
            lease = self.world.agent._leases.newest(scope)
            assert lease is not None
            ledger.leases[scope] = Held(lease.lease_id, lease.epoch, "operator", lease.expires_ns)
            self.world.given.append(pb.Lease(lease_id=lease.lease_id, epoch=lease.epoch))
        for scope, lease_held in ledger.leases.items():
            if lease_held.holder == "operator" and not lease_held.returned and scope not in held:
                lease_held.returned = True
                ledger.returned_epochs[scope].add(lease_held.epoch)
