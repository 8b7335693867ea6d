"""A network configuration from a template: the words, the ranges, and whose network it is."""

import asyncio
import ipaddress
import json

import pytest

from cni.errors import ConfigInvalid
from cni.network import PodNetwork
from cni.settings import CniSettings
from cni.template import FILE_NAME, parse_ranges, render
from sandbox.host.errors import InvalidArgument
from tests.fakes.clock import FakeClock
from tests.fakes.processes import FakeProcessRunner

TEMPLATE = """{
  "cniVersion": "1.0.0", "name": "node",
  "plugins": [{"type": "ptp", "note": "{{.PodCIDR}}", "ipam": {
    "type": "host-local", "ranges": {{.PodCIDRRanges}}, "routes": {{ .Routes }}
  }}]
}"""
V4, V6 = ipaddress.ip_network("10.1.2.0/24"), ipaddress.ip_network("fd00:1::/64")


def test_every_word():
    [plugin] = json.loads(render(TEMPLATE, (V4, V6)))["plugins"]
    assert plugin["note"] == "10.1.2.0/24"
    assert plugin["ipam"]["ranges"] == [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]
    assert plugin["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


def test_one_family_has_one_route():
    [plugin] = json.loads(render(TEMPLATE, (V6,)))["plugins"]
    assert plugin["ipam"]["routes"] == [{"dst": "::/0"}]


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.replace(".Routes", "range .PodCIDRRanges"),
        TEMPLATE.replace(".Routes", ""),
        TEMPLATE.replace('"type": "ptp"', '"type": "../ptp"'),
        "{{.PodCIDR}}",
        "",
    ],
)
def test_what_makes_no_configuration_is_refused(template):
    with pytest.raises(ConfigInvalid):
        render(template, (V4,))


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("10.1.2.0/24", [V4]), ("10.1.2.0/24,fd00:1::/64", [V4, V6]), (" 10.1.2.0/24 ", [V4])],
)
def test_ranges(text, ranges):
    assert list(parse_ranges(text)) == ranges


@pytest.mark.parametrize(
    "text", ["x", "10.1.2.3/24", "10.1.2.0/33", "10.1.2.0/24,", ",".join(["10.0.0.0/8"] * 17)]
)
def test_what_is_no_range(text):
    with pytest.raises(InvalidArgument, match="pod_cidr"):
        parse_ranges(text)


@pytest.fixture
def node(tmp_path):
    """(network, directory of configurations) with a template; nothing configured yet."""
    template = tmp_path / "template"
    template.write_text(TEMPLATE)
    conf_dir = tmp_path / "net.d"
    settings = CniSettings(
        conf_dir=conf_dir,
        bin_dirs=(tmp_path,),
        cache_dir=tmp_path / "cache",
        conf_template=template,
    )
    clock = FakeClock()
    return PodNetwork(settings, FakeProcessRunner(), clock, is_namespace=lambda _p: True), conf_dir


def subnet(directory):
    document = json.loads((directory / FILE_NAME).read_text())
    return document["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]


async def test_the_file_appears_and_follows_new_addresses(node):
    network, directory = node
    assert await network.set_pod_cidr("10.1.2.0/24")
    assert subnet(directory) == "10.1.2.0/24"
    assert json.loads(network.current_config_json())["name"] == "node"
    assert await network.set_pod_cidr("10.9.9.0/24")
    assert subnet(directory) == "10.9.9.0/24"
    assert [path.name for path in directory.iterdir()] == [FILE_NAME]


async def test_no_addresses_change_nothing(node):
    network, directory = node
    assert not await network.set_pod_cidr("")
    assert not directory.exists()


async def test_somebody_elses_network_is_left_alone(node):
    network, directory = node
    directory.mkdir()
    other = directory / "50-other.conflist"
    other.write_text('{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "a"}]}')
    assert not await network.set_pod_cidr("10.1.2.0/24")
    assert list(directory.iterdir()) == [other]


async def test_a_bad_template_takes_no_network_away(node, tmp_path):
    network, directory = node
    await network.set_pod_cidr("10.1.2.0/24")
    (tmp_path / "template").write_text("{{.Nope}}")
    with pytest.raises(ConfigInvalid, match=r"\.Nope"):
        await network.set_pod_cidr("10.9.9.0/24")
    assert subnet(directory) == "10.1.2.0/24"


async def test_a_template_that_is_missing_is_named(node, tmp_path):
    network, _ = node
    (tmp_path / "template").unlink()
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        await network.set_pod_cidr("10.1.2.0/24")


async def test_without_a_template_the_addresses_are_taken_note_of_only(tmp_path):
    settings = CniSettings(conf_dir=tmp_path / "net.d", bin_dirs=(tmp_path,), cache_dir=tmp_path)
    network = PodNetwork(settings, FakeProcessRunner(), FakeClock(), is_namespace=lambda _p: True)
    assert not await network.set_pod_cidr("10.1.2.0/24")
    await asyncio.sleep(0)
    assert not (tmp_path / "net.d").exists()
