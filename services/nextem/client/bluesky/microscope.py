"""One instrument as a bluesky device."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ophyd_async.core import AsyncStatus, Device, DeviceConnector, NotConnectedError

from nextem.client.bluesky.acquisition import Acquisition, ProductPlace
from nextem.client.bluesky.movables import Optics, Stage
from nextem.client.bluesky.session import LEASE_TTL_MS, Session
from nextem.client.client import SteeringClient
from nextem.client.errors import SteeringError
from nextem.v1 import plan_pb2
from nextem.wire.key_folder import KeyFolder
from nextem.wire.object_store import store_address


class _Connector(DeviceConnector):
    """Asks for the instrument's state: no device of one that nobody hears."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def connect_real(self, device: Device, timeout: float, force_reconnect: bool) -> None:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.to_thread(self._session.state)
        except (SteeringError, TimeoutError) as error:
            raise NotConnectedError(f"{device.name}: {error or f'no state in {timeout} s'}") from error
        await super().connect_real(device, timeout, force_reconnect)


class Microscope(Device):
    """The instrument behind the steering service at ``address`` (HOST:PORT). A context manager.

    Staging it takes the lease of the whole instrument and keeps it; unstaging stops what is still under way
    and gives the lease back. A move or a trigger outside of that takes the lease for itself. Children:
    ``sample_stage``, ``optics`` and what :meth:`add_acquisition` adds.
    """

    def __init__(
        self,
        address: str,
        user: str,
        *,
        instrument: str = "",
        store: str | Path | None = None,
        keys: KeyFolder | None = None,
        token: str | Path | None = None,
        lease_ttl_ms: int = LEASE_TTL_MS,
        name: str = "",
    ) -> None:
        """``user``: who commands; where a token is asked for, its subject. ``store``: where products
        lie, a folder or s3://BUCKET/PREFIX.

        ``instrument`` is needed where several are attached. ``keys``, ``token``: as in
        :class:`~nextem.client.SteeringClient`.
        """
        self._client = SteeringClient(address, keys=keys, token=token)
        self._session = Session(self._client, user, instrument, lease_ttl_ms)
        self._store = None if store is None else store_address(str(store), Path())
        self.sample_stage = Stage(self._session)
        self.optics = Optics(self._session)
        super().__init__(name=name, connector=_Connector(self._session))

    def __enter__(self) -> Microscope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lease back and ends the connection. Raises as :meth:`Session.unstage`."""
        try:
            self._session.close()
        finally:
            self._client.close()

    def add_acquisition(
        self,
        name: str,
        plan: plan_pb2.Plan,
        *,
        products: Iterable[str] = (),
        products_timeout_s: float = 60.0,
    ) -> Acquisition:
        """Makes the child device ``name``, which acquires ``plan`` and waits for ``products``.

        Raises ValueError for products without a store.
        """
        names = tuple(products)
        if names and self._store is None:
            raise ValueError(f"products {', '.join(names)} without a store to find them in")
        place = ProductPlace(self._store, names, products_timeout_s) if names and self._store else None
        made = Acquisition(self._session, plan, place)
        setattr(self, name, made)
        return made

    @AsyncStatus.wrap
    async def stage(self) -> None:
        """Takes the lease. Raises :class:`LeaseRefused`."""
        await asyncio.to_thread(self._session.stage)

    @AsyncStatus.wrap
    async def unstage(self) -> None:
        """Stops what is under way, and gives the lease back."""
        await self._session.urgently(self._session.unstage)
