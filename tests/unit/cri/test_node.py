"""What is found out about the node before its first pod."""

import pytest

from cri.node import runtime_lacks_user_namespaces, swap_is_limited
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.runtime.driver import RuntimeInfo

MEMORY = frozenset({"memory"})


def test_swap_of_version_1_is_told_by_the_root(tmp_path):
    layout = CgroupLayout(1, {"memory": tmp_path}, None, MEMORY)
    assert not swap_is_limited(layout)
    (tmp_path / "memory.memsw.limit_in_bytes").touch()
    assert swap_is_limited(layout)
    assert not swap_is_limited(CgroupLayout(1, {"cpu": tmp_path}, None, frozenset({"cpu"})))


def test_swap_of_version_2_is_told_by_any_group_below_the_root(tmp_path):
    layout = CgroupLayout(2, {}, tmp_path, MEMORY)
    (tmp_path / "system.slice").mkdir()
    assert not swap_is_limited(layout)
    (tmp_path / "system.slice" / "memory.swap.max").touch()
    assert swap_is_limited(layout)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (RuntimeInfo("crun", "1.8.1"), ""),
        (RuntimeInfo("runc", "1.1.5+ds1"), ""),
        (RuntimeInfo("runc", "1.0.3"), "older than 1.1"),
        (RuntimeInfo("crun", "1.4"), "older than 1.5"),
        (RuntimeInfo("crun", "1.8.1", user_namespaces=False), "joins no user namespace"),
        (RuntimeInfo("runsc", "20240101"), "joins no user namespace"),
        (None, "does not run"),
    ],
)
def test_user_namespaces_only_with_runtimes_known_to_join_them(info, words):
    said = runtime_lacks_user_namespaces(info)
    assert words in said
    assert bool(said) == bool(words)
