"""What `podwright check` advises where pods cannot have user namespaces."""

from pathlib import Path

import pytest

from cri.check.userns import NEWER_KERNEL, remedy
from cri.userns import impassable


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ("users other than root cannot pass through /root", "chmod o+x"),
        ("no user namespace can be made: no space left on device", "max_user_namespaces"),
        ("owners of files cannot be mapped: its file system cannot map owners", "ext4"),
        ("owners of files cannot be mapped: the kernel is older than Linux 5.12", "5.19"),
        ("overlayfs does not follow the mapping of its layers", NEWER_KERNEL),
    ],
)
def test_each_reason_has_its_remedy(lack, words):
    assert words in remedy(lack)


def test_the_way_to_the_root_file_systems_must_be_open_to_all(tmp_path):
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o700)
    assert impassable(directory) in (directory, *directory.parents)
    assert impassable(Path("/")) is None
    # What does not exist yet is made as it must be.
    assert impassable(Path("/no/such/directory")) is None
