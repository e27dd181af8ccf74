"""Who may call the steering service: one interceptor before every method.

Machines are known by their certificate, people and agents by the token in the metadata ``authorization``.
The token travels on inside the request, since the edge believes nobody but the token itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from nextem.v1 import control_pb2
from nextem.wire.certificates import Revocations, edge_name, uris_of
from nextem.wire.health_rpc import PREFIX, before
from nextem.wire.key_folder import AUTHORITY, KeyFolder
from nextem.wire.oidc import open_key_set
from nextem.wire.proof import Signed, why_unproven, why_untimely
from nextem.wire.roles import (
    COMMANDERS,
    EVERYBODY,
    OPERATORS,
    is_same,
    why_not,
    why_not_command,
    why_not_lease,
)
from nextem.wire.tls import shown_certificate
from nextem.wire.tokens import Identity, TokenRefused

logger = logging.getLogger(__name__)

BEARER = "Bearer "

CALLS: Mapping[str, frozenset[str]] = {
    "Watch": EVERYBODY,
    "Submit": COMMANDERS,
    "RequestLease": COMMANDERS,
    "FetchRaw": COMMANDERS,
    "SetMode": OPERATORS,
    "Decide": OPERATORS,
}
"""Which roles may call what. Attach is for edges, by certificate. What is not here nobody may call."""

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


class AccessDenied(Exception):
    """``code``: UNAUTHENTICATED, we do not know who it is, or PERMISSION_DENIED, we do and say no."""

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        self.code = code
        super().__init__(why)


class Access:
    """The rules, for a service that asks everybody for a certificate.

    Tokens are asked for where ``keys`` has a key set. A certificate is asked for by TLS itself; here those
    that are revoked are sorted out.
    """

    def __init__(self, keys: KeyFolder) -> None:
        """Raises :class:`nextem.wire.tokens.KeySetUnreadable`."""
        self._revocations = Revocations(keys.certificate(AUTHORITY), keys.revoked)
        self._key_set = open_key_set(keys)

    def check_certificate(self, context: grpc.ServicerContext) -> None:
        """Raises :class:`AccessDenied` for a revoked certificate."""
        if why := self._revocations.why_not(shown_certificate(context)):
            raise AccessDenied(grpc.StatusCode.UNAUTHENTICATED, f"certificate: {why}")

    def check_edge(self, hello: control_pb2.EdgeHello, context: grpc.ServicerContext) -> None:
        """Raises :class:`AccessDenied` unless the certificate is that of this instrument's edge."""
        names = list(uris_of(shown_certificate(context)))
        wanted = edge_name(hello.instrument)
        if wanted not in names:
            why = (
                f"certificate: it is for {names or 'no edge'}; instrument {hello.instrument!r} takes {wanted}"
            )
            raise AccessDenied(grpc.StatusCode.PERMISSION_DENIED, why)

    def admit(self, method: str, request: Message, context: grpc.ServicerContext) -> Identity | None:
        """Checks one request, and fills in what the token says: issuer or holder, role, instrument, token.

        Returns who it is, None where nobody is asked. Raises :class:`AccessDenied`.
        """
        self.check_certificate(context)
        metadata = dict(context.invocation_metadata())
        token = str(metadata.get("authorization", "")).removeprefix(BEARER)
        if "token" in request.DESCRIPTOR.fields_by_name:
            request.token = token  # type: ignore[attr-defined]
        stops = isinstance(request, control_pb2.Command) and request.HasField("stop")
        if self._key_set is None or stops:  # whoever got in may stop
            return None
        try:
            identity = self._key_set.identify(token)
        except TokenRefused as error:
            raise AccessDenied(grpc.StatusCode.UNAUTHENTICATED, f"token: {error}") from error
        instrument = _fill(request, "instrument", identity.only_instrument)
        for name in ("issuer", "holder"):
            _fill(request, name, identity.subject)
        if why := _why_not(method, request, identity, instrument):
            raise AccessDenied(grpc.StatusCode.PERMISSION_DENIED, f"role: {why}")
        if why := _why_unsigned(request, identity):
            raise AccessDenied(grpc.StatusCode.PERMISSION_DENIED, f"proof: {why}")
        if "issuer_role" in request.DESCRIPTOR.fields_by_name:
            request.issuer_role = identity.role(instrument)  # type: ignore[attr-defined]
        return identity

    def still(self, identity: Identity | None, context: grpc.ServicerContext) -> None:
        """Checks a stream again that has been open for a while. Raises :class:`AccessDenied`."""
        self.check_certificate(context)
        if identity is not None and identity.expired:
            raise AccessDenied(grpc.StatusCode.UNAUTHENTICATED, "token: Signature has expired")


