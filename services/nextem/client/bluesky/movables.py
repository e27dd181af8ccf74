"""Axes of the stage and settings of the optics, each a movable of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from ophyd_async.core import (
    MovableLogic,
    SignalR,
    SignalRW,
    SoftSignalBackend,
    StandardMovable,
    StandardReadable,
    StandardReadableFormat,
    TimeoutCalculator,
)

from nextem.client.bluesky.errors import Stopped
from nextem.client.bluesky.session import Group, Session

V = TypeVar("V", float, bool)

_UNITS = {"nm": "nm", "kv": "kV", "mrad": "mrad", "pa": "pA"}
_POLL_S = 0.5  # a heartbeat's period: nothing newer can be seen


class _Backend(SoftSignalBackend[V]):
    """A soft signal whose documents say where its value is from."""

    address = ""

    def source(self, name: str, read: bool) -> str:
        return self.address


@dataclass
class _Logic(MovableLogic[V]):
    """A move is one command, done when the driver has done it, or when the engine has stopped it."""

    session: Session

    async def move(self, new_position: V, timeout: TimeoutCalculator) -> None:
        with suppress(Stopped):  # a pause: the engine sets the axis again when it goes on
            await self.setpoint.set(new_position, timeout=timeout())

    async def stop(self) -> None:
        await self.session.stop_soon("an axis was stopped")


class Axis(StandardReadable, StandardMovable[V]):
    """One number of the stage or the optics.

    ``set`` raises as :meth:`Session.run`: a refusal names the rule and the value. Its timeout gives up
    waiting and takes nothing back. ``stop`` stops the instrument if a command is under way. ``read`` gives
    what the instrument says of itself.
    """

    def __init__(self, session: Session, lock: asyncio.Lock, group: Group, field: str, kind: type[V]) -> None:
        self._session = session
        units = _UNITS.get(field.rpartition("_")[2])

        async def put(value: V | None) -> None:
            async with lock:  # every command sets all fields of the group
                await asyncio.to_thread(session.change, group, field, kind(value or 0))

        async def get() -> V:
            state = await asyncio.to_thread(session.state)
            return kind(getattr(getattr(state, group), field))

        put_to: _Backend[V] = _Backend(kind, units=units, setter=put)
        get_from: _Backend[V] = _Backend(kind, units=units, getter=get, poll_period=_POLL_S)
        put_to.address = get_from.address = f"nextem://{session.instrument}/{group}.{field}"
        self.setpoint: SignalRW[V] = SignalRW(put_to, timeout=None)
        with self.add_children_as_readables(StandardReadableFormat.HINTED_UNCACHED_SIGNAL):
            self.readback: SignalR[V] = SignalR(get_from, timeout=None)
        super().__init__()

    @cached_property
    def movable_logic(self) -> MovableLogic[V]:
        return _Logic(self.setpoint, self.readback, self._session)


class Stage(StandardReadable):
    """The sample's stage, three axes in nm. Moves of one plan step are carried out one after the other."""

    def __init__(self, session: Session) -> None:
        lock = asyncio.Lock()
        with self.add_children_as_readables():
            self.y_nm = Axis(session, lock, "stage", "y_nm", float)
            self.x_nm = Axis(session, lock, "stage", "x_nm", float)
            self.z_nm = Axis(session, lock, "stage", "z_nm", float)
        super().__init__()


class Optics(StandardReadable):
    """The optics, as ``nextem.v1.Optics`` names them; units stand in the names."""

    def __init__(self, session: Session) -> None:
        lock = asyncio.Lock()

        def axis(field: str) -> Axis[float]:
            return Axis(session, lock, "optics", field, float)

        with self.add_children_as_readables():
            self.energy_kv = axis("energy_kv")
            self.defocus_nm = axis("defocus_nm")
            self.convergence_mrad = axis("convergence_mrad")
            self.probe_current_pa = axis("probe_current_pa")
            self.astigmatism_a_nm = axis("astigmatism_a_nm")
            self.astigmatism_b_nm = axis("astigmatism_b_nm")
            self.coma_a_nm = axis("coma_a_nm")
            self.coma_b_nm = axis("coma_b_nm")
            self.beam_blanked = Axis(session, lock, "optics", "beam_blanked", bool)
        super().__init__()
