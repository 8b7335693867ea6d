"""All limits or none: the order the kernel wants, what is written back, what is refused before."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sandbox import limits, resize
from sandbox.host.errors import (
    Denied,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from sandbox.limits import Limit
from sandbox.model import Container, ContainerConfig, HugepageLimit, LinuxResources
from sandbox.resize import Resize
from sandbox.states import ContainerState
from tests.fakes.limits import FakeGroup

MEMORY = "memory.limit_in_bytes"
BOTH = "memory.memsw.limit_in_bytes"


def memory(limit, both):
    return [Limit("memory", MEMORY, str(limit)), Limit("memory", BOTH, str(both))]


@pytest.mark.parametrize(("limit", "both"), [(2000, 3000), (300, 400), (1000, 1000), (500, 5000)])
def test_limits_that_depend_on_each_other_move_either_way(limit, both):
    for wanted in (memory(limit, both), memory(limit, both)[::-1]):
        group = FakeGroup()
        limits.set_limits(group, "/c", wanted)
        assert (group.files[MEMORY], group.files[BOTH]) == (str(limit), str(both))


def test_nothing_is_left_of_a_set_that_fails():
    group = FakeGroup(refuse={"cpuset.cpus": {"0-9"}})
    before = dict(group.files)
    wanted = [
        Limit("cpu", "cpu.shares", "5"),
        *memory(2000, 3000),
        Limit("cpuset", "cpuset.cpus", "0-9"),
    ]
    with pytest.raises(InvalidArgument, match="0-9"):
        limits.set_limits(group, "/c", wanted)
    assert group.files == before


def test_the_first_refusal_is_told():
    group = FakeGroup(refuse={"cpu.shares": {"1"}, "cpuset.cpus": {"x"}})
    with pytest.raises(InvalidArgument, match=r"cpu\.shares"):
        limits.set_limits(
            group, "/c", [Limit("cpu", "cpu.shares", "1"), Limit("cpuset", "cpuset.cpus", "x")]
        )


def test_only_what_differs_is_written_back():
    group = FakeGroup()
    before = limits.read_limits(group, "/c", [None])
    group.files["cpu.shares"] = "7"
    assert limits.restore_limits(group, "/c", before)
    assert group.written == [("cpu.shares", "1024")]


def test_a_group_that_is_gone_needs_nothing_back():
    group = FakeGroup()
    before = limits.read_limits(group, "/c", [None])
    group.files.clear()
    assert limits.restore_limits(group, "/c", before)


def test_what_cannot_be_written_back_is_said(caplog):
    group = FakeGroup(refuse={"cpu.shares": {"1024"}})
    before = limits.read_limits(group, "/c", [None])
    group.files["cpu.shares"] = "7"
    assert not limits.restore_limits(group, "/c", before)
    assert "could not be set back" in caplog.text


def test_files_of_both_versions_are_known():
    one = {limit.file for limit in limits.read_limits(FakeGroup(1), "/c", [None])}
    assert {MEMORY, BOTH, "cpu.shares", "cpu.cfs_quota_us", "cpuset.cpus"} <= one
    asked = LinuxResources(
        unified={"memory.high": "1"},
        hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=1),),
    )
    two = {limit.file for limit in limits.read_limits(FakeGroup(2), "/c", [None, asked])}
    assert {"memory.max", "cpu.max", "memory.high", "hugetlb.2MB.max"} <= two


@pytest.mark.parametrize("version", [1, 2])
def test_memory_in_use_is_what_could_not_be_dropped(version):
    group = FakeGroup(version)
    limits.check_memory(group, "/c", 400)
    limits.check_memory(group, "/c", 0)
    limits.check_memory(group, "/c", -1)
    with pytest.raises(FailedPrecondition, match="399 is below the 400 bytes"):
        limits.check_memory(group, "/c", 399)


def test_huge_pages():
    wanted = [HugepageLimit(page_size="2MB", limit_bytes=8)]
    assert limits.hugepage_limits(FakeGroup(1), "/c", wanted) == [
        Limit("hugetlb", "hugetlb.2MB.limit_in_bytes", "8"),
        Limit("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "8"),
    ]
    assert limits.hugepage_limits(FakeGroup(2), "/c", wanted) == [
        Limit("hugetlb", "hugetlb.2MB.max", "8")
    ]
    other = HugepageLimit(page_size="4MB", limit_bytes=0)
    assert limits.hugepage_limits(FakeGroup(1), "/c", [other]) == []
    with pytest.raises(Unsupported, match="4MB"):
        limits.hugepage_limits(FakeGroup(1), "/c", [msgspec.structs.replace(other, limit_bytes=1)])


# The OOM score, on processes of our own.


@pytest.fixture
def sleepers():
    argv = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with (
        subprocess.Popen(argv, stdin=subprocess.PIPE) as one,
        subprocess.Popen(argv, stdin=subprocess.PIPE) as two,
    ):
        yield [one, two]
        one.kill()
        two.kill()


def score(pid):
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_every_process_gets_the_score(sleepers):
    group = FakeGroup()
    group.pids = {process.pid for process in sleepers}
    limits.set_oom_scores(group, "/c", 600)
    assert [score(process.pid) for process in sleepers] == [600, 600]


def test_a_process_that_left_the_group_keeps_its_own(sleepers):
    """Its number may be somebody else's by now."""
    stays, leaves = sleepers

    class Leaving(FakeGroup):
        looks = 0

        def procs(self, path, *, recursive=False):
            self.looks += 1
            return {stays.pid, leaves.pid} if self.looks == 1 else {stays.pid}

    limits.set_oom_scores(Leaving(), "/c", 500)
    assert (score(stays.pid), score(leaves.pid)) == (500, score(os.getpid()))


