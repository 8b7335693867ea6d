"""What the daemon itself shows to others on the node: files, sockets, descriptors, memory.

The daemon is started with umask 0, as a careless service manager would, and everything that it
makes while pods, containers, commands and terminals run is held against one table.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit import census
from tests.kit.calls import until
from tests.kit.messages import BUSYBOX
from tests.kit.node import PATIENCE_S, Node

MONITORS = f"/podwright-test-monitors-{os.getpid()}"
SOCKET_GID = 4711
SETTINGS = {
    "daemon.socket_gid": str(SOCKET_GID),
    "daemon.log_level": '"debug"',
    "runtime.monitor_cgroup": f'"{MONITORS}"',
    "streaming.tls": '"self-made"',
}
SLEEP = ["sleep", "1000"]
ID = "[0-9a-f]{64}"
_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
#: prctl(2): bit of CAP_SYS_RESOURCE, linux/capability.h.
CAP_SYS_RESOURCE = 24


class Rule(NamedTuple):
    """What may be at paths that match, and why it is not closed to all but root."""

    path: str
    kind: str
    modes: set[int]
    why: str = ""


#: Below the run root. Everything is owned by root; what no rule names must not be there.
RUN_RULES = (
    Rule("", "d", {0o711}, "mounts of a container's user namespace pass through"),
    Rule("pods|containers|namespaces", "d", {0o711}, "the same"),
    Rule("podwright.sock", "s", {0o660}, "its group is the one that was configured"),
    Rule("lock", "f", {0o600}),
    Rule("console|exits|runtime", "d", {0o700}),
    Rule(f"exits/{ID}", "f", {0o644}, "conmon's: an exit status, in a closed directory"),
    Rule("programs(/[^/]+)?", "d", {0o700}),
    Rule("records(/(pods|containers))?", "d", {0o700}),
    Rule(f"records/(pods|containers)/{ID}.json", "f", {0o600}),
    Rule("programs/[^/]+/crun", "f", {0o755}, "the installed program, mounted"),
    Rule("runtime/.*", "d", {0o700, 0o711}, "runc's own choice; its parent is closed"),
    Rule("runtime/.*", "f", {0o600, 0o700, 0o644}, "the same"),
    Rule("runtime/.*", "p", {0o600, 0o622}, "the same: exec.fifo of runc and crun"),
    Rule("runtime/.*", "s", {0o700, 0o755}, "the same"),
    Rule(f"namespaces/{ID}", "d", {0o700, 0o711}),
    Rule(f"namespaces/{ID}/(net|ipc|uts|pid|user)", "f", {0o444}, "the kernel's mode of nsfs"),
    Rule(f"pods/{ID}", "d", {0o711}, "its files are mounted in containers of any user"),
    Rule(f"pods/{ID}/(hostname|hosts|resolv.conf)", "f", {0o644}, "read in containers by any user"),
    Rule(f"pods/{ID}/shm", "d", {0o1777}, "the pod's /dev/shm, a mount of its own"),
    Rule(f"pods/{ID}/bundle", "d", {0o700, 0o711}),
    Rule(f"pods/{ID}/bundle/config.json", "f", {0o600}),
    Rule(f"pods/{ID}/bundle/(pid|runtime.log)", "f", {0o600, 0o644, 0o700}, "the runtime's"),
    Rule(f"pods/{ID}/bundle/rootfs", "d", {0o755}, "in a closed directory"),
    Rule(f"containers/{ID}", "d", {0o700, 0o711}),
    Rule(f"containers/{ID}/(config.json|runtime.log)", "f", {0o600}),
    Rule(f"containers/{ID}/(conmon.pid|pid|exit|oom)", "f", {0o644, 0o700}, "conmon's: a number"),
    Rule(f"containers/{ID}/attach", "s", {0o700}),
    Rule(f"containers/{ID}/(ctl|winsz)", "p", {0o640}, "conmon's; the group is root"),
    Rule(f"containers/{ID}/log", "l", {0o777}, "links have no mode"),
    Rule(f"containers/{ID}/rootfs", "d", {0o755, 0o700, 0o711}, "the image's, a mount"),
    Rule(f"containers/{ID}/exec-[0-9a-f]+", "d", {0o700}),
    Rule(f"containers/{ID}/exec-[0-9a-f]+/process.json", "f", {0o600}),
    Rule(f"containers/{ID}/exec-[0-9a-f]+/(log|pid)", "f", {0o600, 0o644, 0o700}, "the runtime's"),
)
#: Below the state root, which is closed: nothing in it can be reached but by root.
STATE_RULES = (
    Rule("", "d", {0o700, 0o711}),
    Rule("cni|cni/results|containers|images", "d", {0o700, 0o711}),
    Rule("pause", "d", {0o755}, "the root that pause processes see, of any user"),
    Rule(r"(images/catalog|state)\.db.*", "f", {0o600}),
    Rule("cni/.*", "f", {0o600}),
    Rule(f"containers/{ID}", "d", {0o700, 0o711}),
    Rule(f"containers/{ID}/upper", "d", {0o755}, "the container's root directory"),
    Rule(f"containers/{ID}/work", "d", {0o700}),
    Rule(f"containers/{ID}/volumes.*", "d", {0o700, 0o711, 0o755}),
    Rule("images/(content|ingest|layers|loads|staging)", "d", {0o700, 0o711}),
    Rule("images/content/sha256", "d", {0o700}),
    Rule(f"images/content/sha256/{ID}", "f", {0o600}),
    Rule("images/ingest/.*", "f", {0o600}),
    Rule("images/layers/[0-9a-z]+", "d", {0o700, 0o711, 0o755}, "an image's root directory"),
    Rule("images/layers/[0-9a-z]+", "f", {0o600}),
    Rule("images/layers/[0-9a-z]+/.*", "f", {0o600}, "a layer kept as a file"),
    Rule("images/mounts", "d", {0o700}),
    Rule("images/mounts/[0-9a-z]+", "d", {0o700, 0o755}, "an image's root directory, once mounted"),
    Rule("pause/(dev|etc|proc|sys)", "d", {0o755}, "the root that pause processes see"),
    Rule("pause/catatonit", "f", {0o755}, "run by pause processes of any user"),
)
#: What is an image's or a container's own business below these.
INNARDS = re.compile(rf"containers/{ID}/(rootfs|upper|work|volumes)|images/(layers|staging)/[^/]+")
KINDS = {
    stat.S_IFDIR: "d",
    stat.S_IFREG: "f",
    stat.S_IFSOCK: "s",
    stat.S_IFIFO: "p",
    stat.S_IFLNK: "l",
}


@pytest.fixture(scope="module", autouse=True)
def monitors_gone() -> Iterator[None]:
    """The monitors' group stays for the daemon's life; after it, nobody else removes it."""
    yield
    for hierarchy in _hierarchies():
        with contextlib.suppress(FileNotFoundError):
            until(lambda at=hierarchy: _removed(at / MONITORS[1:]), "monitors have ended")  # type: ignore[misc]


@pytest.fixture
def busy(node: Node, handler: str) -> Iterator[dict[str, str]]:
    """A node whose daemon began with umask 0 and now has something of everything; ids by name."""
    node.kill()
    before = os.umask(0)
    try:
        node.start_daemon()
    finally:
        os.umask(before)
    pod = node.run_pod("busy", handler=handler)
    resources = api.LinuxContainerResources(oom_score_adj=500)
    main = node.start(node.create(pod, "main", SLEEP, resources=resources))
    terminal = node.start(node.create(pod, "terminal", SLEEP, tty=True))
    ended = node.start(node.create(pod, "ended", ["true"]))
    node.wait_exited(ended)
    node.pull(BUSYBOX)
    request = api.ExecSyncRequest(
        container_id=main,
        cmd=["sh", "-c", "touch /ready; sleep 1000"],
        timeout=60,
    )

    def run() -> None:
        with contextlib.suppress(grpc.RpcError):  # the container is stopped under it
            node.runtime.ExecSync(request, timeout=PATIENCE_S)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: node.exec(main, "test", "-e", "/ready")[0] == 0, "the command runs")
    yield {"pod": pod, "main": main, "terminal": terminal}
    node.runtime.StopContainer(api.StopContainerRequest(container_id=main), timeout=PATIENCE_S)
    thread.join(PATIENCE_S)


def test_every_file_has_a_mode_that_somebody_thought_about(
    node: Node, busy: dict[str, str]
) -> None:
    wrong = [
        *_violations(node.run_root, RUN_RULES),
        *_violations(node.state_root, STATE_RULES),
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_else_on_the_node_can_read_what_is_ours(node: Node, busy: dict[str, str]) -> None:
    """Tried as uid 65534, for rules and modes can both be wrong."""
    script = (
        'find "$@" -xdev \\( -type f -readable -o -type d -readable -o -type s -writable \\) '
        "-print 2>/dev/null; true"
    )
    found = subprocess.run(
        [*_NOBODY, "sh", "-c", script, "sh", str(node.run_root), str(node.state_root)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found == ""
    for path in (
        node.run_root / "containers" / busy["main"] / "config.json",
        node.run_root / "pods" / busy["pod"] / "bundle/config.json",
        node.state_root / "state.db",
        node.state_root / "containers" / busy["main"] / "upper",
    ):
        assert path.exists()
        assert subprocess.run([*_NOBODY, "cat", str(path)], capture_output=True).returncode, path


def test_no_socket_is_in_the_abstract_name_space(node: Node, busy: dict[str, str]) -> None:
    """CVE-2020-15257: any pod on the node's network could connect to it."""
    ours = {
        inode
        for pid in (node.pid, *_helpers(node))
        for inode in re.findall(r"socket:\[(\d+)\]", "\n".join(_descriptors(pid).values()))
    }
    assert ours
    names = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        names[words[6]] = words[7] if len(words) > 7 else ""
    assert any(names.get(inode, "").startswith(str(node.run_root)) for inode in ours)
    assert [names[inode] for inode in ours if names.get(inode, "").startswith("@")] == []


