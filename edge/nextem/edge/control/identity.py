"""Who asks, as the edge itself sees it: by the token alone, whatever the steering service says.

The token of a command stays with the message that brought it: it reaches no journal and no audit record.
"""

from __future__ import annotations

from collections.abc import Callable

from nextem.edge.control.limits import Refusal
from nextem.edge.control.modes import claimed_role
from nextem.v1 import control_pb2 as pb
from nextem.wire.proof import Signed, signed_content
from nextem.wire.roles import COMMANDERS, is_same, why_not, why_not_command
from nextem.wire.signing import BadSignature, verify
from nextem.wire.tokens import Identity, KeySet, TokenRefused

RULE = "identity"


class Guard:
    """Checks tokens for one instrument. Without a key set nobody is asked. Thread-safe."""

    def __init__(self, instrument: str, key_set: KeySet | None = None) -> None:
        self._instrument, self._key_set = instrument, key_set

    def command(self, command: pb.Command, token: str, holder_of: Callable[[str], str]) -> Refusal | None:
        """Whether the token allows this command to its issuer, and the lease is the issuer's own.

        ``holder_of`` says who was given a lease, by its id; empty: nobody that is known.
        """

        def why(identity: Identity) -> str:
            action = command.WhichOneof("action") or ""
            holder = holder_of(command.lease_id)
            if holder and not is_same(identity, holder):
                return f"lease {command.lease_id!r} was given to {holder!r}, not to {identity.subject!r}"
            return why_not_command(identity, self._instrument, action, command.issuer) or _unproven(
                identity, command
            )

        return self._check(token, why)

    def lease(self, request: pb.LeaseRequest) -> Refusal | None:
        """Whether the token allows its owner, and nobody else, to hold a lease."""

        def why(identity: Identity) -> str:
            if not is_same(identity, request.holder):
                return f"the holder {request.holder!r} is not {identity.subject!r}, whose token this is"
            return why_not(identity, self._instrument, COMMANDERS)

        return self._check(request.token, why)

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
        if not is_same(identity, message.issuer) or _unproven(identity, message):
            return ""
        return identity.role(self._instrument)

    def _check(self, token: str, why: Callable[[Identity], str]) -> Refusal | None:
        if self._key_set is None:
            return None
        try:
            wrong = why(self._key_set.identify(token))
        except TokenRefused as error:
            wrong = f"token: {error}"
        return Refusal(RULE, wrong) if wrong else None


def _unproven(identity: Identity, request: Signed) -> str:
    """Empty when the owner of the token has signed this request, or the token asks for no proof."""
    if not identity.proof_key:
        return ""
    try:
        verify(identity.proof_key, signed_content(request), request.proof)
    except BadSignature as error:
        return f"{identity.subject!r} has not signed this: {error}"
    return ""