def test_a_score_that_is_refused_for_one_is_taken_back_from_all(sleepers, tmp_path):
    group = FakeGroup()
    for number, mode in ((1, 0o600), (2, 0o600)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "oom_score_adj").write_text("7\n")
        (tmp_path / str(number) / "oom_score_adj").chmod(mode)
    (tmp_path / "2" / "oom_score_adj").unlink()
    (tmp_path / "2" / "oom_score_adj").symlink_to("/dev/full")
    group.pids = {1, 2}
    with pytest.raises(Exception, match="oom_score_adj"):
        limits.set_oom_scores(group, "/c", 900, proc=tmp_path)
    assert (tmp_path / "1" / "oom_score_adj").read_text().startswith("7\n")


def test_processes_that_ended_are_no_trouble(tmp_path):
    group = FakeGroup()
    group.pids = {4_000_000}
    limits.set_oom_scores(group, "/c", 100, proc=tmp_path)


# The whole resize.


class Runtime:
    """Writes what it is told to, then fails if it is told to."""

    def __init__(self, group, changes, error=None):
        self.group, self.changes, self.error = group, changes, error
        self.updates = []

    async def update(self, cid, document):
        self.updates.append((cid, document))
        for name, value in self.changes.items():
            self.group.write("/c", "", name, value)
        if self.error is not None:
            raise self.error


CONTAINER = Container(
    id="c",
    pod_id="p",
    config=ContainerConfig(name="c"),
    state=ContainerState.RUNNING,
    created_at_ns=1,
    cgroup_path="/c",
)


def change(score=None, **asked):
    wanted = LinuxResources(**asked)
    return Resize(asked=wanted, merged=wanted, document=b"{}", oom_score_adj=score)


async def apply(group, runtime, wanted):
    await resize.apply(CONTAINER, wanted, runtime=runtime, layout=group)


async def test_what_the_runtime_leaves_out_is_done_too(sleepers):
    group = FakeGroup()
    group.pids = {sleepers[0].pid}
    runtime = Runtime(group, {"cpu.shares": "7"})
    pages = (HugepageLimit(page_size="2MB", limit_bytes=4),)
    await apply(group, runtime, change(score=300, cpu_shares=7, hugepage_limits=pages))
    assert runtime.updates == [("c", b"{}")]
    assert (group.files["cpu.shares"], group.files["hugetlb.2MB.limit_in_bytes"]) == ("7", "4")
    assert score(sleepers[0].pid) == 300


@pytest.mark.parametrize("where", ["runtime", "pages", "scores"])
async def test_a_failure_anywhere_leaves_everything_as_it_was(where):
    group = FakeGroup()
    runtime = Runtime(group, {"cpu.shares": "7", BOTH: "2000", MEMORY: "2000"})
    if where == "runtime":
        runtime.error = InvalidArgument("no")
    elif where == "pages":
        group.refuse = {"hugetlb.2MB.rsvd.limit_in_bytes": {"4"}}
    else:
        group.procs = lambda path, *, recursive=False: (_ for _ in ()).throw(Denied("no"))
    before = dict(group.files)
    pages = (HugepageLimit(page_size="2MB", limit_bytes=4),)
    with pytest.raises((InvalidArgument, Denied)):
        await apply(group, runtime, change(score=1, hugepage_limits=pages))
    assert group.files == before


async def test_a_limit_below_what_is_in_use_touches_nothing():
    group = FakeGroup()
    runtime = Runtime(group, {})
    with pytest.raises(FailedPrecondition):
        await apply(group, runtime, change(memory_limit_bytes=399, cpu_shares=7))
    assert (runtime.updates, group.written) == ([], [])


async def test_huge_pages_that_do_not_exist_touch_nothing():
    group = FakeGroup()
    runtime = Runtime(group, {})
    pages = (HugepageLimit(page_size="8KB", limit_bytes=4),)
    with pytest.raises(Unsupported):
        await apply(group, runtime, change(cpu_shares=7, hugepage_limits=pages))
    assert (runtime.updates, group.written) == ([], [])


async def test_a_container_that_ended_meanwhile():
    group = FakeGroup()
    runtime = Runtime(group, {}, NotFound("container does not exist"))
    group_files = group.files
    group_files.clear()
    with pytest.raises(NotFound):
        await apply(group, runtime, change(cpu_shares=7))
