import platform

import pytest

from sandbox.host.host_facts import CAPABILITIES, HostFacts, capability_names


def machine(tmp_path, *, effective, adj="0", actions="allow errno", enabled="Y"):
    files = {
        "proc/self/status": f"Name:\tx\nCapEff:\t{effective:016x}\nCapBnd:\t{2**41 - 1:016x}\n",
        "proc/self/oom_score_adj": f"{adj}\n",
        "proc/sys/kernel/osrelease": "6.1.0-28-cloud-amd64\n",
        "proc/sys/kernel/seccomp/actions_avail": f"{actions}\n",
        "proc/filesystems": "nodev\tproc\n\text4\nnodev\toverlay\n",
        "sys/module/apparmor/parameters/enabled": f"{enabled}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return HostFacts.detect(proc=tmp_path / "proc", sys=tmp_path / "sys")


def test_a_full_machine(tmp_path):
    facts = machine(tmp_path, effective=2**41 - 1)
    assert facts.capabilities_effective == frozenset(CAPABILITIES)
    assert facts.kernel_version == (6, 1)
    assert facts.architecture == platform.machine()
    assert facts.apparmor
    assert not facts.selinux
    assert facts.seccomp_actions == ("allow", "errno")
    assert facts.overlayfs
    assert facts.file_systems == {"proc", "ext4", "overlay"}
    assert facts.oom_score_adj_floor == -1000
    assert facts.can_lower_oom_score


def test_without_sys_resource_nobody_goes_below_the_daemon(tmp_path):
    facts = machine(tmp_path, effective=0x1FFFEFFFFFF, adj="-500", actions="", enabled="N")
    assert "CAP_SYS_RESOURCE" not in facts.capabilities_effective
    assert "CAP_SYS_RESOURCE" in facts.capabilities_bounding
    assert facts.oom_score_adj_floor == facts.oom_score_adj == -500
    assert not facts.can_lower_oom_score
    assert not facts.apparmor
    assert not facts.seccomp


def test_a_machine_that_says_nothing(tmp_path):
    facts = HostFacts.detect(proc=tmp_path, sys=tmp_path)
    assert facts.capabilities_effective == frozenset()
    assert facts.kernel_version >= (4, 0)
    assert not facts.overlayfs


@pytest.mark.parametrize(("mask", "names"), [(0, set()), (1, {"CAP_CHOWN"}), (1 << 63, set())])
def test_names_of_bits(mask, names):
    assert capability_names(mask) == names


def test_this_machine_has_one():
    assert HostFacts.detect().kernel_version > (4, 0)
