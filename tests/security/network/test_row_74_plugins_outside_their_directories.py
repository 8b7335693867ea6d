"""Row 74, CVE-2021-20206: the `type` of a plugin led to any program of the host.

Programs that tell when they are run lie beside the plugins' directory and below it; configurations
name them by every way out, as plugin and as address manager, in files, in drop-ins, through links.
None may become a network, and none may run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni.config import load_directory
from cni.network import PodNetwork
from cni.settings import CniSettings
from sandbox.host.clock import SystemClock
from sandbox.host.processes import HostProcessRunner

TYPES = [
    "../x",
    "../../x",
    "/x",
    "",
    ".",
    "..",
    "sub/x",
    "x\0",
    "\0",
    "x" * 10_000,
    "x/",
    " x",
    "x\n",
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for directory in ("bin/sub", "net.d"):
        (tmp_path / directory).mkdir(parents=True)
    for place in ("x", "bin/sub/x"):
        (tmp_path / place).write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
        (tmp_path / place).chmod(0o755)
    good = tmp_path / "bin/good"
    good.write_text("#!/bin/sh\nexit 1\n")
    good.chmod(0o755)
    return tmp_path


def place_as_plugin(base: Path, name: str) -> None:
    write(base, "10.conflist", {"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": name}]})


def place_as_second(base: Path, name: str) -> None:
    plugins = [{"type": "good"}, {"type": name}]
    write(base, "10.conflist", {"name": "n", "cniVersion": "1.0.0", "plugins": plugins})


def place_as_address_manager(base: Path, name: str) -> None:
    plugins = [{"type": "good", "ipam": {"type": name or "../x"}}]
    write(base, "10.conflist", {"name": "n", "cniVersion": "1.0.0", "plugins": plugins})


def place_alone(base: Path, name: str) -> None:
    write(base, "10.conf", {"name": "n", "cniVersion": "1.0.0", "type": name})


def place_as_drop_in(base: Path, name: str) -> None:
    place_as_plugin(base, "good")
    (base / "net.d/n").mkdir()
    write(base, "n/20.conf", {"type": name})


def place_behind_a_link(base: Path, name: str) -> None:
    place_as_plugin(base, name)
    (base / "net.d/10.conflist").rename(base / "real")
    (base / "net.d/10.conflist").symlink_to(base / "real")


def write(base: Path, name: str, document: object) -> None:
    (base / "net.d" / name).write_text(json.dumps(document))


PLACES = [
    place_as_plugin, place_as_second, place_as_address_manager, place_alone, place_as_drop_in,
    place_behind_a_link,
]  # fmt: skip


@pytest.mark.cell("CN11")
@pytest.mark.parametrize("name", TYPES, ids=lambda name: ascii(name)[:16])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_no_type_leads_out_of_the_directories(base: Path, place, name: str) -> None:
    place(base, name)
    loaded = load_directory(base / "net.d")
    assert loaded.config is None
    [problem] = loaded.problems
    assert problem.reason.isprintable()
    settings = CniSettings(
        conf_dir=base / "net.d", bin_dirs=(base / "bin",), cache_dir=base / "cache"
    )
    network = PodNetwork(settings, HostProcessRunner(), SystemClock(), is_namespace=lambda _: True)
    ready, _reason, message = await network.refresh()
    assert not ready
    assert message.isprintable()
    assert not (base / "was-run").exists()


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/shadow", "/proc/self/mem", "."])
def test_a_link_to_what_is_no_configuration_gives_none(base: Path, target: str) -> None:
    (base / "net.d/10.conflist").symlink_to(target)
    loaded = load_directory(base / "net.d")
    assert loaded.config is None
    assert not any("root:" in problem.reason for problem in loaded.problems)
