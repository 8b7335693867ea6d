"""Which ids count as leftovers: those in places of ours, and none for a name in shared books."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from cri.runtimes import shared_books
from sandbox.leavings import Leavings
from sandbox.paths import Paths
from sandbox.settings import RuntimeHandler
from sandbox.sweep import Sweeper

OURS, THEIRS, LEFT = "a" * 64, "b" * 64, "c" * 64


class Books:
    """A runtime that has these containers in its books."""

    def __init__(self, *ids: str) -> None:
        self.ids = set(ids)
        self.deleted: list[str] = []

    async def containers(self) -> set[str]:
        return self.ids

    async def delete(self, cid: str, *, force: bool) -> None:
        self.deleted.append(cid)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(run_root=tmp_path / "run", state_root=tmp_path / "state")


def sweeper(paths: Paths, **runtimes: Books) -> Sweeper:
    return Sweeper(
        paths=paths,
        runtimes=runtimes,
        namespaces=SimpleNamespace(),
        cgroups=SimpleNamespace(),
        leavings=Leavings(proc=paths.run_root / "no-processes"),
        syscalls=SimpleNamespace(),
        shared_books={"shared"},
    )


async def test_containers_of_others_in_shared_books_are_no_leftovers(paths: Paths) -> None:
    (paths.run_root / "no-processes").mkdir(parents=True)
    (paths.containers / LEFT).mkdir(parents=True)
    seen = await sweeper(paths, own=Books(OURS), shared=Books(THEIRS, LEFT)).look()
    assert seen.ids == {OURS, LEFT}, "what we have a directory of was ours, in whichever books"
    assert seen.holding == {OURS, THEIRS, LEFT}, "of what is recorded, shared books tell as well"


async def test_records_tell_of_an_object_and_what_was_put_aside_does_not(paths: Paths) -> None:
    (paths.run_root / "no-processes").mkdir(parents=True)
    place = paths.records / "pods"
    place.mkdir(parents=True)
    for name in (f"{OURS}.json", f"{LEFT}.older", f"{THEIRS}.json.unreadable"):
        (place / name).touch()
    assert (await sweeper(paths).look()).ids == {OURS, LEFT}


def test_books_below_the_run_root_are_our_own_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    roots = {"own": tmp_path / "link/runtime/crun", "shared": tmp_path / "elsewhere"}
    handlers = [RuntimeHandler(n, Path("/usr/bin/crun"), root) for n, root in roots.items()]
    assert shared_books(handlers, tmp_path / "real") == {"shared"}
