"""How a session ended, and how large a terminal is: the JSON and text that go over the streams.

The error stream of the protocols from v4 on carries one Kubernetes `Status` document; older ones
carry text, and nothing for success. Sizes come on the resize stream as JSON objects, with or
without line ends between them, cut anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

#: Longest text of a failure sent to a client.
TEXT_LIMIT: Final = 2048
#: A size is some thirty bytes; what has grown to this without being one is dropped.
_SIZE_LIMIT_BYTES: Final = 256
#: ws_row and ws_col are unsigned short (ioctl_tty(2)).
SIZE_LIMIT: Final = 65_535

#: With its braces at most `_SIZE_LIMIT_BYTES`, so that it makes no difference where it was cut.
_OBJECT: Final = re.compile(rb"\{[^{}]{0,254}\}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a session.

    Attributes:
        exit_code: of the command; None where there was none to tell.
        failure: what went wrong on our side; empty when nothing did.
    """

    exit_code: int | None = None
    failure: str = ""

    @property
    def success(self) -> bool:
        """Nothing to complain about."""
        return not self.failure and not self.exit_code


class _Cause(msgspec.Struct, omit_defaults=True):
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause]


class _Status(msgspec.Struct, omit_defaults=True):
    status: str
    message: str = ""
    reason: str = ""
    details: _Details | None = None
    code: int = 0
    metadata: dict[str, str] | None = None


def status_json(verdict: Verdict) -> bytes:
    """The document of the error stream, protocols v4 and v5."""
    if verdict.failure:
        status = _Status(
            status="Failure",
            message=_text(verdict),
            reason="InternalError",
            details=_Details([_Cause(message=verdict.failure[:TEXT_LIMIT])]),
            code=500,
            metadata={},
        )
    elif verdict.exit_code:
        status = _Status(
            status="Failure",
            message=_text(verdict),
            reason="NonZeroExitCode",
            details=_Details([_Cause(reason="ExitCode", message=str(verdict.exit_code))]),
            metadata={},
        )
    else:
        status = _Status(status="Success", metadata={})
    return msgspec.json.encode(status)


def status_text(verdict: Verdict) -> bytes:
    """What the error stream carries in the protocols before v4; empty for success."""
    return b"" if verdict.success else _text(verdict).encode()


def _text(verdict: Verdict) -> str:
    if verdict.failure:
        return verdict.failure[:TEXT_LIMIT]
    return f"command terminated with exit code {verdict.exit_code}"


class _Size(msgspec.Struct, rename={"width": "Width", "height": "Height"}):
    width: int
    height: int


class SizeReader:
    """Terminal sizes out of a stream of bytes that is cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """(columns, rows) of every object that is now complete; what is no size is passed over."""
        text = self._rest + data
        sizes = []
        end = 0
        for match in _OBJECT.finditer(text):
            end = match.end()
            size = _parse(match.group())
            if size is not None:
                sizes.append(size)
        self._rest = text[end:][-_SIZE_LIMIT_BYTES:]
        return sizes


def _parse(text: bytes) -> tuple[int, int] | None:
    try:
        size = msgspec.json.decode(text, type=_Size)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if 0 < size.width <= SIZE_LIMIT and 0 < size.height <= SIZE_LIMIT:
        return size.width, size.height
    return None
