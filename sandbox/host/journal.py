"""One line per event: a short event name and fields, as key=value for people or as JSON.

Built on the standard `logging`, so that what libraries log comes out in the same form. Secrets are
redacted here, at the last moment before they would leave the process: by field name, and inside
text wherever a URL carries a user part or a query. A value that is too long is cut, a line break
inside a value is escaped, so one event stays one line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TextIO

from sandbox.host.clock import SystemClock
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandbox.host.clock import Clock

Value = object
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
REDACTED: Final = "[redacted]"
#: Longest text of one value, in characters.
VALUE_LIMIT: Final = 4096
#: Field names whose value is never written: credentials, and environments, which hold them.
_SECRET_NAME: Final = re.compile(
    r"passw|passphrase|secret|token|credential|authorization|cookie|api_?key|private_?key"
    r"|(^|_)(auth|envs?|environ(ment)?)($|_)",
    re.IGNORECASE,
)
# Each of these moves over a character once: what is logged may be somebody's 64 KiB of anything.
_URL: Final = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://[^\s\"']++", re.IGNORECASE)
_URL_USER: Final = re.compile(r"(://)[^/@]++@")
#: The same without a scheme, as people write it before an image's name; `name:tag@sha256:` is none.
_BARE_USER: Final = re.compile(r"[^\s/@'\"`:]{1,256}+:[^\s/@'\"`]{1,1024}+@(?!sha(?:256|512):)")
_BEARER: Final = re.compile(r"\b(bearer|basic)\s++[A-Za-z0-9._~+/=-]{8,}+", re.IGNORECASE)
_BARE: Final = re.compile(r"[A-Za-z0-9_./:@+,%-]+")
_FIELDS: Final = "podwright_fields"


def redact_text(text: str) -> str:
    """`text` without user parts and queries of URLs and without authorization values.

    No query is let through, and of no URL a user part: there is no list of names that are secret,
    which would always lack one.
    """
    if "://" in text:
        text = _URL.sub(_public_url, text)
    if "@" in text:
        text = _BARE_USER.sub(f"{REDACTED}@", text)
    return _BEARER.sub(rf"\1 {REDACTED}", text)


def _public_url(match: re.Match[str]) -> str:
    # User parts first: a password may hold a question mark.
    head, mark, _ = _URL_USER.sub(rf"\1{REDACTED}@", match[0]).partition("?")
    return head + (mark and f"?{REDACTED}")


def _plain(name: str, value: Value) -> str | int | float | bool | None:
    """`value` as it may be written under `name`."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    # Twice what is shown is looked at: where a secret was cut off, nothing is shown any more.
    text = redact_text(text[: 2 * VALUE_LIMIT])
    return text if len(text) <= VALUE_LIMIT else text[:VALUE_LIMIT] + "…"


def _entries(record: logging.LogRecord) -> dict[str, str | int | float | bool | None]:
    stamp = datetime.fromtimestamp(record.created, UTC)
    entries: dict[str, str | int | float | bool | None] = {
        "time": stamp.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": _plain("event", record.getMessage()),
    }
    fields: Mapping[str, Value] = getattr(record, _FIELDS, {})
    for name, value in fields.items():
        entries[name] = _plain(name, value)
        if isinstance(value, PodwrightError) and value.replay:
            entries[f"{name}_replay"] = _plain("replay", value.replay)
    if record.exc_info and record.exc_info[1] is not None:
        trace = logging.Formatter().formatException(record.exc_info)
        entries["trace"] = _plain("trace", trace)
    return entries


class KeyValueFormatter(logging.Formatter):
    """`time level event key=value ...`; values that need it are quoted as JSON strings."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entries = _entries(record)
        head = f"{entries.pop('time')} {entries.pop('level')} {entries.pop('logger')}: "
        event = str(entries.pop("event")).replace("\n", "\\n")
        return head + event + "".join(f" {k}={_quoted(v)}" for k, v in entries.items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return json.dumps(_entries(record), ensure_ascii=False)


def _quoted(value: str | int | float | bool | None) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class BoundLogger:
    """A logger with fields that every event of it carries."""

    def __init__(self, name: str, fields: Mapping[str, Value] | None = None) -> None:
        self._logger = logging.getLogger(name)
        self._fields: Mapping[str, Value] = dict(fields or {})

    def bind(self, **fields: Value) -> BoundLogger:
        """The same logger with more fields."""
        return BoundLogger(self._logger.name, {**self._fields, **fields})

    def debug(self, event: str, **fields: Value) -> None:
        """For the person who looks for a fault here."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Value) -> None:
        """What the operator of a healthy node may want to know."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Value) -> None:
        """Something failed and was worked around, or will be tried again."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, exc_info: bool = False, **fields: Value) -> None:
        """Something failed for good; `exc_info` adds the trace of the exception being handled."""
        self._write(logging.ERROR, event, fields, exc_info=exc_info)

    def _write(
        self, level: int, event: str, fields: Mapping[str, Value], *, exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            extra = {_FIELDS: {**self._fields, **fields}}
            self._logger.log(level, "%s", event, extra=extra, exc_info=exc_info)

    @contextmanager
    def step(self, event: str, *, clock: Clock | None = None, **fields: Value) -> Iterator[None]:
        """Log `event` as started and completed (debug) or failed (warning), with its time.

        The exception goes on: whoever handles it decides whether it is an error.
        """
        clock = clock or SystemClock()
        logger = self.bind(**fields)
        began_ns = clock.monotonic_ns()
        logger.debug(f"{event}: started")
        try:
            yield
        except BaseException as error:
            took_ms = (clock.monotonic_ns() - began_ns) // 1_000_000
            logger.warning(f"{event}: failed", took_ms=took_ms, error=error)
            raise
        logger.debug(f"{event}: completed", took_ms=(clock.monotonic_ns() - began_ns) // 1_000_000)


def get_logger(name: str) -> BoundLogger:
    """The logger of a module; `name` is its `__name__`."""
    return BoundLogger(name)


def configure(level: str = "info", json: bool = False, stream: TextIO | None = None) -> None:
    """Send every event of `level` and above to `stream` (standard error) as lines. Repeatable.

    Raises:
        KeyError: `level` is not one of LEVELS.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json else KeyValueFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, _FIELDS, False):
            root.removeHandler(old)
    setattr(handler, _FIELDS, True)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)
