"""The grammars of control group files (kernel's cgroup-v2.rst, "Format"; accounting/psi.rst). Pure.

Units stay the file's own: cpu.stat of version 2 counts microseconds, cpuacct.usage of version 1
nanoseconds. Who reads a file names the unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.host.errors import Corrupt


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of a pressure file: shares of time in percent, and the total in microseconds."""

    avg10_percent: float
    avg60_percent: float
    avg300_percent: float
    total_usec: int


def flat_keyed(text: str) -> dict[str, int]:
    """`KEY VALUE` lines; what is no such pair is left out, new kernels add kinds of lines."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdecimal() or (value.startswith("-") and value[1:].isdecimal()):
            values[key] = int(value)
    return values


def nested_keyed(text: str) -> dict[str, dict[str, int]]:
    """`KEY SUB=VALUE SUB=VALUE` lines (io.stat, memory.numa_stat); "max" is left out."""
    values: dict[str, dict[str, int]] = {}
    for key, *pairs in filter(None, map(str.split, text.splitlines())):
        inner = values.setdefault(key, {})
        for pair in pairs:
            name, _, value = pair.partition("=")
            if value.isdecimal():
                inner[name] = int(value)
    return values


def max_or_int(text: str) -> int | None:
    """A limit; None for "max".

    Raises:
        Corrupt: neither a number nor "max".
    """
    word = text.strip()
    if word == "max":
        return None
    try:
        return int(word)
    except ValueError as error:
        raise Corrupt("cgroup limit is not a number", value=word[:64]) from error


def psi(text: str) -> dict[str, Pressure]:
    """Pressure by kind, "some" and "full"; a line that cannot be read is left out."""
    found: dict[str, Pressure] = {}
    for kind, *pairs in filter(None, map(str.split, text.splitlines())):
        values = dict(pair.partition("=")[::2] for pair in pairs)
        try:
            found[kind] = Pressure(
                avg10_percent=float(values["avg10"]),
                avg60_percent=float(values["avg60"]),
                avg300_percent=float(values["avg300"]),
                total_usec=int(values["total"]),
            )
        except (KeyError, ValueError):
            continue
    return found
