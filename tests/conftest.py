"""For every test: markers that skip with a reason, and what a test of the real kernel left behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.errors import Unsupported
from sandbox.host.mounts import list_mounts
from tests import probes


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `root` where mounts cannot be made."""
    if item.get_closest_marker("root") and (reason := probes.no_root()):
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `root` must leave mounts, pins, descriptors and cgroups as it found them.

    A test that leaks on purpose (a daemon shared by a module) says so with
    `@pytest.mark.root(leaks=True)`. Other people's mounts and groups may come and go meanwhile, so
    only those that this project names are looked at: see `_ours`.
    """
    marker = request.node.get_closest_marker("root")
    if marker is None or marker.kwargs.get("leaks"):
        yield
        return
    request.getfixturevalue("tmp_path_factory")
    before = census()
    yield
    gc.collect()
    after = census()
    left = {
        kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]
    }
    assert not left, f"left behind: {left}"


def census() -> dict[str, set[str]]:
    """What of ours is there now: mounts, pinned namespaces, cgroups, open descriptors."""
    mounts = [mount for mount in list_mounts() if _ours(str(mount.target))]
    return {
        "mounts": {f"{m.id} {m.type} {m.target}" for m in mounts},
        "descriptors": _descriptors(),
        "cgroups": _cgroups(),
    }


def _ours(path: str) -> bool:
    return any(word in path for word in ("podwright", "pytest-of-"))


def _descriptors() -> set[str]:
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        found.add(f"{name} -> {target}")
    return found


def _cgroups() -> set[str]:
    try:
        layout = CgroupLayout.detect()
    except Unsupported:
        return set()
    return {
        str(path)
        for root in layout.dirs("/")
        for top in Path(root).glob("podwright*")
        for path in (top, *(each for each in top.rglob("*") if each.is_dir()))
    }
