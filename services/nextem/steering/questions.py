"""Questions to an edge that wait for their answer: leases, raw frames, the mode, verdicts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from nextem.steering.errors import BadRequest, EdgeBusy, HubClosed, HubError
from nextem.steering.mailbox import Mailbox, MailboxClosed, MailboxFull
from nextem.steering.session import EdgeSession
from nextem.v1 import control_pb2


class Questions:
    """:meth:`ask` blocks and takes the hub's lock itself; every other method is called with it held."""

    def __init__(self, lock: AbstractContextManager[object], route: Callable[[str], EdgeSession]) -> None:
        """``route`` finds the edge of an instrument, or raises; it is called with the lock held."""
        self._lock, self._route = lock, route
        self._waiting: dict[str, tuple[EdgeSession, Mailbox[Any]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(
        self,
        instrument: str,
        request_id: str,
        message: control_pb2.SteeringMessage,
        timeout_s: float,
        late: tuple[type[HubError], str],
    ) -> Any:
        """Sends a question to the edge and waits for the answer with its id."""
        if not request_id:
            raise BadRequest("request_id is empty: a request needs an id made by its issuer")
        answer: Mailbox[Any] = Mailbox()
        with self._lock:
            session = self._route(instrument)
            if request_id in self._waiting:
                raise BadRequest(f"request {request_id} waits already")
            try:
                session.outbox.put(message)
            except MailboxFull as error:
                raise EdgeBusy(f"edge of {session.instrument!r}: {error}") from error
            self._waiting[request_id] = session, answer
        try:
            return answer.get(timeout_s)
        except TimeoutError as error:
            kind, what = late
            text = f"the edge of {session.instrument!r} did not {what} in {timeout_s:g} s"
            raise kind(text) from error
        except MailboxClosed as error:
            raise error.reason or HubClosed("the steering service stops") from None
        finally:
            with self._lock:
                del self._waiting[request_id]

    def answer(self, session: EdgeSession, request_id: str, answer: Any) -> None:
        asked, waiting = self._waiting.get(request_id, (None, None))
        if waiting is not None and asked is session:
            waiting.put(answer)

    def end(self, reason: Exception, session: EdgeSession | None = None) -> None:
        """No answer will come, from ``session`` or from anybody; ``reason`` is raised there."""
        for asked, answer in self._waiting.values():
            if session is None or asked is session:
                answer.close(reason)
