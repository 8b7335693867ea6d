"""What of a node is on the machine, by kind; two of these must be equal before and after a test.

Found by what cannot be hidden: the node's two roots appear in mounts, command lines, working
directories and open files; its control groups lie below one parent of its own (as the kubelet would
have it); its plugins run in one network namespace and keep addresses in one directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Census = dict[str, frozenset[str]]

#: Files of the daemon itself, which come and go with it.
_OWN_FILES: Final = re.compile(r"podwright\.sock|lock|console")
_DATABASES: Final = {
    "state.db": ("pods", "containers", "quarantine"),
    "images/catalog.db": ("images", "names", "leases", "lease_keys", "layers"),
}
_NAMESPACE: Final = re.compile(r"[a-z]+:\[\d+\]")
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Places:
    """Where a node may have left something."""

    run_root: Path
    state_root: Path
    cgroup_parent: str
    leases: Path
    network: Path


def take(places: Places, daemon: int | None, ids: Collection[str] = ()) -> Census:
    """Everything there is now. `daemon` is its process, `ids` all objects ever heard of."""
    roots = (str(places.run_root), str(places.state_root))
    census: Census = {
        "processes": frozenset(_processes(roots, places.cgroup_parent, daemon)),
        "mounts": frozenset(_mounts(roots)),
        "cgroups": frozenset(_cgroups(places.cgroup_parent, ids)),
        "files": frozenset(_files(places)),
        "addresses": frozenset(_addresses(places.leases)),
        "links": frozenset(_links(places.network)),
        "packet rules": frozenset(_packet_rules(places.network)),
        "sockets": frozenset(_sockets(roots, ids)),
        "rows": frozenset(_rows(places.state_root)),
    }
    if daemon is not None:
        census["descriptors"] = frozenset(_descriptors(daemon, roots))
    return census


def names(taken: Census, ids: Collection[str]) -> bool:
    """Whether anything of what was found carries one of these ids."""
    wanted = frozenset(ids)
    lines = (line for kind in taken.values() for line in kind)
    return any(not wanted.isdisjoint(_ID.findall(line)) for line in lines)


def difference(before: Census, after: Census) -> dict[str, dict[str, list[str]]]:
    """What is left and what is missing, by kind; empty when nothing is."""
    found: dict[str, dict[str, list[str]]] = {}
    for kind in before.keys() & after.keys():
        left, missing = after[kind] - before[kind], before[kind] - after[kind]
        # A descriptor that a program of the start had is no loss.
        if left or (missing and kind != "descriptors"):
            found[kind] = {"left": sorted(left), "missing": sorted(missing)}
    return found


def processes_of(places: Places, daemon: int | None = None) -> dict[int, str]:
    """Processes that belong to the node, except the daemon: number and command line."""
    roots = (str(places.run_root), str(places.state_root))
    return dict(_found(roots, places.cgroup_parent, daemon))


def _processes(roots: tuple[str, str], cgroup_parent: str, daemon: int | None) -> Iterator[str]:
    for pid, text in _found(roots, cgroup_parent, daemon):
        yield f"{pid} {text[:200]}"


def _found(
    roots: tuple[str, str], cgroup_parent: str, daemon: int | None
) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), daemon):
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            child = daemon is not None and status[1] == str(daemon)
            if "imageservice.unpack" in command:
                continue  # kept for the next layer; ends by itself
            text = command + (entry / "cgroup").read_text() + "".join(_held(entry))
            environ = (entry / "environ").read_bytes().decode(errors="replace")
            if f"{cgroup_parent}/" in text or any(r in text or r in environ for r in roots):
                yield int(entry.name), command
            elif child:
                yield int(entry.name), f"child of the daemon in state {status[0]}: {command}"


def _held(entry: Path) -> Iterator[str]:
    for link in (entry / "cwd", entry / "root", *(entry / "fd").iterdir()):
        with contextlib.suppress(OSError):
            yield str(link.readlink())


def _mounts(roots: tuple[str, str]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(root in line for root in roots):
            words = line.split()
            # Programs of the runtimes are mounted anew at each start of the daemon.
            number = "" if "/programs/" in words[4] else words[0]
            yield f"{number} {words[4]}"


def _cgroups(parent: str, ids: Collection[str]) -> Iterator[str]:
    for path in _hierarchies():
        for directory, names, _ in os.walk(path):
            below = directory.removeprefix(str(path))
            if below.startswith(f"{parent}/"):
                yield directory
            else:
                # Elsewhere only what carries an id of ours: other daemons may be running.
                for name in names:
                    match = _ID.search(name)
                    if match and match[0] in ids:
                        yield f"{directory}/{name}"


def _hierarchies() -> list[Path]:
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(words[1]) for words in lines if words[2] in ("cgroup", "cgroup2")]


def _files(places: Places) -> Iterator[str]:
    run_root, state_root = places.run_root, places.state_root
    for root in (run_root, state_root / "containers", state_root / "cni"):
        for directory, names, files in os.walk(root):
            for name in (*names, *files):
                path = Path(directory, name)
                if not (path.parent == run_root and _OWN_FILES.fullmatch(name)):
                    yield str(path)
            names[:] = [name for name in names if not os.path.ismount(f"{directory}/{name}")]
    images = state_root / "images"
    for depth in ("content/*/*", "layers/*", "ingest/*"):
        yield from map(str, images.glob(depth))


def _addresses(leases: Path) -> Iterator[str]:
    for path in leases.glob("*/*"):
        if path.name != "lock" and not path.name.startswith("last_reserved"):
            yield f"{path.parent.name}/{path.name}"


def _links(network: Path) -> Iterator[str]:
    # /proc/net is that of the reading thread, so the listing is made by a program in there.
    for line in _inside(network, "ip", "-o", "link", "show").splitlines():
        name = line.split(":")[1].strip()
        yield name.partition("@")[0]


def _packet_rules(network: Path) -> Iterator[str]:
    for program in ("iptables-save", "ip6tables-save"):
        if shutil.which(program):
            for line in _inside(network, program, "-t", "nat").splitlines():
                # What leads into the chains of pods is made once and stays.
                if line.startswith(
                    (*("-A CNI-DN", "-A CNI-SN", ":CNI-DN", ":CNI-SN"), "-A CNI-HOSTPORT-DNAT")
                ):
                    yield f"{program}: {line}"


def _inside(network: Path, *argv: str) -> str:
    import subprocess

    command = ["nsenter", f"--net={network}", *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _sockets(roots: tuple[str, str], ids: Collection[str]) -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        path = line.split()[7:]
        if path and not path[0].endswith("/podwright.sock"):
            match = _ID.search(path[0])
            if any(root in path[0] for root in roots) or (match and match[0] in ids):
                yield path[0]


def _rows(state_root: Path) -> Iterator[str]:
    for name, tables in _DATABASES.items():
        if not (state_root / name).exists():
            continue
        # A copy, because the daemon holds the file for itself.
        with tempfile.TemporaryDirectory(prefix="podwright-test-rows-") as place:
            copy = Path(place, "copy.db")
            copy_database(state_root / name, copy)
            with contextlib.closing(sqlite3.connect(copy)) as database:
                there = {
                    row[0]
                    for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
                }
                for table in there.intersection(tables):
                    for row in database.execute(f"SELECT * FROM {table}"):
                        key = next((str(v) for v in row if isinstance(v, str)), "")
                        yield f"{name} {table} {key}"


def copy_database(database: Path, copy: Path) -> None:
    """Copy a database with its log as both were at one moment, whoever writes to them meanwhile."""
    found, again = _parts(database), _parts(database)
    while found != again:
        found, again = again, _parts(database)
    for suffix, content in found.items():
        Path(f"{copy}{suffix}").write_bytes(content)


def _parts(database: Path) -> dict[str, bytes]:
    found = {}
    for suffix in ("-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            found[suffix] = Path(f"{database}{suffix}").read_bytes()
    return found


def _descriptors(daemon: int, roots: tuple[str, str]) -> Iterator[str]:
    """Those that belong to one object or one program; how many of each kind.

    Left out: sockets, which are clients', and what a daemon has once from some moment on.
    """
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{daemon}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(link.readlink())
            if target.startswith(roots) or target in ("anon_inode:[pidfd]", "anon_inode:pidfd"):
                kinds[target] += 1
            elif target.startswith("pipe:"):
                kinds["pipe"] += 1
            elif target.startswith(("net:[", "ipc:[", "uts:[", "mnt:[", "pid:[")):
                kinds[target] += 1
    for kind, count in kinds.items():
        if not (_NAMESPACE.fullmatch(kind) and count == 1 and _is_ours(kind)):
            yield f"{count} {kind}"


def _is_ours(namespace: str) -> bool:
    """Whether it is the machine's own, which the daemon keeps open to come back to."""
    kind = namespace.partition(":")[0]
    return str(Path(f"/proc/self/ns/{kind}").readlink()) == namespace


def children(daemon: int) -> list[int]:
    """Programs that the daemon runs at this moment, its unpack workers among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == daemon:
                    found.append(int(entry.name))
    return found


def workers(daemon: int) -> list[int]:
    """The daemon's unpack workers."""
    found = []
    for pid in children(daemon):
        with contextlib.suppress(OSError):
            if b"imageservice.unpack" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def threads(daemon: int) -> int:
    """How many threads the daemon has."""
    return sum(1 for _ in Path(f"/proc/{daemon}/task").iterdir())