def test_the_daemon_leaves_no_descriptor_to_programs_it_starts(
    node: Node, busy: dict[str, str]
) -> None:
    leaking = []
    for number, target in _descriptors(node.pid).items():
        with contextlib.suppress(FileNotFoundError):
            text = Path(f"/proc/{node.pid}/fdinfo/{number}").read_text()
            flags = int(re.findall(r"flags:\s+(\d+)", text)[0], 8)
            if number > 2 and not flags & os.O_CLOEXEC:
                leaking.append((number, target))
    assert leaking == []


def test_a_monitor_has_what_it_needs_and_nothing_of_the_daemon(
    node: Node, busy: dict[str, str]
) -> None:
    for name in ("main", "terminal"):
        container = busy[name]
        bundle = node.run_root / "containers" / container
        needed = (
            "/dev/null",
            "/dev/pts/ptmx",
            "/dev/ptmx",
            f"{bundle}/ctl",
            f"{bundle}/winsz",
            str((bundle / "log").readlink()),
            "anon_inode:[eventfd]",
            "anon_inode:[signalfd]",
            "anon_inode:inotify",
        )
        for number, target in _descriptors(_monitor(node, container)).items():
            own_memory = target.startswith("/sys/fs/cgroup/") and container in target
            is_pipe = re.match(r"(pipe|socket):\[", target)
            assert target in needed or own_memory or is_pipe, (name, number, target)


