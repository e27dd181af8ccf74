"""What can go wrong between a client and the steering service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from nextem.wire.dial import PeerRefused
from nextem.wire.tls import TlsError


class SteeringError(grpc.RpcError):
    """A call to the steering service failed. The text holds the service's own; :meth:`code` is gRPC's.

    It is a ``grpc.RpcError`` too, so that whoever catches that catches these.
    """

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        self._code = code
        super().__init__(text)

    def code(self) -> grpc.StatusCode:
        return self._code


class SteeringUnavailable(SteeringError):
    """The service cannot be reached, stops, or has no edge attached. The same call may succeed later."""


class InvalidRequest(SteeringError):
    """The request misses something or names something unknown. The same call will never succeed."""


class SteeringBusy(SteeringError):
    """Too many calls or commands wait, or this watcher read too slowly. The same call may succeed later."""


class DeadlineExceeded(SteeringError):
    """No final answer in the time given.

    The command may still be carried out: submit the same command again to learn what became of it.
    """


class NotAuthenticated(SteeringError):
    """The service does not know who we are: no token, an expired or revoked one. A new one may help."""


class NotPermitted(SteeringError):
    """The service knows who we are, and our role does not allow this."""


class DecisionRefused(Exception):
    """The edge does not take a change of the mode or a verdict: the rule ("role", "proposal") and why."""


class RawFramesGone(Exception):
    """The edge no longer has these raw frames, or never had. ``ranges`` are half open."""

    def __init__(self, acquisition_id: str, ranges: tuple[tuple[int, int], ...]) -> None:
        self.acquisition_id, self.ranges = acquisition_id, ranges
        shown = ", ".join(f"{start}..{stop - 1}" for start, stop in ranges[:8])
        super().__init__(f"raw frames {shown} of acquisition {acquisition_id} have gone")


class RawFramesRefused(Exception):
    """The edge does not bring raw frames. ``rule``: "no_raw_ring", "request", "size", "busy" or "store"."""

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {detail}")


ERRORS: dict[grpc.StatusCode, type[SteeringError]] = {
    grpc.StatusCode.UNAVAILABLE: SteeringUnavailable,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: SteeringBusy,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
}


class ServiceNotBelieved(SteeringError):
    """Whoever is at the address shows a certificate that is revoked, or another's. Nothing was sent."""


@contextmanager
def typed_errors(address: str) -> Iterator[None]:
    """Turns every gRPC error within into a :class:`SteeringError` that names ``address``."""
    try:
        yield
    except PeerRefused as error:
        raise ServiceNotBelieved(f"steering: {error}", grpc.StatusCode.UNAUTHENTICATED) from error
    except TlsError as error:
        raise SteeringUnavailable(f"steering: {error}", grpc.StatusCode.UNAVAILABLE) from error
    except grpc.RpcError as error:
        if isinstance(error, SteeringError):
            raise
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        text = error.details() if isinstance(error, grpc.Call) else str(error)
        kind = ERRORS.get(code, SteeringError)
        raise kind(f"steering at {address}: {code.name}: {text}", code) from error