def _fill(request: Any, field: str, value: str) -> str:
    """Sets a field that was left empty; returns what it holds, nothing where there is no such field."""
    if field not in request.DESCRIPTOR.fields_by_name:
        return ""
    if not getattr(request, field):
        setattr(request, field, value)
    return str(getattr(request, field))


def _why_not(method: str, request: Any, identity: Identity, instrument: str) -> str:
    if missing := why_not(identity, instrument, CALLS.get(method, frozenset())):
        return missing
    if isinstance(request, control_pb2.Command):
        return why_not_command(identity, instrument, request.WhichOneof("action") or "", request.issuer)
    if isinstance(request, control_pb2.LeaseRequest):
        return why_not_lease(identity, instrument, request)
    for field in ("issuer", "holder"):
        if field in request.DESCRIPTOR.fields_by_name and not is_same(identity, getattr(request, field)):
            return f"the {field} {getattr(request, field)!r} is not {identity.subject!r}, whose token this is"
    return ""


def _why_unsigned(request: Any, identity: Identity) -> str:
    """Empty when what takes a proof has one, made lately; the edge also refuses what it had before."""
    if not isinstance(request, Signed):
        return ""
    if why := why_unproven(identity, request):
        return why
    if isinstance(request, control_pb2.Command) or not request.proof:
        return ""
    return why_untimely(request, time.time())


class AccessInterceptor(grpc.ServerInterceptor):
    """Asks :class:`Access` before every call, and again for every message of a stream that stays open."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method.startswith(PREFIX):  # told to every certificate that is not revoked
            return before(handler, lambda context: _checked(context, self._access.check_certificate, context))
        method = handler_call_details.method.rpartition("/")[2]
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._edge(handler.stream_stream), *codecs)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), *codecs)
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), *codecs)

    def _unary(self, method: str, behaviour: Behaviour) -> Behaviour:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            _checked(context, self._access.admit, method, request, context)
            return behaviour(request, context)

        return call

    def _stream(self, method: str, behaviour: Behaviour) -> Behaviour:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            identity = _checked(context, self._access.admit, method, request, context)
            if method == "Submit":
                identity = None  # whoever was allowed to command hears what became of it
            with closing(behaviour(request, context)) as responses:
                for response in responses:
                    _checked(context, self._access.still, identity, context)
                    yield response

        return call

    def _edge(self, behaviour: Behaviour) -> Behaviour:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            _checked(context, self._access.check_certificate, context)
            with closing(behaviour(self._from_edge(requests, context), context)) as responses:
                for response in responses:
                    _checked(context, self._access.check_certificate, context)
                    yield response

        return call

    def _from_edge(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        first = next(requests, None)
        if first is None:
            return
        if first.HasField("hello"):
            _checked(context, self._access.check_edge, first.hello, context)
        yield first
        for message in requests:  # on a thread that may not abort the call
            try:
                self._access.check_certificate(context)
            except AccessDenied as error:
                logger.warning("an edge is cut off: %s", error)
                context.cancel()
                return
            yield message


def _checked(context: grpc.ServicerContext, check: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return check(*arguments)
    except AccessDenied as error:
        _refuse(context, error)


def _refuse(context: grpc.ServicerContext, error: AccessDenied) -> NoReturn:
    context.abort(error.code, str(error))
    raise AssertionError("abort raises")
