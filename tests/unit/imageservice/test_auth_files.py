"""Which entry of a Docker configuration file is for which repository."""

from __future__ import annotations

import base64
import json

import pytest

from imageservice.auth_files import AuthFile, HelperName, parse_auth_file
from imageservice.credentials import Credential
from imageservice.errors import AuthFileInvalid


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def parsed(**document: object) -> AuthFile:
    return parse_auth_file(json.dumps(document).encode(), where="/etc/a.json")


def named(*keys: str) -> AuthFile:
    """A file in which the password of an entry is its key."""
    return parsed(auths={key: {"username": "u", "password": key} for key in keys})


def found(file: AuthFile, host: str, path: str = "team/app") -> str:
    hosts = {"registry-1.docker.io", "docker.io"} if host == "docker.io" else {host}
    match file.find(hosts, path):
        case ():
            return ""
        case (Credential() as credential, *_):
            return credential.password
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize(
    ("key", "host", "path"),
    [
        ("reg.example", "reg.example", "a"),
        ("REG.example", "reg.example", "a"),
        ("https://reg.example", "reg.example", "a"),
        ("https://reg.example/v1/", "reg.example", "a"),
        ("https://reg.example/v2/", "reg.example", "a"),
        ("http://reg.example:5000", "reg.example:5000", "a"),
        ("reg.example:443", "reg.example", "a"),
        ("reg.example", "reg.example:443", "a"),
        ("reg.example/team", "reg.example", "team/app"),
        ("reg.example/team/app", "reg.example", "team/app"),
        ("https://reg.example/team/", "reg.example", "team/app"),
        ("[::1]:5000", "[::1]:5000", "a"),
        ("*.reg.example", "eu.reg.example", "a"),
        ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com", "a"),
        ("https://index.docker.io/v1/", "docker.io", "library/busybox"),
        ("docker.io", "docker.io", "library/busybox"),
        ("index.docker.io", "docker.io", "library/busybox"),
        ("docker.io/library/busybox", "docker.io", "library/busybox"),
    ],
)
def test_a_key_is_for_the_repository(key, host, path):
    assert found(named(key), host, path) == key


@pytest.mark.parametrize(
    ("key", "host", "path"),
    [
        ("reg.example", "other.example", "a"),
        ("reg.example", "reg.example.evil", "a"),
        ("reg.example", "reg.example:5000", "a"),
        ("reg.example:5000", "reg.example", "a"),
        ("reg.example/team", "reg.example", "teammate/app"),
        ("reg.example/team/app", "reg.example", "team"),
        ("*.reg.example", "reg.example", "a"),
        ("*.reg.example", "a.b.reg.example", "a"),
        ("*", "reg.example", "a"),
        ("docker.io", "docker.io.evil", "library/busybox"),
        ("", "reg.example", "a"),
        ("https://", "", "a"),
    ],
)
def test_a_key_is_not_for_another(key, host, path):
    assert found(named(key), host, path) == ""


def test_the_longest_path_wins_and_a_name_before_a_pattern():
    file = named("reg.example", "reg.example/team", "reg.example/team/app", "*.example", "*.*")
    assert found(file, "reg.example", "team/app") == "reg.example/team/app"
    assert found(file, "reg.example", "team/other") == "reg.example/team"
    assert found(file, "reg.example", "other") == "reg.example"
    assert found(file, "eu.example", "other") == "*.*"
    assert found(named("*.example/a", "reg.example"), "reg.example", "a/b") == "*.example/a"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded("u:p:q")}, Credential(username="u", password="p:q")),
        ({"username": "u", "password": "p"}, Credential(username="u", password="p")),
        (
            {"auth": encoded("00000000-0000:"), "identitytoken": "t"},
            Credential(identity_token="t"),
        ),
        ({"registrytoken": "t"}, Credential(registry_token="t")),
        ({"auth": encoded("u:p"), "email": "u@x", "unknown": 1}, Credential("u", "p")),
    ],
)
def test_the_kinds_of_entries(entry, expected):
    assert parsed(auths={"reg.example": entry}).find({"reg.example"}, "a") == (expected,)


@pytest.mark.parametrize("entry", [{}, None, {"email": "u@x"}, {"auth": ""}])
def test_an_empty_entry_is_none(entry):
    assert parsed(auths={"reg.example": entry}).find({"reg.example"}, "a") == ()


def test_an_empty_entry_does_not_hide_a_shorter_one():
    file = parsed(auths={"reg.example/a": {}, "reg.example": {"auth": encoded("u:p")}})
    assert found(file, "reg.example", "a/b") == "p"


def test_helpers_come_first_and_the_store_last():
    file = parsed(
        auths={"reg.example": {"auth": encoded("u:p")}, "other.example": {}},
        credHelpers={"reg.example": "mine", "https://index.docker.io/v1/": "hub"},
        credsStore="pass",
    )
    assert file.find({"reg.example"}, "a") == (
        HelperName("mine", "reg.example"),
        Credential("u", "p"),
        HelperName("pass", "reg.example"),
    )
    assert file.find({"other.example"}, "a") == (HelperName("pass", "other.example"),)
    hub = "https://index.docker.io/v1/"
    assert file.find({"docker.io", "registry-1.docker.io"}, "library/a") == (
        HelperName("hub", hub),
        HelperName("pass", hub),
    )


def test_what_the_file_names():
    file = parsed(auths={"b.example/x": {}, "a.example": {}}, credHelpers={"c.example": "x"})
    assert file.hosts == ("c.example",)  # the others are empty
    assert named("b.example/x", "a.example", "a.example/y").hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"canary",
        b'{"auths": ["canary"]}',
        b'{"auths": {"a": "canary"}}',
        b'{"auths": {"a": {"auth": 1}}}',
        b'{"credHelpers": {"a": "../canary"}}',
        b'{"credsStore": "/bin/canary"}',
        b'{"credsStore": "a b"}',
        b'{"auths": {"a": {"auth": "\xff"}}}',
        b"[" * 100_000,
    ],
)
def test_a_file_of_another_form_is_refused_and_not_quoted(body):
    with pytest.raises(AuthFileInvalid) as caught:
        parse_auth_file(body, where="/etc/a.json")
    assert "/etc/a.json" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "entry", [{"auth": "canary!"}, {"auth": encoded("canary")}, {"username": "u", "password": "\n"}]
)
def test_an_entry_that_cannot_be_used_is_named_when_it_is_needed(entry):
    file = parsed(auths={"reg.example": entry, "other.example": {"auth": encoded("u:p")}})
    assert found(file, "other.example") == "p"
    with pytest.raises(AuthFileInvalid, match=r"entry for reg\.example") as caught:
        file.find({"reg.example"}, "a")
    assert "canary" not in str(caught.value)


def test_no_text_form_shows_a_secret():
    file = parsed(auths={"reg.example": {"auth": encoded("u:canary")}})
    told = repr(file) + repr(file.find({"reg.example"}, "a"))
    assert "canary" not in told
    assert encoded("u:canary") not in told
