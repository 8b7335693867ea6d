"""One root file system, made into an image by skopeo, umoci, buildah and our kit: all run the same.

Each maker writes what its own library makes of the tree: media types, compression, order of
entries, PAX records, sparse files, hard links. The daemon pulls each from a real registry, crun
runs it, and from inside the container every name, kind, mode, owner, link and content is told.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import probes
from tests.kit.node import Node
from tests.kit.oci import Entry, ImageConfig, Layer, make_image, make_layer, sha256
from tests.kit.registry import Pusher, running_registry

#: What a container says of all that an image's tree may have, with busybox's own programs. Of
#: directories neither size nor links: they are the file system's, and overlayfs's where it merges.
LOOK = """
echo $MADE
cd /tree
find . | sort | while read -r n; do
  if [ -d "$n" ] && [ ! -L "$n" ]; then stat -c '%N %f %u %g %Y' "$n"
  else stat -c '%N %f %u %g %Y %h %s' "$n"; fi
done
find . -type f | sort | while read -r n; do md5sum "$n"; done
cat /late /old/kept
ls -A /old
"""
EPOCH_S = 1_580_601_600


@dataclass(frozen=True)
class Tree:
    """The same contents as two directories, of which the second is a change on the first."""

    first: Path
    second: Path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """busybox and a tree with a bit of everything; then the change: files added, one removed."""
    top = tmp_path_factory.mktemp("tree")
    first, second = top / "first", top / "second"
    (first / "bin").mkdir(parents=True)
    busybox = Path(str(shutil.which("busybox")))
    shutil.copy(busybox, first / "bin/busybox")
    for name in ("sh", "find", "sort", "stat", "cat", "ls", "env", "id", "md5sum"):
        os.link(first / "bin/busybox", first / "bin" / name)
    for name in ("etc", "tmp", "proc", "sys", "dev", "old"):
        (first / name).mkdir()
    (first / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nfour:x:4:5::/:/bin/sh\n")
    (first / "etc/group").write_text("root:x:0:\nfive:x:5:\n")
    (first / "old/kept").write_text("kept\n")
    (first / "old/gone").write_text("gone\n")
    some = first / "tree"
    (some / "deep" / ("d" * 120) / ("e" * 120)).mkdir(parents=True)
    (some / "deep" / ("d" * 120) / ("e" * 120) / ("f" * 200)).write_text("long name")
    (some / "empty").write_bytes(b"")
    (some / "umlaut-\xe4\u03b1").write_text("not ASCII")
    (some / "large").write_bytes(os.urandom(1 << 20) + bytes(1 << 20))
    with (some / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    (some / "setuid").write_text("s")
    os.chown(some / "setuid", 4, 5)
    (some / "setuid").chmod(0o6755)
    (some / "sticky").mkdir(mode=0o777)
    (some / "sticky").chmod(0o1777)
    os.link(some / "large", some / "hard")
    (some / "link").symlink_to("../old/kept")
    (some / "dangling").symlink_to("/no/such/" + "t" * 150)
    os.mkfifo(some / "fifo", 0o640)
    os.chown(some / "link", 123456, 234567, follow_symlinks=False)
    for path in sorted(first.rglob("*"), reverse=True):
        os.utime(path, (EPOCH_S, EPOCH_S), follow_symlinks=False)
    run("cp", "-a", first, second)
    (second / "old/gone").unlink()
    (second / "late").write_text("late\n")
    return Tree(first, second)


def by_our_kit(tree: Tree, port: int, work: Path) -> None:
    """Layers of GNU tar, a config and a manifest of our own making."""
    tar = ["tar", "--create", "--sort=name", "--numeric-owner", "--sparse", "--format=posix"]
    plain = subprocess.run([*tar, "."], cwd=tree.first, check=True, capture_output=True).stdout
    change = make_layer(
        [Entry("old/.wh.gone", content=b""), Entry("late", mode=0o644, content=b"late\n")]
    )
    config = ImageConfig(command=["sh", "-c", "id -u"], user="four", env=["MADE=here"])
    layers = [Layer(gzip.compress(plain, 1, mtime=0), sha256(plain)), change]
    pusher = Pusher(port)
    pusher.push(make_image(layers, config, with_index=True), "by/kit:1")
    pusher.close()


def by_umoci(tree: Tree, port: int, work: Path) -> None:
    """umoci makes the layers by looking for what has changed in an unpacked bundle."""
    layout = work / "umoci"
    image = f"{layout}:1"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    run("umoci", "unpack", "--image", image, work / "bundle")
    rootfs = work / "bundle/rootfs"
    for content in (tree.first, tree.second):
        mirror(content, rootfs)
        run("umoci", "repack", "--image", image, work / "bundle")
        shutil.rmtree(work / "bundle")
        run("umoci", "unpack", "--image", image, work / "bundle")
    run(
        *("umoci", "config", "--image", image, "--config.user", "four"),
        *("--config.env", "MADE=here", "--config.cmd", "sh", "--config.cmd=-c"),
        *("--config.cmd", "id -u"),
    )
    copy(f"oci:{image}", f"docker://127.0.0.1:{port}/by/umoci:1")


def by_skopeo(tree: Tree, port: int, work: Path) -> None:
    """skopeo makes another format and another compression of an image: Docker's, and zstd."""
    source = f"docker://127.0.0.1:{port}/by/kit:1"
    copy(source, f"docker://127.0.0.1:{port}/by/skopeo:1", "--format", "v2s2")


