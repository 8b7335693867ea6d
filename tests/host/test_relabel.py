"""The walk that labels mount sources, on a kernel that keeps security.selinux without SELinux.

What the label means to a policy is not seen here: this was never run under SELinux.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox import relabel
from sandbox.host.errors import (
    Denied,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PodwrightError,
    Unsupported,
)
from sandbox.host.libc import LibcSyscalls
from sandbox.host.lsm_files import set_selinux_label
from sandbox.host.mounts import Mount, mount_one, unmount, unmount_tree
from sandbox.model import CriMount, ImageSpec
from sandbox.relabel import DEPTH_LIMIT, relabel_sources
from sandbox.spec.inputs import ResolvedMount
from tests.fakes.syscalls import FakeSyscalls

pytestmark = pytest.mark.root
LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
OTHER = "system_u:object_r:var_lib_t:s0"
ATTRIBUTE = "security.selinux"
real = LibcSyscalls()


@pytest.fixture(autouse=True)
def no_policy() -> None:
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this node has SELinux, whose policy knows no labels of a test")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A volume of one of everything."""
    top = tmp_path / "volume"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/b/c/file").write_text("x")
    (top / "a/file").write_text("x")
    os.mkfifo(top / "fifo")
    os.mknod(top / "null", 0o666 | 0o020000, os.makedev(1, 3))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("of the node\n")
    (top / "link").symlink_to(tmp_path / "outside")
    (top / "a/link").symlink_to("../../outside/file")
    (top / "nowhere").symlink_to("/not/there")
    return top


def wanted(source: Path, *, asked: bool = True) -> ResolvedMount:
    mount = CriMount(container_path="/v", host_path=str(source), selinux_relabel=asked)
    return ResolvedMount(mount=mount, source=source)


