"""Axes of the stage and settings of the optics, each a movable of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from bluesky.protocols import Reading
from event_model import DataKey
from ophyd_async.core import (
    CALCULATE_TIMEOUT,
    CalculatableTimeout,
    Callback,
    MovableLogic,
    SignalBackend,
    SignalR,
    SignalRW,
    SoftSignalBackend,
    StandardMovable,
    StandardReadable,
    StandardReadableFormat,
    TimeoutCalculator,
    WatchableAsyncStatus,
)

from nextem.client.bluesky.errors import Stopped
from nextem.client.bluesky.session import Group, Session

V = TypeVar("V", bound=float)  # or bool, which is one

_UNITS = {"nm": "nm", "kv": "kV", "mrad": "mrad", "pa": "pA"}
_POLL_S = 0.5  # a heartbeat's period: nothing newer can be seen


class _Backend(SignalBackend[V]):
    """A number of the instrument. No soft signal itself, so that mock mode puts one in its place."""

    def __init__(self, kind: type[V], source: str, soft: SoftSignalBackend[V]) -> None:
        self._source = source
        self._soft: SoftSignalBackend[V] = soft
        super().__init__(kind)

    def source(self, name: str, read: bool) -> str:
        return self._source

    async def connect(self, timeout: float) -> None:
        """The microscope has asked whether the instrument is there."""

    async def put(self, value: V | None) -> None:
        await self._soft.put(value)

    async def get_datakey(self, source: str) -> DataKey:
        return await self._soft.get_datakey(source)

    async def get_reading(self) -> Reading[V]:
        return await self._soft.get_reading()

    async def get_value(self) -> V:
        return await self._soft.get_value()

    async def get_setpoint(self) -> V:
        return await self._soft.get_setpoint()

    def set_callback(self, callback: Callback[Reading[V]] | None) -> None:
        self._soft.set_callback(callback)


@dataclass
class _Logic(MovableLogic[V]):
    """A move is one command, done when the driver has done it, or when the engine has stopped it."""

    session: Session

    async def move(self, new_position: V, timeout: TimeoutCalculator) -> None:
        with suppress(Stopped):  # a pause: the engine sets the axis again when it goes on
            await self.setpoint.set(new_position, timeout=timeout())

    async def stop(self) -> None:
        await self.session.urgently(self.session.stop, "an axis was stopped")


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

        source = f"nextem://{session.instrument}/{group}.{field}"
        put_to = SoftSignalBackend(kind, units=units, setter=put)
        get_from = SoftSignalBackend(kind, units=units, getter=get, poll_period=_POLL_S)
        self.setpoint: SignalRW[V] = SignalRW(_Backend(kind, source, put_to), timeout=None)
        with self.add_children_as_readables(StandardReadableFormat.HINTED_UNCACHED_SIGNAL):
            self.readback: SignalR[V] = SignalR(_Backend(kind, source, get_from), timeout=None)
        self._newest: WatchableAsyncStatus[V] | None = None
        super().__init__()

    @cached_property
    def movable_logic(self) -> MovableLogic[V]:
        return _Logic(self.setpoint, self.readback, self._session)

    def set(
        self,
        new_position: V,
        timeout: CalculatableTimeout = CALCULATE_TIMEOUT,  # type: ignore[assignment]  # said to be any str
    ) -> WatchableAsyncStatus[V]:
        self._newest = super().set(new_position, timeout)
        return self._newest

    async def stop(self, success: bool = False) -> None:
        """Returns when a move that was under way has ended: an engine that goes on sets the axis again, and
        the move before would then take its own cancelling for a failure."""
        under_way = self._newest if self._move_status is not None else None
        await super().stop(success)  # type: ignore[no-untyped-call]
        if under_way is not None:
            await asyncio.wait([under_way.task])


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
