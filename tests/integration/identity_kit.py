"""A steering service with keys, clients of it, and the real links of edges."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nextem.client import (
    SteeringClient,
    acquire_command,
)
from nextem.edge.control.link import Link, LinkCalls, LinkTimes
from nextem.steering.hub import Hub
from nextem.steering.server import SteeringServer
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.ids import uuid7
from nextem.wire.key_folder import KeyFolder, edge_files
from nextem.wire.tls import Party

WAIT_S = 30.0
TIMES = LinkTimes(heartbeat_s=0.05, backoff_first_s=0.02, backoff_most_s=0.1, silence_s=5.0)


@dataclass
class Service:
    """A service with ``keys``; :meth:`client` makes clients of it, :meth:`edge` links."""

    keys: KeyFolder
    closing: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub = Hub()
        self.server = SteeringServer(self.hub, "127.0.0.1", 0, keys=self.keys)
        self.address = f"127.0.0.1:{self.server.start()}"

    def client(self, token: str | Path | None = None, keys: KeyFolder | None = None) -> SteeringClient:
        client = SteeringClient(
            self.address,
            keys=keys or self.keys,
            token=self.keys.token("operator") if token is None else token,
        )
        self.closing.append(client.close)
        return client

    def edge(self, name: str = "tem-1", instrument: str = "", keys: KeyFolder | None = None) -> Edge:
        party = Party(keys or self.keys, edge_files(name))
        edge = Edge(self.address, instrument or name, party)
        self.closing.append(edge.link.close)
        edge.link.start()
        return edge

    def close(self) -> None:
        for close in reversed(self.closing):
            close()
        self.server.close()


class Edge:
    """The real link; answers leases and commands by a yes."""

    def __init__(self, address: str, instrument: str, party: Party | None) -> None:
        self.instrument = instrument
        self.commands: queue.SimpleQueue[pb.Command] = queue.SimpleQueue()
        self.leases: queue.SimpleQueue[pb.LeaseRequest] = queue.SimpleQueue()
        self.dials = threading.Semaphore(0)
        self.beats = 0
        calls = LinkCalls(self._hello, self._heartbeat, self._receive, tuple, lambda delivered: None)
        self.link = Link(address, calls, TIMES, party)

    def _hello(self) -> pb.EdgeHello:
        self.dials.release()
        return pb.EdgeHello(instrument=self.instrument, edge_boot_id="boot", edge_now_ns=1)

    def _heartbeat(self) -> pb.Heartbeat:
        self.beats += 1
        return pb.Heartbeat(edge_now_ns=self.beats, state=pb.InstrumentState(instrument=self.instrument))

    def _receive(self, message: pb.SteeringMessage) -> None:
        if message.HasField("lease_request"):
            asked = message.lease_request
            self.leases.put(asked)
            lease = pb.Lease(request_id=asked.request_id, holder=asked.holder, lease_id="l", epoch=1)
            self.link.send(pb.EdgeMessage(lease=lease))
        elif message.HasField("command"):
            self.commands.put(message.command)
            outcome = pb.Outcome(command_id=message.command.command_id, state=pb.COMMAND_STATE_DONE)
            self.link.send(pb.EdgeMessage(outcome=outcome))

    def dialled(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.dials.acquire(timeout=WAIT_S)


def command(issuer: str = "anna", instrument: str = "tem-1") -> pb.Command:
    return acquire_command(plan_pb2.Plan(title="x"), issuer, instrument, pb.Lease(lease_id="l", epoch=1))


def stop(instrument: str = "tem-1") -> pb.Command:
    return pb.Command(command_id=uuid7(), instrument=instrument, stop=pb.Stop(reason="now"))


def attached(service: Service, instrument: str = "tem-1") -> None:
    """Returns once the edge of ``instrument`` is attached and has sent a heartbeat."""
    service.client().heartbeat(instrument, timeout_s=WAIT_S)
