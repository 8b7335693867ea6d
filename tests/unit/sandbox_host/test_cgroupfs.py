"""Layout and paths on made-up trees; what only a kernel can answer is in tests/host."""

import os
import signal
from pathlib import Path

import pytest

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.host.mountinfo import parse_mountinfo
from tests.fakes.clock import FakeClock
from tests.fakes.syscalls import FakeSyscalls

HYBRID = b"""31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
AT = Path("/sys/fs/cgroup")


def test_a_hybrid_machine_is_version_1():
    layout = CgroupLayout.detect(parse_mountinfo(HYBRID))
    assert layout.version == 1
    assert layout.hybrid
    assert layout.available == {"cpu", "cpuacct", "cpuset", "memory"}
    assert layout.controllers["cpu"] == layout.controllers["cpuacct"] == AT / "cpu,cpuacct"
    assert layout.controllers["name=systemd"] == AT / "systemd"
    assert "clone_children" not in layout.controllers
    assert layout.dirs("/podwright/p1") == [
        AT / "cpu,cpuacct/podwright/p1",
        AT / "cpuset/podwright/p1",
        AT / "memory/podwright/p1",
        AT / "systemd/podwright/p1",
        AT / "unified/podwright/p1",
    ]


def test_one_tree_is_version_2(v2):
    layout = CgroupLayout.detect(
        parse_mountinfo(f"26 23 0:23 / {v2} rw - cgroup2 cgroup2 rw,nsdelegate\n".encode())
    )
    assert layout.version == 2
    assert not layout.hybrid
    assert layout.available == {"cpu", "memory", "pids"}
    assert layout.root == v2


def test_only_the_systemd_hierarchy_beside_cgroup2_is_version_2(v2):
    lines = f"""26 23 0:23 / {v2} rw - cgroup2 cgroup2 rw
27 23 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
"""
    assert CgroupLayout.detect(parse_mountinfo(lines.encode())).version == 2


def test_no_hierarchy_at_all():
    with pytest.raises(Unsupported):
        CgroupLayout.detect([])


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    return tmp_path


@pytest.fixture
def layout(v2):
    return CgroupLayout(2, {}, v2, frozenset({"cpu", "memory", "pids"}))


@pytest.mark.parametrize("path", ["", "relative", "/a/../b", "/..", "/a/./b", "/a\0b", "../x"])
def test_paths_that_lead_elsewhere_are_refused(layout, path):
    for call in (layout.dirs, layout.create, layout.remove, layout.procs, layout.kill_all):
        with pytest.raises(InvalidArgument):
            call(path)
    with pytest.raises(InvalidArgument):
        layout.read(path, "memory", "memory.events")


@pytest.mark.parametrize("path", ["/", "//"])
def test_the_root_is_never_made_removed_or_killed(layout, path):
    for call in (layout.create, layout.remove, layout.kill_all):
        with pytest.raises(InvalidArgument):
            call(path)


def test_creating_says_what_is_new_and_enables_controllers(layout, v2):
    assert layout.create("/podwright/p1") == [v2 / "podwright", v2 / "podwright/p1"]
    assert layout.create("/podwright/p2") == [v2 / "podwright/p2"]
    assert layout.create("/podwright/p2") == []
    # The last write wins in a plain file; the kernel would have taken each.
    assert (v2 / "cgroup.subtree_control").read_text().startswith("+pids")


def test_removing_is_bottom_up_and_idempotent(layout, v2):
    (v2 / "podwright/p1/c1/inner").mkdir(parents=True)
    (v2 / "podwright/p2").mkdir()
    assert layout.remove("/podwright/p1")
    assert [d.name for d in (v2 / "podwright").iterdir()] == ["p2"]
    assert not layout.remove("/podwright/p1", clock=FakeClock())


def test_version_1_cpusets_are_copied_down(tmp_path):
    cpuset, memory = tmp_path / "cpuset", tmp_path / "memory"
    cpuset.mkdir()
    memory.mkdir()
    (cpuset / "cpuset.cpus").write_text("0-1\n")
    (cpuset / "cpuset.mems").write_text("0\n")
    layout = CgroupLayout(1, {"cpuset": cpuset, "memory": memory}, None, frozenset({"cpuset"}))
    # A plain directory has no files of its own; the kernel's are empty.
    for each in ("podwright", "podwright/p1"):
        (cpuset / each).mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            (cpuset / each / name).write_text("\n")
    layout.create("/podwright/p1")
    assert (cpuset / "podwright/p1/cpuset.cpus").read_text().strip() == "0-1"
    assert (memory / "podwright/p1").is_dir()


def test_reading_what_is_not_there_is_none_and_writing_it_is_an_error(layout, tmp_path):
    assert layout.read("/podwright", "memory", "memory.current") is None
    version_1 = CgroupLayout(1, {"memory": tmp_path}, None, frozenset({"memory"}))
    assert version_1.read("/x", "pids", "pids.max") is None
    with pytest.raises(Unsupported, match="pids"):
        version_1.write("/x", "pids", "pids.max", "1")


def test_oom_kills_of_either_version(layout, v2, tmp_path):
    (v2 / "p").mkdir()
    assert layout.oom_kills("/p") is None
    (v2 / "p/memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert layout.oom_kills("/p") == 1
    (v2 / "p/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    version_1 = CgroupLayout(1, {"memory": v2}, None, frozenset({"memory"}))
    assert version_1.oom_kills("/p") == 3


def test_killing_leaves_out_this_process_and_those_that_moved_away(layout, v2):
    group = v2 / "p"
    group.mkdir()
    procs = group / "cgroup.procs"
    procs.write_text(f"{os.getpid()}\n101\n102\n0\n")

    def open_and_move_102(pid):
        if pid == 102:
            procs.write_text(f"{os.getpid()}\n101\n")
        return os.open(os.devnull, os.O_RDONLY)

    calls = FakeSyscalls(results={"pidfd_open": open_and_move_102})
    assert layout.procs("/p") == {os.getpid(), 101, 102}
    layout.kill_all("/p", signal.SIGTERM, syscalls=calls)
    assert [c.pid for c in calls.named("pidfd_open")] == [101, 102]
    assert [c.signal for c in calls.named("pidfd_send_signal")] == [signal.SIGTERM]


def test_version_2_kills_at_one_stroke(layout, v2):
    (v2 / "p").mkdir()
    (v2 / "p/cgroup.procs").write_text("101\n102\n")
    (v2 / "p/cgroup.kill").write_text("")
    calls = FakeSyscalls()
    assert layout.kill_all("/p", syscalls=calls) == 2
    assert (v2 / "p/cgroup.kill").read_text() == "1"
    assert calls.calls == []