@pytest.mark.cell("HD4")
def test_oom_scores_and_the_memory_of_monitors(node: Node, busy: dict[str, str]) -> None:
    """CVE-2019-14891: a monitor must neither be killed before its container nor for its pod."""
    own = _score(node.pid)
    floor = -1000 if _may_go_below(node.pid) else own
    assert own == max(-999, floor)
    assert _score(node.pod_pid(busy["pod"])) == max(-998, floor)
    main = node.container_pid(busy["main"])
    assert _score(main) == 500

    def inside() -> list[int]:
        return [pid for pid in _members(main) if _comm(pid) == "sleep"]

    until(lambda: len(inside()) == 2, "the container's program and the command both sleep")
    assert {_score(pid) for pid in inside()} == {500}
    for name in ("main", "terminal"):
        monitor = _monitor(node, busy[name])
        assert _score(monitor) == max(-1000, floor)
        lines = Path(f"/proc/{monitor}/cgroup").read_text().splitlines()
        for line in lines:
            _, controllers, path = line.split(":", 2)
            # The line of version 2 has no controllers, and on a hybrid host nobody uses it.
            if controllers or len(lines) == 1:
                assert path == MONITORS, line
            else:
                assert f"/{node.tag}" not in path


def _violations(root: Path, rules: tuple[Rule, ...]) -> Iterator[str]:
    compiled = [(re.compile(rule.path), rule) for rule in rules]
    for path in (root, *_walk(root)):
        try:
            about = path.lstat()
        except FileNotFoundError:
            continue
        name = "" if path == root else str(path.relative_to(root))
        kind = KINDS.get(stat.S_IFMT(about.st_mode), "?")
        mode = stat.S_IMODE(about.st_mode)
        fitting = [r for pattern, r in compiled if pattern.fullmatch(name) and r.kind == kind]
        gid = SOCKET_GID if name == "podwright.sock" else 0
        if (about.st_uid, about.st_gid) != (0, gid):
            yield f"{path} belongs to {about.st_uid}:{about.st_gid}"
        if mode & 0o6000:
            yield f"{path} has a set-id bit"
        if not fitting:
            yield f"{path} ({kind} {mode:o}) is in no rule"
        elif not any(mode in rule.modes for rule in fitting):
            yield f"{path} ({kind}) has mode {mode:o}"


def _walk(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            yield Path(directory, name)
        here = Path(directory).relative_to(root)
        names[:] = [
            n
            for n in names
            if not INNARDS.fullmatch(str(here / n)) and not (Path(directory) / n).is_mount()
        ]


def _helpers(node: Node) -> list[int]:
    return [
        pid
        for pid, text in census.processes_of(node.places, node.pid).items()
        if "conmon" in text or "runc" in text or "crun" in text
    ]


def _monitor(node: Node, container: str) -> int:
    return int((node.run_root / "containers" / container / "conmon.pid").read_text())


def _descriptors(pid: int) -> dict[int, str]:
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def _score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended


def _may_go_below(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    effective = int(re.findall(r"CapEff:\s+([0-9a-f]+)", status)[0], 16)
    return bool(effective >> CAP_SYS_RESOURCE & 1)


def _members(pid: int) -> list[int]:
    """Processes in the same control group."""
    mine = Path(f"/proc/{pid}/cgroup").read_text()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cgroup").read_text() == mine:
                    found.append(int(entry.name))
    return found


def _hierarchies() -> list[Path]:
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(words[1]) for words in lines if words[2] in ("cgroup", "cgroup2")]


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
