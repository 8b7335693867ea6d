"""How programs are started and watched, seen by strace and by the kernel's own accounts."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from sandbox.host.dirwatch import DirWatch
from sandbox.host.errors import PodwrightError, ResourceExhausted
from sandbox.host.libc import LibcSyscalls
from sandbox.host.processes import HostProcessRunner
from tests import probes
from tests.kit.held import children

pytestmark = pytest.mark.root


STARTER = """
import asyncio
from sandbox.host.processes import HostProcessRunner
async def main():
    runner = HostProcessRunner()
    await runner.run(["/bin/true"], stdin=b"x", pass_fds=[])
    child = await runner.spawn(["/bin/true"])
    await child.wait()
asyncio.run(main())
"""


@pytest.mark.slow
async def test_programs_start_by_vfork_and_end_by_pidfd(tmp_path):
    if reason := probes.no_program("strace"):
        pytest.skip(reason)
    log = tmp_path / "trace"
    watched = "trace=clone,clone3,fork,vfork,execve,pidfd_open,waitid,wait4"
    done = await HostProcessRunner().run(
        ["strace", "-f", "-o", str(log), "-e", watched, sys.executable, "-c", STARTER],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.exit_status == 0, done.message
    text = log.read_text()
    assert not re.search(r"\bfork\(", text.replace("vfork(", ""))
    # Threads are clones too; a process without CLONE_VM would be a fork of the daemon.
    clones = [line for line in text.splitlines() if re.search(r"clone3?\(", line)]
    assert all("CLONE_VM" in line for line in clones), clones
    assert len(re.findall(r"vfork\(|CLONE_VFORK", text)) >= 2
    assert text.count("pidfd_open(") >= 2
    assert "wait4(" not in text
    assert text.count("P_PIDFD") >= 2


async def test_a_program_that_cannot_be_killed_is_let_go_and_reaped_later(monkeypatch):
    """A group in another session escapes the group's signal, as a stuck process escapes its own."""
    from sandbox.host import processes

    # A registry of the session may be among them.
    others = set(children(os.getpid()))
    monkeypatch.setattr(processes, "KILL_WAIT_S", 0.05)
    monkeypatch.setattr("sandbox.host.children.os.killpg", lambda *_: None)
    with pytest.raises(PodwrightError, match="did not end"):
        await HostProcessRunner().run(["sleep", "1000"], timeout_s=0.05)
    monkeypatch.undo()
    (stuck,) = set(children(os.getpid())) - others
    os.kill(stuck, signal.SIGKILL)
    while set(children(os.getpid())) - others:  # noqa: ASYNC110 - the kernel sets no Event
        await asyncio.sleep(0.001)


@pytest.mark.cell("FD2")
async def test_inotify_instances_used_up(tmp_path):
    calls = LibcSyscalls()
    held = []
    try:
        try:
            while True:
                held.append(calls.inotify_init1())
        except ResourceExhausted:
            pass
        watch = DirWatch.open(tmp_path)
        assert watch.polling
        (tmp_path / "exit-file").write_text("0")
        assert (await anext(watch))[1] == "exit-file"
        watch.close()
    finally:
        for fd in held:
            os.close(fd)
