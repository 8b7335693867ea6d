"""WWW-Authenticate is read as RFC 9110 writes it, and never more than that."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imageservice.registry.challenge import (
    MAX_CHALLENGES,
    BasicChallenge,
    BearerChallenge,
    Challenge,
    choose,
    parse_challenges,
    pull_scopes,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("Basic", [("basic", {})]),
        ("bAsIc REALM=x", [("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"',
            [
                (
                    "bearer",
                    {"realm": "https://a/t", "service": "s", "scope": "repository:a:pull,push"},
                )
            ],
        ),
        ('Bearer realm = "x" , service= s', [("bearer", {"realm": "x", "service": "s"})]),
        ('Basic realm="a\\"b\\\\c"', [("basic", {"realm": 'a"b\\c'})]),
        (
            'Basic realm="a", Bearer realm="b", error="e"',
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "error": "e"})],
        ),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YWJj==, Basic", [("negotiate", {}), ("basic", {})]),
        (", ,Basic realm=x,,", [("basic", {"realm": "x"})]),
        ('Bearer realm="a",realm="b"', [("bearer", {"realm": "a"})]),
    ],
)
def test_grammar(header, expected):
    assert parse_challenges([header]) == tuple(Challenge(s, p) for s, p in expected)


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",",
        '"',
        "=",
        'Bearer realm="',
        'Bearer realm="x\\',
        'Bearer realm="x" junk"',
        'Bearer realm="a\nb"',
        'Bearer realm="a" service="b"',
        "Bearer realm=a b=c",
        "Basic\x00realm=x",
        "a" * 20_000,
        "Basic " + 'x="' * 5000,
    ],
)
def test_what_is_not_grammar_yields_no_challenge_from_the_fault_on(header):
    assert not any(challenge.parameters for challenge in parse_challenges([header]))


def test_headers_are_read_in_order_and_a_bad_one_does_not_hide_the_next():
    found = parse_challenges(['Bearer realm="', 'Basic realm="x"'])
    assert [challenge.scheme for challenge in found] == ["basic"]


def test_the_number_of_challenges_is_bounded():
    assert len(parse_challenges(["Basic," * 1000])) == MAX_CHALLENGES


def test_bearer_is_chosen_before_basic_whatever_the_order():
    found = choose(parse_challenges(['Basic realm=x, Bearer realm="r",scope="a b"']))
    assert found == BearerChallenge("r", "", ("a", "b"))
    assert choose(parse_challenges(["Bearer, Basic"])) == BasicChallenge()
    assert choose(parse_challenges(["Negotiate"])) is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), ("repository:a/b:pull",)),
        (("repository:a/b:pull",), ("repository:a/b:pull",)),
        (("repository:a/b:pull,push",), ("repository:a/b:pull",)),
        (("repository:a/b:*",), ("repository:a/b:pull",)),
        (("repository:a/b:push",), ("repository:a/b:pull",)),
        (("repository(plugin):a/b:delete,pull",), ("repository(plugin):a/b:pull",)),
        (("repository:host:5000/a:pull",), ("repository:host:5000/a:pull",)),
        (("aws",), ("aws",)),
        (("x" * 5000,), ("repository:a/b:pull",)),
        (("a", "a", "b"), ("a", "b")),
    ],
)
def test_scopes_are_cut_down_to_reading(asked, expected):
    assert pull_scopes(asked, "a/b") == expected


_TOKEN = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True)
_VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
_PARAMETERS = st.dictionaries(_TOKEN.map(str.lower), _VALUE, min_size=1, max_size=4)


@settings(max_examples=50)
@given(st.lists(st.tuples(_TOKEN.map(str.lower), _PARAMETERS), min_size=1, max_size=4))
def test_what_is_written_by_the_grammar_is_read_back(challenges):
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert parse_challenges([header]) == tuple(Challenge(s, p) for s, p in challenges)


@given(st.lists(st.text(alphabet='ab=", \\\t\n\0Bearrealm', max_size=60), max_size=3))
def test_any_headers_are_read_without_an_exception(headers):
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(
            "\n" not in value and "\0" not in value for value in challenge.parameters.values()
        )
