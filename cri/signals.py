"""Signals by name and number: what an image says (STOPSIGNAL), what CRI says, what kill(2) takes.

An image may write `SIGTERM`, `TERM`, `term`, `15`, `SIGRTMIN+3` or `RTMAX-1`; CRI has an enum whose
numbers are its own. Here a signal is its Linux number; the names that CRI's enum uses, without its
`SIGNAL_` prefix and with PLUS and MINUS spelt out, are translated by this table alone.

Real-time signals are counted from 34 as glibc and Go do (signal(7): the kernel's first two belong
to the threading library), so SIGRTMIN+15 is 49, SIGRTMAX-14 is 50 and SIGRTMAX is 64.
"""

from __future__ import annotations

import re
import signal
from typing import Final

from sandbox.host.errors import InvalidArgument

_RT_MIN: Final = 34
_RT_MAX: Final = 64
_RT = re.compile(r"(RTMIN|RTMAX)(?:(\+|-|PLUS|MINUS)(\d{1,2}))?")

#: Names of the standard signals, aliases included (SIGCLD, SIGIOT, SIGPOLL).
_STANDARD: Final = {
    name.removeprefix("SIG"): int(number)
    for name, number in signal.Signals.__members__.items()
    if not name.startswith("SIGRT")
} | {"CLD": 17, "IOT": 6, "POLL": 29, "STKFLT": 16}

#: The preferred name of each number; aliases come back as what they stand for.
_NAMES: Final = {
    int(number): str(number.name)
    for number in signal.Signals
    if not number.name.startswith("SIGRT")
} | {16: "SIGSTKFLT"}


def parse_signal(text: str, *, field: str = "stop signal") -> int:
    """The number of a signal named in any of the usual ways.

    Raises:
        InvalidArgument: no such signal, or a number outside 1 to 64.
    """
    word = text.strip().upper().removeprefix("SIG")
    number = _STANDARD.get(word)
    if number is None and word.isascii() and word.isdigit() and len(word) <= len("64"):
        number = int(word)
    if number is None and (match := _RT.fullmatch(word)) is not None:
        base = _RT_MIN if match[1] == "RTMIN" else _RT_MAX
        offset = int(match[3] or 0)
        backwards = match[2] in {"-", "MINUS"}
        # SIGRTMIN-1 and SIGRTMAX+1 do not exist; the range check below refuses both.
        number = base - offset if backwards else base + offset
        if not _RT_MIN <= number <= _RT_MAX:
            number = None
    if number is None or not 1 <= number <= _RT_MAX:
        raise InvalidArgument(f"{field}: {text[:64]!r} is not a signal")
    return number


def signal_name(number: int) -> str:
    """The name of a signal number, such as SIGTERM or SIGRTMIN+3; empty for what is none.

    The upper half of the real-time range is counted from SIGRTMAX, as CRI's enum does.
    """
    if name := _NAMES.get(number):
        return name
    if number == _RT_MIN:
        return "SIGRTMIN"
    if _RT_MIN < number <= _RT_MIN + 15:
        return f"SIGRTMIN+{number - _RT_MIN}"
    if _RT_MAX - 14 <= number < _RT_MAX:
        return f"SIGRTMAX-{_RT_MAX - number}"
    return "SIGRTMAX" if number == _RT_MAX else ""
