"""For every test: skipping with a reason, and the census of what a test of the kernel left."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.children import REAPER, REAPER_NAME
from sandbox.host.errors import Unsupported
from sandbox.host.mounts import list_mounts
from sandbox.host.spawning import SPAWNER_NAME
from tests import probes
from tests.kit import fuzzing

# Neither a deadline nor the speed of the generator may fail a test: both measure the machine. And
# a run tries what the last one has tried, so that a failure is a fault of the change at hand; to
# search for what nobody has tried yet is for who asks for it (`tests.kit.fuzzing`).
hypothesis.settings.register_profile(
    "podwright",
    deadline=None,
    derandomize=not os.environ.get(fuzzing.VARIABLE),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("podwright")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `root` where mounts cannot be made."""
    if item.get_closest_marker("root") and (reason := probes.no_root()):
        pytest.skip(reason)


#: In the name of everything a test makes outside of its `tmp_path`: what is looked for afterwards.
#: The process number keeps two test runs on one machine from accusing each other.
TEST_NAME = f"podwright-test-{os.getpid()}"


@pytest.fixture
def cgroup_path() -> str:
    """A control group path for one test, seen by the census; not made yet."""
    return f"/{TEST_NAME}-{next(_numbers)}"


_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `root` must leave the machine as it found it; see `census`.

    A test that keeps something on purpose, such as a daemon shared by a module, says so with
    `@pytest.mark.root(leaks=True)`.
    """
    marker = request.node.get_closest_marker("root")
    if marker is None or marker.kwargs.get("leaks"):
        yield
        return
    base = str(request.getfixturevalue("tmp_path_factory").getbasetemp())
    before = census(base)
    yield
    gc.collect()
    after = census(base)
    left = {kind: sorted(after[kind] - before[kind]) for kind in after}
    assert not any(left.values()), f"left behind: {left}"


def census(base: str) -> dict[str, set[str]]:
    """What of ours is there now: mounts and pinned namespaces, cgroups, descriptors, children."""
    REAPER.submit(int).result()  # after all that has been given to it
    mounts = [m for m in list_mounts() if base in str(m.target) or TEST_NAME in str(m.target)]
    return {
        "mounts": {f"{m.id} {m.type} {m.target}" for m in mounts},
        "cgroups": _cgroups(),
        "descriptors": _descriptors(),
        "children": _children(),
        # Two live as long as the process: they start programs and reap them (`sandbox.host`).
        "threads": {
            thread.name
            for thread in threading.enumerate()
            if thread.is_alive() and not thread.name.startswith((SPAWNER_NAME, REAPER_NAME))
        },
    }


def _descriptors() -> set[str]:
    found: set[str] = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{link.name} -> {link.readlink()}")
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread that was joined may have some steps left in the kernel, and end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= set((task / "children").read_text().split())
    return found


def _cgroups() -> set[str]:
    try:
        layout = CgroupLayout.detect()
    except Unsupported:
        return set()
    return {
        str(path)
        for root in layout.dirs("/")
        for top in root.glob(f"{TEST_NAME}*")
        for path in (top, *(each for each in top.rglob("*") if each.is_dir()))
    }
