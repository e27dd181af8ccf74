"""The health of a process by the standard gRPC service ``grpc.health.v1.Health``."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from nextem.wire.health import Health

SERVICE = "grpc.health.v1.Health"


def add_health(server: grpc.Server, health: Health, services: Sequence[str]) -> None:
    """``server`` tells of ``services``, and of itself as "", SERVING exactly while the process is ready."""
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    def tell(ready: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", *services):
            servicer.set(name, status.SERVING if ready else status.NOT_SERVING)

    health.listen(tell)
