"""The console: what the person at the microscope says on the edge's own machine, steering service or not.

Nobody is asked for a token. Who may open the socket file is the person; the kernel says who that is, and
the name stands in the audit record.
"""

from __future__ import annotations

import logging
import pwd
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from nextem.edge.control.lease_desk import LeaseDesk
from nextem.edge.control.people import CONSOLE, People
from nextem.edge.control.reports import Reports
from nextem.edge.control.rule_actions import RuleActions
from nextem.edge.control.stopping import Stopper
from nextem.edge.rules.plan import InvalidRule, check_name
from nextem.v1 import control_pb2 as pb
from nextem.wire.console import listen, receive, send
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0  # with whoever connects and says nothing
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Console:
    """Answers what is asked at the console. Thread-safe."""

    def __init__(
        self,
        instrument: str,
        stopper: Stopper,
        leases: LeaseDesk,
        people: People,
        reports: Reports,
        rules: RuleActions,
    ) -> None:
        self._instrument, self._stopper, self._leases = instrument, stopper, leases
        self._people, self._reports, self._rules = people, reports, rules

    def answer(self, request: pb.ConsoleRequest, who: str = CONSOLE) -> pb.ConsoleReply:
        """Does it and says what came of it; what cannot be done comes back in ``refused``."""
        reply = pb.ConsoleReply()
        match request.WhichOneof("ask"):
            case "preempt":
                _put(reply, self._leases.preempt(who, request.preempt.scopes, request.reason))
            case "release":
                _put(reply, self._leases.release(who, request.release.scopes, request.reason))
            case "stop":
                command = pb.Command(command_id=uuid7(), issuer=who, instrument=self._instrument)
                command.stop.CopyFrom(request.stop)
                command.stop.reason = request.reason
                reply.outcome.CopyFrom(self._stopper.stop(command))
            case "mode":
                reply.mode.CopyFrom(self._people.console(request.mode, request.reason, who))
                reply.refused = reply.mode.refused
            case "rule":
                self._switch(reply, request.rule, request.reason, who)
            case "status":
                pass
            case _:
                reply.refused = "console: this edge does not know what is asked; is its version older?"
        reply.heartbeat.CopyFrom(self._reports.heartbeat())
        reply.rules_off.extend(self._rules.off())
        reply.rules.extend(self._rules.states())
        return reply

    def _switch(self, reply: pb.ConsoleReply, asked: pb.ConsoleRule, reason: str, who: str) -> None:
        try:
            check_name(asked.name)
        except InvalidRule as error:
            reply.refused = str(error)
            return
        if not asked.on and not reason:
            reply.refused = f"rule {asked.name!r}: to switch it off takes a reason"
            return
        reply.outcome.CopyFrom(self._rules.switch(asked.name, on=asked.on, who=who, reason=reason))


def _put(reply: pb.ConsoleReply, change: pb.LeaseChange | str) -> None:
    if isinstance(change, str):
        reply.refused = change
    else:
        reply.lease.CopyFrom(change)


Answer = Callable[[pb.ConsoleRequest, str], pb.ConsoleReply]


class ConsoleServer:
    """Listens at a socket file; each connection has a thread of its own, so that a stop waits for nobody."""

    def __init__(self, path: Path, answer: Answer) -> None:
        """Listens from now on. Raises :class:`~nextem.wire.console.ConsoleError`."""
        self._path, self._answer = path, answer
        self._listening = listen(path)
        self._closing = threading.Event()
        self._talks: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="control-console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answers who is connected, ends every thread, takes the file away. Harmless twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self._path.unlink(missing_ok=True)
        for talk in self._talks:
            talk.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError as error:
                if not self._closing.is_set():
                    logger.error("console: %s", error)
                    self._closing.wait(0.1)
                continue
            self._talks = [talk for talk in self._talks if talk.is_alive()]
            talk = threading.Thread(target=self._talk, args=(connection,), name="control-console-talk")
            talk.daemon = True
            self._talks.append(talk)
            talk.start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_PATIENCE_S)
                who = _peer(connection)
                request = receive(connection, pb.ConsoleRequest)
                send(connection, self._answer(request, who))
        except OSError as error:
            logger.warning("console: %s", error)
        except Exception:
            logger.exception("console: a request failed")


def _peer(connection: socket.socket) -> str:
    """The login of who is at the other end, as the kernel says; where it does not, just "console"."""
    if not hasattr(socket, "SO_PEERCRED"):
        return CONSOLE
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(data)[1]
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"{CONSOLE} (user {uid})"
