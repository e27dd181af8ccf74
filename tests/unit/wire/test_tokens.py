"""Tokens are believed only as they were issued, by a key in the set, in time, for us."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.wire import signing
from nextem.wire.roles import AGENT, COMMANDERS, OBSERVER, OPERATORS, ROLES, why_not, why_not_command
from nextem.wire.tokens import Identity, KeySet, KeySetUnreadable, TokenRefused, issue, key_set

PRIVATE, PUBLIC = signing.new_key()
OTHER_PRIVATE, OTHER_PUBLIC = signing.new_key()
ROLE = {"tem": "operator"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    return path


@pytest.fixture
def keys(path: Path) -> KeySet:
    return KeySet(path)


def made(**changes: Any) -> str:
    claims = {"sub": "anna", "aud": "nextem", "exp": time.time() + 60, "nextem_roles": ROLE} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, PRIVATE, algorithm="EdDSA", headers={"kid": "one"})


def test_a_token_says_who_and_what(keys: KeySet) -> None:
    token = issue(PRIVATE, "one", "anna", {"tem": AGENT, "*": OBSERVER}, hours=1, scopes=frozenset({"scan"}))
    who = keys.identify(token)
    assert (who.subject, who.scopes, who.expired) == ("anna", {"scan"}, False)
    assert (who.role("tem"), who.role("other"), who.only_instrument) == (AGENT, OBSERVER, "")
    assert 3590 < who.expires_s - time.time() < 3610
    assert keys.identify(made()).only_instrument == "tem"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": time.time() - 60}, "expired"),
        ({"exp": None}, 'missing the "exp" claim'),
        ({"aud": "another"}, "Audience"),
        ({"aud": None}, 'missing the "aud" claim'),
        ({"sub": None}, 'missing the "sub" claim'),
        ({"sub": ""}, "sub is empty"),
        ({"nbf": time.time() + 86_400}, "not yet valid"),
        ({"nextem_roles": None}, "does not name a role"),
        ({"nextem_roles": ["operator"]}, "does not name a role"),
        ({"nextem_scopes": "scan"}, "no list of names"),
    ],
)
def test_what_is_wrong_is_said(keys: KeySet, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(TokenRefused, match=why):
        keys.identify(made(**changes))


def test_a_token_of_another_key_is_refused(keys: KeySet) -> None:
    with pytest.raises(TokenRefused, match="Signature verification failed"):
        keys.identify(issue(OTHER_PRIVATE, "one", "anna", ROLE, hours=1))
    with pytest.raises(TokenRefused, match="no key 'two'"):
        keys.identify(issue(OTHER_PRIVATE, "two", "anna", ROLE, hours=1))


def test_a_token_without_signature_is_refused(keys: KeySet) -> None:
    head, body, _ = made().split(".")
    naked = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "one"}).encode()).decode().rstrip("=")
    for token in (f"{naked}.{body}.", f"{head}.{body}.", "", "rubbish"):
        with pytest.raises(TokenRefused):
            keys.identify(token)


def test_the_public_key_is_no_shared_secret(keys: KeySet) -> None:
    """The classic confusion: a token "signed" by HMAC with what everybody knows."""
    secret = jwt.utils.base64url_encode(PUBLIC).decode()
    head = jwt.utils.base64url_encode(json.dumps({"alg": "HS256", "kid": "one"}).encode()).decode()
    body = made().split(".")[1]
    with pytest.raises(TokenRefused):
        keys.identify(f"{head}.{body}.{secret}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(place=st.integers(0, 10_000), letter=st.sampled_from("Ab0_-"))
def test_no_changed_letter_makes_another_identity(keys: KeySet, place: int, letter: str) -> None:
    token = issue(PRIVATE, "one", "anna", ROLE, hours=1)
    place %= len(token)
    forged = token[:place] + letter + token[place + 1 :]
    try:
        assert keys.identify(forged).roles == ROLE  # the unused bits of base64's last letter say nothing
    except TokenRefused:
        assert forged != token


def test_keys_are_rotated_by_replacing_the_file(keys: KeySet, path: Path) -> None:
    old = issue(PRIVATE, "one", "anna", ROLE, hours=1)
    new = issue(OTHER_PRIVATE, "two", "anna", ROLE, hours=1)
    path.write_bytes(key_set({"one": PUBLIC, "two": OTHER_PUBLIC}))
    assert keys.identify(old).subject == keys.identify(new).subject == "anna"
    path.write_bytes(key_set({"two": OTHER_PUBLIC}))
    assert keys.identify(new).subject == "anna"
    with pytest.raises(TokenRefused, match="no key 'one'"):
        keys.identify(old)


def test_a_key_set_that_goes_away_refuses_everybody(keys: KeySet, path: Path) -> None:
    token = made()
    kept = path.read_bytes()
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(KeySetUnreadable):
            keys.identify(token)
    path.unlink()
    with pytest.raises(KeySetUnreadable):
        keys.identify(token)
    path.write_bytes(kept)
    assert keys.identify(token).subject == "anna"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"keys": []}',
        '{"keys": [{"kty": "oct", "kid": "one", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}]}',
        key_set({"": PUBLIC}).decode(),
    ],
)
def test_a_key_set_of_no_use_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(KeySetUnreadable, match=r"jwks\.json"):
        KeySet(path)


# ---- roles ----------------------------------------------------------------------------------------


def who(role: str, *scopes: str) -> Identity:
    return Identity("anna", {"tem": role}, frozenset(scopes), time.time() + 60)


def test_roles_are_of_one_instrument() -> None:
    for role in ROLES:
        assert why_not(who(role), "tem", frozenset(ROLES)) == ""
        assert "no role on instrument 'other'" in why_not(who(role), "other", frozenset(ROLES))
    assert why_not(who(OBSERVER), "tem", COMMANDERS) == (
        "'anna' is observer on 'tem'; this takes admin or agent or operator"
    )
    assert "is agent" in why_not(who(AGENT), "tem", OPERATORS)
    assert "is wizard" in why_not(who("wizard"), "tem", frozenset(ROLES))


def test_an_agent_stays_within_its_scopes() -> None:
    agent = who(AGENT, "scan")
    assert why_not_command(agent, "tem", "acquire", "anna") == ""
    assert "move_stage takes 'stage'" in why_not_command(agent, "tem", "move_stage", "anna")
    assert "takes ''" in why_not_command(who(AGENT, "scan", "stage"), "tem", "explode", "anna")
    assert why_not_command(who("operator"), "tem", "move_stage", "anna") == ""


def test_nobody_speaks_for_others() -> None:
    assert why_not_command(who("operator"), "tem", "acquire", "anna:autofocus") == ""
    for issuer in ("", "bert", "annabel", ":anna"):
        assert "whose token this is" in why_not_command(who("operator"), "tem", "acquire", issuer)
