"""`podwright check` on this machine, as root: its probes work and leave nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


def test_check_finds_the_machine_and_leaves_nothing(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(
        f'[daemon]\nrun_root = "{tmp_path}/run"\nstate_root = "{tmp_path}/state"\n'
        f'[cni]\nconf_dir = "{tmp_path}/cni"\n'
    )
    result = subprocess.run(
        [sys.executable, "-m", "cri", "check", "--json", "--config", str(config)],
        capture_output=True,
        text=True,
    )
    findings = {(f["group"], f["name"]): f for f in json.loads(result.stdout)}
    assert findings["storage", "storage driver"]["level"] == "ok"
    assert findings["control groups", "new groups"]["level"] == "ok"
    assert findings["network", "configuration"]["level"] == "missing"
    # The directories of a test are its user's alone.
    assert "pass through" in findings["user namespaces", "this node"]["detail"]
    assert result.returncode == 1, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


def strays():
    return sorted(path.name for path in Path("/run").glob(".podwright-check-*"))


def test_user_namespaces_are_tried_where_containers_would_be(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(f'[daemon]\nrun_root = "/run/none"\nstate_root = "{tmp_path}/state"\n')
    before = strays()
    result = subprocess.run(
        [sys.executable, "-m", "cri", "check", "--json", "--config", str(config)],
        capture_output=True,
        text=True,
    )
    found = {f["name"]: f for f in json.loads(result.stdout) if f["group"] == "user namespaces"}
    assert {name: f["level"] for name, f in found.items()} == dict.fromkeys(
        ("this node", "runtime crun", "runtime runc"), "ok"
    )
    assert "at most" in found["this node"]["detail"]
    assert strays() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]
