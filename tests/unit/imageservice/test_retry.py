"""When to ask again, as a table."""

from __future__ import annotations

import pytest

from imageservice.errors import (
    ImageNotFound,
    RegistryDenied,
    RegistryProtocolError,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
    RegistryUntrusted,
)
from imageservice.registry.retry import delay_s, failure_for_status, parse_retry_after
from imageservice.settings import RetryPolicy

POLICY = RetryPolicy(
    attempts=3, patience_s=10, first_delay_s=1, max_delay_s=3, jitter=0.5, retry_after_cap_s=20
)


def asked(error, tries=1, spent_s=0.0, random_unit=0.0):
    return delay_s(error, POLICY, tries=tries, spent_s=spent_s, random_unit=random_unit)


def throttled(retry_after_s: float | None) -> RegistryThrottled:
    error = RegistryThrottled("slow down")
    error.retry_after_s = retry_after_s
    return error


def test_waits_double_up_to_the_longest_and_then_end():
    policy = RetryPolicy(attempts=5, first_delay_s=1, max_delay_s=3, jitter=0)
    error = RegistryUnavailable("x")
    waits = [delay_s(error, policy, tries=n, spent_s=0, random_unit=0) for n in range(1, 6)]
    assert waits == [1, 2, 3, 3, None]


def test_jitter_only_shortens():
    assert asked(RegistryUnavailable("x"), random_unit=0.999) == pytest.approx(0.5, abs=0.01)


def test_patience_ends_tries_that_take_long():
    assert asked(RegistryUnavailable("x"), spent_s=10) is None


@pytest.mark.parametrize(
    "error",
    [
        RegistryUntrusted("x"),
        RegistryProtocolError("x"),
        ImageNotFound("x"),
        RegistryDenied("x"),
        RegistryUnauthenticated("x"),
    ],
)
def test_what_would_be_the_same_is_not_asked_again(error):
    assert asked(error) is None


@pytest.mark.parametrize(("seconds", "expected"), [(0, 0.1), (5, 5.1), (20, 20.1), (21, None)])
def test_retry_after_is_a_floor_and_capped(seconds, expected):
    assert asked(throttled(seconds)) == expected
    assert asked(throttled(None)) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 100, None),
        ("\u0661", None),
    ],
)
def test_retry_after_header(text, seconds):
    assert parse_retry_after(text, now_wall_ns=1_700_000_000 * 10**9) == seconds


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, RegistryUnauthenticated),
        (403, RegistryDenied),
        (404, ImageNotFound),
        (408, RegistryUnavailable),
        (410, ImageNotFound),
        (429, RegistryThrottled),
        (500, RegistryUnavailable),
        (599, RegistryUnavailable),
        (200, RegistryProtocolError),
        (302, RegistryProtocolError),
        (416, RegistryProtocolError),
    ],
)
def test_statuses(status, kind):
    error = failure_for_status(status, what="manifest 1 of h/a", codes=("DENIED", "made-up"))
    assert type(error) is kind
    assert "manifest 1 of h/a" in error.message
    assert "DENIED" in error.message
    assert "made-up" not in error.message
