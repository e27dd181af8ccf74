"""Serves the gRPC service ``Instrument``: to the edge of that instrument, or on loopback to this machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from nextem.v1.control_pb2_grpc import InstrumentServicer, add_InstrumentServicer_to_server
from nextem.wire.health import Health
from nextem.wire.key_folder import AUTHORITY, KeyFolder, driver_files
from nextem.wire.listening import address_of, bind
from nextem.wire.tls import Party, check_plaintext, server_credentials, shown_certificate


class EdgeOnly(grpc.ServerInterceptor):
    """Lets in the edge of one instrument, by its certificate, for each call as long as it is not revoked.

    Health is told to every certificate that is not revoked.
    """

    def __init__(self, keys: KeyFolder, instrument: str) -> None:
        from nextem.wire.certificates import Revocations, edge_name  # a laptop does without cryptography

        self._revocations = Revocations(keys.certificate(AUTHORITY), keys.revoked)
        self._wanted = edge_name(instrument)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        from nextem.wire.health_rpc import PREFIX, before

        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        told_to_all = handler_call_details.method.startswith(PREFIX)
        return before(handler, self._known if told_to_all else self._edge)

    def _known(self, context: grpc.ServicerContext) -> None:
        if why := self._revocations.why_not(shown_certificate(context)):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"certificate: {why}")

    def _edge(self, context: grpc.ServicerContext) -> None:
        from nextem.wire.certificates import uris_of

        self._known(context)
        if self._wanted not in (names := uris_of(shown_certificate(context))):
            why = f"certificate: it is for {list(names) or 'no edge'}, this takes {self._wanted}"
            context.abort(grpc.StatusCode.PERMISSION_DENIED, why)


def serve_instrument(
    servicer: InstrumentServicer,
    host: str,
    port: int,
    *,
    threads: int,
    keys: KeyFolder | None = None,
    instrument: str = "",
    health: Health | None = None,
) -> tuple[grpc.Server, int]:
    """Starts a server of ``threads`` and returns it with its port (``port`` 0: any free one).

    With ``keys`` it shows the certificate of the driver of ``instrument`` and serves the edge of that
    instrument alone. Without, anybody on this machine: raises :class:`nextem.wire.tls.PlaintextRefused` for
    any address but loopback. Where there is ``health`` it is told too, by gRPC's standard service. Raises
    also :class:`nextem.wire.tls.CertificateUnusable`, :class:`nextem.wire.key_folder.BadName` and
    :class:`nextem.wire.listening.CannotListen`.
    """
    if keys is None:
        check_plaintext(address_of(host, port), "a driver at")
    credentials = None if keys is None else server_credentials(Party(keys, driver_files(instrument)))
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="instrument"),
        interceptors=[] if keys is None else [EdgeOnly(keys, instrument)],
        # with reuse, two servers would share a port and each get half of the commands
        options=(("grpc.so_reuseport", 0),),
    )
    add_InstrumentServicer_to_server(servicer, server)
    if health is not None:
        from nextem.wire.health_rpc import add_health

        add_health(server, health, ["nextem.v1.Instrument"])
    bound = bind(server, host, port, credentials)
    server.start()
    return server, bound
