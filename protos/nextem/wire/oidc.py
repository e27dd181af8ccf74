"""The keys of an OpenID Connect provider, by which the tokens are checked that it issues to people.

``oidc.json`` in the key folder names the issuer; where its keys lie is said there, or asked of the issuer
(OpenID Connect Discovery 1.0). They are fetched in the background while they are used, and the last good ones
are kept for :attr:`ProviderOptions.keep_s` while the provider is away. After that nobody is recognised.
"""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt

from nextem.wire.key_folder import KeyFolder
from nextem.wire.tls import is_loopback
from nextem.wire.tokens import ALGORITHMS, Identity, Keys, KeySet, KeySetUnreadable, key_id_of

logger = logging.getLogger(__name__)

_FETCH_S = 5.0
_WAIT_S = 1.0  # for keys that are not there; who asks may be on the way to the instrument
_FIELDS = {"issuer", "jwks_uri", "ca"}


class ProviderUnusable(KeySetUnreadable):
    """What is said of the provider, or what it answers, is of no use."""


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """``issuer`` as in the claim ``iss``. ``jwks_uri``: empty asks the issuer. ``ca``: file of its authority.

    ``refresh_s``: older keys are fetched anew when they are used. ``retry_s``: no two fetches begin closer
    together, whatever is asked. ``keep_s``: older keys prove nothing.
    """

    issuer: str
    jwks_uri: str = ""
    ca: Path | None = None
    refresh_s: float = 300.0
    retry_s: float = 30.0
    keep_s: float = 3600.0

    @classmethod
    def read(cls, path: Path) -> ProviderOptions:
        """From JSON such as ``{"issuer": "https://id.example.org/realms/tem"}``; ``ca`` is relative to it.

        Raises :class:`ProviderUnusable`.
        """
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ProviderUnusable(f"{path}: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ProviderUnusable(f"{path}: it is no object of texts")
        if unknown := set(found) - _FIELDS:
            raise ProviderUnusable(f"{path}: unknown are {sorted(unknown)}; known are {sorted(_FIELDS)}")
        if not found.get("issuer"):
            raise ProviderUnusable(f"{path}: it names no issuer")
        ca = path.parent / found["ca"] if "ca" in found else None
        return cls(found["issuer"], found.get("jwks_uri", ""), ca)


class _Fetched(NamedTuple):
    """Keys, and when (on our clock) they were asked for."""

    keys: Keys
    asked_s: float


class Provider:
    """Checks tokens by the keys of one provider. Thread-safe."""

    def __init__(self, options: ProviderOptions, now_s: Callable[[], float] = time.monotonic) -> None:
        """Fetches nothing yet. Raises :class:`ProviderUnusable` for an address that is not https."""
        for address in filter(None, (options.issuer, options.jwks_uri)):
            _check(address)
        self._options, self._now_s = options, now_s
        self._lock = threading.Lock()
        self._fetched = _Fetched(Keys({}), float("-inf"))
        self._tried_s = float("-inf")
        self._running: threading.Event | None = None
        self._away = False

    def identify(self, token: str) -> Identity:
        """Who ``token`` speaks for. Waits for a second where keys must be fetched first.

        Raises :class:`nextem.wire.tokens.TokenRefused`.
        """
        options, key_id = self._options, key_id_of(token)
        age_s = self._now_s() - self._fetched.asked_s
        unknown = key_id not in self._fetched.keys.by_id
        if age_s > options.refresh_s or unknown:
            done = self._refresh()
            if done is not None and (unknown or age_s > 2 * options.refresh_s):
                done.wait(_WAIT_S)
        fetched = self._fetched
        if (age_s := self._now_s() - fetched.asked_s) > options.keep_s:
            raise KeySetUnreadable(
                f"the keys of {options.issuer} are {age_s:.0f} s old, and are kept for {options.keep_s:g} s"
                if fetched.keys.by_id
                else f"the keys of {options.issuer} could not be read yet"
            )
        return fetched.keys.identify(token, options.issuer)

    def _refresh(self) -> threading.Event | None:
        """Set once the fetch under way has ended; None where it is too early for one."""
        with self._lock:
            if self._running is not None:
                return self._running
            now_s = self._now_s()
            if now_s - self._tried_s < self._options.retry_s:
                return None
            self._tried_s, self._running = now_s, threading.Event()
            done = self._running
        threading.Thread(target=self._run, args=(done, now_s), name="oidc-keys", daemon=True).start()
        return done

    def _run(self, done: threading.Event, asked_s: float) -> None:
        try:
            keys = self._fetch()
            self._fetched = _Fetched(Keys(keys), asked_s)
            if self._away:
                logger.info("the keys of %s can be read again", self._options.issuer)
            self._away = False
        except ProviderUnusable as error:
            if not self._away:
                logger.error("the last good keys are used, if any: %s", error)
            self._away = True
        finally:
            with self._lock:
                self._running = None
            done.set()

    def _fetch(self) -> Mapping[str, jwt.PyJWK]:
        address = self._options.jwks_uri or self._discovered()
        try:
            found = jwt.PyJWKSet.from_dict(self._get(address)).keys
        except (jwt.PyJWTError, AttributeError, TypeError) as error:
            raise ProviderUnusable(f"{address}: {error}") from error
        # A provider has keys for other uses, too.
        signing = [key for key in found if key.public_key_use in (None, "sig") and key.key_id]
        usable = {str(key.key_id): key for key in signing if key.algorithm_name in ALGORITHMS}
        if not usable:
            raise ProviderUnusable(f"{address}: none of {len(found)} keys can check a signature of ours")
        return usable

    def _discovered(self) -> str:
        issuer = self._options.issuer
        place = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        told = self._get(place)
        if told.get("issuer") != issuer:
            raise ProviderUnusable(f"{place}: it is of issuer {told.get('issuer')!r}, not {issuer!r}")
        address = told.get("jwks_uri")
        if not isinstance(address, str):
            raise ProviderUnusable(f"{place}: jwks_uri is {address!r}")
        _check(address)
        return address

    def _get(self, address: str) -> dict[str, Any]:
        """A JSON object; redirections are not followed."""
        try:
            context = ssl.create_default_context(cafile=self._options.ca)
            client = jwt.PyJWKClient(address, cache_jwk_set=False, timeout=_FETCH_S, ssl_context=context)
            found = client.fetch_data()
        except (jwt.PyJWTError, OSError, ValueError) as error:
            raise ProviderUnusable(f"{address}: {error}") from error
        if not isinstance(found, dict):
            raise ProviderUnusable(f"{address}: the answer is no JSON object")
        return found


def open_key_set(keys: KeyFolder) -> KeySet | None:
    """By what tokens are checked: the folder's key set, its provider's keys, or both; None: by nothing.

    Raises :class:`nextem.wire.tokens.KeySetUnreadable`.
    """
    path = keys.key_set if keys.key_set.exists() else None
    provider = Provider(ProviderOptions.read(keys.provider)) if keys.provider.exists() else None
    return None if path is None and provider is None else KeySet(path, provider)


def _check(address: str) -> None:
    try:
        parts = urlsplit(address)
        good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    except ValueError:
        good = False
    if not good:
        raise ProviderUnusable(f"{address!r}: keys are asked for by https alone, or http on loopback")
