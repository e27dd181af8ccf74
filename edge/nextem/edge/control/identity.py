"""Who asks, as the edge itself sees it: by the token alone, whatever the steering service says.

The token of a command stays with the message that brought it: it reaches no journal and no audit record.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from nextem.edge.control.journal import JournalError
from nextem.edge.control.limits import Refusal
from nextem.edge.control.modes import claimed_role
from nextem.v1 import control_pb2 as pb
from nextem.wire.proof import Request, signed_content, why_unproven, why_untimely
from nextem.wire.roles import COMMANDERS, is_same, why_not, why_not_command, why_not_lease
from nextem.wire.tokens import Identity, KeySet, TokenRefused

RULE = "identity"
REPLAY = "replay"

IsFirst = Callable[[bytes, int], bool]
"""Whether a request, by its digest and the time of its signature (ms), was not taken before."""


class Guard:
    """Checks tokens for one instrument. Without a key set nobody is asked. Thread-safe."""

    def __init__(
        self,
        instrument: str,
        key_set: KeySet | None,
        is_first: IsFirst,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """``is_first`` must remember over a restart: :meth:`nextem.edge.control.journal.Journal.is_first`."""
        self._instrument, self._key_set = instrument, key_set
        self._is_first, self._unix_s = is_first, unix_s

    def command(self, command: pb.Command, token: str, holder_of: Callable[[str], str]) -> Refusal | None:
        """Whether the token allows this command to its issuer, and the lease is the issuer's own.

        ``holder_of`` says who was given a lease, by its id; empty: nobody that is known.
        """

        def why(identity: Identity) -> str:
            action = command.WhichOneof("action") or ""
            holder = holder_of(command.lease_id)
            if holder and not is_same(identity, holder):
                return f"lease {command.lease_id!r} was given to {holder!r}, not to {identity.subject!r}"
            return why_not_command(identity, self._instrument, action, command.issuer) or why_unproven(
                identity, command
            )

        return self._check(token, why)

    def lease(self, request: pb.LeaseRequest) -> Refusal | None:
        """Whether the token allows its owner, and nobody else, to hold a lease; asked for now, and once."""

        def why(identity: Identity) -> str:
            return why_not_lease(identity, self._instrument, request) or why_unproven(identity, request)

        return self._check(request.token, why) or self.replay(request)

    def fetch_raw(self, request: pb.FetchRawRequest) -> Refusal | None:
        """Whether the token allows its owner to have raw frames; asked for now, and once."""

        def why(identity: Identity) -> str:
            return why_not(identity, self._instrument, COMMANDERS) or why_unproven(identity, request)

        return self._check(request.token, why) or self.replay(request)

    def role(self, message: pb.SetModeRequest | pb.ProposalVerdict) -> str:
        """The role of whoever decides: the token's, empty when it proves nothing.

        Without a key set the role that the message itself names.
        """
        if self._key_set is None:
            return claimed_role(message)
        try:
            identity = self._key_set.identify(message.token)
        except TokenRefused:
            return ""
        if not is_same(identity, message.issuer) or why_unproven(identity, message):
            return ""
        return identity.role(self._instrument)

    def replay(self, request: Request) -> Refusal | None:
        """Whether a request whose proof is good was signed for another edge, long ago, or came before.

        One that is not refused is remembered. A request without a proof says nothing of that: whoever
        carries a bearer token can make another at any time.
        """
        if self._key_set is None or not request.proof:
            return None
        if request.instrument != self._instrument:
            why = f"it was signed for instrument {request.instrument!r}, this is {self._instrument!r}"
            return Refusal(REPLAY, why)
        if why := why_untimely(request, self._unix_s()):
            return Refusal(REPLAY, why)
        digest = hashlib.sha256(signed_content(request)).digest()
        try:
            if self._is_first(digest, request.signed_unix_ms):
                return None
        except JournalError as error:
            return Refusal("journal", str(error))
        return Refusal(REPLAY, f"request {request.request_id!r} was taken before")

    def _check(self, token: str, why: Callable[[Identity], str]) -> Refusal | None:
        if self._key_set is None:
            return None
        try:
            wrong = why(self._key_set.identify(token))
        except TokenRefused as error:
            wrong = f"token: {error}"
        return Refusal(RULE, wrong) if wrong else None
