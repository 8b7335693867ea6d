"""Layers unpacked for real: breakouts, whiteouts, fidelity. Root: owners, devices, trusted.*.

Every shape that has led out of somebody's layer directory is tried against a canary beside the
tree: its contents, mode, owner, times and link count must be what they were.
"""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from imageservice.errors import DigestMismatch
from imageservice.forms import INDEX_NAME, TAR_NAME, LayerForm
from imageservice.snapshots.indexed import mount_index
from imageservice.trees import count_tree
from imageservice.unpack.layer import unpack_layer
from imageservice.unpack.protocol import Done, Job
from sandbox.host.errors import Corrupt, PodwrightError, ResourceExhausted
from sandbox.host.files import remove_tree
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import unmount
from tests import probes
from tests.kit.tars import EPOCH_S, Tar, diff_id, pax_member, with_xattrs

pytestmark = pytest.mark.root

OPAQUE = "trusted.overlay.opaque"


@dataclass
class Bench:
    """A directory with a tree to fill and, beside it, what must never change.

    In the indexed form the tree is the mounted index, seen as a container will see it.
    """

    root: Path
    form: LayerForm
    _unpacked: int = 0

    @property
    def tree(self) -> Path:
        return self.root / "tree"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    def unpack(
        self,
        plain: bytes,
        blob: bytes | None = None,
        *,
        max_entries: int = 1000,
        max_plain_bytes: int = 1 << 26,
    ) -> Done:
        path = self.root / "blob"
        blob = plain if blob is None else blob
        path.write_bytes(blob)
        target = self.tree
        if self.form == "indexed":
            self.clear()
            self._unpacked += 1
            target = self.root / f"indexed-{self._unpacked}"
            target.mkdir()
        job = Job(
            blob=str(path),
            blob_digest=diff_id(blob),
            blob_bytes=len(blob),
            available_bytes=len(blob),
            target=str(target),
            form=self.form,
            diff_id=diff_id(plain),
            max_plain_bytes=max_plain_bytes,
            max_entries=max_entries,
        )
        done = unpack_layer(job, lambda _bytes: None)
        if self.form == "indexed":
            assert done.form == "indexed"
            mount_index(target, self.tree, syscalls=LibcSyscalls())
            assert [name.name for name in sorted(target.iterdir())] == [INDEX_NAME, TAR_NAME]
        return done

    def clear(self) -> None:
        """Take the tree away, for another one."""
        if self.form == "indexed":
            unmount(self.tree, syscalls=LibcSyscalls())
        else:
            remove_tree(self.tree)
            self.tree.mkdir(mode=0o755)

    def seen(self) -> list[tuple[str, os.stat_result, bytes]]:
        found = []
        for path in sorted([self.outside, *self.outside.rglob("*")]):
            content = path.read_bytes() if path.is_file() else b""
            status = path.lstat()
            found.append(
                (
                    str(path),
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                    status.st_nlink,
                    content,
                )
            )
        return found


