"""The CRI log grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import Corrupt
from sandbox.monitor.logs import (
    LogEntry,
    format_line,
    format_time,
    parse_line,
    parse_time,
    split_output,
)

#: Years 1 to 9999, in nanoseconds since the epoch.
TIMES = st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9)
STREAMS = st.sampled_from(["stdout", "stderr"])
TEXTS = st.binary(max_size=300).filter(lambda text: b"\n" not in text)
TAGS = st.lists(st.text("abcxyz-", min_size=1, max_size=5), max_size=3).map(tuple)


def test_a_line_of_conmon() -> None:
    line = b"2026-11-22T21:53:19.973316559+00:00 stderr F two words \xff\n"
    entry = parse_line(line)
    assert entry == LogEntry(1795384399973316559, "stderr", False, b"two words \xff")
    assert entry.output == b"two words \xff\n"
    assert format_line(entry) == line


def test_a_partial_line_has_no_newline_of_its_own() -> None:
    entry = parse_line(b"2026-11-22T21:53:19Z stdout P half\n")
    assert entry.partial
    assert entry.output == b"half"


def test_an_empty_line_and_tags_of_the_future() -> None:
    entry = parse_line(b"2026-11-22T21:53:19Z stdout F:x:y \n")
    assert (entry.text, entry.tags, entry.partial) == (b"", ("x", "y"), False)


@given(
    st.builds(LogEntry, time_ns=TIMES, stream=STREAMS, partial=st.booleans(), text=TEXTS, tags=TAGS)
)
def test_what_is_written_is_read(entry: LogEntry) -> None:
    assert parse_line(format_line(entry)) == entry


@given(TIMES)
def test_times_round_trip(time_ns: int) -> None:
    assert parse_time(format_time(time_ns).encode()) == time_ns


@pytest.mark.parametrize(
    ("stamp", "time_ns"),
    [
        (b"1970-01-01T00:00:00Z", 0),
        (b"1970-01-01T01:00:00+01:00", 0),
        (b"1969-12-31T23:30:00.5-00:30", 500_000_000),
        (b"1969-12-31T23:59:59.999999999Z", -1),
        (b"2038-01-19T03:14:08.000000001Z", 2**31 * 10**9 + 1),
    ],
)
def test_times_with_zones_and_fractions(stamp: bytes, time_ns: int) -> None:
    assert parse_time(stamp) == time_ns


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"2026-11-22T21:53:19Z stdout F",
        b"2026-11-22T21:53:19Z  F text",
        b"2026-11-22T21:53:19Z stdin F text",
        b"2026-11-22T21:53:19Z stdout X text",
        b"2026-11-22T21:53:19Z stdout  text",
        b"2026-13-22T21:53:19Z stdout F text",
        b"2026-11-22T21:53:19 stdout F text",
        b"2026-11-22T21:53:19.1234567890Z stdout F text",
        b"yesterday stdout F text",
    ],
)
def test_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_line(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    try:
        parse_line(line)
    except Corrupt:
        return


def test_a_newline_inside_is_not_written() -> None:
    with pytest.raises(Corrupt):
        format_line(LogEntry(0, "stdout", False, b"a\nb"))


@given(st.binary(max_size=500), st.integers(1, 60))
def test_output_survives_being_split_into_lines(data: bytes, limit_bytes: int) -> None:
    entries = split_output(data, stream="stdout", time_ns=0, limit_bytes=limit_bytes)
    assert b"".join(entry.output for entry in entries) == data
    assert all(len(entry.text) <= limit_bytes for entry in entries)
    assert all(parse_line(format_line(entry)) == entry for entry in entries)
