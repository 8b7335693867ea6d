"""No thread works on for somebody who was told that the work is called off.

What it makes would come to light after the undo: a mount, a directory, a control group that nobody
has a name for; and a process number would be used that may be another's by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from sandbox import pods, roots
from sandbox.cgroups import Cgroups
from sandbox.host.clock import SystemClock
from sandbox.model import Container, ContainerConfig, PodConfig, PodMetadata, PodSandbox
from sandbox.paths import Paths
from sandbox.pods import PodEngine
from sandbox.roots import Roots
from sandbox.states import ContainerState, PodState
from tests.kit.blocked import Blocked, assert_waited_for

POD = PodSandbox(
    id="a" * 64,
    config=PodConfig(metadata=PodMetadata(name="n", uid="u", namespace="ns")),
    state=PodState.CREATING,
    created_at_ns=1,
)
CONTAINER = Container(
    id="b" * 64,
    pod_id=POD.id,
    config=ContainerConfig(name="c"),
    state=ContainerState.CREATING,
    created_at_ns=1,
)


class Nobody:
    """Whatever is asked of it, it is not asked in these tests."""

    def __getattr__(self, name: str) -> object:
        return lambda *_args, **_options: ""


class Layout:
    """Control groups that a thread makes."""

    def __init__(self, thread: Blocked) -> None:
        self.create = thread

    def dirs(self, path: str) -> list[Path]:
        return []


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Blocked:
    blocked = Blocked()
    for module, name in (
        (roots, "mount_image"),
        (pods.podfiles, "mount_shm"),
        (pods.podfiles, "write_hosts"),
    ):
        monkeypatch.setattr(module, name, blocked)
    monkeypatch.setattr(pods.podfiles, "write_pod_files", lambda *_: None)
    monkeypatch.setattr(pods.podfiles, "label_pod_files", lambda *_, **__: None)
    return blocked


class Pause:
    """A composer whose documents are empty."""

    def pod_label(self, _pod: PodSandbox) -> str:
        return ""

    async def pause(self, *_args: object) -> bytes:
        return b""


def made(kind: Callable[..., object], **given: object) -> object:
    """An engine that has nothing but what is given."""
    names = kind.__init__.__kwdefaults__ or {}  # type: ignore[misc]
    wanted = kind.__init__.__annotations__  # type: ignore[misc]
    rest = {name: Nobody() for name in wanted if name != "return" and name not in names}
    return kind(**{**rest, **given})


Work = Callable[[Path, Blocked], Awaitable[object]]


def mount(root: Path, _thread: Blocked) -> Awaitable[object]:
    paths = Paths(root / "run", root / "state")
    return cast("Roots", made(Roots, paths=paths)).mount(CONTAINER, ())


def mount_volume(root: Path, _thread: Blocked) -> Awaitable[object]:
    paths = Paths(root / "run", root / "state")
    return cast("Roots", made(Roots, paths=paths)).mount_volume(CONTAINER, "sha256:1", ())


def pod_engine(root: Path) -> PodEngine:
    paths = Paths(root / "run", root / "state")
    return cast("PodEngine", made(PodEngine, paths=paths, composer=Pause()))


def make_files(root: Path, _thread: Blocked) -> Awaitable[object]:
    return pod_engine(root).make_files(POD)


def mark_ready(root: Path, _thread: Blocked) -> Awaitable[object]:
    return pod_engine(root).mark_ready(POD, None, ips=(), cni_result="")  # type: ignore[arg-type]


def enter(_root: Path, thread: Blocked) -> Awaitable[object]:
    layout = Layout(thread)
    groups = Cgroups(layout, driver="cgroupfs", clock=SystemClock())  # type: ignore[arg-type]
    return groups.enter("/g", 1)


def prepare(_root: Path, thread: Blocked) -> Awaitable[object]:
    layout = Layout(thread)
    groups = Cgroups(layout, driver="cgroupfs", clock=SystemClock())  # type: ignore[arg-type]
    return groups.prepare("/g/c", "")


@pytest.mark.parametrize(
    "work", [mount, mount_volume, make_files, mark_ready, enter, prepare], ids=lambda w: w.__name__
)
async def test_it_has_ended(work: Work, thread: Blocked, tmp_path: Path) -> None:
    await assert_waited_for(work(tmp_path, thread), thread)
