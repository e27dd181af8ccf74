"""Tokens of an OpenID Connect provider, whose keys are fetched from a real server on loopback."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from oidc_kit import DISCOVERY, ELSEWHERE, OidcServer, https

from nextem.wire import signing
from nextem.wire.certificates import new_authority
from nextem.wire.key_folder import KeyFolder
from nextem.wire.oidc import Provider, ProviderOptions, ProviderUnusable, open_key_set
from nextem.wire.tokens import KeySet, KeySetUnreadable, TokenRefused, issue, key_set

KEYS = {name: signing.new_key() for name in ("one", "two", "ours")}
SECRET = {"kty": "oct", "kid": "s", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}


class Server(OidcServer):
    """Has the first of our keys."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(context)
        self.show("one")

    def show(self, *names: str) -> None:
        """Its keys are these from now on."""
        self.publish(key_set({name: KEYS[name][1] for name in names}))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(server: Server, clock: Clock) -> Provider:
    return Provider(ProviderOptions(server.issuer), clock)


def token(server: Server, key: str = "one", **changes: Any) -> str:
    claims = {
        "iss": server.issuer,
        "sub": "anna",
        "aud": "nextem",
        "exp": time.time() + 600,
        "nextem_roles": {"tem": "operator"},
    }
    return jwt.encode(claims | changes, KEYS[key][0], algorithm="EdDSA", headers={"kid": key})


def fetches(server: Server) -> int:
    return server.asked.count("/realm/keys")


def test_the_issuer_tells_where_its_keys_are(provider: Provider, server: Server) -> None:
    assert server.asked == []  # nothing before somebody is to be recognised
    for _ in range(3):
        assert provider.identify(token(server)).subject == "anna"
    assert server.asked == [DISCOVERY, "/realm/keys"]


def test_a_place_that_is_said_is_not_asked_for(server: Server, clock: Clock) -> None:
    provider = Provider(ProviderOptions(server.issuer, f"{server.issuer}/keys"), clock)
    assert provider.identify(token(server)).role("tem") == "operator"
    assert server.asked == ["/realm/keys"]


def test_what_another_issued_is_refused(provider: Provider, server: Server) -> None:
    for wrong, why in (
        (token(server, iss="https://other.example"), "Invalid issuer"),
        (token(server, aud="another"), "Audience"),
        (token(server, "two"), "no key 'two' is in the key set"),
        (jwt.encode({"sub": "anna"}, KEYS["two"][0], "EdDSA", headers={"kid": "one"}), "verification failed"),
        ("rubbish", "Not enough segments"),
    ):
        with pytest.raises(TokenRefused, match=why):
            provider.identify(wrong)


def test_a_new_key_is_fetched_when_it_is_first_seen_and_not_too_often(
    provider: Provider, server: Server, clock: Clock
) -> None:
    provider.identify(token(server))
    server.show("one", "two")
    for _ in range(20):
        with pytest.raises(TokenRefused, match="no key 'two'"):
            provider.identify(token(server, "two"))  # too early for another look, whoever asks
    assert fetches(server) == 1
    clock.now_s += 31
    assert provider.identify(token(server, "two")).subject == "anna"
    assert fetches(server) == 2


def test_a_key_that_was_taken_out_proves_nothing_after_the_next_look(
    provider: Provider, server: Server, clock: Clock
) -> None:
    provider.identify(token(server))
    server.show("two")
    clock.now_s += 601  # long unused: waited for
    with pytest.raises(TokenRefused, match="no key 'one'"):
        provider.identify(token(server))


