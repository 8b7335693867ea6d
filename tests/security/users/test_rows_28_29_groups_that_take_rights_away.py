"""Additional groups: complete, the primary one among them, and nobody else's.

Row 28, CVE-2022-2995, CVE-2023-25173, CVE-2022-36109, CVE-2022-2990: the primary group was missing
from the additional ones, so a file mode that takes rights away from it did not.
Row 29, CVE-2023-6507: Python's subprocess kept the parent's groups when told to have none.

Tried: a file of mode 0607 and the group in question, as primary, additional and image's group, in
the container and in commands; both policies; and that no program of ours is started with other
rights than the daemon's at all, by the source and by the groups of every process there is.
"""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest

from tests.kit.catalog import GROUP, PASSWD
from tests.kit.node import Node
from tests.kit.tars import Tar
from tests.security.conftest import Hostile

TOP = Path(__file__).parents[3]
SLEEP = ["sleep", "1000"]
#: The group that may not read what everybody else may.
DENIED = 3000


@pytest.fixture(scope="session")
def image(hostile: Hostile) -> str:
    """Its USER 1000 is in the denied group by /etc/group only."""
    tar = (
        Tar()
        .file("etc/passwd", (PASSWD + "person:x:1000:1000::/:/bin/sh\n").encode())
        .file("etc/group", (GROUP + f"denied:x:{DENIED}:person\n").encode())
        .add("secret", content=b"secret\n", mode=0o607, gid=DENIED)
    )
    return hostile.push("negative-permission", tar, user="1000")


def test_a_mode_that_takes_rights_away_does(node: Node, image: str, handler: str) -> None:
    node.pull(image)
    pod = node.run_pod(handler=handler)
    cases: dict[str, tuple[dict[str, object], set[int]]] = {
        "primary": ({"user": 5, "group": DENIED}, {DENIED}),
        "primary-strict": ({"user": 5, "group": DENIED, "strict_groups": True}, {DENIED}),
        "additional": ({"user": 5, "group": 6, "groups": [DENIED]}, {6, DENIED}),
        "merged": ({}, {1000, DENIED}),
        "merged-with-group": ({"user": 1000, "group": 7, "groups": [8]}, {7, 8, DENIED}),
        "strict": ({"strict_groups": True}, {1000}),
        "strict-additional": ({"strict_groups": True, "groups": [DENIED]}, {1000, DENIED}),
        "nobody-in-particular": ({"user": 5}, {0}),
    }
    for name, (options, groups) in cases.items():
        # It gives its primary group up and is denied all the same.
        container = node.run(pod, name, SLEEP, image=image, **options)
        code, _, error = node.exec(container, "cat", "/secret")
        assert ("denied" in error) == (DENIED in groups) == (code != 0), name
        assert _groups(node.program_pid(container)) == groups, name
        said = node.exec(container, "id", "-G")[1].split()
        assert {int(word) for word in said} == groups, name
        assert set(node.status(container).user.linux.supplemental_groups) == groups, name


def test_every_process_of_ours_has_the_groups_of_the_daemon(node: Node, handler: str) -> None:
    container = node.run(node.run_pod(handler=handler), "main", SLEEP, user=5, groups=[6])
    container_pid = node.container_pid(container)
    own = _groups(node.pid)
    found = [pid for pid in node.processes_doing("") if pid != container_pid]
    assert len(found) >= 2, "conmon and the pause process"
    for pid in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended by now
            if "conmon" in Path(f"/proc/{pid}/cmdline").read_text():
                assert _groups(pid) == own
            else:
                assert _groups(pid) <= {0}


def test_no_program_is_started_with_other_rights() -> None:
    """Not asked for, so it cannot go wrong: the OCI runtimes set the rights of containers."""
    calls = {"setgroups", "initgroups", "setuid", "setgid", "setresuid", "setresgid", "fork"}
    starts = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "run", "spawn"}
    words = {"extra_groups", "preexec_fn", "user", "group"}
    found = []
    for path in TOP.glob("*/**/*.py"):
        if path.relative_to(TOP).parts[0] not in ("cri", "sandbox", "imageservice", "cni"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                given = {each.arg for each in node.keywords}
                if name in calls or (name in starts and words & given):
                    where = path.relative_to(TOP).as_posix()
                    found.append((where, node.lineno, ast.unparse(node)))
    # One program becomes root of the user namespace that it has just left the node's for: there
    # its numbers mean nothing until it does. It has no groups before it has another number.
    first = "sandbox/host/userns_init.py"
    assert [(where, call) for where, _, call in sorted(found)] == [
        (first, "os.setgroups([])"),
        (first, "os.setresgid(0, 0, 0)"),
        (first, "os.setresuid(0, 0, 0)"),
    ]
    source = (TOP / first).read_text()
    assert source.index("libc.unshare(_USER)") < source.index("os.setgroups")


def _groups(pid: int) -> set[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Groups:"):
            return {int(word) for word in line.split()[1:]}
    raise AssertionError("no Groups")
