"""Documents of ours, run by the real crun and runc: does the kernel agree with what they say?"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from sandbox import oci
from sandbox.host.host_facts import capability_names
from sandbox.host.libc import LibcSyscalls
from sandbox.host.namespaces import NamespaceWorker
from sandbox.model import (
    Capabilities,
    ContainerConfig,
    ContainerSecurity,
    CriMount,
    HugepageLimit,
    ImageDefaults,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSecurity,
    ProfileType,
    SecurityProfile,
    SupplementalGroupsPolicy,
)
from sandbox.security.capabilities import DEFAULT_CAPABILITIES
from sandbox.security.seccomp import SeccompHost
from sandbox.spec.build import container_spec, pause_spec
from sandbox.spec.inputs import (
    ContainerInputs,
    DeviceNode,
    HostFacts,
    PodFiles,
    PodInputs,
    ResolvedMount,
)
from sandbox.spec.sysctls import pod_sysctls
from sandbox.users import resolve_user
from tests.kit.calls import until
from tests.kit.probe_elf import probe, probe_32

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists(),
        reason="reads cgroup v1 files",
    ),
]

RUNTIMES = {"crun": shutil.which("crun") or "", "runc": shutil.which("runc") or ""}
CONTROLLERS = Path("/sys/fs/cgroup")
KUBELET_MASKED = ("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware")
KUBELET_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww:x:1000:1001:web:/home/www:/bin/sh\n"
GROUP = b"root:x:0:\nwww:x:1001:\nstaff:x:50:www\n"


def status_field(text: str, name: str) -> str:
    return next(
        line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(name)
    )


def real(path: str) -> Path:
    return Path(path).resolve()


def proc_file(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def mount_options(text: str) -> dict[str, set[str]]:
    """Mount point -> options, of the lines of /proc/mounts in `text`."""
    lines = [line.split(" ") for line in text.splitlines()]
    return {line[1]: set(line[3].split(",")) for line in lines if len(line) == 6}


def host_facts() -> HostFacts:
    status = Path("/proc/self/status").read_text()
    capabilities = capability_names(int(status_field(status, "CapBnd"), 16))
    own_score = int(Path("/proc/self/oom_score_adj").read_text())
    return HostFacts(
        cgroup_version=1,
        controllers=frozenset(item.name for item in CONTROLLERS.iterdir()),
        swap_limit=(CONTROLLERS / "memory/memory.memsw.limit_in_bytes").exists(),
        capabilities=capabilities,
        oom_score_adj_floor=-1000 if "CAP_SYS_RESOURCE" in capabilities else own_score,
        recursive_read_only=True,
        seccomp=SeccompHost(machine=platform.machine()),
    )


@dataclass
class Pod:
    """A pause process made from our document, and what its containers need."""

    runtime: str
    work: Path
    id: str
    config: PodConfig
    pins: dict[str, Path]
    files: PodFiles
    cgroup: str
    host: HostFacts
    pause_pid: int = 0

    def pauses(self) -> bool:
        return proc_file(self.pause_pid, "comm") == "catatonit\n"

    def command(self, *arguments: str) -> list[str]:
        return [RUNTIMES[self.runtime], "--root", str(self.work / "runtime"), *arguments]

    def bundle(self, name: str, spec: oci.Spec) -> Path:
        directory = self.work / name
        directory.mkdir()
        (directory / "config.json").write_bytes(oci.encode(spec))
        return directory

    async def create(self, name: str, spec: oci.Spec) -> int:
        bundle = self.bundle(f"bundle-{name}", spec)
        pid_file = bundle / "pid"
        await checked(self.command("create", "-b", str(bundle), "--pid-file", str(pid_file), name))
        await checked(self.command("start", name))
        return int(pid_file.read_text())

    async def run(self, spec: oci.Spec) -> tuple[int, str]:
        """Run to the end; exit status and everything it wrote."""
        name = secrets.token_hex(8)
        bundle = self.bundle(f"bundle-{name}", spec)
        return await finished(self.command("run", "-b", str(bundle), name))

    def rootfs(self, *, probes: dict[str, bytes] | None = None) -> Path:
        root = self.work / f"rootfs-{secrets.token_hex(4)}"
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "probe", "data", "home"):
            (root / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, root / "bin/busybox")
        for applet in (
            "sh",
            "cat",
            "id",
            "ls",
            "mknod",
            "touch",
            "mount",
            "hostname",
            "env",
            "grep",
        ):
            (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_bytes(PASSWD)
        (root / "etc/group").write_bytes(GROUP)
        for name, content in (probes or {}).items():
            (root / "probe" / name).write_bytes(content)
            (root / "probe" / name).chmod(0o755)
        return root

    def inputs(self, config: ContainerConfig, rootfs: Path) -> ContainerInputs:
        return ContainerInputs(
            id="c" * 64,
            pod_id=self.id,
            config=config,
            pod=self.config,
            image=ImageDefaults(env=("NO_EQUALS", "FROM_IMAGE=1"), working_dir="data"),
            image_name="busybox",
            user=resolve_user("", config.security, passwd=PASSWD, group=GROUP),
            rootfs=rootfs,
            pins=self.pins,
            hostname="spec-test",
            files=self.files,
            cgroups_path=f"{self.cgroup}/container",
            host=self.host,
            rlimits=(oci.Rlimit(type="RLIMIT_NOFILE", soft=1000, hard=2000),),
            pids_limit=77,
        )


async def finished(argv: list[str]) -> tuple[int, str]:
    # A thread: asyncio's own subprocesses would bring a child watcher into every test.
    done = await asyncio.to_thread(
        subprocess.run,
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode()


async def checked(argv: list[str]) -> None:
    # Straight to null: what a started container inherits must not keep a pipe of ours open.
    log = Path(argv[2]).parent / "create.log"
    with log.open("wb") as output:
        done = await asyncio.to_thread(
            subprocess.run,
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    assert done.returncode == 0, log.read_text()


@contextlib.asynccontextmanager
async def running_pod(
    runtime: str, work: Path, security: PodSecurity | None = None
) -> AsyncIterator[Pod]:
    pod_id = secrets.token_hex(32)
    config = PodConfig(
        metadata=PodMetadata(name="spec", uid="u", namespace="test"),
        hostname="spec-test",
        security=security or PodSecurity(seccomp=SecurityProfile()),
        sysctls={"kernel.shm_rmid_forced": "1"},
    )
    worker = NamespaceWorker(syscalls=LibcSyscalls())
    namespaces = work / "pins"
    shm = work / "shm"
    shm.mkdir()
    (work / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    (work / "hostname").write_text("spec-test\n")
    pause_root = work / "pause"
    for name in ("proc", "dev"):
        (pause_root / name).mkdir(parents=True)
    shutil.copy("/usr/bin/catatonit", pause_root / "catatonit")
    assert await finished(["mount", "-t", "tmpfs", "-o", "size=1m", "shm", str(shm)]) == (0, "")
    cgroup = f"/podwright-test-{pod_id[:12]}"
    pins = await worker.create(
        namespaces,
        frozenset({"net", "ipc", "uts"}),
        hostname="spec-test",
        sysctls=pod_sysctls(config),
    )
    pod = Pod(
        runtime=runtime,
        work=work,
        id=pod_id,
        config=config,
        pins=dict(pins),
        files=PodFiles(shm=shm, resolv_conf=work / "resolv.conf", hostname=work / "hostname"),
        cgroup=cgroup,
        host=host_facts(),
    )
    try:
        spec = pause_spec(
            PodInputs(
                id=pod_id,
                config=config,
                hostname="spec-test",
                pins=pod.pins,
                rootfs=pause_root,
                argv=("/catatonit", "-P"),
                cgroups_path=f"{cgroup}/pause",
                host=pod.host,
            )
        )
        pod.pause_pid = await pod.create("pause", spec)
        # Who starts it is told so a moment before the runtime's init has become the program.
        await asyncio.to_thread(until, pod.pauses, "the pause process runs")
        await worker.pin_process(pod.pause_pid, "pid", namespaces / "pid")
        pod.pins["pid"] = namespaces / "pid"
        yield pod
    finally:
        await finished(pod.command("delete", "--force", "pause"))
        await worker.unpin(namespaces)
        worker.close()
        assert await finished(["umount", str(shm)]) == (0, "")
        await asyncio.to_thread(remove_cgroups, cgroup)


def remove_cgroups(cgroup: str) -> None:
    for top in CONTROLLERS.glob(f"*{cgroup}"):
        until(partial(removed, top), f"{top} is not busy any more")


def removed(top: Path) -> bool:
    """Whether it could be; the last process of a cgroup leaves it a moment after it was reaped."""
    try:
        for directory in sorted(top.glob("**/"), reverse=True):
            directory.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not RUNTIMES[name]:
        pytest.skip(f"{name} is not installed")
    return name


def security(**more: object) -> ContainerSecurity:
    base = ContainerSecurity(
        namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER),
        seccomp=SecurityProfile(),
        masked_paths=KUBELET_MASKED,
        readonly_paths=KUBELET_READONLY,
    )
    return msgspec.structs.replace(base, **more)


def shell(script: str, **more: object) -> ContainerConfig:
    base = ContainerConfig(name="c", command=("/bin/sh", "-c", script), security=security())
    return msgspec.structs.replace(base, **more)


async def test_pause_and_container_share_the_pod(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        status = proc_file(pod.pause_pid, "status")
        assert status_field(status, "Seccomp") == "2"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status_field(status, name), 16) == 0
        assert status_field(status, "NoNewPrivs") == "1"
        assert status_field(status, "NSpid").split()[-1] == "1"
        cgroups = proc_file(pod.pause_pid, "cgroup")
        assert f"memory:{pod.cgroup}/pause" in cgroups

        script = """
            echo "init $(cat /proc/1/comm)"; echo "host $(hostname)"
            echo "sysctl $(cat /proc/sys/kernel/shm_rmid_forced)"
            echo "ping $(cat /proc/sys/net/ipv4/ping_group_range)"
            echo "port $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"
            echo "resolv $(cat /etc/resolv.conf)"; echo "hostname-file $(cat /etc/hostname)"
            touch /dev/shm/from-container
            cat /proc/1/root/proc/keys; echo "keys end"
            echo 1 > /proc/1/root/proc/sys/net/ipv4/ip_forward; echo "sys $?"
        """
        shared = security(namespaces=NamespaceOptions(pid=NamespaceMode.POD))
        config = shell(script, security=shared)
        code, output = await pod.run(container_spec(pod.inputs(config, pod.rootfs())))
        assert code == 0, output
        for line in (
            "init catatonit",
            "host spec-test",
            "sysctl 1",
            "ping 0\t2147483647",
            "port 0",
            "resolv nameserver 192.0.2.1",
            "hostname-file spec-test",
        ):
            assert line in output.splitlines()
        assert "sys 0" not in output
        assert (tmp_path / "shm/from-container").exists()
        # Reachable (no error from cat), and masked like the container's own: nothing of it is seen.
        assert "keys end" in output.splitlines()
        assert "keyring" not in output
        assert "can't open" not in output.split("keys end")[0]


async def test_user_rights_and_limits(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        script = """
            cat /proc/self/status; echo "id $(id)"; echo "cwd $PWD"; env
            echo "score $(cat /proc/self/oom_score_adj)"; echo "files $(ulimit -n) $(ulimit -Hn)"
            cd /sys/fs/cgroup
            echo "memory $(cat memory/memory.limit_in_bytes)"
            echo "shares $(cat cpu/cpu.shares)"; echo "quota $(cat cpu/cpu.cfs_quota_us)"
            echo "cpus $(cat cpuset/cpuset.cpus)"; echo "pids $(cat pids/pids.max)"
            echo "huge $(cat hugetlb/hugetlb.2MB.limit_in_bytes)"
            for fd in /proc/self/fd/*; do echo "fd ${fd##*/}"; done
        """
        config = shell(
            script,
            envs=(("COLOUR", "blue"),),
            resources=LinuxResources(
                cpu_period_usec=100_000,
                cpu_quota_usec=50_000,
                cpu_shares=512,
                memory_limit_bytes=64 << 20,
                oom_score_adj=-998,
                cpuset_cpus="0",
                hugepage_limits=(HugepageLimit(page_size="2MB", limit_bytes=2 << 20),),
            ),
            security=security(
                run_as_username="www",
                supplemental_groups=(7000,),
                no_new_privs=True,
            ),
        )
        code, output = await pod.run(container_spec(pod.inputs(config, pod.rootfs())))
        assert code == 0, output
        assert status_field(output, "Uid").split() == ["1000"] * 4
        assert status_field(output, "Gid").split() == ["1001"] * 4
        assert set(status_field(output, "Groups").split()) == {"1001", "50", "7000"}
        assert int(status_field(output, "CapInh"), 16) == 0
        assert int(status_field(output, "CapEff"), 16) == 0
        assert capability_names(int(status_field(output, "CapBnd"), 16)) == DEFAULT_CAPABILITIES
        assert status_field(output, "Seccomp") == "2"
        assert status_field(output, "NoNewPrivs") == "1"
        lines = output.splitlines()
        for line in (
            "cwd /data",
            "COLOUR=blue",
            "FROM_IMAGE=1",
            "HOSTNAME=spec-test",
            "HOME=/home/www",
            "files 1000 2000",
            f"memory {64 << 20}",
            "shares 512",
            "quota 50000",
            "cpus 0",
            "pids 77",
            f"huge {2 << 20}",
            f"score {max(-998, pod.host.oom_score_adj_floor)}",
        ):
            assert line in lines, output
        assert not any(line.startswith("NO_EQUALS") for line in lines)
        # 3 is the shell's own descriptor of the directory it lists.
        assert {line for line in lines if line.startswith("fd ")} <= {
            "fd 0",
            "fd 1",
            "fd 2",
            "fd 3",
        }


async def test_strict_groups_leave_out_the_images(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        config = shell(
            "cat /proc/self/status",
            security=security(
                run_as_user=1000,
                supplemental_groups=(7000,),
                supplemental_groups_policy=SupplementalGroupsPolicy.STRICT,
            ),
        )
        code, output = await pod.run(container_spec(pod.inputs(config, pod.rootfs())))
        assert code == 0, output
        assert set(status_field(output, "Groups").split()) == {"1001", "7000"}


async def test_root_is_confined(runtime: str, tmp_path: Path) -> None:
    """Read-only and masked paths, devices, capabilities of an ordinary root container."""
    async with running_pod(runtime, tmp_path) as pod:
        script = """
            cat /proc/self/status
            touch /proc/sys/kernel/panic; echo "sys $?"
            (echo 1 > /proc/sys/kernel/panic); echo "w $?"
            touch /sys/kernel/x; echo "sysfs $?"; touch /sys/fs/cgroup/memory/x; echo "cgroup $?"
            touch /etc/x; echo "root $?"; ls /sys/firmware | grep -c .
            cat /proc/keys | grep -c .
            mknod /dev/loop b 7 0; echo "mknod $?"; (cat /dev/loop > /dev/null); echo "open $?"
            mknod /dev/kmsg1 c 1 11; (cat /dev/kmsg1 > /dev/null); echo "kmsg $?"
            echo x > /dev/null; echo "null $?"; (: < /dev/zero); echo "zero $?"
            (: < /dev/fuse0); echo "given $?"
            ls -l /dev/fuse0
            cat /proc/mounts
        """
        config = shell(script, security=security(readonly_rootfs=True))
        inputs = pod.inputs(config, pod.rootfs())
        # The null device under another name: needs no right but the device cgroup's.
        node = DeviceNode(
            container_path="/dev/fuse0",
            kind="c",
            major=1,
            minor=3,
            mode=0o640,
            gid=50,
            permissions="r",
        )
        code, output = await pod.run(container_spec(replace(inputs, devices=(node,))))
        assert code == 0, output
        held = capability_names(int(status_field(output, "CapEff"), 16))
        assert held == DEFAULT_CAPABILITIES
        assert int(status_field(output, "CapInh"), 16) == 0
        assert int(status_field(output, "CapAmb"), 16) == 0
        lines = output.splitlines()
        for line in (
            "sys 1",
            "w 1",
            "sysfs 1",
            "cgroup 1",
            "root 1",
            "mknod 0",
            "open 1",
            "kmsg 1",
        ):
            assert line in lines, output
        for line in ("null 0", "zero 0", "given 0"):
            assert line in lines, output
        assert lines.count("0") == 2, output  # nothing in /sys/firmware and in /proc/keys
        assert any("/dev/fuse0" in line and line.startswith("crw-r-----") for line in lines)
        mounts = mount_options(output)
        assert "ro" in mounts["/"]
        assert "size=65536k" in mounts["/dev"]
        assert {"nosuid", "nodev", "noexec"} <= mounts["/dev/shm"]
        assert "ro" in mounts["/etc/resolv.conf"]
        assert "/dev/mqueue" in mounts


async def test_client_mounts(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        (tmp_path / "one/file").write_text("one")
        (tmp_path / "hosts").write_text("192.0.2.9 other\n")
        asked = [
            CriMount(container_path="/data", host_path=str(tmp_path / "one"), readonly=True),
            CriMount(
                container_path="/data/inner",
                host_path=str(tmp_path / "two"),
                mount_options=("noexec", "nosuid", "nodev"),
            ),
            CriMount(container_path="/etc/hosts", host_path=str(tmp_path / "hosts")),
            CriMount(
                container_path="/all",
                host_path=str(tmp_path / "one"),
                readonly=True,
                recursive_read_only=True,
            ),
        ]
        (tmp_path / "one/inner").mkdir()
        # The deeper one first: the builder must sort it behind.
        asked = [asked[1], asked[0], *asked[2:]]
        config = shell(
            """cat /data/file; echo
            touch /data/x 2>&-; echo "ro $?"; touch /data/inner/x; echo "rw $?"
            cat /etc/hosts; cat /proc/mounts""",
            mounts=tuple(asked),
        )
        inputs = replace(
            pod.inputs(config, pod.rootfs()),
            mounts=tuple(ResolvedMount(mount=item, source=Path(item.host_path)) for item in asked),
        )
        code, output = await pod.run(container_spec(inputs))
        assert code == 0, output
        lines = output.splitlines()
        for line in ("one", "ro 1", "rw 0", "192.0.2.9 other"):
            assert line in lines, output
        assert (tmp_path / "two/x").exists()
        mounts = mount_options(output)
        assert {"rw", "noexec", "nosuid", "nodev"} <= mounts["/data/inner"]
        assert "ro" in mounts["/all"]


PROBES = {
    # name: (program, errno with the default filter)
    "getpid": (probe(39), 0),
    "clone3": (probe(435, 0, 0), 38),
    "unshare-user": (probe(272, 0x10000000), 1),
    "setns": (probe(308, 0, 0), 1),
    "clone-newuser": (probe(56, 0x10000011), 1),
    "keyctl": (probe(250, 0, 0), 1),
    "bpf": (probe(321, 0, 0, 0), 1),
    "userfaultfd": (probe(323, 0), 1),
    "io-uring": (probe(425, 1, 0), 1),
    "perf": (probe(298, 0), 1),
    "socket-alg": (probe(41, 38, 5, 0), 1),
    "socket-vsock": (probe(41, 40, 1, 0), 1),
    "socket-unix": (probe(41, 1, 1, 0), 0),
    "socket-inet": (probe(41, 2, 1, 0), 0),
    "socket-netlink": (probe(41, 16, 3, 0), 0),
    "personality-query": (probe(135, 0xFFFFFFFF), 0),
    "personality-norandom": (probe(135, 0x0040000), 1),
    "socketcall-alg": (probe_32(102, 1, (38, 5, 0)), 38),
    "socket-unix-32": (probe_32(359, 1, ()), 22),  # allowed: the kernel itself dislikes the type
    "chroot": (probe(161, 0), 14),  # CAP_SYS_CHROOT is a default: EFAULT from the kernel
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the probes are x86-64 programs")
async def test_default_filter(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        rootfs = pod.rootfs(probes={name: program for name, (program, _) in PROBES.items()})
        config = shell('for p in /probe/*; do $p; echo "${p##*/} $?"; done')
        code, output = await pod.run(container_spec(pod.inputs(config, rootfs)))
        assert code == 0, output
        got = {line.split()[0]: int(line.split()[1]) for line in output.splitlines()}
        assert got == {name: errno for name, (_, errno) in PROBES.items()}

        # With CAP_SYS_ADMIN the calls reach the kernel, which has its own opinion of null pointers.
        admin = security(capabilities=Capabilities(add=("SYS_ADMIN",)))
        config = msgspec.structs.replace(config, security=admin)
        code, output = await pod.run(container_spec(pod.inputs(config, rootfs)))
        assert code == 0, output
        got = {line.split()[0]: int(line.split()[1]) for line in output.splitlines()}
        assert got["clone3"] == 22
        assert got["unshare-user"] == 0
        assert got["socket-alg"] == 1


async def test_localhost_profile(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        profile = SecurityProfile(
            profile_type=ProfileType.LOCALHOST, localhost_ref="/var/lib/kubelet/seccomp/p.json"
        )
        content = b"""{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"""
        config = shell("/bin/busybox mkdir /tmp/x; echo done", security=security(seccomp=profile))
        inputs = replace(pod.inputs(config, pod.rootfs()), seccomp_content=content)
        code, output = await pod.run(container_spec(inputs))
        assert code == 0
        assert "Operation not supported" in output or "not supported" in output.lower()


async def test_privileged(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path, PodSecurity(privileged=True)) as pod:
        config = shell(
            """cat /proc/self/status; (: < /dev/example); echo "open $?"
            cat /proc/keys > /dev/null; echo "keys $?"
            touch /proc/sys/kernel/panic; echo "sys $?"; cat /proc/mounts""",
            security=security(privileged=True),
        )
        node = DeviceNode(container_path="/dev/example", kind="c", major=1, minor=5)
        inputs = replace(pod.inputs(config, pod.rootfs()), host_devices=(node,))
        code, output = await pod.run(container_spec(inputs))
        assert code == 0, output
        assert capability_names(int(status_field(output, "CapEff"), 16)) == pod.host.capabilities
        assert status_field(output, "Seccomp") == "0"
        lines = output.splitlines()
        for line in ("open 0", "keys 0", "sys 0"):
            assert line in lines, output
        mounts = mount_options(output)
        assert "rw" in mounts["/sys"]


async def test_ambient_capabilities(runtime: str, tmp_path: Path) -> None:
    """Ambient capabilities reach a program of another user; nothing else does."""
    async with running_pod(runtime, tmp_path) as pod:
        config = shell(
            "cat /proc/self/status",
            security=security(
                run_as_user=1000, capabilities=Capabilities(add_ambient=("NET_BIND_SERVICE",))
            ),
        )
        code, output = await pod.run(container_spec(pod.inputs(config, pod.rootfs())))
        assert code == 0, output
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert capability_names(int(status_field(output, name), 16)) == {"CAP_NET_BIND_SERVICE"}


async def test_target_pid_namespace(runtime: str, tmp_path: Path) -> None:
    async with running_pod(runtime, tmp_path) as pod:
        target = security(namespaces=NamespaceOptions(pid=NamespaceMode.TARGET, target_id="other"))
        config = shell("cat /proc/1/comm", security=target)
        inputs = replace(pod.inputs(config, pod.rootfs()), target_pid=pod.pins["pid"])
        code, output = await pod.run(container_spec(inputs))
        assert (code, output.strip()) == (0, "catatonit")


PROGRAM = """
import asyncio, ctypes, mmap, multiprocessing, os, select, signal, socket, subprocess
import tempfile, threading

async def echo():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 80)
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", 80)
        assert await reader.read() == b""
        writer.close()

