"""The node's security modules, over trees that look like /sys, /proc and /etc."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.host import lsm_files
from sandbox.host.errors import FailedPrecondition, NotFound
from sandbox.host.processes import Finished
from sandbox.host.selinux_policy import SelinuxPolicy
from sandbox.lsm import Lsm, LsmSettings
from sandbox.model import PodConfig, PodMetadata, PodSecurity, SELinuxOptions
from sandbox.paths import Paths
from sandbox.security.apparmor_text import DEFAULT_PROFILE
from sandbox.security.labels import AppArmorHost
from tests.fakes.processes import FakeProcessRunner, Run
from tests.fakes.syscalls import FakeSyscalls

CONTEXTS = """\
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
"""


@dataclass(frozen=True)
class Policy(SelinuxPolicy):
    """One that says no where it is told to."""

    unknown: tuple[str, ...] = ()
    may_enter: bool = True

    def knows(self, label: str) -> bool:
        return not any(part in label for part in self.unknown)

    def allows(self, process: str, file: str, permission: str) -> bool:
        assert permission == "entrypoint"
        return self.may_enter


class Machine:
    """Files as the kernel shows them, and a parser that does what the real one does."""

    def __init__(self, base: Path) -> None:
        self.sys, self.proc, self.etc = base / "sys", base / "proc", base / "etc"
        self.directory = self.sys / "kernel/security/apparmor"
        self.runner = FakeProcessRunner()
        self.runner.on("apparmor_parser --version", stdout=b"AppArmor parser version 3.0.8\n")
        self.runner.on("apparmor_parser --replace", self._replace)

    def with_apparmor(self, *profiles: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name} (enforce)\n" for name in profiles)
        (self.directory / "profiles").write_text(text)

    def with_selinux(self, contexts: str | None = CONTEXTS, own: str = "system_u:x:y:s0") -> None:
        (self.sys / "fs/selinux").mkdir(parents=True)
        (self.sys / "fs/selinux/enforce").write_text("1")
        (self.proc / "self/attr").mkdir(parents=True)
        (self.proc / "self/attr/current").write_text(own + "\0")
        (self.etc / "selinux/mine/contexts").mkdir(parents=True)
        (self.etc / "selinux/config").write_text("SELINUX=enforcing\nSELINUXTYPE=mine\n")
        if contexts is not None:
            (self.etc / "selinux/mine/contexts/lxc_contexts").write_text(contexts)

    def _replace(self, run: Run) -> Finished:
        assert f"profile {DEFAULT_PROFILE} ".encode() in run.stdin
        profiles = self.directory / "profiles"
        profiles.write_text(f"{DEFAULT_PROFILE} (enforce)\n" + profiles.read_text())
        return Finished(run.argv, 0, b"", b"", took_ns=1)

    def lsm(
        self,
        *,
        apparmor: bool = True,
        settings: LsmSettings | None = None,
        policy: SelinuxPolicy | None = None,
    ) -> Lsm:
        return Lsm(
            settings or LsmSettings(),
            apparmor=apparmor,
            runner=self.runner,
            sys=self.sys,
            proc=self.proc,
            etc=self.etc,
            policy=policy,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_without_apparmor_nothing_is_run_and_there_is_none(machine: Machine) -> None:
    lsm = machine.lsm(apparmor=False)
    await lsm.start()
    assert await lsm.apparmor() is None
    assert not machine.runner.runs


async def test_switched_off_is_as_if_there_was_none(machine: Machine) -> None:
    machine.with_apparmor("x")
    lsm = machine.lsm(settings=LsmSettings(apparmor=False))
    await lsm.start()
    assert await lsm.apparmor() is None
    assert not machine.runner.runs


async def test_our_profile_is_loaded_at_the_start_even_when_one_is_there(machine: Machine) -> None:
    machine.with_apparmor(DEFAULT_PROFILE, "other")
    lsm = machine.lsm()
    await lsm.start()
    assert machine.runner.commands()[-1] == "apparmor_parser --replace --skip-cache"
    found = await lsm.apparmor()
    assert found == AppArmorHost(
        loaded=frozenset({DEFAULT_PROFILE, "other"}), default_profile=DEFAULT_PROFILE
    )


async def test_profiles_loaded_later_are_seen_and_ours_is_loaded_again(machine: Machine) -> None:
    machine.with_apparmor()
    lsm = machine.lsm()
    await lsm.start()
    machine.with_apparmor("new one", "a//child")  # and ours is gone
    before = len(machine.runner.runs)
    hosts = await asyncio.gather(*(lsm.apparmor() for _ in range(5)))
    assert {host.loaded for host in hosts if host} == {
        frozenset({"new one", "a//child", DEFAULT_PROFILE})
    }
    assert len(machine.runner.runs) - before == 2  # --version and one load for all five


async def test_without_the_parser_the_reason_is_kept_and_looked_for_again(
    machine: Machine,
) -> None:
    machine.with_apparmor("mine")
    machine.runner.on("apparmor_parser", NotFound("no such program"))
    lsm = machine.lsm()
    await lsm.start()
    found = await lsm.apparmor()
    assert found is not None
    assert found.default_profile == ""
    assert found.loaded == {"mine"}
    assert "install the package apparmor" in found.trouble
    machine.runner.on("apparmor_parser --version", stdout=b"AppArmor parser version 4.1.0\n")
    machine.runner.on("apparmor_parser --replace", machine._replace)
    again = await lsm.apparmor()
    assert again is not None
    assert again.default_profile == DEFAULT_PROFILE
    assert b"userns," in machine.runner.runs[-1].stdin


@pytest.mark.parametrize("status", [0, 1])
async def test_a_load_that_did_nothing_is_no_success(machine: Machine, status: int) -> None:
    machine.with_apparmor()
    machine.runner.on("apparmor_parser --replace", exit_status=status, stderr=b"no permission")
    lsm = machine.lsm()
    await lsm.start()
    found = await lsm.apparmor()
    assert found is not None
    assert found.default_profile == ""
    assert found.trouble


async def test_apparmor_without_its_file_system(machine: Machine) -> None:
    lsm = machine.lsm()
    await lsm.start()
    found = await lsm.apparmor()
    assert found is not None
    assert "mount securityfs" in found.trouble
    assert not machine.runner.runs


@pytest.mark.parametrize(
    ("text", "label"),
    [("unconfined\n", "unconfined"), ("/usr/bin/x (enforce)\n\0", "/usr/bin/x"), ("", "")],
)
def test_own_label(tmp_path: Path, text: str, label: str) -> None:
    (tmp_path / "self/attr/apparmor").mkdir(parents=True)
    (tmp_path / "self/attr/apparmor/current").write_text(text)
    assert lsm_files.own_apparmor_label(tmp_path) == label


# SELinux.


async def test_labels_come_from_the_policys_file(machine: Machine) -> None:
    machine.with_selinux()
    lsm = machine.lsm(apparmor=False)
    await lsm.start()
    host = lsm.selinux
    assert host is not None
    assert host.process_label == "system_u:system_r:container_t:s0"
    assert host.mount_label == "system_u:object_r:container_file_t:s0"
    assert host.shared_label == "system_u:object_r:container_ro_file_t:s0"
    assert not host.trouble


async def test_no_selinux_before_a_policy_is_loaded_or_when_off(machine: Machine) -> None:
    machine.with_selinux(own="kernel")
    lsm = machine.lsm(apparmor=False)
    await lsm.start()
    assert lsm.selinux is None
    (machine.proc / "self/attr/current").write_text("system_u:x:y:s0")
    lsm = machine.lsm(apparmor=False, settings=LsmSettings(selinux=False))
    await lsm.start()
    assert lsm.selinux is None


@pytest.mark.parametrize("contexts", [None, "", "process = x\nfile = y\n"])
async def test_a_policy_without_containers_is_told(machine: Machine, contexts: str | None) -> None:
    machine.with_selinux(contexts)
    lsm = machine.lsm(apparmor=False)
    await lsm.start()
    assert lsm.selinux is not None
    assert lsm.selinux.trouble
    with lsm.level(pod(), ()) as level:
        assert level == ""


async def test_labels_that_the_policy_has_not_are_told(machine: Machine) -> None:
    """Debian 12: the file names them, and no module declares them."""
    machine.with_selinux()
    lsm = machine.lsm(apparmor=False, policy=Policy(unknown=("container_t", "container_file_t")))
    await lsm.start()
    assert lsm.selinux is not None
    assert "does not know system_u:system_r:container_t:s0" in lsm.selinux.trouble
    assert "container_file_t" in lsm.selinux.trouble
    assert "ro_file" not in lsm.selinux.trouble


@pytest.mark.parametrize("known", [True, False])
async def test_the_unconfined_type_is_used_where_the_policy_has_it(
    machine: Machine, known: bool
) -> None:
    machine.with_selinux()
    lsm = machine.lsm(apparmor=False, policy=Policy(unknown=() if known else ("spc_t",)))
    await lsm.start()
    assert lsm.selinux is not None
    assert lsm.selinux.unconfined_label == ("system_u:system_r:spc_t:s0" if known else "")


async def test_a_label_that_the_policy_does_not_know_is_refused_by_name(machine: Machine) -> None:
    machine.with_selinux()
    lsm = machine.lsm(apparmor=False, policy=Policy(unknown=("nosuch_t",)))
    assert lsm.known(("x:y:nosuch_t:s0", "")) == ""  # nobody asked
    await lsm.start()
    assert lsm.known(("", "")) == ""
    assert lsm.known(("a:b:c:s0", "a:b:d:s0")) == "a:b:d:s0"
    for labels in (("x:y:nosuch_t:s0", "a:b:d:s0"), ("", "x:y:nosuch_t:s0")):
        with pytest.raises(FailedPrecondition, match="x:y:nosuch_t:s0 is not valid"):
            lsm.known(labels)


@pytest.mark.parametrize("may_enter", [True, False])
async def test_own_files_that_every_container_meets_are_labelled(
    machine: Machine, tmp_path: Path, may_enter: bool
) -> None:
    paths = Paths(run_root=tmp_path / "run", state_root=tmp_path / "state")
    program = paths.pause_rootfs / "catatonit"
    program.parent.mkdir(parents=True)
    program.write_text("")
    layer = tmp_path / "images/layers/1/layer.tar"
    layer.parent.mkdir(parents=True)
    layer.write_text("")
    machine.with_selinux()
    lsm = machine.lsm(apparmor=False, policy=Policy(may_enter=may_enter))
    syscalls = FakeSyscalls()
    await lsm.label_own(paths, tmp_path / "images", syscalls=syscalls)
    assert not syscalls.named("lsetxattr")  # without SELinux nothing is done
    await lsm.start()
    await lsm.label_own(paths, tmp_path / "images", syscalls=syscalls)
    found = {Path(str(call.path)): call.value for call in syscalls.named("lsetxattr")}
    shared = b"system_u:object_r:container_ro_file_t:s0\0"
    own = b"system_u:object_r:container_file_t:s0\0"
    assert found[program] == (shared if may_enter else own)
    assert found[layer] == shared
    order = list(found)
    assert order.index(layer) < order.index(tmp_path / "images/layers")
    assert found[tmp_path / "images/staging"] == shared


def pod(level: str = "") -> PodConfig:
    return PodConfig(
        metadata=PodMetadata(name="p", uid="u", namespace="n"),
        security=PodSecurity(selinux=SELinuxOptions(level=level) if level else None),
    )


async def test_levels_are_given_only_with_selinux(machine: Machine) -> None:
    with machine.lsm(apparmor=False).level(pod("s0:c1,c2"), ()) as level:
        assert level == ""
    machine.with_selinux()
    lsm = machine.lsm(apparmor=False)
    await lsm.start()
    with lsm.level(pod("s0:c1,c2"), ()) as level:
        assert level == "s0:c1,c2"
    with lsm.level(pod(), ()) as level:
        assert level.startswith("s0:c")