def by_skopeo_zstd(tree: Tree, port: int, work: Path) -> None:
    """The same, layers compressed anew with zstd."""
    source = f"docker://127.0.0.1:{port}/by/kit:1"
    layout = f"dir:{work / 'dir'}"
    copy(source, layout, "--dest-decompress")
    options = ("--dest-compress-format", "zstd", "--format", "oci")
    copy(layout, f"docker://127.0.0.1:{port}/by/skopeo-zstd:1", *options)


def by_buildah(tree: Tree, port: int, work: Path) -> None:
    """buildah copies the tree and commits twice; storage without overlay, nothing of it is kept."""
    storage = ["--root", work / "storage", "--runroot", work / "run", "--storage-driver", "vfs"]
    signature = ["--signature-policy", work / "policy.json"]
    (work / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    name = run("buildah", *storage, "from", *signature, "scratch").strip()
    for content in (tree.first, tree.second):
        place = Path(run("buildah", *storage, "mount", name).strip())
        mirror(content, place)
        run("buildah", *storage, "umount", name)
        run(
            *("buildah", *storage, "config", "--user", "four", "--env", "MADE=here"),
            *("--cmd", '["sh", "-c", "id -u"]', name),
        )
        image = run("buildah", *storage, "commit", *signature, name).strip()
        run("buildah", *storage, "rm", name)
        name = run("buildah", *storage, "from", *signature, image).strip()
    target = f"docker://127.0.0.1:{port}/by/buildah:1"
    run("buildah", *storage, "push", *signature, "--tls-verify=false", image, target)
    run("buildah", *storage, "rm", "--all")
    run("buildah", *storage, "rmi", "--all", "--force")


MAKERS: dict[str, tuple[Callable[[Tree, int, Path], None], tuple[str, ...]]] = {
    "kit": (by_our_kit, ()),
    "skopeo": (by_skopeo, ("skopeo",)),
    "skopeo-zstd": (by_skopeo_zstd, ("skopeo",)),
    "umoci": (by_umoci, ("umoci", "skopeo")),
    "buildah": (by_buildah, ("buildah",)),
}


def run(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def copy(source: str, target: str, *options: str) -> None:
    lax = ("--src-tls-verify=false", "--dest-tls-verify=false", "--insecure-policy")
    run("skopeo", lax[2], "copy", "-q", *lax[:2], *options, source, target)


def mirror(source: Path, target: Path) -> None:
    """Make `target` what `source` is: what is not there any more is removed."""
    for path in sorted(target.rglob("*"), reverse=True):
        if not os.path.lexists(source / path.relative_to(target)):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    pack, unpack = f"tar -C {source} -cS --numeric-owner .", f"tar -C {target} -xp --numeric-owner"
    run("bash", "-o", "pipefail", "-c", f"{pack} | {unpack}")


@pytest.fixture(scope="module")
def published(
    tree: Tree, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, set[str]]]:
    """A registry with what each maker made; the makers that are installed."""
    work = tmp_path_factory.mktemp("makers")
    made = set()
    with running_registry(work / "registry", work) as port:
        for name, (make, programs) in MAKERS.items():
            if all(shutil.which(program) for program in programs):
                (work / name).mkdir()
                make(tree, port, work / name)
                made.add(name)
        yield port, made


@pytest.fixture(scope="module", params=["indexed", "tree"])
def shared_node(
    request: pytest.FixtureRequest, certs_d: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node for each form of layers."""
    if request.param == "indexed":
        reason = probes.no_indexed_layers(tmp_path_factory.mktemp("probe"))
        if reason:
            pytest.skip(reason)
    settings = {"image.layer_form": f'"{request.param}"'}
    with Node.running(f"makers-{request.param}", certs_d, settings=settings) as node:
        yield node


def seen_in(node: Node, image: str, name: str) -> str:
    """What a container of the image says of itself and its files."""
    node.pull(image)
    pod = node.run_pod(name)
    node.wait_exited(node.run(pod, "own", [], image=image))
    look = node.run(pod, "look", ["sh", "-c", LOOK], image=image, user=0)
    assert node.wait_exited(look).exit_code == 0, node.log_of(name, "look")
    text = node.log_of(name, "own") + node.log_of(name, "look")
    node.stop_pod(pod)
    node.remove_pod(pod)
    node.remove_pod_cgroups()
    node.remove_image(image)
    return text


@pytest.mark.parametrize("maker", list(MAKERS))
def test_an_image_runs_as_the_kits_own_does(
    node: Node, published: tuple[int, set[str]], maker: str
) -> None:
    port, made = published
    if maker not in made:
        pytest.skip(f"one of {MAKERS[maker][1]} is not installed (Debian packages of that name)")
    ours = seen_in(node, f"127.0.0.1:{port}/by/kit:1", "ours")
    assert ours.startswith("4\nhere\n"), ours[:200]
    assert ours.endswith("late\nkept\nkept\n"), ours[-200:]
    assert "gone" not in ours
    theirs = seen_in(node, f"127.0.0.1:{port}/by/{maker}:1", "theirs")
    assert theirs.splitlines() == ours.splitlines()
    assert "umlaut" in ours
