"""How high resource limits can be set."""

from __future__ import annotations

import resource

from sandbox.host.rlimits import rlimit_ceilings


def test_without_the_capability_the_own_hard_limits_are_the_ceiling(tmp_path):
    (tmp_path / "nr_open").write_text(f"{2**62}\n")
    ceilings = rlimit_ceilings(may_raise=False, nr_open=tmp_path / "nr_open")
    for name in ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_STACK"):
        hard = resource.getrlimit(getattr(resource, name))[1]
        assert ceilings[name] == (2**64 - 1 if hard == -1 and name != "RLIMIT_NOFILE" else hard)


def test_with_it_only_the_kernels_bound_on_open_files_is_left(tmp_path):
    (tmp_path / "nr_open").write_text("1000\n")
    ceilings = rlimit_ceilings(may_raise=True, nr_open=tmp_path / "nr_open")
    assert ceilings == {"RLIMIT_NOFILE": 1000}
    assert rlimit_ceilings(may_raise=True, nr_open=tmp_path / "none") == {}
    assert rlimit_ceilings(may_raise=False, nr_open=tmp_path / "nr_open")["RLIMIT_NOFILE"] <= 1000
