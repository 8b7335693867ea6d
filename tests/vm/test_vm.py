"""What this kernel may lack, run for real in the virtual machine of hack/vm: the short choice.

Where the machine has cgroup v2 and systemd itself, the same tests have run on it anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import probes

TOP = Path(__file__).resolve().parents[2]


#: What hack/vm ends with when Debian's archive does not give what it is made of.
CANNOT_BUILD = 126


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.vm
def test_the_short_choice_passes_with_cgroup_v2_systemd_and_apparmor() -> None:
    if probes.has_version_2_and_systemd():
        pytest.skip("this machine has version 2 and systemd itself: see the next test")
    if reason := probes.no_vm():
        pytest.skip(reason)
    run = ended(TOP / "hack/vm", "test")
    if run.returncode == CANNOT_BUILD:
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, f"{run.stderr[-4000:]}\n{run.stdout[-30_000:]}"
    print(run.stdout[run.stdout.rindex("\n| suite") :])


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.vm
def test_groups_are_right_with_the_systemd_driver_where_it_runs_the_machine() -> None:
    if not probes.has_version_2_and_systemd():
        pytest.skip("no cgroup v2 with systemd here: that is what hack/vm is for")
    run = ended(
        *(sys.executable, "-m", "pytest", "-q", "tests/integration/test_groups.py"),
        PODWRIGHT_TEST_DRIVER="systemd",
    )
    assert run.returncode == 0, run.stdout[-30_000:]


def ended(*argv: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=TOP,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