asyncio.run(echo())
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
assert subprocess.run(["true"]).returncode == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, 2]) == [1, 2]
os.close(os.memfd_create("m")); os.close(os.eventfd(0)); os.close(os.pidfd_open(os.getpid()))
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.getrandom(8); os.nice(1)
mmap.mmap(-1, 4096).close(); select.epoll().close(); signal.pthread_sigmask(signal.SIG_BLOCK, [])
with tempfile.NamedTemporaryFile() as file:
    os.chown(file.name, 5, 5); os.chmod(file.name, 0o6755); os.setxattr(file.name, "user.x", b"1")
socket.socketpair()[0].close()
os.setgroups([7]); os.setgid(5); os.setuid(5)
print("all fine")
"""


@pytest.mark.skipif(not Path("/usr/sbin/runc").exists(), reason="its Go program is runc")
async def test_ordinary_programs_run_under_the_default_filter(runtime: str, tmp_path: Path) -> None:
    """CPython with much of its library, and Go with its own threads and no libc in the way."""
    async with running_pod(runtime, tmp_path) as pod:
        asked = tuple(
            CriMount(container_path=path, host_path=path, readonly=True)
            for path in ("/usr", "/lib", "/lib64")
        )
        config = shell(
            'PATH=$PATH:/usr/bin:/usr/sbin; /usr/bin/python3 -c "$0" && /usr/sbin/runc --version',
            args=(PROGRAM,),
            mounts=asked,
        )
        inputs = replace(
            pod.inputs(config, pod.rootfs()),
            mounts=tuple(ResolvedMount(mount=item, source=real(item.host_path)) for item in asked),
        )
        code, output = await pod.run(container_spec(inputs))
        assert code == 0, output
        assert "all fine" in output
        assert "libseccomp" in output
