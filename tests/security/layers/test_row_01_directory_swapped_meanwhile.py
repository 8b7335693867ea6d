"""Row 1, CVE-2025-47290: a directory becomes a link between the check and the use, while unpacking.

A second process, which no lock of ours holds up, swaps directories of the tree for links to the
outside as fast as it can while a worker fills it. Nothing outside may change, link counts and times
included. (The same by a thread of the unpacking process: tests/host/test_images_unpack.py.)
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from imageservice.unpack.layer import unpack_layer
from imageservice.unpack.protocol import Job
from sandbox.host.errors import PodwrightError
from sandbox.host.trees import remove_tree
from tests.kit.tars import Tar, diff_id

pytestmark = pytest.mark.root

#: Names go away and come back as links; it tells once that it runs, and ends with its input.
FLIPPER = """
import itertools, os, select, sys
tree, moved, outside = sys.argv[1:]
print("ready", flush=True)
for number in itertools.count():
    name = f"{tree}/d{number % 20}"
    try:
        os.rename(name, f"{moved}/{number}")
        os.symlink(outside, name)
    except OSError:
        pass
    if number % 100 == 0 and select.select([0], [], [], 0)[0]:
        break
"""


def seen(outside: Path) -> list[tuple[object, ...]]:
    found = []
    for path in sorted([outside, *outside.rglob("*")]):
        at = path.lstat()
        found.append(
            (str(path), at.st_mode, at.st_uid, at.st_mtime_ns, at.st_ctime_ns, at.st_nlink)
        )
    return found


def test_a_process_that_swaps_directories_for_links_leads_nowhere(tmp_path: Path) -> None:
    tree, moved, outside = (tmp_path / name for name in ("tree", "moved", "outside"))
    for directory in (tree, moved, outside):
        directory.mkdir()
    (outside / "f0").write_text("canary")
    layer = Tar()
    for number in range(1200):
        name = f"d{number % 20}/f{number}"
        match number % 4:
            case 0:
                layer.file(name, b"x", 0o4755)
            case 1:
                layer.symlink(name, "target")
            case 2:
                layer.directory(f"{name}/e", 0o777)
            case _:
                layer.hardlink(name, f"d{(number - 3) % 20}/f{number - 3}")
    plain = layer.done()
    blob = tmp_path / "blob"
    blob.write_bytes(plain)
    before = seen(outside)
    swapped = 0
    argv = [sys.executable, "-c", FLIPPER, tree, moved, outside]
    for attempt in range(3):
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flipper:
            assert flipper.stdout is not None
            assert flipper.stdout.readline() == b"ready\n"
            with suppress(PodwrightError):
                unpack_layer(
                    Job(
                        blob=str(blob),
                        blob_digest=diff_id(plain),
                        blob_bytes=len(plain),
                        available_bytes=len(plain),
                        target=str(tree),
                        form="tree",
                        diff_id=diff_id(plain),
                        max_plain_bytes=1 << 30,
                        max_entries=10_000,
                    ),
                    lambda _bytes: None,
                )
            flipper.communicate(b"end")
        swapped += len(list(moved.iterdir()))
        assert seen(outside) == before, f"attempt {attempt}"
        for directory in (tree, moved):
            remove_tree(directory)
            directory.mkdir()
    assert swapped > 0, "nothing was ever swapped: the test tried nothing"
