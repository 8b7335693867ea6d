import json
import logging
import os
from pathlib import Path

import pytest

from cri.check.exposure import exposure, kernel, warn
from cri.check.finding import Level
from cri.config import load
from sandbox.host.processes import Finished


class Programs:
    """Answers by a program's name: what it prints; packages by path."""

    def __init__(self, outputs, packages=()):
        self.outputs = outputs
        self.packages = dict(packages)

    async def run(self, argv, **_):
        name = Path(argv[0]).name
        if name == "dpkg-query":
            wanted = argv[-1]
            if argv[1] == "-S":
                known = Path(wanted).name in self.packages
                out = f"{Path(wanted).name}: {wanted}" if known else ""
                return Finished(tuple(argv), 0 if known else 1, out.encode(), b"", 1)
            return Finished(tuple(argv), 0, self.packages[wanted].encode(), b"", 1)
        out, err = self.outputs[name]
        return Finished(tuple(argv), 0, out.encode(), err.encode(), 1)


@pytest.fixture
def node(tmp_path):
    for name in ("crun", "runc", "bridge", "portmap"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    (tmp_path / "net.d").mkdir()
    plugins = [{"type": "bridge"}, {"type": "portmap"}, {"type": "of-a-vendor"}]
    document = {"cniVersion": "1.0.0", "name": "n", "plugins": plugins}
    (tmp_path / "net.d/10-n.conflist").write_text(json.dumps(document))
    config = tmp_path / "config.toml"
    config.write_text(
        f'[cni]\nconf_dir = "{tmp_path}/net.d"\nbin_dirs = ["{tmp_path}"]\n'
        f'[runtimes.crun]\npath = "{tmp_path}/crun"\n[runtimes.runc]\npath = "{tmp_path}/runc"\n'
    )
    return config


def outputs(crun="1.28", runc="1.4.3", plugin="v1.9.0"):
    about = f"CNI bridge plugin {plugin}\nCNI protocol versions supported: 0.1.0, 1.0.0"
    return {
        "crun": (f"crun version {crun}\ncommit: 0\nspec: 1.0.0", ""),
        "runc": (f"runc version {runc}\nspec: 1.0.2-dev", ""),
        "bridge": ("", about),
        "portmap": ("", about),
    }


async def bad(config, runner):
    found = await exposure(load(config), runner)
    return {(f.name, f.level) for f in found if f.level is not Level.OK}


async def test_a_node_with_nothing_known(node):
    assert await bad(node, Programs(outputs())) == set()


async def test_the_default_runtime_weighs_more_than_another(node):
    assert await bad(node, Programs(outputs(runc="1.2.0"))) == {("runc", Level.WARNING)}
    node.write_text('[runtime]\ndefault = "runc"\n' + node.read_text())
    found = await bad(node, Programs(outputs(runc="1.2.0")))
    assert ("runc", Level.ERROR) in found


async def test_old_network_plugins_and_their_packages(node):
    assert await bad(node, Programs(outputs(plugin="v0.8.5"))) == {("cni-plugins", Level.ERROR)}
    unknown = outputs(plugin="version unknown")
    assert await bad(node, Programs(unknown)) == set()
    packages = {"bridge": "0.8.5-1", "portmap": "0.8.5-1"}
    assert await bad(node, Programs(unknown, packages)) == {("cni-plugins", Level.ERROR)}


async def test_what_is_accepted_by_the_configuration(node):
    node.write_text('[check]\naccepted_advisories = ["CVE-2020-10749"]\n' + node.read_text())
    assert await bad(node, Programs(outputs(plugin="v0.8.5"))) == set()


@pytest.mark.parametrize(
    ("release", "version", "has"),
    [
        ("5.10.0-11-amd64", "#1 SMP Debian 5.10.92-1 (2022-01-18)", True),
        ("5.10.0-12-amd64", "#1 SMP Debian 5.10.103-1 (2022-03-07)", False),
        ("5.15.24", "#1 SMP", True),
        ("5.15.25-custom", "#1 SMP", False),
        ("5.7.19", "#1 SMP", False),
        ("6.1.0-18-cloud-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)", False),
    ],
)
def test_the_kernel(release, version, has):
    uname = os.uname_result(("Linux", "node", release, version, "x86_64"))
    found = [f for f in kernel(uname) if "CVE-2022-0847" in f.detail]
    assert [f.level for f in found] == [Level.WARNING] * has


async def test_a_daemon_that_starts_warns_and_goes_on(node, caplog):
    with caplog.at_level(logging.WARNING):
        await warn(load(node), Programs(outputs(crun="1.8.1")))
    (record,) = caplog.records
    assert "CVE-2026-47766" in record.podwright_fields["found"]
