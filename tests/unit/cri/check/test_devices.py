"""What `podwright check` says of CDI files, hooks and limits."""

from __future__ import annotations

import json

from cri.check.devices import devices
from cri.check.finding import Level
from sandbox.settings import SandboxSettings

CDI = {
    "cdiVersion": "1.0.0",
    "kind": "v.com/c",
    "devices": [{"name": "d", "containerEdits": {"env": ["A=b"]}}],
}
HOOK = {
    "version": "1.0.0",
    "hook": {"path": "/nowhere/program"},
    "when": {"always": True},
    "stages": ["poststop"],
}


def found(name, **settings):
    options = {"cdi_spec_dirs": (), **settings}
    findings = devices(SandboxSettings(**options), may_raise=False)
    return [(f.level, f.detail) for f in findings if f.name == name]


def test_nothing_configured_is_fine():
    findings = devices(SandboxSettings(cdi_spec_dirs=()), may_raise=False)
    assert {finding.level for finding in findings} == {Level.OK}


def test_cdi_files_that_cannot_be_used_and_conflicts_are_named(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(CDI))
    (tmp_path / "c.json").write_text("{}")
    assert found("CDI", cdi_spec_dirs=(tmp_path,)) == [(Level.OK, "2 devices of v.com/c")]
    named = found("CDI file", cdi_spec_dirs=(tmp_path,))
    assert [level for level, _ in named] == [Level.WARNING, Level.WARNING]
    assert named[0][1].startswith(f"{tmp_path}/c.json: not a CDI specification")
    assert named[1][1] == f"{tmp_path}/b.json: v.com/c=d is in {tmp_path}/a.json too"


def test_hooks_that_stop_containers_are_errors(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(HOOK))
    (tmp_path / "b.json").write_text("{}")
    named = found("hook file", hooks_dirs=(tmp_path,))
    assert [level for level, _ in named] == [Level.ERROR, Level.ERROR]
    assert f"{tmp_path}/b.json" in named[0][1]
    assert "/nowhere/program" in named[1][1]
    levels = [level for level, _ in found("hooks", hooks_dirs=(tmp_path / "none",))]
    assert levels == [Level.WARNING, Level.OK]


def test_limits_above_the_daemons_are_an_error():
    assert found("resource limits", rlimits=("core=0",)) == [(Level.OK, "core=0")]
    [(level, detail)] = found("resource limits", rlimits=("nofile=999999999999",))
    assert level is Level.ERROR
    assert "nofile cannot be" in detail
