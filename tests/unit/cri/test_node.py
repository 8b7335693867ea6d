"""What is found out about the node before its first pod."""

from cri.node import swap_is_limited
from sandbox.host.cgroupfs import CgroupLayout

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
