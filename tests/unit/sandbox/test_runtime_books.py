"""What differs between runtimes that keep a directory for each container and runsc."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox import oci
from sandbox.runtime.books import Books, as_own_sandbox, needed_options
from sandbox.settings import RuntimeHandler


def handler(root: Path, program: str, *options: str) -> RuntimeHandler:
    return RuntimeHandler("some", Path("/usr/bin", program), root, options)


def test_runsc_gets_the_pods_network_unless_told_otherwise(tmp_path: Path) -> None:
    assert needed_options(handler(tmp_path, "crun")) == ()
    assert needed_options(handler(tmp_path, "runsc", "--debug")) == ("--network=host",)
    assert needed_options(handler(tmp_path, "runsc", "--network=none")) == ()


@pytest.mark.parametrize("program", ["crun", "runsc"])
def test_books(tmp_path: Path, program: str) -> None:
    books = Books(handler(tmp_path / "root", program))
    assert books.names() == frozenset()
    assert not books.has("ab")
    (tmp_path / "root").mkdir()
    for cid in ("ab", "abc"):
        if program == "crun":
            (tmp_path / "root" / cid).mkdir()
            (tmp_path / "root" / cid / "status").touch()
        else:
            for kind in ("lock", "state"):
                (tmp_path / "root" / f"{cid}_sandbox:{cid}.{kind}").touch()
    assert books.names() == {"ab", "abc"}
    assert books.has("ab")
    books.forget("ab")
    books.forget("ab")
    assert not books.has("ab")
    assert books.names() == {"abc"}


def test_own_sandbox_is_not_told_that_it_is_part_of_one() -> None:
    spec = oci.Spec(
        oci_version=oci.OCI_VERSION,
        process=oci.Process(
            user=oci.User(uid=0, gid=0),
            args=("true",),
            env=(),
            cwd="/",
            capabilities=oci.ProcessCapabilities(),
        ),
        root=oci.Root(path="/r"),
        annotations={
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "p",
        },
        linux=oci.Linux(namespaces=()),
    )
    own = as_own_sandbox(spec, "guest")
    assert own.annotations == {"io.kubernetes.cri.sandbox-id": "p"}
    assert own.hostname == "guest"
    assert spec.hostname == ""
