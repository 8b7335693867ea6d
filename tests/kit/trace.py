"""Command line of hack/bench --trace: where the time of one pod's life goes.

The daemon runs under strace, one pod lives, and each call is taken apart: which programs ran and
how long, how long the daemon was in the kernel, and what is left, which is the daemon's own work
and its waits for processors.

Traced calls take longer than untraced ones, most of all at the start of programs: read the parts,
and take the milliseconds from the table of hack/bench.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit.images import make_sets
from tests.kit.measure import BUSYBOX, STEPS, Target, one_life, pull
from tests.kit.registry import running_registry
from tests.kit.runtimes import end_in_order, running

#: What a daemon of containers waits for in the kernel.
CALLS: Final = (
    "execve,mount,umount2,unshare,setns,open_tree,move_mount,mount_setattr,"
    "fsync,fdatasync,syncfs,rmdir,unlink,unlinkat,rename,renameat,renameat2"
)
#: Shorter stays in the kernel are noise (milliseconds).
_LEAST_MS: Final = 0.2

_LINE: Final = re.compile(r"^(?P<pid>\d+) +(?P<at>\d+\.\d+) (?P<rest>.*)$")
_CALL: Final = re.compile(
    r"^(?P<name>\w+)\((?P<text>.*)\) += (?P<result>-?\d+).*<(?P<took>[\d.]+)>$"
)
_UNFINISHED: Final = " <unfinished ...>"
#: The daemon's own start is no program that it runs.
_PROGRAM: Final = re.compile(r'^"(?P<path>[^"]*)", \[(?P<argv>.*)\]')


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time.

    Attributes:
        who: the program's name; empty for the daemon's stay in the kernel.
        what: its sub-command, or the system call.
        begin_s, end_s: wall clock.
    """

    who: str
    what: str
    begin_s: float
    end_s: float

    @property
    def took_ms(self) -> float:
        return (self.end_s - self.begin_s) * 1e3


def spans(lines: Iterable[str], daemon: str = "/bin/podwright") -> list[Span]:
    """What the trace of `strace -f -ttt -T` tells, in the order in which it ended."""
    found: list[Span] = []
    programs: dict[str, tuple[str, str, float]] = {}
    unfinished: dict[str, tuple[float, str]] = {}
    foreign: set[str] = set()
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        pid, at_s, rest = match["pid"], float(match["at"]), match["rest"]
        if rest.startswith(("+++ exited", "+++ killed")):
            if pid in programs:
                found.append(Span(*programs.pop(pid), at_s))
            continue
        if rest.endswith(_UNFINISHED):
            unfinished[pid] = (at_s, rest.removesuffix(_UNFINISHED))
            continue
        begun_s = at_s
        if rest.startswith("<... "):
            begun_s, beginning = unfinished.pop(pid, (at_s, ""))
            rest = beginning + rest.partition(" resumed>")[2]
        call = _CALL.match(rest)
        if call is None:
            continue
        end_s = begun_s + float(call["took"])
        if call["name"] == "execve":
            program = _PROGRAM.match(call["text"])
            if program is None or call["result"] != "0" or program["path"].endswith(daemon):
                continue
            if pid in programs:  # one program became another
                found.append(Span(*programs.pop(pid), end_s))
            programs[pid] = (Path(program["path"]).name, _verb(program["argv"]), end_s)
            foreign.add(pid)
        elif pid not in foreign and (end_s - begun_s) * 1e3 >= _LEAST_MS:
            found.append(Span("", call["name"], begun_s, end_s))
    return found


def _verb(argv: str) -> str:
    """What a program was asked for: its first word that is no option."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', argv)[1:]
    return next((word for word in words if not word.startswith("-")), "")[:40]


def covered_ms(parts: Sequence[Span], begin_s: float, end_s: float) -> float:
    """How much of the time between two moments at least one of the spans takes."""
    total_s, reached_s = 0.0, begin_s
    for part in sorted(parts, key=lambda each: each.begin_s):
        low, high = max(part.begin_s, reached_s), min(part.end_s, end_s)
        if high > low:
            total_s += high - low
            reached_s = high
    return total_s * 1e3


def report(calls: Sequence[Span], parts: Sequence[Span]) -> str:
    """The life of a pod, call by call."""
    lines: list[str] = []
    for call in calls:
        inside = [p for p in parts if _concerns(p, call)]
        programs = covered_ms([p for p in inside if p.who], call.begin_s, call.end_s)
        both = covered_ms(inside, call.begin_s, call.end_s)
        lines.append(
            f"{call.what}: {call.took_ms:.1f} ms; programs {programs:.1f}, "
            f"kernel besides {both - programs:.1f}, the rest {call.took_ms - both:.1f}"
        )
        for part in sorted(inside, key=lambda each: each.begin_s):
            offset_ms = (part.begin_s - call.begin_s) * 1e3
            name = f"{part.who} {part.what}".strip() if part.who else f"kernel: {part.what}"
            lines.append(f"  {offset_ms:8.1f}  {part.took_ms:7.1f}  {name}")
    return "\n".join(lines)


def _concerns(part: Span, call: Span) -> bool:
    """Whether it was under way within the call; what was there before and stays is nobody's."""
    if part.who and part.begin_s < call.begin_s and part.end_s > call.end_s:
        return False
    return part.end_s > call.begin_s and part.begin_s < call.end_s


class _Timed(Target):
    """A target that also notes when each of its calls was."""

    calls: list[Span]

    def timed(self, row, call):  # type: ignore[no-untyped-def]
        begin_s = time.time()
        answer = super().timed(row, call)
        if row in STEPS:
            self.calls.append(Span("", row, begin_s, time.time()))
        return answer


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(prog="hack/bench --trace")
    parser.add_argument("--storage", type=Path, required=True)
    options = parser.parse_args()
    registry = make_sets(options.storage, ["first-pod", "critest"])
    with (
        tempfile.TemporaryDirectory(prefix="podwright-trace-") as work,
        running_registry(registry, Path(work)) as port,
    ):
        trace = Path(work) / "trace"
        wrap = (
            *("strace", "-DDD", "-f", "-ttt", "-T", "-s", "80", "-q"),
            *("-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(trace)),
        )
        with running("podwright", port, wrap=wrap) as runtime:
            target = _Timed(name="podwright", socket=runtime.socket)
            target.calls = []
            pull(target, BUSYBOX)
            for number in range(3):
                one_life(target, f"warm-{number}", note=False)
            target.calls.clear()
            one_life(target, "traced")
        text = trace.read_text(errors="replace")
    print(report(target.calls, spans(text.splitlines())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