def label_of(path: Path) -> str:
    if ATTRIBUTE not in os.listxattr(path, follow_symlinks=False):
        return ""
    return os.getxattr(path, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode()


def labels(top: Path) -> set[str]:
    return {label_of(path) for path in (top, *top.rglob("*"))}


def test_all_of_a_tree_and_nothing_that_its_links_lead_to(tree: Path):
    relabel_sources([wanted(tree)], LABEL, syscalls=real)
    assert labels(tree) == {LABEL}
    assert labels(tree.parent / "outside") == {""}
    assert label_of(tree.parent) == ""


def test_a_file_alone(tree: Path):
    relabel_sources([wanted(tree / "a/file")], LABEL, syscalls=real)
    assert label_of(tree / "a/file") == LABEL
    assert label_of(tree / "a") == ""


@pytest.mark.parametrize("case", ["not asked", "no label", "an image"])
def test_nothing_is_touched(tree: Path, case: str):
    item = wanted(tree, asked=case != "not asked")
    if case == "an image":
        mount = CriMount(container_path="/v", image=ImageSpec(image="x"), selinux_relabel=True)
        item = ResolvedMount(mount=mount, source=tree)
    before = {path: path.lstat() for path in (tree, *tree.rglob("*"))}
    relabel_sources([item], "" if case == "no label" else LABEL, syscalls=real)
    for path, status in before.items():
        assert path.lstat().st_ctime_ns == status.st_ctime_ns, path


def test_what_has_the_label_at_its_top_is_not_walked(tree: Path):
    set_selinux_label(tree, LABEL, syscalls=real)
    relabel_sources([wanted(tree)], LABEL, syscalls=real)
    assert label_of(tree / "a") == ""


def test_an_interrupted_walk_is_begun_again(tree: Path):
    """The top has its label last, so that it says of all below it that they have theirs."""

    def broken(path: Path, name: str, value: bytes, flags: int) -> None:
        if path.name == "file":
            raise Denied("the policy says no", path=str(path))
        real.lsetxattr(path, name, value, flags)

    with pytest.raises(Denied):
        relabel_sources([wanted(tree)], LABEL, syscalls=FakeSyscalls(results={"lsetxattr": broken}))
    assert label_of(tree) == ""
    relabel_sources([wanted(tree)], LABEL, syscalls=real)
    assert labels(tree) == {LABEL}


def test_files_that_vanish_meanwhile(tree: Path):
    def vanishing(path: Path, name: str, value: bytes, flags: int) -> None:
        if path.name == "file":
            path.unlink()
        real.lsetxattr(path, name, value, flags)

    calls = FakeSyscalls(results={"lsetxattr": vanishing})
    relabel_sources([wanted(tree)], LABEL, syscalls=calls)
    assert labels(tree) == {LABEL}
    assert not list(tree.rglob("file"))


def test_a_directory_that_becomes_a_link_meanwhile_leads_nowhere(tree: Path):
    """The exchange is made after the directory was seen and before it is opened."""

    def exchanging(path: Path, name: str, value: bytes, flags: int) -> None:
        inner = tree / "a"
        if inner.is_dir() and not inner.is_symlink():
            inner.rename(tree.parent / "moved")
            inner.symlink_to(tree.parent / "outside")
        real.lsetxattr(path, name, value, flags)

    calls = FakeSyscalls(results={"lsetxattr": exchanging})
    relabel_sources([wanted(tree)], LABEL, syscalls=calls)
    assert (tree / "a").is_symlink()
    assert labels(tree.parent / "outside") == {""}


def test_a_source_that_leads_elsewhere_by_now_is_refused(tree: Path, tmp_path: Path):
    (tmp_path / "real").symlink_to(tree)
    for source in (tmp_path / "real", tmp_path / "real/a"):
        with pytest.raises(FailedPrecondition, match="exchanged"):
            relabel_sources([wanted(source)], LABEL, syscalls=real)
    with pytest.raises(NotFound):
        relabel_sources([wanted(tmp_path / "gone")], LABEL, syscalls=real)
    assert labels(tree) == {""}


def test_a_file_system_without_labels_is_passed_over(tree: Path):
    def none(path: Path, **_: object) -> None:
        raise Unsupported("no labels", path=str(path))

    relabel_sources([wanted(tree)], LABEL, syscalls=FakeSyscalls(results={"lsetxattr": none}))
    assert labels(tree) == {""}


def test_what_is_mounted_below_is_labelled_as_well(tree: Path):
    """The container sees it: its mounts are recursive."""
    mount_one(Mount("tmpfs", "t", tree / "a/b", ("size=1m", "private")), syscalls=real)
    try:
        (tree / "a/b/new").write_text("x")
        relabel_sources([wanted(tree)], LABEL, syscalls=real)
        assert label_of(tree / "a/b/new") == LABEL
    finally:
        unmount(tree / "a/b", syscalls=real)
    assert label_of(tree / "a/b/c/file") == ""  # covered: nobody saw it


@pytest.mark.parametrize("depth", [DEPTH_LIMIT, DEPTH_LIMIT + 1])
def test_depth_has_a_limit(tmp_path: Path, depth: int):
    top = tmp_path / "deep"
    top.mkdir()
    directory = os.open(top, os.O_RDONLY)
    for _ in range(depth - 1):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    if depth > DEPTH_LIMIT:
        with pytest.raises(InvalidArgument, match="nested deeper"):
            relabel_sources([wanted(top)], LABEL, syscalls=real)
        assert label_of(top) == ""
    else:
        relabel_sources([wanted(top)], LABEL, syscalls=real)
        assert label_of(top) == LABEL
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


SYSTEM = (
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/etc/hosts",
    "/etc/ssh",
    "/home",
    "/lib",
    "/lib64",
    "/mnt",
    "/opt",
    "/proc",
    "/proc/sys",
    "/root",
    "/root/.ssh",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/lib",
    "/var",
    "/var/lib",
    "/var/log",
)


@pytest.mark.parametrize("path", SYSTEM)
def test_directories_of_the_node_are_refused(path: str, tree: Path):
    calls = FakeSyscalls()
    with pytest.raises(InvalidArgument, match="belongs to the node") as refused:
        # The one before it is not changed either.
        relabel_sources([wanted(tree), wanted(Path(path))], LABEL, syscalls=calls)
    assert refused.value.hint
    assert calls.calls == []


@pytest.mark.parametrize("below", [False, True], ids=["itself", "below a volume"])
def test_a_directory_of_the_node_under_another_name_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch, below: bool
):
    """Bound below a volume too; for /etc stands a directory of the test."""
    stand_in = tree.parent / "etc"
    (stand_in / "ssh").mkdir(parents=True)
    monkeypatch.setattr(relabel, "SYSTEM_TREES", frozenset({stand_in}))
    place = tree / "a/b/c"
    subprocess.run(["mount", "--bind", "--make-private", stand_in, place], check=True)
    try:
        with pytest.raises(InvalidArgument, match="belongs to the node"):
            relabel_sources([wanted(tree if below else place)], LABEL, syscalls=real)
    finally:
        unmount_tree(tree, syscalls=real)
        with suppress(PodwrightError):
            unmount(place, syscalls=real)
    assert labels(stand_in) == {""}
    assert label_of(tree) == ""


def test_places_of_pods_are_not_refused():
    """Where a kubelet has its volumes, and where local volumes are by custom."""
    for path in ("/var/lib/kubelet/pods/uid/volumes/x", "/mnt/disks/one", "/srv/data", "/data"):
        with pytest.raises(NotFound):  # refused ones are told before anything is opened
            relabel_sources([wanted(Path(path, "not-there"))], LABEL, syscalls=real)
