"""How a Kafka is spoken to: in the clear, by TLS, with a name and password (SASL) or a certificate (mTLS).

A TOML file says it; the address of a log names the file: ``kafka://HOST:PORT?security=FILE``. So that one
string is all that a process, or an actor on another machine, must be told; no secret stands in it. Keys::

    protocol = "SASL_SSL"            # PLAINTEXT (default), SSL, SASL_SSL, SASL_PLAINTEXT
    mechanism = "SCRAM-SHA-512"      # or PLAIN; for SASL_* only
    username = "edge-a"
    password_file = "password"       # its content, without the white space at its end
    ca_file = "ca.crt"               # who must have signed the brokers' certificates; else the system's own
    certificate_file = "edge-a.crt"  # ours, for mTLS
    key_file = "edge-a.key"

A path that is not absolute begins at the folder of the TOML file.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import parse_qsl, quote

from nextem.wire.log import FatalLogError

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT")
MECHANISMS = ("SCRAM-SHA-512", "PLAIN")
_FILES = ("ca_file", "certificate_file", "key_file", "password_file")
_KEYS = ("protocol", "mechanism", "username", *_FILES)


class KafkaSecurityError(FatalLogError):
    """The security file cannot be used, or its broker and ours do not trust each other by it."""


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """What both clients of Kafka are told. ``password`` is never shown."""

    protocol: str = "PLAINTEXT"
    mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def read(cls, file: Path) -> KafkaSecurity:
        """Raises :class:`KafkaSecurityError`, which names the file and the key."""
        try:
            told = tomllib.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise KafkaSecurityError(f"{file}: {error}") from error
        for key, value in told.items():
            if key not in _KEYS:
                near = get_close_matches(key, _KEYS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; keys are {', '.join(_KEYS)}"
                raise KafkaSecurityError(f"{file}: no key {key!r}{hint}")
            if not isinstance(value, str):
                raise KafkaSecurityError(f"{file}: {key} must be a string, not {value!r}")
        paths = {key: file.parent / told[key] for key in _FILES if key in told}
        for key, path in paths.items():
            if not path.is_file():
                raise KafkaSecurityError(f"{file}: {key}: there is no file {path}")
        password = paths.pop("password_file", None)
        plain = {key: told[key] for key in ("protocol", "mechanism", "username") if key in told}
        made = cls(**plain, password=None if password is None else password.read_text().rstrip(), **paths)
        made._check(file)
        return made

    def _check(self, file: Path) -> None:
        sasl = self.protocol.startswith("SASL_")
        wrong = (
            (self.protocol not in PROTOCOLS, f"protocol {self.protocol!r} is none of {', '.join(PROTOCOLS)}"),
            (
                sasl and self.mechanism not in MECHANISMS,
                f"mechanism {self.mechanism!r} is none of {', '.join(MECHANISMS)}",
            ),
            (
                sasl and not (self.username and self.password),
                f"{self.protocol} needs username and password_file",
            ),
            (
                not sasl and (self.mechanism or self.username or self.password),
                f"{self.protocol} takes no mechanism, username or password_file",
            ),
            (
                (self.certificate_file is None) != (self.key_file is None),
                "certificate_file and key_file go together",
            ),
            (
                not self.encrypted and bool(self.ca_file or self.certificate_file),
                f"{self.protocol} takes no ca_file and no certificate_file",
            ),
        )
        for is_wrong, text in wrong:
            if is_wrong:
                raise KafkaSecurityError(f"{file}: {text}")

    @property
    def encrypted(self) -> bool:
        return self.protocol.endswith("SSL")

    @property
    def principal(self) -> str:
        """Who the broker takes us for, in its own words where we know them."""
        if self.username:
            return f"User:{self.username}"
        return f"the certificate {self.certificate_file}" if self.certificate_file else "User:ANONYMOUS"

    @property
    def acting(self) -> str:
        """How messages name us; nothing where the broker asks nobody who he is."""
        return "" if self == KafkaSecurity() else f" as {self.principal}"

    def kafka_python(self) -> dict[str, object]:
        """Settings of a client of kafka-python."""
        told = {
            "security_protocol": self.protocol,
            "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
            "ssl_cafile": _text(self.ca_file),
            "ssl_certfile": _text(self.certificate_file),
            "ssl_keyfile": _text(self.key_file),
        }
        return {key: value for key, value in told.items() if value is not None}

    def librdkafka(self) -> dict[str, str]:
        """Settings of a client of confluent-kafka."""
        told = {
            "security.protocol": self.protocol,
            "sasl.mechanism": self.mechanism,
            "sasl.username": self.username,
            "sasl.password": self.password,
            "ssl.ca.location": _text(self.ca_file),
            "ssl.certificate.location": _text(self.certificate_file),
            "ssl.key.location": _text(self.key_file),
        }
        return {key: value for key, value in told.items() if value is not None}

    def context(self) -> ssl.SSLContext:
        """Raises :class:`KafkaSecurityError` where certificates or key cannot be read as such."""
        try:
            context = ssl.create_default_context(cafile=_text(self.ca_file))
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            named = [str(f) for f in (self.ca_file, self.certificate_file, self.key_file) if f is not None]
            raise KafkaSecurityError(f"{', '.join(named)}: {error}") from error
        return context


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def split_address(rest: str) -> tuple[str, KafkaSecurity]:
    """``host:port[,host:port][?security=FILE]``: the brokers, and how they are spoken to.

    Raises :class:`KafkaSecurityError`.
    """
    bootstrap, _, query = rest.partition("?")
    told: Mapping[str, str] = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(told) - {"security"})
    if unknown:
        raise KafkaSecurityError(f"an address of Kafka takes ?security=FILE and no {', '.join(unknown)}")
    if not told:
        return bootstrap, KafkaSecurity()
    security = KafkaSecurity.read(Path(told["security"]))
    if security.encrypted:
        security.context()  # what cannot be read is told now
    return bootstrap, security


def with_security(address: str, file: Path) -> str:
    """The address of a Kafka that is spoken to as ``file`` says.

    Links are kept: where Kubernetes mounts a file, what it points to has another name on each node.
    """
    return f"{address}?security={quote(str(file.absolute()))}"


@contextlib.contextmanager
def trusted(bootstrap: str, security: KafkaSecurity) -> Iterator[None]:
    """Where the block cannot connect, asks whether TLS is why: the clients know it and do not tell.

    Raises :class:`KafkaSecurityError` then, from what the block raised.
    """
    try:
        yield
    except Exception as error:
        if security.encrypted and (reason := _tls_failure(bootstrap, security)) is not None:
            raise KafkaSecurityError(f"Kafka: {reason}") from error
        raise


def _tls_failure(bootstrap: str, security: KafkaSecurity) -> str | None:
    """Why a TLS connection to a broker fails; None where it does not, or no broker answers at all."""
    context = security.context()
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with (
                socket.create_connection((host, int(port)), timeout=2.0) as raw,
                context.wrap_socket(raw, server_hostname=host) as talking,
            ):
                talking.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    talking.recv(
                        1
                    )  # TLS 1.3: the broker's refusal of our certificate comes after the handshake
        except ssl.SSLError as error:
            return f"{address} by TLS{security.acting}: {error}"
        except OSError:
            continue
    return None
