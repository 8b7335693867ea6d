"""What processes hold open, counted on this very process."""

import os
import resource
import socket
import subprocess

from metrics.process_stats import open_files_limit, open_files_limit_from, read_processes


def test_descriptors_and_sockets_of_this_process():
    before = read_processes([os.getpid()], os.getpid())
    one, other = socket.socketpair()
    with one, other:
        after = read_processes([os.getpid()], os.getpid())
    assert after.file_descriptors == before.file_descriptors + 2
    assert after.sockets == before.sockets + 2


def test_processes_that_are_gone_count_nothing():
    stats = read_processes([4_000_000], 4_000_000)
    assert (stats.file_descriptors, stats.sockets, stats.open_files_soft) == (0, 0, None)


def test_the_soft_limit():
    process = subprocess.Popen(["sh", "-c", "ulimit -Sn 123; echo; exec sleep 100"], stdout=-1)
    assert process.stdout.readline() == b"\n"
    try:
        assert open_files_limit(process.pid) == 123
        assert open_files_limit_from(f"/proc/{process.pid}/limits") == 123
    finally:
        process.kill()
        process.communicate()
    assert open_files_limit(0) is None
    assert open_files_limit(4_000_000) is None


def test_where_the_limit_may_not_be_asked_for_it_is_read(monkeypatch):
    def refuse(pid, which):
        raise PermissionError

    expected = open_files_limit(os.getpid())
    monkeypatch.setattr(resource, "prlimit", refuse)
    assert open_files_limit(os.getpid()) == expected > 0


def test_no_limit_is_none(tmp_path):
    limits = tmp_path / "limits"
    limits.write_text("Max open files            unlimited            unlimited            files\n")
    assert open_files_limit_from(str(limits)) is None
    assert open_files_limit_from(str(tmp_path / "none")) is None
