"""Failures: classes by what can be done, words that may be shown."""

from __future__ import annotations

import inspect

import pytest

from cni import errors
from cni.errors import (
    TEXT_LIMIT_CHARS,
    PluginFailed,
    PluginMissing,
    PluginTimedOut,
    PluginUnavailable,
    SpecCode,
    failure_of,
    presentable,
)
from sandbox.host.errors import DeadlineExceeded, NotFound, PodwrightError, Unavailable

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PodwrightError) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_here_is_not_found(kind):
    """The kubelet takes NOT_FOUND from StopPodSandbox for success."""
    assert not issubclass(kind, NotFound)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (PluginUnavailable, Unavailable),
        (PluginMissing, Unavailable),
        (PluginTimedOut, DeadlineExceeded),
    ],
)
def test_what_can_be_repeated_comes_before_what_cannot(kind, base):
    order = kind.__mro__
    assert order.index(base) < order.index(PluginFailed)


@pytest.mark.parametrize("code", [*SpecCode, 100, 999, -1])
def test_codes_choose_the_class(code):
    temporary = code in {11, 50, 51}
    failure = failure_of("p", "ADD", "words", code=code)
    assert isinstance(failure, PluginUnavailable) is temporary
    assert failure.code == code


def test_a_message_names_plugin_command_text_and_code():
    failure = failure_of("bridge", "DEL", "no link", code=999, details="veth7 is gone")
    assert str(failure) == "network plugin bridge failed DEL: no link: veth7 is gone (code=999)"
    same = failure_of("bridge", "DEL", "no link", code=999, details="no link")
    assert str(same) == "network plugin bridge failed DEL: no link (code=999)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\x00\x1b[31md\u2028e", "a b c [31md e"),
        ("  x  ", "x"),
        ('{"token": "abc", "mtu": 5}', '{"token": [redacted], "mtu": 5}'),
        ("etcd_password=hunter2 done", "etcd_password=[redacted] done"),
        ("Authorization: Bearer abc.def", "Authorization: [redacted]"),
        ("used bearer abcdefghij.k", "used [redacted]"),
        ("apiKey='a b' x", "apiKey=[redacted] x"),
        ('\\"clientSecret\\":\\"s3\\",', '\\"clientSecret\\":[redacted],'),
        ("jwt eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln.", "jwt [redacted]"),
        ("failed to get secret from 10.0.0.1:443", "failed to get secret from 10.0.0.1:443"),
    ],
)
def test_words_are_made_presentable(text, shown):
    assert presentable(text) == shown


def test_long_words_keep_their_end():
    shown = presentable("x " * 100_000 + " the reason")
    assert len(shown) == TEXT_LIMIT_CHARS
    assert shown.startswith("...")
    assert shown.endswith(" the reason")


def test_a_secret_longer_than_what_is_looked_at_is_not_shown_by_its_end():
    assert "hunter2" not in presentable('{"token": "' + "hunter2" * 1000 + '", "mtu": 5}')


@pytest.mark.parametrize("text", ["token" * 800, "token-" * 680, "a" * 4096, "eyJ-" * 1000])
def test_words_repeated_without_end_take_steps_in_proportion(text):
    """The pattern that was here before took two minutes for the first of these."""
    assert presentable(text)[-100:] == text[-100:]
