"""Real programs, no root: whatever a helper program may do, the runner comes back."""

import asyncio
import os
import resource
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.host.errors import (
    DeadlineExceeded,
    Denied,
    InvalidArgument,
    NotFound,
    PodwrightError,
    ResourceExhausted,
)
from sandbox.host.pidfd import is_zombie
from sandbox.host.processes import MINIMAL_ENV, Finished, HostProcessRunner
from tests.kit.held import children

KIB = 1024


class ToolFailed(PodwrightError):
    """What a caller gives as `check`."""


@pytest.fixture
def runner():
    return HostProcessRunner()


def gone(pid: int) -> bool:
    # In this order: it may be reaped in between.
    return is_zombie(pid) or not exists(pid)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the kernel sets no Event
        await asyncio.sleep(0.001)


async def test_output_status_and_time(runner):
    done = await runner.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.exit_status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert done.took_ns > 0
    assert not done.stdout_truncated
    assert not done.pipe_held
    assert done.replay == "sh -c 'echo out; echo err >&2; exit 3'"


async def test_a_signal_is_a_negative_status(runner):
    assert (await runner.run(["sh", "-c", "kill -TERM $$"])).exit_status == -signal.SIGTERM


async def test_input_of_any_size_is_there_and_need_not_be_read(runner):
    content = os.urandom(3 * KIB * KIB)
    echoed = await runner.run(["cat"], stdin=content, output_limit_bytes=4 * KIB * KIB)
    assert echoed.stdout == content
    assert (await runner.run(["true"], stdin=content)).exit_status == 0
    assert (await runner.run(["cat"])).stdout == b""


async def test_the_daemons_environment_stays_with_the_daemon(runner, monkeypatch):
    monkeypatch.setenv("CANARY", "secret")
    done = await runner.run(["env"], env={"CNI_COMMAND": "ADD"})
    lines = set(done.stdout.decode().splitlines())
    assert lines == {f"{k}={v}" for k, v in MINIMAL_ENV.items()} | {"CNI_COMMAND=ADD"}


async def test_the_daemons_umask_stays_with_the_daemon(runner):
    before = os.umask(0o077)
    try:
        finished = await runner.run(["sh", "-c", "umask"])
    finally:
        os.umask(before)
    assert finished.stdout == b"0022\n"


async def test_a_session_of_its_own_and_the_root_as_directory(runner, tmp_path):
    done = await runner.run(["sh", "-c", "ps -o sid= -p $$; echo $$; pwd"])
    session, pid, directory = done.stdout.split()
    assert session == pid
    assert int(session) != os.getsid(0)
    assert directory == b"/"
    done = await runner.run(["pwd"], cwd=tmp_path)
    assert done.stdout.decode().strip() == str(tmp_path)


async def test_only_the_descriptors_named_are_passed_and_keep_their_numbers(runner):
    read, write = os.pipe()
    other = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(other, True)
    try:
        done = await runner.run(["sh", "-c", "exec ls /proc/self/fd"], pass_fds=[write])
        assert {int(n) for n in done.stdout.split()} == {0, 1, 2, 3, write}  # 3: of the listing
        await runner.run(["bash", "-c", f"echo hello >&{write}"], pass_fds=[write])
        assert os.read(read, 16) == b"hello\n"
    finally:
        for fd in (read, write, other):
            os.close(fd)


async def test_check_raises_what_was_asked_with_the_programs_last_words(runner):
    with pytest.raises(ToolFailed, match="sh failed with exit status 7: no such thing") as caught:
        await runner.run(["sh", "-c", "echo 'no  such\nthing' >&2; exit 7"], check=ToolFailed)
    assert caught.value.replay.startswith("sh -c")
    with pytest.raises(ToolFailed, match="signal 9: no message"):
        await runner.run(["sh", "-c", "kill -9 $$"], check=ToolFailed)
    with pytest.raises(ToolFailed, match="said on stdout"):
        await runner.run(["sh", "-c", "echo said on stdout; exit 1"], check=ToolFailed)


async def test_time_over_kills_the_whole_group(runner, tmp_path):
    fifo = tmp_path / "pids"
    script = f"sleep 1000 & echo $! $$ > {fifo}; wait"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # As often as it takes a busy machine to let the script come to its second word in time.
        for timeout_s in (0.2, 1.0, 5.0, 25.0):
            with pytest.raises(DeadlineExceeded, match="sh did not end within"):
                await runner.run(["sh", "-c", script], timeout_s=timeout_s)
            if pids := [int(pid) for pid in os.read(reader, 100).split()]:
                break
    finally:
        os.close(reader)
    assert len(pids) == 2
    await until(lambda: all(gone(pid) for pid in pids))
    await until(lambda: not exists(pids[1]))  # the child itself is reaped


