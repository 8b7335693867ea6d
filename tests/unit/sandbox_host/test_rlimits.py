"""How high resource limits can be set."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from sandbox.host.processes import HostProcessRunner
from sandbox.host.rlimits import OpenFiles, rlimit_ceilings


def test_without_the_capability_the_own_hard_limits_are_the_ceiling(tmp_path):
    (tmp_path / "nr_open").write_text(f"{2**62}\n")
    ceilings = rlimit_ceilings(may_raise=False, nr_open=tmp_path / "nr_open")
    for name in ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_STACK"):
        hard = resource.getrlimit(getattr(resource, name))[1]
        assert ceilings[name] == (2**64 - 1 if hard == -1 and name != "RLIMIT_NOFILE" else hard)


def test_with_it_only_the_kernels_bound_on_open_files_is_left(tmp_path):
    (tmp_path / "nr_open").write_text("1000\n")
    ceilings = rlimit_ceilings(may_raise=True, nr_open=tmp_path / "nr_open")
    assert ceilings == {"RLIMIT_NOFILE": 1000}
    assert rlimit_ceilings(may_raise=True, nr_open=tmp_path / "none") == {}
    assert rlimit_ceilings(may_raise=False, nr_open=tmp_path / "nr_open")["RLIMIT_NOFILE"] <= 1000


PROGRAM = """
import resource
from sandbox.host.rlimits import raise_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
old = raise_open_files()
print(old.soft, old.hard, *resource.getrlimit(resource.RLIMIT_NOFILE), raise_open_files())
"""


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["256", "512", "512", "512", "None"], done.stderr


async def test_programs_get_the_limit_that_the_daemon_had():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    runner = HostProcessRunner(open_files=OpenFiles(min(soft, 77), hard))
    script = "read line; ulimit -S -n; ulimit -H -n"
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    try:
        child = await runner.spawn(["sh", "-c", script], stdin_fd=read, stdout_fd=out_write)
        os.write(write, b"go\n")
        assert await child.wait() == 0
        assert os.read(out_read, 64).decode().split() == ["77", str(hard)]
    finally:
        for fd in (read, write, out_read, out_write):
            os.close(fd)
