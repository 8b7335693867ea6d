"""Project quota on a real file system; kernels without it (CONFIG_QFMT_V2) skip."""

import errno
import shutil
import subprocess
import sys

import pytest

from sandbox.host.errors import NotFound, Unsupported
from sandbox.host.project_quota import (
    QuotaState,
    join_project,
    limit_project,
    project_of,
    projects_from,
    quota_state,
    use_of,
)
from sandbox.layer_limits import ANNOTATION, FIRST_PROJECT, LayerLimits
from tests.kit.quota import quota_mount

pytestmark = pytest.mark.root

MIB = 1 << 20
PROJECT = 4711
#: The kernel exempts who has CAP_SYS_RESOURCE; a container has it only when privileged.
UNPRIVILEGED = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")


@pytest.fixture
def disk(tmp_path):
    with quota_mount(tmp_path) as path:
        yield path


def fill(path, size):
    """Write as a container would; the errno that ended it, 0 for none."""
    program = (
        "import sys\n"
        "try:\n"
        "    with open(sys.argv[1], 'wb', buffering=0) as file:\n"
        "        for _ in range(int(sys.argv[2]) >> 16): file.write(bytes(1 << 16))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    argv = [*UNPRIVILEGED, sys.executable, "-c", program, str(path), str(size)]
    return subprocess.run(argv).returncode


def test_a_project_gets_no_more_than_its_limit(disk):
    assert quota_state(disk) is QuotaState.ENFORCED
    layer = disk / "layer"
    layer.mkdir()
    assert project_of(layer) == 0
    limit_project(layer, PROJECT, 4 * MIB)
    join_project(layer, PROJECT)
    assert project_of(layer) == PROJECT
    inside = layer / "a"
    inside.mkdir()
    assert project_of(inside) == PROJECT
    assert fill(inside / "big", 16 * MIB) == errno.EDQUOT
    assert fill(disk / "elsewhere", 16 * MIB) == 0
    use = use_of(disk, PROJECT)
    assert use.limit_bytes == 4 * MIB
    assert 3 * MIB < use.used_bytes <= 4 * MIB
    assert use.inodes == 3
    (inside / "big").unlink()
    assert fill(inside / "small", 2 * MIB) == 0
    limit_project(layer, PROJECT, 0)
    assert fill(inside / "big", 16 * MIB) == 0


def test_projects_are_listed_in_order(disk):
    for project in (PROJECT, PROJECT + 5):
        limit_project(disk, project, MIB)
    assert [use.project for use in projects_from(disk, PROJECT)] == [PROJECT, PROJECT + 5]
    assert list(projects_from(disk, PROJECT + 6)) == []


def test_a_file_system_without_quota(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    subprocess.run(["mount", "-t", "proc", "none", str(plain)], check=True)
    try:
        assert quota_state(plain) is QuotaState.OFF
        with pytest.raises((NotFound, Unsupported)):
            use_of(plain, PROJECT)
        with pytest.raises(Unsupported):
            project_of(plain)
    finally:
        subprocess.run(["umount", str(plain)], check=True)


async def opened(layers, most_bytes=4 * MIB):
    limits = LayerLimits(layers, most_bytes=most_bytes, patterns={"crun": ("podwright.io/*",)})
    await limits.open()
    return limits


async def test_layers_get_projects_and_give_them_back(disk):
    limits = await opened(disk)
    await limits.apply("one", "crun", {}, {})
    await limits.apply("two", "crun", {}, {ANNOTATION: "1Mi"})
    assert [project_of(disk / n) for n in ("one", "two")] == [FIRST_PROJECT, FIRST_PROJECT + 1]
    assert limits.use("two").limit_bytes == MIB
    assert fill(disk / "two" / "file", 8 * MIB) == errno.EDQUOT
    assert limits.use("two").used_bytes <= MIB
    await limits.apply("two", "crun", {}, {})  # again, as after a failed try: the same project
    assert limits.use("two").limit_bytes == 4 * MIB

    # A daemon that starts anew reads it all back.
    again = await opened(disk)
    assert again.use("two").project == FIRST_PROJECT + 1
    shutil.rmtree(disk / "one")
    again.release("one")
    assert use_of(disk, FIRST_PROJECT).limit_bytes == 0
    await again.apply("three", "crun", {}, {})
    assert project_of(disk / "three") == FIRST_PROJECT


async def test_limits_of_layers_that_went_unseen_are_swept(disk):
    limits = await opened(disk)
    await limits.apply("gone", "crun", {}, {})
    await limits.apply("stays", "crun", {}, {})
    (disk / "gone").rmdir()
    again = await opened(disk)
    await again.sweep()
    assert use_of(disk, FIRST_PROJECT).limit_bytes == 0
    assert again.use("stays").limit_bytes == 4 * MIB


async def test_a_project_that_somebody_else_uses_is_left_alone(disk):
    (disk / "other").mkdir()
    join_project(disk / "other", FIRST_PROJECT)
    (disk / "layers").mkdir()
    limits = await opened(disk / "layers")
    await limits.apply("one", "crun", {}, {})
    assert limits.use("one").project == FIRST_PROJECT + 1
