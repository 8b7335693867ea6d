"""Interfaces and the default route, from the texts the kernel gives."""

import os
import subprocess
from pathlib import Path

from metrics.cgroup_files import DescriptorBudget
from metrics.network_stats import (
    NetworkPlace,
    NetworkReader,
    default_by_ipv4,
    default_by_ipv6,
    parse_interfaces,
)
from sandbox.host.pidfd import start_ticks

DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:       5       1    0    0    0     0          0         0        6       1    0    0    0     0       0          0
  eth0:    1256      12    1    2    0     0          0         0      472       6    3    4    0     0       0          0
"""  # noqa: E501
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
net1\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
ZERO = "0" * 32
ROUTES6 = f"""\
fd000000000000000000000000000000 40 {ZERO} 00 {ZERO} 00000100 00000001 00000000 00000001     eth0
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 00000001 00000000 00200200       lo
{ZERO} 00 {ZERO} 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     net1
"""
BOTH = {"net1", "eth0"}


def descriptors():
    return {file.name for file in Path("/proc/self/fd").iterdir()}


def test_counters_without_loopback():
    net1, eth0 = parse_interfaces(DEV.encode())
    assert (net1.name, eth0.name) == ("net1", "eth0")
    assert (eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped) == (1256, 12, 1, 2)
    assert (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped) == (472, 6, 3, 4)


def test_lines_that_are_no_counters_are_left_out():
    assert parse_interfaces(b"") == ()
    assert parse_interfaces(b"eth0: 1 2 3\neth1: a" + b" 0" * 15) == ()


def test_an_odd_name_does_not_cost_the_others():
    odd, eth0 = parse_interfaces(b"\xffx: " + b" 1" * 16 + b"\n" + b"eth0: " + b" 2" * 16)
    assert (odd.name, eth0.name) == ("\N{REPLACEMENT CHARACTER}x", "eth0")


def test_the_default_route_with_the_least_metric():
    assert default_by_ipv4(ROUTES, BOTH) == "eth0"
    assert default_by_ipv4(ROUTES, {"net1"}) == "net1"
    assert default_by_ipv4(ROUTES, set()) == ""
    assert default_by_ipv4("Iface\nshort line\n", BOTH) == ""


def test_the_unreachable_default_of_ipv6_does_not_count():
    assert default_by_ipv6(ROUTES6, BOTH) == "net1"
    assert default_by_ipv6(ROUTES6, {"eth0", "lo"}) == ""


def own(proc, dev=DEV, route=ROUTES, route6=None):
    """A /proc in which this process has the given network."""
    net = proc / str(os.getpid()) / "net"
    net.mkdir(parents=True)
    (net / "dev").write_text(dev)
    (net / "route").write_text(route)
    if route6 is not None:
        (net / "ipv6_route").write_text(route6)
    return NetworkPlace(os.getpid(), start_ticks(os.getpid()))


def read_network(place, proc=Path("/proc"), kept=10):
    """The same without keeping anything, with keeping it, and at the second look."""
    readers = [NetworkReader(place, DescriptorBudget(limit), proc=proc) for limit in (0, kept)]
    looks = [reader.read() for reader in (*readers, *readers)]
    for reader in readers:
        reader.close()
        reader.close()
    assert looks == [looks[0]] * 4
    return looks[0]


def test_of_a_process(tmp_path):
    usage = read_network(own(tmp_path), proc=tmp_path)
    assert usage.default.name == "eth0"
    assert [i.name for i in usage.interfaces] == ["net1", "eth0"]


def test_ipv6_counts_where_ipv4_has_no_default(tmp_path):
    place = own(tmp_path, route="Iface\n", route6=ROUTES6)
    assert read_network(place, proc=tmp_path).default.name == "net1"


def test_without_any_default_route_it_is_the_first_interface(tmp_path):
    usage = read_network(own(tmp_path, route="Iface\n"), proc=tmp_path)
    assert usage.default.name == "net1"


def test_without_interfaces_there_is_no_default(tmp_path):
    usage = read_network(own(tmp_path, dev="", route="Iface\n"), proc=tmp_path)
    assert (usage.default, usage.interfaces) == (None, ())


def test_with_one_interface_nobody_asks_for_routes(tmp_path):
    place = own(tmp_path, dev=DEV.replace("  net1", "    lo"))
    net = tmp_path / str(place.pid) / "net"
    (net / "route").unlink()
    usage = read_network(place, proc=tmp_path)
    assert (usage.default.name, len(usage.interfaces)) == ("eth0", 1)


def test_a_number_that_changed_hands_is_nobodys_network(tmp_path):
    place = own(tmp_path)
    other = NetworkPlace(place.pid, place.start_ticks + 1)
    assert read_network(other, proc=tmp_path) is None


def test_a_process_that_is_gone_has_none():
    assert read_network(NetworkPlace(4_000_000, 1)) is None


def test_a_process_that_ends_between_looks_has_none_and_its_directory_is_let_go():
    before = descriptors()
    process = subprocess.Popen(["sleep", "100"])
    reader = NetworkReader(NetworkPlace(process.pid, start_ticks(process.pid)), DescriptorBudget(1))
    assert reader.read() is not None
    process.kill()
    process.wait()
    assert reader.read() is None
    reader.close()
    assert descriptors() == before
