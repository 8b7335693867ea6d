"""`podwright check` on this machine, as root: its probes work and leave nothing."""

import json
import subprocess
import sys

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
    assert findings["storage", "overlayfs"]["level"] == "ok"
    assert findings["control groups", "new groups"]["level"] == "ok"
    assert findings["network", "configuration"]["level"] == "missing"
    assert result.returncode == 1, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]
