import os
from pathlib import Path

import pytest

from cri.check import machine
from cri.check.finding import Level
from sandbox.host.errors import Unsupported
from sandbox.host.host_facts import CAPABILITIES, HostFacts


def host(**fields):
    values = {
        "kernel_release": "6.1.0-18-amd64",
        "architecture": "x86_64",
        "capabilities_effective": frozenset(CAPABILITIES),
        "capabilities_bounding": frozenset(CAPABILITIES),
        "oom_score_adj": 0,
        "oom_score_adj_floor": -1000,
        "apparmor": False,
        "selinux": False,
        "seccomp_actions": ("kill",),
        "cgroup": None,
        "file_systems": frozenset({"overlay"}),
    }
    return HostFacts(**{**values, **fields})


class Calls:
    """openat2 and pidfd_open that work, or the one named in `fail` does not."""

    def __init__(self, fail=""):
        self.fail = fail

    def _open(self, name):
        if name == self.fail:
            raise Unsupported(f"{name}: function not implemented [ENOSYS]")
        return os.open("/dev/null", os.O_RDONLY)

    def openat2(self, *_):
        return self._open("openat2")

    def pidfd_open(self, _):
        return self._open("pidfd")


@pytest.fixture
def proc(tmp_path):
    for name in ("net", "ipc", "uts", "pid", "mnt", "cgroup"):
        (tmp_path / "self/ns").mkdir(parents=True, exist_ok=True)
        (tmp_path / "self/ns" / name).touch()
    (tmp_path / "sys/fs/inotify").mkdir(parents=True)
    (tmp_path / "sys/fs/inotify/max_user_instances").write_text("128\n")
    return tmp_path


def kernel(proc, calls=None, **fields):
    findings = machine.kernel(host(**fields), calls or Calls(), proc)
    return {finding.name: finding for finding in findings}


def test_a_capable_kernel(proc):
    assert {f.level for f in kernel(proc).values()} == {Level.OK}


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("5.4.0", Level.ERROR),
        ("5.10.0-28", Level.WARNING),
        ("5.12", Level.OK),
        ("6.18.1", Level.OK),
    ],
)
def test_kernel_versions(proc, release, level):
    assert kernel(proc, kernel_release=release)["Linux"].level is level


@pytest.mark.parametrize("name", ["openat2", "pidfd"])
def test_calls_that_are_missing(proc, name):
    finding = kernel(proc, Calls(fail=name))[name]
    assert finding.level is Level.ERROR
    assert "ENOSYS" in finding.detail


def test_missing_parts_of_the_kernel(proc):
    (proc / "self/ns/uts").unlink()
    (proc / "sys/fs/inotify/max_user_instances").write_text("16\n")
    findings = kernel(proc, seccomp_actions=())
    assert findings["namespaces"].detail == "missing: uts"
    assert findings["namespaces"].level is Level.ERROR
    assert findings["seccomp"].level is Level.WARNING
    assert findings["inotify instances"].level is Level.WARNING


def rights(**fields):
    return {finding.name: finding for finding in machine.rights(host(**fields))}


def test_capabilities_that_are_missing_are_named():
    some = frozenset(CAPABILITIES) - {"CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_WAKE_ALARM"}
    finding = rights(capabilities_effective=some)["capabilities"]
    assert finding.level is Level.ERROR
    assert finding.detail == "missing: CAP_SYS_ADMIN, CAP_MKNOD"
    assert rights()["capabilities"].level is Level.OK


def test_a_service_that_cannot_lower_oom_scores():
    finding = rights(oom_score_adj_floor=-500)["OOM scores"]
    assert finding.level is Level.WARNING
    assert "none below -500" in finding.detail
    assert rights()["OOM scores"].level is Level.OK


def test_storage_of_directories_that_do_not_exist_yet(tmp_path):
    later = tmp_path / "not" / "yet"
    found = machine.storage(later, Path("/dev/shm"), later, Calls(), privileged=False)
    findings = {finding.name: finding for finding in found}
    assert str(later) in findings["space for state"].detail
    assert findings["run directory"].level is Level.OK
    assert findings["form of layers"].detail == "not tried"
    assert not later.exists()


@pytest.mark.parametrize(
    ("wanted", "reason", "level", "words"),
    [
        ("auto", "", Level.OK, "indexed"),
        ("auto", "no erofs", Level.WARNING, "unpacked into files: no erofs"),
        ("indexed", "no erofs", Level.ERROR, "will not start: no erofs"),
        ("tree", "no erofs", Level.OK, "unpacked, as"),
    ],
)
def test_the_form_of_layers_is_tried(tmp_path, monkeypatch, wanted, reason, level, words):
    monkeypatch.setattr(machine, "probe_indexed", lambda _path, _calls: reason)
    found = machine.storage(
        tmp_path, tmp_path, tmp_path, Calls(), privileged=True, layer_form=wanted
    )
    [finding] = [each for each in found if each.name == "form of layers"]
    assert finding.level is level
    assert words in finding.detail
    assert bool(finding.remedy) == (level is not Level.OK)


def test_protobuf_has_its_library():
    [finding] = machine.python()
    assert (finding.level, finding.detail) == (Level.OK, "upb")
