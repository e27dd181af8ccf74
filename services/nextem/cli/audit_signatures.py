"""Says in words by whom a chain of the audit is signed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from nextem.wire.audit_chain import Chain
from nextem.wire.key_folder import KeyFolder


def signatures(chain: Chain, authority: Path | None) -> Iterator[str]:
    """A line for each signer in turn. The list of revoked certificates lies beside the authority's.

    Raises :class:`click.ClickException` where that list cannot be read.
    """
    if authority is None:
        yield "signatures are not checked: no certificate of the authority is at hand (--ca FILE)"
        return
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    revoked = _revoked(authority)
    for part in chain.signed:
        which = f"records {part.first} to {part.last}"
        if not part.certificate:
            yield f"{which}: unsigned; whoever can rewrite the topic and the edge's file can make others"
            continue
        found = x509.load_der_x509_certificate(part.certificate)
        name = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        yield f"{which}: signed by {name!r}, certificate {found.serial_number:x}"
        if found.serial_number in revoked:
            yield "  which is revoked: whoever has its key can have made them"


def _revoked(authority: Path) -> frozenset[int]:
    from nextem.wire.certificates import AuthorityUnusable, revoked_serials

    path = KeyFolder(authority.parent).revoked
    if not path.exists():
        return frozenset()
    try:
        return revoked_serials(authority.read_bytes(), path.read_bytes())
    except (AuthorityUnusable, OSError) as error:
        raise click.ClickException(str(error)) from error
