"""The daemon's threads come first, and nothing that they start does.

Each in a process of its own: what a process has given itself it cannot take back for others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.host.host_facts import HostFacts

TOP = Path(__file__).parents[3]
AUTOGROUP = Path("/proc/self/autogroup")

HEAD = """
import asyncio, os, threading
from sandbox.host import children, priority
from sandbox.host.processes import HostProcessRunner

def of_group():
    # None in a session without, such as the first, or in a cgroup with its own share.
    return (open("/proc/self/autogroup").read().split() or [None])[-1]

def own():
    return os.getpriority(os.PRIO_PROCESS, 0)

async def of_child(*words):
    argv = ["python3", "-c", *words]
    return (await HostProcessRunner().run(argv)).stdout.decode().split()
"""
#: A child, and a child of that child.
TELL = "import os; print(os.nice(0), flush=True); os.fork() or print(os.nice(0), flush=True)"


def told(text, *, nice=0, session=True):
    """What a new process of that niceness prints, by words."""
    prefix = ["nice", "-n", str(nice)] if nice else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", HEAD + text],
        capture_output=True,
        text=True,
        check=True,
        cwd=TOP,
        start_new_session=session,
    )
    return done.stdout.split()


def slice_of(file):
    """How long a turn of a process is (ns), as text; empty where that is not told."""
    if not file.exists():
        return ""
    return next(iter(re.findall(r"se\.slice *: *(\d+)", file.read_text())), "")


needs_right = pytest.mark.skipif(
    "CAP_SYS_NICE" not in HostFacts.detect().capabilities_effective,
    reason="without CAP_SYS_NICE nobody may come first",
)
needs_groups = pytest.mark.skipif(
    not AUTOGROUP.exists(),
    reason="this kernel does not group by session (CONFIG_SCHED_AUTOGROUP)",
)


@needs_right
def test_threads_come_first_and_programs_and_theirs_as_ever_until_all_do_again():
    text = f"""
parked = threading.Event()
thread = threading.Thread(target=parked.wait)
thread.start()
asyncio.run(of_child("pass"))

def threads():
    return {{os.getpriority(os.PRIO_PROCESS, int(t)) for t in os.listdir("/proc/self/task")}}

print(priority.come_first(), *threads())
print(*asyncio.run(of_child({TELL!r})))
priority.come_as_others()
print(*threads(), *asyncio.run(of_child({TELL!r})))
parked.set()
"""
    assert told(text) == ["True", "-10", "0", "0", "0", "0", "0"]


@needs_right
def test_only_while_many_calls_are_under_way():
    text = """
priority.LINGER_S = 0.01

async def main():
    one = priority.Precedence()
    seen = []
    for number in (1, priority.MANY - 1, priority.MANY, priority.MANY - 1, priority.MANY):
        one.count(number)
        seen.append(own())
    await asyncio.sleep(0.05)
    seen.append(own())
    one.count(1)
    while own() != 0:
        await asyncio.sleep(0.001)
    one.count(priority.MANY)
    print(*seen, own())

asyncio.run(main())
"""
    assert told(text) == ["0", "0", "-10", "-10", "-10", "-10", "-10"]


@needs_right
def test_without_a_descriptor_left_calls_are_counted_all_the_same():
    text = """
import resource
priority.LINGER_S = 0.01
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

async def main():
    one = priority.Precedence()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    one.count(priority.MANY)
    one.count(0)
    await asyncio.sleep(0.05)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    while one._first:
        await asyncio.sleep(0.001)
    print(own())
    one.count(priority.MANY)
    print(own())

asyncio.run(main())
"""
    assert told(text) == ["0", "-10"]


@needs_right
@needs_groups
def test_its_group_by_session_comes_first_and_a_programs_does_not():
    text = """
look = "print(open('/proc/self/autogroup').read().split()[-1])"
print(of_group())
if of_group():
    asyncio.run(of_child("pass"))
    priority.come_first()
    print(of_group(), *asyncio.run(of_child(look)))"""
    seen = told(text)
    if seen == ["None"]:
        pytest.skip("the cgroup of this process has a share of its own, and so no group by session")
    assert seen == ["0", "-10", "0"]


@needs_right
def test_its_turns_are_short_and_a_programs_are_not():
    """As /proc/PID/sched has it, where the kernel has that (CONFIG_SCHED_DEBUG)."""
    if not slice_of(Path("/proc/self/sched")):
        pytest.skip("this kernel does not say how long a turn is, or has no turns of one's own")
    look = """
import pathlib, re
print(*re.findall(r"se.slice *: *([0-9]+)", pathlib.Path("/proc/self/sched").read_text()))"""
    usual = slice_of(Path("/proc/self/sched"))
    text = f"priority.come_first()\n{look}\nprint(*asyncio.run(of_child({look!r})))"
    assert told(text) == ["300000", usual]


@needs_right
@needs_groups
def test_a_session_with_others_in_it_is_left_alone():
    before = told("print(of_group())", session=False)
    text = "print(priority.come_first(), of_group())"
    assert told(text, session=False) == ["True", *before]


def test_a_niceness_that_was_given_is_kept():
    text = f"""
priority.Precedence().count(priority.MANY)
print(own(), *asyncio.run(of_child({TELL!r})))"""
    assert told(text, nice=5) == ["5", "5", "5"]


def test_without_the_right_nothing_changes():
    text = f"""
import ctypes
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(priority.come_first(), own())
print(*asyncio.run(of_child({TELL!r})))
"""
    if os.getuid() != 0:
        pytest.skip("only root can give up rights")
    assert told(text) == ["False", "0", "0", "0"]
