import json

import pytest

from cni.settings import CniSettings
from cri.check.finding import Level
from cri.check.network import network


@pytest.fixture
def node(tmp_path):
    for name in ("conf", "bin", "proc/sys/net/ipv4"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/sys/net/ipv4/ip_forward").write_text("1\n")
    return tmp_path


def findings_of(node):
    settings = CniSettings(
        conf_dir=node / "conf", bin_dirs=(node / "bin",), cache_dir=node / "cache"
    )
    return network(settings, node / "proc")


def configure(node, *types, name="10-a.conflist"):
    plugins = [{"type": kind} for kind in types]
    plugins[0]["ipam"] = {"type": "host-local"}
    document = {"cniVersion": "1.0.0", "name": "mine", "plugins": plugins}
    (node / "conf" / name).write_text(json.dumps(document))


def install(node, *names):
    for name in names:
        (node / "bin" / name).touch(mode=0o755)


def test_no_configuration(node):
    [finding] = findings_of(node)
    assert finding.level is Level.ERROR
    assert "notices" in finding.remedy


def test_everything_there(node):
    configure(node, "bridge", "loopback")
    install(node, "bridge", "loopback", "host-local")
    findings = findings_of(node)
    assert {finding.level for finding in findings} == {Level.OK}
    assert findings[0].detail.startswith("mine (CNI 1.0.0) from ")
    assert [f.name for f in findings] == [
        "configuration",
        "plugin bridge",
        "plugin host-local",
        "plugin loopback",
        "IPv4 forwarding",
    ]


def test_missing_plugins_address_managers_included(node):
    configure(node, "bridge")
    missing = [f.name for f in findings_of(node) if f.level is Level.ERROR]
    assert missing == ["plugin bridge", "plugin host-local"]


def test_files_that_were_passed_over_are_told(node):
    (node / "conf" / "00-broken.conf").write_text("{")
    configure(node, "bridge")
    install(node, "bridge", "host-local")
    warnings = [f for f in findings_of(node) if f.level is Level.WARNING]
    assert len(warnings) == 1
    assert "00-broken.conf" in warnings[0].detail


def test_forwarding_that_is_off(node):
    configure(node, "bridge")
    install(node, "bridge", "host-local")
    (node / "proc/sys/net/ipv4/ip_forward").write_text("0\n")
    [finding] = [f for f in findings_of(node) if f.name == "IPv4 forwarding"]
    assert finding.level is Level.WARNING
