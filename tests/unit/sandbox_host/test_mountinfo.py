import os
from pathlib import Path

import pytest

from sandbox.host.errors import Corrupt, NotFound
from sandbox.host.mountinfo import (
    list_mounts,
    mount_id,
    mount_of,
    mounts_below,
    parse_mountinfo,
)

LINES = rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:40 /a\040b /srv/with\040blank\011tab\134back ro - tmpfs some\040thing rw,size=4k
41 27 0:41 / /srv/\303\251\377 rw unbindable - tmpfs none rw
"""


def test_every_field_of_the_grammar():
    first, root, odd, _ = parse_mountinfo(LINES)
    assert (first.id, first.parent, first.device) == (36, 35, "98:0")
    assert (first.root, first.target) == ("/mnt1", Path("/mnt2"))
    assert first.options == ("rw", "noatime")
    assert first.propagation == {"master", "shared"}
    assert (first.type, first.source) == ("ext3", "/dev/root")
    assert first.super_options == ("rw", "errors=continue")
    assert root.propagation == frozenset()
    assert (odd.root, odd.source) == ("/a b", "some thing")


def test_escapes_come_out_as_the_names_that_system_calls_take_back():
    *_, odd, raw = parse_mountinfo(LINES)
    assert odd.target == Path("/srv/with blank\ttab\\back")
    assert os.fsencode(raw.target) == b"/srv/\xc3\xa9\xff"
    assert raw.propagation == {"unbindable"}


@pytest.mark.parametrize("line", [b"36 35 98:0 /", b"x 35 98:0 / /m rw - t s o", b"1 2 3 4 5 6 -"])
def test_a_line_that_is_none_is_corrupt(line):
    with pytest.raises(Corrupt):
        parse_mountinfo(line)


def test_the_mount_that_holds_a_path():
    assert mount_of(Path("/proc/self/status")).type == "proc"
    assert mount_of(Path("/")).target == Path("/")
    with pytest.raises(NotFound):
        mount_of(Path("/nowhere/at/all"))


def test_mounts_of_a_process_that_is_gone():
    with pytest.raises(NotFound):
        list_mounts(2**22 + 1)
    # The first one only: other programs mount and unmount at any time.
    assert list_mounts(os.getpid())[0] == list_mounts()[0]


def test_a_descriptor_knows_its_mount():
    fd = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        number = mount_id(fd)
    finally:
        os.close(fd)
    assert number in {mount.id for mount in list_mounts() if mount.type == "proc"}


BELOW = rb"""27 1 254:0 / / rw - ext4 /dev/vda rw
40 27 0:40 / /run/p/abc rw - tmpfs shm rw
41 40 0:41 / /run/p/abc/shm rw - tmpfs shm rw
42 27 0:42 / /run/p/abcd rw - tmpfs shm rw
43 27 0:43 / /elsewhere rw - overlay overlay rw,upperdir=/run/p/abc/upper
44 27 0:44 / /srv/with\040blank\043x/in rw - tmpfs t rw"""


@pytest.mark.parametrize(
    ("place", "ids"),
    [
        ("/run/p/abc", [40, 41]),
        ("/run/p/abc/shm", [41]),
        ("/run/p/none", []),
        ("/srv/with blank#x", [44]),
        ("/srv/with blank", []),
        ("/", [27, 40, 41, 42, 43, 44]),
    ],
)
def test_mounts_below_a_place_are_those_and_no_others(place, ids):
    """Neither a longer name nor the place in another field of the line counts."""
    assert [mount.id for mount in mounts_below(Path(place), content=BELOW)] == ids


def test_mounts_below_are_what_all_mounts_say():
    every = {m.id: m for m in list_mounts() if Path("/proc") in (m.target, *m.target.parents)}
    assert every
    assert {mount.id: mount for mount in mounts_below(Path("/proc"))} == every