async def test_cancelling_kills_and_reaps(runner, tmp_path):
    mark = tmp_path / "pid"
    task = asyncio.ensure_future(runner.run(["sh", "-c", f"echo $$ > {mark}; exec sleep 1000"]))
    await until(lambda: mark.exists() and mark.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(int(mark.read_text()))
    await until(lambda: not exists(int(mark.read_text())))


async def test_a_grandchild_that_holds_the_pipe_is_waited_for_only_so_long(runner):
    done = await runner.run(["sh", "-c", "sleep 1000 & echo $!"], drain_s=0.02)
    grandchild = int(done.stdout)
    try:
        assert done.exit_status == 0
        assert done.pipe_held
        assert not gone(grandchild)
    finally:
        os.kill(grandchild, signal.SIGKILL)


async def test_what_a_grandchild_says_within_the_drain_time_is_kept(runner):
    done = await runner.run(["sh", "-c", "(sleep 0.02; echo late) & exit 0"], drain_s=10.0)
    assert done.stdout == b"late\n"
    assert not done.pipe_held


async def test_endless_output_is_cut_off_by_killing(runner):
    with pytest.raises(ResourceExhausted, match="yes wrote more than 65536 bytes"):
        await runner.run(["yes"], output_limit_bytes=64 * KIB)
    with pytest.raises(ResourceExhausted):
        await runner.run(["sh", "-c", "yes >&2"], output_limit_bytes=64 * KIB)


async def test_output_that_floods_after_the_end_is_cut_off_too(runner):
    with pytest.raises(ResourceExhausted):
        await runner.run(["sh", "-c", "yes & exit 0"], output_limit_bytes=64 * KIB, drain_s=60)


async def test_truncation_reads_on_and_keeps_the_beginning(runner):
    done = await runner.run(
        ["sh", "-c", "head -c 300000 /dev/zero; echo end >&2"],
        output_limit_bytes=1000,
        truncate=True,
    )
    assert (done.exit_status, done.stdout, done.stderr) == (0, bytes(1000), b"end\n")
    assert done.stdout_truncated


async def test_exactly_the_limit_is_fine(runner):
    done = await runner.run(["head", "-c", "1000", "/dev/zero"], output_limit_bytes=1000)
    assert len(done.stdout) == 1000
    assert not done.stdout_truncated


async def test_programs_that_cannot_be_started(runner, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    with pytest.raises(NotFound, match="install it"):
        await runner.run(["/no/such/program"])
    with pytest.raises(NotFound, match="no-such-program"):
        await runner.run(["no-such-program"])
    with pytest.raises(NotFound, match="/no/such/dir"):
        await runner.run(["true"], cwd=Path("/no/such/dir"))
    with pytest.raises(Denied):
        await runner.run([str(plain)])


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ([], {}),
        ([""], {}),
        (["true", "a\0b"], {}),
        (["true", "\ud800"], {}),
        (["true"], {"env": {"A": "b\0"}}),
        (["true"], {"env": {"A=B": "c"}}),
        (["true"], {"pass_fds": [1]}),
        (["true", *["x" * 100_000] * 40], {}),
    ],
)
async def test_arguments_that_cannot_be_passed(runner, argv, options):
    with pytest.raises(InvalidArgument):
        await runner.run(argv, **options)


async def test_no_descriptors_left_is_said_so_and_leaves_nothing(runner):
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, before))
    # Between the first pipe and the spare descriptor, whatever the number free is.
    for room in range(1, 9):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room, hard))
        try:
            with suppress(ResourceExhausted):
                await runner.run(["true"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors() == before


async def test_many_at_once_leave_no_zombie_and_no_descriptor(runner):
    await runner.run(["true"])
    before, others = descriptors(), children(os.getpid())  # a whole run has a registry of its own
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(runner.run(["sh", "-c", f"exit {n}"])) for n in range(50)]
    assert [task.result().exit_status for task in tasks] == list(range(50))
    assert descriptors() == before
    await until(lambda: set(children(os.getpid())) <= set(others))


async def test_spawned_programs_run_on_and_are_reaped_without_anybody_waiting(runner):
    read, write = os.pipe()
    child = await runner.spawn(["sh", "-c", "echo $$; exec cat"], stdin_fd=read, stdout_fd=None)
    assert child.pidfd >= 0
    assert exists(child.pid)
    os.close(read)
    os.close(write)  # cat sees the end of its input
    await until(lambda: not exists(child.pid))
    assert child.pidfd == -1
    assert await child.wait() == 0
    assert not child.kill_group()


async def test_spawned_programs_can_be_signalled_and_awaited_by_several(runner):
    child = await runner.spawn(["sleep", "1000"])
    waiters = [asyncio.ensure_future(child.wait()) for _ in range(3)]
    waiters[0].cancel()
    await asyncio.sleep(0)
    assert child.kill_group(signal.SIGTERM)
    assert await asyncio.gather(*waiters[1:]) == [-signal.SIGTERM] * 2


async def test_the_loop_goes_on_while_the_kernel_takes_long_to_reap(runner, monkeypatch):
    waiting, go_on = threading.Event(), threading.Event()
    real = os.waitid

    def slow(kind, number, options):
        if not options & os.WNOWAIT:
            waiting.set()
            assert go_on.wait(30)
        return real(kind, number, options)

    monkeypatch.setattr("sandbox.host.children.os.waitid", slow)
    try:
        assert (await runner.run(["true"])).exit_status == 0
        child = await runner.spawn(["true"])
        assert await child.wait() == 0
        await until(waiting.is_set)
        assert child.pidfd == -1
        assert exists(child.pid), "it waits for its turn"
    finally:
        go_on.set()
    await until(lambda: not exists(child.pid))


async def test_somebody_else_reaping_is_not_a_hang(runner):
    child = await runner.spawn(["sh", "-c", "exit 5"])
    os.waitpid(child.pid, 0)  # noqa: ASYNC222 - before the loop can look
    assert await child.wait() == 255


def test_a_message_is_one_line_of_the_end():
    done = Finished(("x",), 1, b"ignored", b"a" * 5000 + b"\nlast \xff\n", took_ns=1)
    assert done.message.endswith("a last �")
    assert len(done.message) < 2100
