"""What commands have used of the limits: commands of this minute, the way of each axis, dose by region."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields

from nextem.edge.control.dose_map import DoseMap
from nextem.edge.control.journal import Journal
from nextem.edge.control.limits import Limits, LimitsUnreadable, Spent
from nextem.v1.control_pb2 import Command, InstrumentState
from nextem.v1.plan_pb2 import Plan

_MINUTE_NS = 60_000_000_000


class Usage:
    """One thread counts; :meth:`over` may come from another. Of all this the journal keeps the dose."""

    def __init__(self, limits: Limits | LimitsUnreadable, journal: Journal) -> None:
        """Raises :class:`~nextem.edge.control.journal.JournalError`."""
        self._limits = limits
        self._recent_ns: deque[int] = deque()
        self._spent: dict[str, Spent] = {}
        self._exposures: dict[str, Plan] = {}  # by command: of those that are not over
        cell_nm = limits.dose_map.cell_nm if isinstance(limits, Limits) else 1.0
        self.dose_map = DoseMap(cell_nm, map(Plan.FromString, journal.exposures()))

    @property
    def spent(self) -> Mapping[str, Spent]:
        """By parameter, such as "stage.x_nm"."""
        return self._spent

    def came(self, received_ns: int) -> None:
        """A command came that counts for the minute."""
        self._recent_ns.append(received_ns)

    def recent(self, now_ns: int) -> int:
        """How many came in the minute before ``now_ns``."""
        while self._recent_ns and self._recent_ns[0] < now_ns - _MINUTE_NS:
            self._recent_ns.popleft()
        return len(self._recent_ns)

    def exposed(self, command_id: str, plan: Plan) -> None:
        """A scan was accepted; ``plan`` is :func:`~nextem.edge.control.dose_map.on_sample`."""
        self._exposures[command_id] = plan
        self.dose_map.add(plan)

    def over(self, command_id: str, *, ran: bool) -> None:
        """An accepted command has ended; the dose of one that surely never ran comes back."""
        plan = self._exposures.pop(command_id, None)
        if plan is not None and not ran:
            self.dose_map.remove(plan)

    def changed(self, command: Command, before: InstrumentState, now_ns: int) -> None:
        """A move or a change of optics was at the driver, done or not, coming from the state ``before``."""
        action = command.WhichOneof("action")
        if action not in ("move_stage", "set_optics") or not isinstance(self._limits, Limits):
            return
        group = "stage" if action == "move_stage" else "optics"
        to, at, limits = getattr(command, action), getattr(before, group), getattr(self._limits, group)
        for field in fields(limits):
            name, step = f"{group}.{field.name}", abs(getattr(to, field.name) - getattr(at, field.name))
            spent = self._spent.get(name, Spent(0.0, now_ns))
            left = spent.left(getattr(limits, field.name).max_rate, now_ns)
            self._spent[name] = Spent(left + step, now_ns)
