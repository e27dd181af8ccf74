"""Where certificates, keys and tokens lie: one folder, of which each machine needs only its own part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AUTHORITY = "ca"
STEERING = "steering"
CLIENT = "client"
POLICY = "policy"
"""Subject and file of the policies' token, and so the first part of the issuer of their commands."""

OPERATOR = "operator"
"""File of the token of whoever sits at this machine."""


class BadName(Exception):
    """The name of an instrument can be no part of a file's name."""


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The lay-out of the folder of keys and certificates."""

    folder: Path

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    @property
    def revoked(self) -> Path:
        """The list of revoked certificates (CRL)."""
        return self.folder / "revoked.pem"

    @property
    def limits(self) -> Path:
        """The public key by which the limits' signature is checked."""
        return self.folder / "limits.pub"

    @property
    def key_set(self) -> Path:
        """Public keys by which tokens are checked (JWKS)."""
        return self.folder / "jwks.json"

    @property
    def provider(self) -> Path:
        """The OpenID Connect provider whose tokens are taken (:mod:`nextem.wire.oidc`)."""
        return self.folder / "oidc.json"

    def token(self, name: str) -> Path:
        return self.folder / f"{name}.token"


def edge_files(instrument: str) -> str:
    """Name of the files of the edge of ``instrument``. Raises :class:`BadName`."""
    return _named("edge", instrument)


def driver_files(instrument: str) -> str:
    """Name of the files of what serves the driver of ``instrument``. Raises :class:`BadName`."""
    return _named("driver", instrument)


def _named(what: str, instrument: str) -> str:
    if not instrument or "/" in instrument or "\0" in instrument:
        raise BadName(f"{instrument!r} can be no part of a file name")
    return f"{what}-{instrument}"
