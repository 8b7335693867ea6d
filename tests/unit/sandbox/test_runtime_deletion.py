"""Which books are removed without the program that wrote them, and which are left to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandbox.host.pidfd import start_ticks
from sandbox.runtime import deletion
from sandbox.runtime.driver import RuntimeInfo

#: No process has started before the kernel itself.
GONE_TICKS = 1
NO_PID = 4_194_303


def crun_books(root: Path, **changes: object) -> Path:
    """As crun 1.8.1 leaves them."""
    books = root / "crun"
    books.mkdir()
    status = {
        "pid": NO_PID,
        "process-start-time": GONE_TICKS,
        "cgroup-path": "/pod/ab",
        "scope": "",
        "rootfs": "/rootfs",
        "systemd-cgroup": False,
        "detached": True,
    }
    config = {"ociVersion": "1.0.2", "hooks": {"prestart": []}, "linux": {"namespaces": []}}
    for key, value in changes.items():
        name = key.replace("_", "-")
        (status if name in status else config)[name] = value  # type: ignore[index]
    (books / "status").write_text(json.dumps(status))
    (books / "config.json").write_text(json.dumps(config))
    return books


def runc_books(root: Path, config: dict[str, object] | None = None, **changes: object) -> Path:
    """As runc 1.1.5 leaves them."""
    books = root / "runc"
    books.mkdir()
    hooks = dict.fromkeys(["createContainer", "poststart", "poststop", "prestart"])
    state = {
        "id": "ab",
        "init_process_pid": NO_PID,
        "init_process_start": GONE_TICKS,
        "config": {"cgroups": {"path": "/pod/ab", "Systemd": False}, "Hooks": hooks}
        | (config or {}),
        "intel_rdt_path": "",
    }
    (books / "state.json").write_text(json.dumps(state | changes))
    return books


def delete(books: Path, version: str = "") -> bool:
    name = books.name
    call = deletion.known(RuntimeInfo(name, version or {"crun": "1.8.1", "runc": "1.1.5"}[name]))
    assert call is not None
    return call(books)


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("crun", "1.8", False),
        ("crun", "1.8.1", True),
        ("crun", "1.28", True),
        ("crun", "1.29", False),
        ("crun", "unknown", False),
        ("runc", "1.1.4", False),
        ("runc", "1.1.5+ds1", True),
        ("runc", "1.5.1", True),
        ("runc", "1.6.0", False),
        ("runsc", "1.1.5", False),
        ("youki", "1.10", False),
    ],
)
def test_only_versions_whose_source_was_read(name: str, version: str, expected: bool) -> None:
    assert (deletion.known(RuntimeInfo(name, version)) is not None) is expected


@pytest.mark.parametrize("make", [crun_books, runc_books])
def test_the_books_of_the_dead_go(tmp_path: Path, make) -> None:
    books = make(tmp_path)
    (books / "exec.fifo").touch()
    assert delete(books)
    assert not books.exists()
    assert tmp_path.exists()
    assert not delete(books), "what is not there is not for us to delete"


HOOK = {"poststop": [{"path": "/bin/true"}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"hooks": HOOK},
        {"linux": {"intelRdt": {"closID": "a"}}},
        {"systemd_cgroup": True},
        {"scope": "podwright-ab.scope"},
        {"pid": 0},
        {"pid": 1},
        {"pid": -1},
        {"pid": "7"},
        {"process_start_time": 0},
    ],
    ids=str,
)
def test_what_crun_has_more_to_do_for_is_left_to_it(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    books = crun_books(tmp_path, **changes)
    before = sorted(books.iterdir())
    assert not delete(books)
    assert sorted(books.iterdir()) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"Hooks": HOOK}},
        {"config": {"cgroups": {"Systemd": True}}},
        {"config": {"cgroups": {}}},
        {"config": {"intel_rdt": {"closID": "a"}}},
        {"intel_rdt_path": "/sys/fs/resctrl/ab"},
        {"init_process_pid": 0},
        {"init_process_start": 0},
    ],
    ids=str,
)
def test_what_runc_has_more_to_do_for_is_left_to_it(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    books = runc_books(tmp_path, **changes)  # type: ignore[arg-type]
    assert not delete(books)
    assert (books / "state.json").exists()


@pytest.mark.parametrize("make", [crun_books, runc_books])
@pytest.mark.parametrize("planted", ["nothing", "half", "list", "large", "link", "pipe", "deep"])
def test_books_that_are_not_as_expected_are_left_alone(tmp_path: Path, make, planted: str) -> None:
    books = make(tmp_path)
    file = books / ("status" if make is crun_books else "state.json")
    content = file.read_bytes()
    file.unlink()
    if planted == "half":
        file.write_bytes(content[:-1])
    elif planted == "list":
        file.write_text("[]")
    elif planted == "large":
        file.write_bytes(content + b" " * (9 << 20))
    elif planted == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        file.symlink_to(tmp_path / "elsewhere")
    elif planted == "pipe":
        os.mkfifo(file)
    elif planted == "deep":
        file.write_text("[" * 100_000)
    assert not delete(books)
    assert books.is_dir()


@pytest.mark.parametrize("make", [crun_books, runc_books])
def test_books_behind_a_link_are_left_alone(tmp_path: Path, make) -> None:
    books = make(tmp_path)
    moved = books.rename(tmp_path / "elsewhere")
    books.symlink_to(moved)
    assert not delete(books)
    assert len(list(moved.iterdir())) > 0


def test_a_living_first_process_keeps_its_books(tmp_path: Path) -> None:
    """Only if it is the very one: a number that was given away since is nobody's."""
    parent = os.getppid()
    ticks = start_ticks(parent)
    assert ticks is not None
    if parent <= 1:
        pytest.skip("the parent of this process is init, which is never taken for a container")
    books = crun_books(tmp_path, pid=parent, process_start_time=ticks)
    assert not delete(books)
    assert books.exists()
    status = json.loads((books / "status").read_text())
    (books / "status").write_text(json.dumps(status | {"process-start-time": ticks + 1}))
    assert delete(books)
    assert not books.exists()


def test_books_that_cannot_be_removed_whole_are_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandbox.host.errors import Busy

    def refuse(path: Path) -> None:
        raise Busy("a mount point is in the way of removing", path=str(path))

    monkeypatch.setattr(deletion.files, "remove_tree", refuse)
    assert not delete(crun_books(tmp_path))
