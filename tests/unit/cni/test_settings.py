"""Settings that could only fail in the middle of a pod's start are refused before."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni.settings import CniSettings
from sandbox.host.errors import InvalidArgument


def test_the_defaults_are_everybodys():
    settings = CniSettings()
    assert settings.conf_dir == Path("/etc/cni/net.d")
    assert [str(p) for p in settings.bin_dirs] == [
        "/opt/cni/bin",
        "/usr/lib/cni",
        "/usr/libexec/cni",
    ]
    assert settings.add_timeout_s < 240


@pytest.mark.parametrize(
    "changes",
    [
        {"bin_dirs": ()},
        {"bin_dirs": (Path("cni"),)},
        {"bin_dirs": (Path("/a:/b"),)},
        {"environment": (("CNI_ARGS", "x"),)},
        {"environment": (("", "x"),)},
        {"environment": (("A=B", "x"),)},
    ],
)
def test_what_cannot_work_is_refused(changes):
    with pytest.raises(InvalidArgument):
        CniSettings(**changes)