@pytest.fixture(params=["tree", "indexed"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "indexed" and (reason := probes.no_indexed_layers(tmp_path)):
        pytest.skip(reason)
    yield from made_bench(tmp_path, request.param)


@pytest.fixture
def tree_bench(tmp_path: Path) -> Iterator[Bench]:
    yield from made_bench(tmp_path, "tree")


def made_bench(root: Path, form: LayerForm) -> Iterator[Bench]:
    old = os.umask(0)
    made = Bench(root, form)
    made.tree.mkdir(mode=0o755)
    made.outside.mkdir()
    (made.outside / "canary").write_text("untouched")
    (made.outside / "canary").chmod(0o600)
    (made.outside / "dir").mkdir()
    try:
        yield made
    finally:
        os.umask(old)
        made.clear()
        remove_tree(made.tree)  # pytest's own clean-up is recursive, and some trees are deep


def escapes() -> Iterator[tuple[str, Tar]]:
    """What others have fallen for; `OUT` stands for the absolute path of the outside directory."""
    yield "dot-dot file", Tar().file("../outside/canary")
    yield "dot-dot in the middle", Tar().directory("d").file("d/../../outside/canary")
    yield "absolute file", Tar().file("OUT/canary")
    yield "link up, then file", Tar().symlink("l", "..").file("l/outside/canary")
    yield "link out, then file", Tar().symlink("l", "../outside").file("l/canary")
    yield "absolute link, then file", Tar().symlink("l", "OUT").file("l/canary")
    yield "link to file, then file", Tar().symlink("l", "OUT/canary").file("l")
    yield "link to file, then dir", Tar().symlink("l", "OUT/dir").directory("l", 0o777)
    yield "link chain", Tar().symlink("a", "b").symlink("b", "../outside").file("a/canary")
    yield "link loop", Tar().symlink("a", "b").symlink("b", "a").file("a/x")
    yield (
        "link via dot-dot",
        Tar().directory("d").symlink("d/l", "../../outside").file("d/l/canary"),
    )
    yield "hard link up", Tar().hardlink("h", "../outside/canary").file("h")
    yield "hard link absolute", Tar().hardlink("h", "OUT/canary").file("h")
    yield "hard link through link", Tar().symlink("l", "OUT").hardlink("h", "l/canary").file("h")
    yield (
        "hard link to link, then write",
        Tar().symlink("l", "OUT/canary").hardlink("h", "l", 0o777).file("h"),
    )
    yield "hard link to link, chmod", Tar().symlink("l", "OUT/canary").hardlink("h", "l", 0o4777)
    yield "hard link to itself", Tar().hardlink("h", "h")
    yield "hard link forward", Tar().hardlink("h", "later").file("later")
    yield "hard link to removed", Tar().file("a").directory("a").hardlink("h", "a/x")
    yield "hard link to directory", Tar().directory("d").hardlink("h", "d")
    yield "root as link", Tar().symlink(".", "OUT").file("canary")
    yield "root as link, slash", Tar().symlink("/", "OUT").file("canary")
    yield "root as link, dot slash", Tar().symlink("./", "OUT").file("canary")
    yield "root as file", Tar().file(".")
    yield "root as device", Tar().add(".", kind=tarfile.CHRTYPE, device=(1, 3))
    yield "dot-dot as link", Tar().symlink("..", "OUT")
    yield "dot-dot as directory", Tar().directory("..", 0o777)
    yield (
        "directory replaced by link",
        (Tar().directory("d").file("d/x").symlink("d", "OUT").file("d/canary")),
    )
    yield "file replaced by link", Tar().file("d").symlink("d", "OUT").file("d/canary")
    yield "link replaced by directory", Tar().symlink("d", "OUT").directory("d").file("d/canary")
    yield "whiteout up", Tar().file("../outside/.wh.canary")
    yield "whiteout through link", Tar().symlink("l", "OUT").file("l/.wh.canary")
    yield "opaque through link", Tar().symlink("l", "OUT").file("l/.wh..wh..opq")
    yield "whiteout of dot-dot", Tar().directory("d").file("d/.wh...")
    yield "whiteout of dot", Tar().directory("d").file("d/.wh..")
    yield "whiteout of a link", Tar().symlink("l", "OUT").file(".wh.l")
    yield "directory through link", Tar().symlink("l", "OUT").directory("l/dir", 0o4777)
    yield (
        "device through link",
        (Tar().symlink("l", "OUT").add("l/dev", kind=tarfile.CHRTYPE, device=(1, 3))),
    )
    yield "fifo through link", Tar().symlink("l", "OUT").add("l/canary", kind=tarfile.FIFOTYPE)
    yield "link through link", Tar().symlink("l", "OUT").symlink("l/canary", "x")
    yield "magic link", Tar().symlink("l", "/proc/self/cwd").file("l/canary")
    yield "magic root", Tar().symlink("l", "/proc/1/root").file("l/tmp/x")
    yield "parent is a file", Tar().file("f").file("f/x")
    yield (
        "overlay redirect",
        with_xattrs(Tar(), "f", {"trusted.overlay.redirect": b"/etc", OPAQUE: b"y"}),
    )
    yield (
        "attribute through link",
        with_xattrs(Tar().symlink("l", "OUT"), "l/canary", {"user.a": b"1"}),
    )


ESCAPES = dict(escapes())


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_outside_is_touched(bench: Bench, name: str) -> None:
    plain = ESCAPES[name].done()
    # A name of another length would move everything: the header holds 100 bytes for it.
    for marker in (b"OUT/canary", b"OUT/dir", b"OUT"):
        plain = _replaced(plain, marker, os.fsencode(bench.outside) + marker[3:])
    before = bench.seen()
    with suppress(Corrupt):
        bench.unpack(plain)
    assert bench.seen() == before


def test_overlay_marks_of_an_archive_are_dropped(bench: Bench) -> None:
    marks = {"trusted.overlay.redirect": b"/etc", OPAQUE: b"y", "user.overlay.origin": b"x"}
    bench.unpack(with_xattrs(Tar(), "f", marks).done())
    assert os.listxattr(bench.tree / "f") == []


def _replaced(plain: bytes, marker: bytes, text: bytes) -> bytes:
    """`plain` with names and targets that are `marker` made `text`, checksums mended."""
    data = bytearray(plain)
    for at in range(0, len(data), 512):
        block = data[at : at + 512]
        if block[257:262] != b"ustar":
            continue
        for start in (0, 157):
            field = bytes(block[start : start + 100]).rstrip(b"\0")
            if field == marker:
                assert len(text) <= 100
                data[at + start : at + start + 100] = text.ljust(100, b"\0")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def test_a_parent_that_is_a_link_is_followed_inside_the_layer(bench: Bench) -> None:
    """What real layers need: `lib` -> `usr/lib`, absolute and dangling ones too."""
    bench.unpack(
        Tar()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/a")
        .symlink("abs", "/usr/lib")
        .file("abs/b")
        .symlink("var/run", "../../../../run")
        .file("var/run/c")
        .symlink("host", "/outside")
        .file("host/canary")
        .done()
    )
    assert (bench.tree / "usr/lib/a").read_bytes() == b"inside"
    assert (bench.tree / "usr/lib/b").exists()
    assert (bench.tree / "run/c").exists()
    assert (bench.tree / "outside/canary").read_bytes() == b"inside"


def test_directories_flipped_to_links_meanwhile_lead_nowhere(tree_bench: Bench) -> None:
    """CVE-2025-47290: someone swaps a directory of the tree for a link to the outside."""
    bench = tree_bench
    plain = Tar()
    for number in range(4000):
        plain.file(f"d{number % 40}/f{number}", b"x")
    before = [entry[1:] for entry in bench.seen()]
    stop = threading.Event()

    def flip() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            target = bench.tree / f"d{number % 40}"
            try:
                target.rename(bench.root / f"moved{number}")
                target.symlink_to(bench.outside)
            except OSError:
                continue

    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        bench.unpack(plain.done(), max_entries=10_000)
    except PodwrightError:
        pass
    finally:
        stop.set()
        flipper.join()
    assert [entry[1:] for entry in bench.seen()] == before


def test_attributes_are_what_the_archive_says(bench: Bench) -> None:
    done = bench.unpack(
        Tar()
        .directory("./", 0o711)
        .add("d", kind=tarfile.DIRTYPE, mode=0o3775, uid=7, gid=8)
        .add("d/f", content=b"12345", mode=0o6755, uid=1000, gid=1001, mtime=EPOCH_S + 5)
        .add("d/n", content=b"", mode=0)
        .add("d/s", kind=tarfile.SYMTYPE, link="f", uid=3, gid=4)
        .hardlink("d/h", "d/f")
        .add("d/c", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666, gid=5)
        .add("d/b", kind=tarfile.BLKTYPE, device=(8, 300), mode=0o660)
        .add("d/p", kind=tarfile.FIFOTYPE, mode=0o1600, uid=9)
        .done()
    )
    status = {path.name: path.lstat() for path in [bench.tree, *bench.tree.rglob("*")]}
    modes = {name: stat.S_IMODE(s.st_mode) for name, s in status.items()}
    assert modes["tree"] == 0o711
    assert modes["d"] == 0o3775
    assert modes["f"] == 0o6755
    assert modes["n"] == 0
    assert modes["c"] == 0o666
    assert modes["p"] == 0o1600
    owners = {name: (s.st_uid, s.st_gid) for name, s in status.items()}
    assert owners["d"] == (7, 8)
    assert owners["f"] == (1000, 1001)
    assert owners["s"] == (3, 4)
    assert owners["c"] == (0, 5)
    assert owners["p"] == (9, 0)
    # The set-group-id directory came before its files and must not have given them its group.
    assert owners["n"] == (0, 0)
    assert status["f"].st_ino == status["h"].st_ino
    assert status["f"].st_mtime == EPOCH_S + 5
    assert {status[n].st_mtime for n in ("tree", "d", "s", "c", "b", "p")} == {EPOCH_S}
    assert status["c"].st_rdev == os.makedev(1, 3)
    assert status["b"].st_rdev == os.makedev(8, 300)
    assert (done.entries, done.size_bytes) == (8, 10)
    assert (done.entries, done.size_bytes) == count_tree(bench.tree)
    assert done.implied == ()


def test_extended_attributes(bench: Bench) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    plain = with_xattrs(
        Tar(),
        "f",
        {
            "security.capability": capability,
            "user.note": b"\0\xff",
            "trusted.mine": b"1",
            "trusted.overlay.opaque": b"y",
            "security.selinux": b"no",
        },
    )
    bench.unpack(plain.done())
    path = bench.tree / "f"
    assert sorted(os.listxattr(path)) == ["security.capability", "trusted.mine", "user.note"]
    assert os.getxattr(path, "user.note") == b"\0\xff"
    assert os.getxattr(path, "security.capability") == capability


def test_capability_survives_a_change_of_owner(bench: Bench) -> None:
    """chown(2) drops it: the order of calls decides."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    header = pax_member({"SCHILY.xattr.security.capability": capability})
    bench.unpack(Tar().raw(header).add("ping", mode=0o4755, uid=5, gid=5).done())
    assert os.getxattr(bench.tree / "ping", "security.capability") == capability
    assert (bench.tree / "ping").stat().st_mode & 0o7777 == 0o4755


def test_default_acl_does_not_change_files_of_the_layer(bench: Bench) -> None:
    acl = bytes.fromhex("0200000001000700ffffffff04000000ffffffff20000000ffffffff")
    header = pax_member({"SCHILY.xattr.system.posix_acl_default": acl})
    bench.unpack(Tar().raw(header).directory("d").file("d/f", mode=0o664).done())
    assert os.getxattr(bench.tree / "d", "system.posix_acl_default") == acl
    assert (bench.tree / "d/f").stat().st_mode & 0o777 == 0o664
    assert "system.posix_acl_access" not in os.listxattr(bench.tree / "d/f")


def test_sparse_files_keep_their_holes(bench: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(4 << 20)
    for form in ("gnu", "posix"):
        archive = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", "--sparse", f"--format={form}", "-C", source, "-cf", archive, "holes"],
            check=True,
        )
        done = bench.unpack(archive.read_bytes())
        path = bench.tree / "holes"
        assert path.read_bytes() == (source / "holes").read_bytes()
        if bench.form == "tree":  # EROFS tells the length of what is not a hole only to SEEK_DATA
            assert path.stat().st_blocks * 512 < 1 << 19
        with path.open("rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 20
        assert done.size_bytes == 4 << 20
        bench.clear()


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return OPAQUE in os.listxattr(path) and os.getxattr(path, OPAQUE) == b"y"


def test_whiteouts_become_overlay_marks(bench: Bench) -> None:
    done = bench.unpack(
        Tar().directory("d").file("d/.wh.gone").file("e/.wh..wh..opq").file("e/kept").done()
    )
    assert is_whiteout(bench.tree / "d/gone")
    assert is_opaque(bench.tree / "e")
    assert not is_opaque(bench.tree / "d")
    assert (bench.tree / "e/kept").exists()
    assert not list(bench.tree.rglob(".wh.*"))
    assert done.entries == 4
    assert not done.opaque_root


def test_opaque_root_is_reported(bench: Bench) -> None:
    assert bench.unpack(Tar().file(".wh..wh..opq").done()).opaque_root


@pytest.mark.parametrize("order", ["whiteout first", "whiteout last"])
def test_a_whiteout_hides_only_what_is_below_the_layer(bench: Bench, order: str) -> None:
    names = [".wh.f", "f", ".wh.d", "d/x"]
    plain = Tar()
    for name in names if order == "whiteout first" else reversed(names):
        plain.file(name)
    bench.unpack(plain.done())
    assert (bench.tree / "f").read_bytes() == b"inside"
    assert (bench.tree / "d/x").read_bytes() == b"inside"
    assert is_opaque(bench.tree / "d")


def test_the_last_of_one_name_wins(bench: Bench) -> None:
    done = bench.unpack(
        Tar()
        .file("a", b"first")
        .file("a", b"second")
        .directory("b")
        .file("b/c/x")
        .file("b", b"file")
        .file("c")
        .directory("c")
        .file("c/y")
        .symlink("s", "a")
        .file("s", b"no link")
        .hardlink("h", "a")
        .hardlink("h", "s")
        .directory("m", 0o700)
        .directory("m", 0o755)
        .done()
    )
    tree = bench.tree
    assert (tree / "a").read_bytes() == b"second"
    assert (tree / "b").read_bytes() == b"file"
    assert (tree / "c/y").exists()
    assert (tree / "s").read_bytes() == b"no link"
    assert not (tree / "s").is_symlink()
    assert (tree / "h").read_bytes() == b"no link"
    assert stat.S_IMODE((tree / "m").stat().st_mode) == 0o755
    assert (done.entries, done.size_bytes) == count_tree(tree)


def test_implied_parents_are_made_and_reported(bench: Bench) -> None:
    done = bench.unpack(Tar().file("a/b/c").directory("a/b", 0o700).file("x/.wh.y").done())
    assert done.implied == ("", "a", "x")
    assert stat.S_IMODE((bench.tree / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((bench.tree / "a/b").stat().st_mode) == 0o700


def test_names_are_bytes(bench: Bench) -> None:
    name = b"caf\xe9-\xff-\n"
    plain = pax_member({"path": name}) + Tar().file("x").done()
    bench.unpack(plain)
    assert [os.fsencode(path.name) for path in bench.tree.iterdir()] == [name]


def test_deep_trees(bench: Bench) -> None:
    """Two thousand levels: neither recursion nor descriptors run out; and it can be replaced."""
    deep = "/".join(["d"] * 2000)
    done = bench.unpack(
        Tar().file(f"{deep}/f").symlink("l", deep[:3999]).file("d").done(), max_entries=5000
    )
    assert done.entries == 2
    assert (bench.tree / "d").is_file()


@pytest.mark.parametrize("wrap", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed(bench: Bench, wrap: object) -> None:
    plain = Tar().file("a", bytes(3_000_000)).done()
    assert callable(wrap)
    done = bench.unpack(plain, wrap(plain))
    assert (bench.tree / "a").stat().st_size == 3_000_000
    assert done.plain_bytes == len(plain)


def test_wrong_diff_id(bench: Bench) -> None:
    plain = Tar().file("a").done()
    with pytest.raises(DigestMismatch):
        bench.unpack(plain, plain + bytes(512))


@pytest.mark.parametrize(
    ("plain", "blob", "error"),
    [
        pytest.param(b"no tar at all" * 100, None, Corrupt, id="no tar"),
        pytest.param(
            b"", gzip.compress(Tar().file("a", bytes(9999)).done())[:-9], Corrupt, id="cut"
        ),
        pytest.param(b"", b"", None, id="empty is an empty layer"),
        pytest.param(
            b"".join(Tar().file(f"f{n}", b"").done()[:512] for n in range(1001)),
            None,
            ResourceExhausted,
            id="too many entries",
        ),
        pytest.param(
            Tar().file("/".join("abcdefgh" * 130) + "/x").done(),
            None,
            ResourceExhausted,
            id="too many implied directories",
        ),
        pytest.param(b"", gzip.compress(bytes(1 << 27)), ResourceExhausted, id="bomb of padding"),
    ],
)
def test_limits_and_damage(
    bench: Bench, plain: bytes, blob: bytes | None, error: type[PodwrightError] | None
) -> None:
    if error is None:
        bench.unpack(plain, blob)
        return
    with pytest.raises(error):
        bench.unpack(plain, blob)


def test_same_tree_as_gnu_tar(bench: Bench, tmp_path: Path) -> None:
    """A real directory of this machine, packed and unpacked by GNU tar for comparison."""
    archive, theirs = tmp_path / "a.tar", tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(
        ["tar", "--format=posix", "-C", "/usr/share", "-cf", archive, "perl5", "zoneinfo/Europe"],
        check=True,
    )
    subprocess.run(["tar", "-C", theirs, "-xpf", archive], check=True)
    done = bench.unpack(archive.read_bytes(), max_entries=100_000, max_plain_bytes=1 << 30)
    # Lengths of directories are each file system's own affair.
    form = r"%P %y %m %U %G %T@ %l %n"
    listing = ["find", ".", "-mindepth", "1", "-type", "d", "-printf", form + r"\n"]
    listing += ["-o", "-printf", form + r" %s\n"]
    described = [
        sorted(
            line
            for line in subprocess.run(listing, cwd=d, check=True, capture_output=True)
            .stdout.decode()
            .splitlines()
            if not line.startswith("zoneinfo d ")  # implied: each makes up its own time
        )
        for d in (theirs, bench.tree)
    ]
    assert described[0] == described[1]
    subprocess.run(["diff", "-r", "--no-dereference", theirs, bench.tree], check=True)
    assert (done.entries, done.size_bytes) == count_tree(bench.tree)