def test_the_last_good_keys_are_kept_for_a_time_and_then_nobody_is_known(
    provider: Provider, server: Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    provider.identify(token(server))
    server.go_away()
    for later_s in (301, 601, 3599):
        clock.now_s = 1000.0 + later_s
        assert provider.identify(token(server)).subject == "anna"
    clock.now_s = 1000.0 + 3631
    with pytest.raises(KeySetUnreadable, match="are 3631 s old, and are kept for 3600 s"):
        provider.identify(token(server))
    assert [r.levelname for r in caplog.records].count("ERROR") == 1  # said once
    server.show("one")
    clock.now_s += 31
    assert provider.identify(token(server)).subject == "anna"


@pytest.mark.parametrize(
    "pages",
    [
        {},
        {DISCOVERY: b"rubbish"},
        {DISCOVERY: b"[]"},
        {DISCOVERY: b'{"issuer": "https://other.example", "jwks_uri": "https://other.example/keys"}'},
        {"/realm/keys": b'{"keys": []}'},
        {"/realm/keys": ELSEWHERE},
        {"/realm/keys": json.dumps({"keys": [SECRET]}).encode()},
    ],
)
def test_a_provider_that_answers_nonsense_proves_nobody(
    provider: Provider, server: Server, pages: dict[str, bytes]
) -> None:
    if pages:
        server.pages |= pages
    else:
        server.go_away()
    with pytest.raises(KeySetUnreadable, match="could not be read yet"):
        provider.identify(token(server))


def test_keys_for_other_uses_and_with_other_algorithms_are_left_out(
    provider: Provider, server: Server
) -> None:
    found = json.loads(server.pages["/realm/keys"])
    found["keys"] += [SECRET, found["keys"][0] | {"kid": "e", "use": "enc"}]
    server.pages["/realm/keys"] = json.dumps(found).encode()
    assert provider.identify(token(server)).subject == "anna"
    for kid in ("s", "e"):
        with pytest.raises(TokenRefused, match="no key"):
            provider.identify(jwt.encode({"sub": "a"}, KEYS["one"][0], "EdDSA", headers={"kid": kid}))


@pytest.mark.parametrize(
    "address", ["http://id.example.org", "ftp://127.0.0.1/x", "file:///etc/passwd", "127.0.0.1", "http://[x"]
)
def test_keys_come_by_https_or_on_loopback(address: str) -> None:
    for options in (ProviderOptions(address), ProviderOptions("https://id.example.org", address)):
        with pytest.raises(ProviderUnusable, match="https alone"):
            Provider(options)


def test_by_https_the_provider_s_authority_counts(tmp_path: Path) -> None:
    context = https(tmp_path)
    (tmp_path / "other.pem").write_bytes(new_authority("other", 1).certificate)
    server = Server(context)
    try:
        good, bad = (
            Provider(ProviderOptions(server.issuer, ca=tmp_path / ca)) for ca in ("ca.pem", "other.pem")
        )
        assert good.identify(token(server)).subject == "anna"
        with pytest.raises(KeySetUnreadable, match="could not be read yet"):
            bad.identify(token(server))
    finally:
        server.close()


# ---- the key folder -------------------------------------------------------------------------------


def test_a_folder_may_have_keys_of_its_own_and_a_provider(tmp_path: Path, server: Server) -> None:
    keys = KeyFolder(tmp_path)
    assert open_key_set(keys) is None
    keys.provider.write_text(json.dumps({"issuer": server.issuer}))
    people = open_key_set(keys)
    keys.key_set.write_bytes(key_set({"ours": KEYS["ours"][1]}))
    both = open_key_set(keys)
    ours = issue(KEYS["ours"][0], "ours", "policy", {"tem": "agent"}, hours=1)
    assert people is not None
    assert both is not None
    assert people.identify(token(server)).subject == both.identify(token(server)).subject == "anna"
    assert both.identify(ours).subject == "policy"
    with pytest.raises(TokenRefused, match="no key 'ours'"):
        people.identify(ours)
    server.go_away()
    assert KeySet(keys.key_set, Provider(ProviderOptions(server.issuer))).identify(ours).subject == "policy"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "oidc.json"),
        ("[]", "no object"),
        ('{"issuer": 3}', "no object of texts"),
        ('{"ca": "x"}', "names no issuer"),
        ('{"issuer": "https://id.example.org", "jwks": "x"}', r"unknown are \['jwks'\]"),
        ('{"issuer": "http://id.example.org"}', "https alone"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, text: str, why: str) -> None:
    keys = KeyFolder(tmp_path)
    keys.provider.write_text(text)
    with pytest.raises(KeySetUnreadable, match=why):
        open_key_set(keys)
