r"""The CRI log format: one line per piece of output, readable while it is written.

    2026-03-01T10:00:00.123456789+00:00 stdout F hello
    └── RFC 3339, up to nanoseconds ──┘ └stream┘ │ └── text, verbatim bytes
                                                 └─ tags joined by ':', the first is P or F

`P` says that the text goes on in the next line of the same stream, `F` that a newline ended it. A
process that ends without a newline leaves a `P` line last, so no newline is ever invented. Readers
must ignore further tags (kubernetes, pkg/kubelet/kuberuntime/logs: "partial" is the only one so
far).

Pure: bytes in, values out. conmon writes the lines; we read them (and tests do, much).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Final, Literal

from sandbox.host.errors import Corrupt

Stream = Literal["stdout", "stderr"]

_NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(
    rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))"
)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a log file.

    Attributes:
        time_ns: nanoseconds since the epoch.
        stream: where the container wrote it.
        partial: the text has no newline of its own; more of the same line may follow.
        text: the bytes, without the newline that ends the line in the file.
        tags: further tags after P or F.
    """

    time_ns: int
    stream: Stream
    partial: bool
    text: bytes
    tags: tuple[str, ...] = ()

    @property
    def output(self) -> bytes:
        """What the container wrote: the text, and its newline unless partial."""
        return self.text if self.partial else self.text + b"\n"


def parse_line(line: bytes) -> LogEntry:
    """One line of a log file, with or without its newline. Raises Corrupt."""
    parts = line.removesuffix(b"\n").split(b" ", 3)
    if len(parts) != 4:
        raise Corrupt("log line has fewer than four fields", line=_shown(line))
    stamp, stream, tags, text = parts
    if stream == b"stdout":
        name: Stream = "stdout"
    elif stream == b"stderr":
        name = "stderr"
    else:
        raise Corrupt("log line names neither stdout nor stderr", line=_shown(line))
    first, *more = tags.decode("ascii", "replace").split(":")
    if first not in {"P", "F"}:
        raise Corrupt("log line has neither tag P nor tag F", line=_shown(line))
    return LogEntry(parse_time(stamp), name, first == "P", text, tuple(more))


def parse_time(stamp: bytes) -> int:
    """RFC 3339 with up to nine decimals -> nanoseconds since the epoch. Raises Corrupt."""
    match = _TIME.fullmatch(stamp)
    if match is None:
        raise Corrupt("log line does not begin with a time", line=_shown(stamp))
    *numbers, fraction, sign, zone_hours, zone_minutes = match.groups()
    offset = timedelta()
    if sign is not None:
        offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
        offset = -offset if sign == b"-" else offset
    year, month, day, hour, minute, second = (int(number) for number in numbers)
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone(offset))
    except ValueError as error:
        raise Corrupt("log line has an impossible time", line=_shown(stamp)) from error
    elapsed = moment - _EPOCH
    seconds = elapsed.days * 86_400 + elapsed.seconds
    return seconds * _NS_PER_S + int((fraction or b"").ljust(9, b"0"))


def format_line(entry: LogEntry) -> bytes:
    """The line as conmon writes it, in UTC; the inverse of `parse_line`."""
    if b"\n" in entry.text:
        raise Corrupt("text of one log line contains a newline", line=_shown(entry.text))
    tags = ":".join(["P" if entry.partial else "F", *entry.tags])
    head = f"{format_time(entry.time_ns)} {entry.stream} {tags} "
    return head.encode() + entry.text + b"\n"


def format_time(time_ns: int) -> str:
    """Nanoseconds since the epoch -> RFC 3339 with nine decimals, UTC."""
    seconds, fraction_ns = divmod(time_ns, _NS_PER_S)
    moment = _EPOCH + timedelta(seconds=seconds)
    # Not strftime: it writes years before 1000 without leading zeros.
    return f"{moment.replace(tzinfo=None).isoformat()}.{fraction_ns:09d}+00:00"


def split_output(data: bytes, *, stream: Stream, time_ns: int, limit_bytes: int) -> list[LogEntry]:
    """Output of a container as log lines, none with more text than `limit_bytes`."""
    entries = []
    for line in _lines(data):
        ended = line.endswith(b"\n")
        text = line.removesuffix(b"\n")
        while len(text) > limit_bytes:
            entries.append(LogEntry(time_ns, stream, True, text[:limit_bytes]))
            text = text[limit_bytes:]
        entries.append(LogEntry(time_ns, stream, not ended, text))
    return entries


def _lines(data: bytes) -> list[bytes]:
    """As splitlines(keepends=True), but only a newline ends a line (bytes also split at CR)."""
    pieces = data.split(b"\n")
    lines = [piece + b"\n" for piece in pieces[:-1]]
    return [*lines, pieces[-1]] if pieces[-1] else lines


def _shown(line: bytes) -> str:
    return repr(line[:80])
