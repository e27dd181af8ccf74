"""Says in words by whom a chain of the audit is signed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from nextem.v1.control_pb2 import ChainLink
from nextem.wire.audit_chain import Chain
from nextem.wire.key_folder import KeyFolder

NOT_CHECKED = "signatures are not checked: no certificate of the authority is at hand (--ca FILE)"
_BY_NOBODY = "whoever can rewrite the topic and the edge's file can make others"
_BY_ANYBODY = "whoever has its key can have made them"


def signatures(chain: Chain, authority: Path | None) -> Iterator[str]:
    """A line for each signer in turn. The list of revoked certificates lies beside the authority's.

    Raises :class:`click.ClickException` where that list cannot be read.
    """
    if authority is None:
        yield NOT_CHECKED
        return
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    revoked = _revoked(authority)
    for part in chain.signed:
        which = f"records {part.first} to {part.last}"
        if not part.certificate:
            yield f"{which}: unsigned; {_BY_NOBODY}"
            continue
        found = x509.load_der_x509_certificate(part.certificate)
        name = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        yield f"{which}: signed by {name!r}, certificate {found.serial_number:x}"
        if found.serial_number in revoked:
            yield f"  which is revoked: {_BY_ANYBODY}"


def doubts(chains: Iterable[Chain], authority: Path | None) -> Callable[[ChainLink], str]:
    """What speaks against believing a record; empty: nothing that a signature can tell, or none is checked.

    Raises as :func:`signatures`.
    """
    if authority is None:
        return lambda link: ""
    from cryptography import x509

    signed, revoked = {chain.chain_id: chain.signed for chain in chains}, _revoked(authority)

    def doubt(link: ChainLink) -> str:
        by = next(p.certificate for p in signed[link.chain_id] if p.first <= link.sequence <= p.last)
        if not by:
            return f"unsigned; {_BY_NOBODY}"
        if x509.load_der_x509_certificate(by).serial_number in revoked:
            return f"signed by a certificate that is revoked: {_BY_ANYBODY}"
        return ""

    return doubt


def _revoked(authority: Path) -> frozenset[int]:
    from nextem.wire.certificates import AuthorityUnusable, revoked_serials

    path = KeyFolder(authority.parent).revoked
    if not path.exists():
        return frozenset()
    try:
        return revoked_serials(authority.read_bytes(), path.read_bytes())
    except (AuthorityUnusable, OSError) as error:
        raise click.ClickException(str(error)) from error
