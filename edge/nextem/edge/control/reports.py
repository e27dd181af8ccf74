"""What an edge tells of itself when it attaches and in each heartbeat, and the outcomes to tell again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from nextem.edge.control.at_driver import Parts
from nextem.edge.control.driver import DriverError
from nextem.edge.control.journal import JournalError
from nextem.edge.control.limits import Limits
from nextem.edge.control.link import LinkCalls
from nextem.edge.control.proposals import Proposals
from nextem.v1.control_pb2 import EdgeHello, Heartbeat, Lease, Outcome, SteeringMessage

logger = logging.getLogger(__name__)


class Reports:
    """Each method on any thread."""

    def __init__(self, parts: Parts, proposals: Proposals, leases: Callable[[], list[Lease]]) -> None:
        """``leases`` says who leads what, as others may see it."""
        self._parts, self._proposals, self._leases = parts, proposals, leases
        self._state_lost = False

    def calls(
        self,
        receive: Callable[[SteeringMessage], None],
        delivered: Callable[[list[str]], None],
        heard: Callable[[], None],
    ) -> LinkCalls:
        """What the link asks of an agent that takes messages by ``receive``."""
        return LinkCalls(self.hello, self.heartbeat, receive, self.undelivered, delivered, heard)

    def hello(self) -> EdgeHello:
        return EdgeHello(
            instrument=self._parts.instrument,
            edge_boot_id=self._parts.clock.boot_id,
            edge_now_ns=self._parts.clock.now_ns(),
            limits_digest=self._parts.limits.digest() if isinstance(self._parts.limits, Limits) else "",
            version=_version(),
        )

    def heartbeat(self) -> Heartbeat:
        heartbeat = Heartbeat(
            dose_used_e=self._parts.journal.dose_used_e,
            mode=self._parts.modes.current,
            leases=self._leases(),
        )
        if isinstance(self._parts.limits, Limits):
            heartbeat.dose_budget_e = self._parts.limits.dose_budget_e
        try:
            heartbeat.state.CopyFrom(self._parts.driver.get_state())
            self._state_lost = False
        except DriverError as error:
            if not self._state_lost:  # said once, not twice a second
                logger.warning("heartbeats without a state: %s", error)
            self._state_lost = True
        heartbeat.edge_now_ns = self._parts.clock.now_ns()
        return heartbeat

    def undelivered(self) -> list[Outcome]:
        try:
            return [*self._parts.journal.undelivered(), *self._proposals.outcomes()]
        except JournalError as error:
            logger.error("no outcomes can be sent again: %s", error)
            return []

    def mark_delivered(self, command_ids: list[str]) -> None:
        try:
            self._parts.journal.mark_delivered(command_ids)
        except JournalError as error:
            logger.error("outcomes will be sent again: %s", error)


def _version() -> str:
    try:
        return version("nextem")
    except PackageNotFoundError:
        return ""
