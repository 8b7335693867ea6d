"""What an AuthConfig means, whom it is for, and that it never shows."""

from __future__ import annotations

import base64

import pytest

from imageservice.credentials import Credential, from_auth_config
from imageservice.errors import CredentialInvalid


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_nothing_given_is_no_credential():
    assert from_auth_config() is None
    assert from_auth_config(server_address="ghcr.io") is None


@pytest.mark.parametrize(
    ("given", "username", "password"),
    [
        ({"username": "a", "password": "b"}, "a", "b"),
        ({"auth": encoded("a:b:c")}, "a", "b:c"),
        ({"auth": encoded("a:b").rstrip("=")}, "a", "b"),
        ({"auth": encoded("a:b\0\0")}, "a", "b"),
        ({"auth": encoded("a:")}, "a", ""),
        ({"username": "a", "password": "b", "auth": encoded("x:y")}, "a", "b"),
    ],
)
def test_user_and_password(given, username, password):
    credential = from_auth_config(**given)
    assert credential is not None
    assert (credential.username, credential.password) == (username, password)
    assert credential.basic == "Basic " + encoded(f"{username}:{password}")


def test_tokens():
    identity = from_auth_config(username="<token>", identity_token="t")
    assert identity is not None
    assert identity.identity_token == "t"
    registry = from_auth_config(registry_token="t")
    assert registry is not None
    assert registry.registry_token == "t"


@pytest.mark.parametrize(
    "given",
    [
        {"auth": "!!!"},
        {"auth": encoded("no colon")},
        {"auth": base64.b64encode(b"\xff\xfe:x").decode()},
        {"auth": encoded("a\nb:c")},
        {"username": "a\r\nX-Evil: 1", "password": "secret"},
        {"registry_token": "secret\n"},
        {"identity_token": "secret" * 20_000},
    ],
)
def test_what_cannot_be_read_is_refused_without_quoting_it(given):
    with pytest.raises(CredentialInvalid) as caught:
        from_auth_config(**given)
    text = str(caught.value) + repr(caught.value.__cause__)
    assert all(value[:6] not in text for value in given.values())


def test_no_text_form_shows_a_secret():
    credential = Credential("user", "hunter2", "idtoken7", "regtoken8", "ghcr.io")
    shown = f"{credential} {credential!r} {[credential]} {credential.fingerprint}"
    assert not any(secret in shown for secret in ("hunter2", "idtoken7", "regtoken8"))


def test_fingerprints_differ_whenever_a_part_does():
    variants = [
        Credential(),
        Credential(username="ab", password="c"),
        Credential(username="a", password="bc"),
        Credential(identity_token="abc"),
        Credential(registry_token="abc"),
        Credential(username="abc"),
        Credential(username="abc", server="x"),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert variants[1].fingerprint == Credential(username="ab", password="c").fingerprint


@pytest.mark.parametrize(
    ("server", "host", "expected"),
    [
        ("ghcr.io", "ghcr.io", True),
        ("https://ghcr.io/v2/", "ghcr.io", True),
        ("https://GHCR.io", "ghcr.io", True),
        ("https://ghcr.io:443", "ghcr.io", True),
        ("ghcr.io:443", "ghcr.io", True),
        ("ghcr.io", "evil.ghcr.io", False),
        ("ghcr.io", "ghcr.io.evil.example", False),
        ("ghcr.io", "ghcr.io:8443", False),
        ("host:5000", "host:5000", True),
        ("host:5000", "host:5001", False),
        ("https://index.docker.io/v1/", "registry-1.docker.io", True),
        ("docker.io", "docker.io", True),
        ("docker.io", "evil.example", False),
        ("*.azurecr.io", "team.azurecr.io", True),
        ("*.azurecr.io", "a.b.azurecr.io", False),
        ("*.azurecr.io", "azurecr.io", False),
        ("reg*.example", "registry.example", True),
        ("*", "localhost", True),
        ("*", "evil.example", False),
    ],
)
def test_a_credential_that_names_a_server_is_for_that_server_only(server, host, expected):
    credential = from_auth_config(username="a", password="b", server_address=server)
    assert credential is not None
    assert credential.is_for(host, is_origin=True) is expected
    assert credential.is_for(host, is_origin=False) is expected


def test_a_credential_without_server_belongs_to_the_registry_of_the_reference():
    credential = Credential(username="a", password="b")
    assert credential.is_for("anything", is_origin=True)
    assert not credential.is_for("anything", is_origin=False)
