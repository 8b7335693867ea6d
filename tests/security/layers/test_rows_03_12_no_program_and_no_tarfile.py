"""Rows 3 and 12: layers are read by our own reader only, and nothing is ever run for them.

CVE-2014-9356, CVE-2014-9357: a decompressor was run as root, in the root of the image.
CVE-2007-4559 and the later holes in its filters: `tarfile` extracts wherever the archive says.
Tried: layers of every compression that carry programs named as decompressors, unpacked under an
audit hook that hears of every fork, exec and import; identifiers with slashes; and the tree's
own imports. (The shapes of archives that lead out: tests/host/test_images_unpack.py.)
"""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from imageservice.digest import Digest
from imageservice.errors import DigestInvalid, ReferenceInvalid
from imageservice.reference import parse_reference
from tests.kit.tars import Tar, diff_id

TOP = Path(__file__).resolve().parents[3]
PACKAGES = ("cri", "sandbox", "imageservice", "cni", "metrics")
DECOMPRESSORS = ("gzip", "gunzip", "unpigz", "pigz", "igzip", "zstd", "unzstd", "xz", "unxz", "tar")

#: Unpacks each job of its input in a process that hears of everything it runs or imports.
UNDER_AUDIT = """
import json, os, sys
from imageservice.unpack.layer import unpack_layer
from imageservice.unpack.protocol import job_decoder
heard = []
watched = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen",
           "import", "ctypes.dlopen", "exec", "os.chroot")
def hook(event, arguments):
    if event in watched:
        heard.append([event, str(arguments[:1])])
jobs = json.loads(sys.stdin.read())
sys.addaudithook(hook)
for job in jobs:
    unpack_layer(job_decoder.decode(job.encode()), lambda _bytes: None)
print(json.dumps(heard))
"""


@pytest.mark.root
def test_no_program_is_run_and_nothing_is_imported_for_a_layer(tmp_path: Path) -> None:
    layer = Tar().directory("usr/bin").directory("bin")
    for name in DECOMPRESSORS:
        layer.file(f"usr/bin/{name}", b"#!/bin/sh\ntouch /tmp/was-run\n", 0o4755)
        layer.file(f"bin/{name}", b"#!/bin/sh\ntouch /tmp/was-run\n", 0o755)
        layer.file(f"{name}.py", b"raise SystemExit")
    plain = layer.done()
    jobs = []
    for name, blob in {
        "plain": plain,
        "gzip": gzip.compress(plain),
        "zstd": zstandard.ZstdCompressor().compress(plain),
    }.items():
        (tmp_path / name).write_bytes(blob)
        (tmp_path / f"{name}.tree").mkdir()
        job = {
            "type": "Job",
            "blob": str(tmp_path / name),
            "blob_digest": diff_id(blob),
            "blob_bytes": len(blob),
            "available_bytes": len(blob),
            "target": str(tmp_path / f"{name}.tree"),
            "form": "tree",
            "diff_id": diff_id(plain),
            "max_plain_bytes": 1 << 30,
            "max_entries": 1000,
        }
        jobs.append(json.dumps(job))
    run = subprocess.run(
        [sys.executable, "-c", UNDER_AUDIT],
        input=json.dumps(jobs),
        env={"PYTHONPATH": str(TOP), "PATH": f"{tmp_path}/gzip.tree/bin:/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # What the first error or the first zstd frame loads of the installed packages is no image's.
    heard = [(event, what) for event, what in json.loads(run.stdout) if event != "import"]
    assert heard == []
    assert (tmp_path / "gzip.tree/usr/bin/unpigz").stat().st_mode & 0o7777 == 0o4755


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_nothing_here_can_extract_by_the_standard_library() -> None:
    modules = [path for package in PACKAGES for path in (TOP / package).rglob("*.py")]
    assert len(modules) > 100
    for path in modules:
        assert not imports_of(path) & {"tarfile", "zipfile", "lzma", "bz2"}, path
        called = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        assert not called & {"extractall", "unpack_archive"}, path


@pytest.mark.parametrize(
    "text", ["../../etc", "/etc/passwd", "a/../../b", "sha256:../x", "..", "./a", "a//b", "a/./b"]
)
def test_a_name_with_slashes_that_lead_away_is_no_name(text: str) -> None:
    with pytest.raises(ReferenceInvalid):
        parse_reference(text)
    with pytest.raises(DigestInvalid):
        Digest.parse(text)
