"""The health of a process by the standard gRPC service ``grpc.health.v1.Health``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from nextem.wire.health import Health

PREFIX = "/grpc.health.v1.Health/"
"""How the methods of the service begin."""


def before(handler: Any, check: Callable[[grpc.ServicerContext], object]) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of single requests that has ``check`` look at the context first; it may abort the call."""

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        check(context)
        return (handler.unary_stream or handler.unary_unary)(request, context)

    codecs = (handler.request_deserializer, handler.response_serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(call, *codecs)
    return grpc.unary_unary_rpc_method_handler(call, *codecs)


def add_health(server: grpc.Server, health: Health, services: Sequence[str]) -> None:
    """``server`` tells of ``services``, and of itself as "", SERVING exactly while the process is ready."""
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    def tell(ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", *services):
            servicer.set(name, status.SERVING if ready else status.NOT_SERVING)

    health.listen(tell)
