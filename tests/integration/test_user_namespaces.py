"""Pods with a user namespace of their own, with both OCI runtimes: who is who on either side."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.mountinfo import list_mounts
from tests import probes
from tests.kit import groups
from tests.kit.messages import mapped_mount, namespaces, user_namespace
from tests.kit.node import Node

SLEEP = ["sleep", "1000"]
#: Different for users and groups, so that one taken for the other shows.
USERS, GROUPS = 200_000, 400_000
OWN = user_namespace(USERS, gids=GROUPS)


def spaces(**modes: str) -> api.NamespaceOption:
    return namespaces(user=OWN, **modes)  # type: ignore[arg-type]


def namespace_of(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def refusal(error: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    return str(error.value.details())  # type: ignore[attr-defined]


def inside(node: Node, container: str, script: str) -> str:
    code, out, err = node.exec(container, "sh", "-c", script)
    assert code == 0, (out, err)
    return out


@pytest.mark.parametrize("network", ["POD", "NODE"])
@pytest.mark.parametrize("pid_mode", ["POD", "CONTAINER"])
def test_root_inside_is_nobody_of_the_node(
    node: Node, handler: str, network: str, pid_mode: str
) -> None:
    own = spaces(network=network, pid=pid_mode)
    pod = node.run_pod("pod", handler=handler, spaces=own)
    container = node.run(pod, "main", SLEEP, spaces=own)
    pid = node.program_pid(container)
    for process in (pid, node.pod_pid(pod)):
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        ids = {
            name: set(map(int, line.split()[1:]))
            for line in status
            for name in [line[:3]]
            if name in ("Uid", "Gid")
        }
        assert ids == {"Uid": {USERS}, "Gid": {GROUPS}}
        assert Path(f"/proc/{process}/uid_map").read_text().split() == ["0", "200000", "65536"]
        assert Path(f"/proc/{process}/gid_map").read_text().split() == ["0", "400000", "65536"]
    assert namespace_of(pid, "user") == namespace_of(node.pod_pid(pod), "user")
    assert namespace_of(pid, "user") != namespace_of("self", "user")
    assert node.exec(container, "id", "-u")[1].strip() == "0"
    told = node.pod_status(pod).linux.namespaces.options
    assert told == own


def test_kernel_file_systems_are_right_inside(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    container = node.run(pod, "main", SLEEP, spaces=spaces())
    rows = inside(node, container, "cat /proc/mounts").splitlines()
    mounts = {words[1]: (words[2], words[3].split(",")) for words in map(str.split, rows)}
    assert mounts["/proc"][0] == "proc"
    assert mounts["/sys"] == ("sysfs", ["ro", "nosuid", "nodev", "noexec", "relatime"])
    assert mounts["/dev/mqueue"][0] == "mqueue"
    assert "gid=400005" in mounts["/dev/pts"][1]
    for place in (
        "/",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/etc/hosts",
        "/etc/hostname",
    ):
        assert inside(node, container, f"stat -c %u:%g {place}") == "0:0\n", place
    assert inside(node, container, "ls /sys/class/net").split() == ["eth0", "lo"]
    # The loopback's entry belongs to root inside, as everything of the pod's network does.
    assert inside(node, container, "stat -c %u /sys/class/net/lo") == "0\n"
    inside(node, container, "echo x >/dev/null && head -c 8 /dev/urandom >/dev/shm/x")
    assert owner(next(Path(node.run_root, "pods", pod, "shm").iterdir())) == (USERS, GROUPS)
    assert "sleep 1000" in inside(node, container, "ps")
    limits = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")
    assert inside(node, container, f"cat {' '.join(limits)} 2>/dev/null || true").strip()
    assert node.exec(container, "mknod", "/tmp/null", "c", "1", "3")[0] != 0


def test_files_made_inside_belong_to_the_mapped_ids_outside(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    container = node.run(pod, "main", SLEEP, spaces=spaces())
    inside(
        node,
        container,
        "touch /root/made; touch /made; chown 33:44 /made; mkdir -p /var/new/deep;"
        "chmod 4755 /bin/busybox || true; echo more >>/etc/passwd",
    )
    upper = node.state_root / "containers" / container / "upper"
    assert owner(upper) == (USERS, GROUPS)
    assert owner(upper / "made") == (USERS + 33, GROUPS + 44)
    assert owner(upper / "var/new/deep") == (USERS, GROUPS)
    assert owner(upper / "etc/passwd") == (USERS, GROUPS)  # copied up from the layer
    strangers = [path for path in upper.rglob("*") if owner(path)[0] < USERS]
    # What the runtime makes as mount points before it is root inside.
    assert [path for path in strangers if not stat.S_ISDIR(path.lstat().st_mode)] == []
    rootfs = Path(node.run_root, "containers", container, "rootfs")
    assert owner(rootfs / "bin") == (USERS, GROUPS)  # of the layer, never written
    layers = node.state_root / "images" / "layers"
    assert {owner(path)[0] for path in layers.rglob("*")} <= {0, *range(1, 1000)}


def test_volumes_show_their_owners_inside_and_keep_them_outside(
    node: Node, handler: str, tmp_path: Path
) -> None:
    """As the kubelet does it: a volume of root, 0750 directories above it, the pod's mappings."""
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o750)
    (volume / "root").write_text("r")
    (volume / "user").write_text("u")
    os.chown(volume / "user", 1000, 1001)
    single = tmp_path / "single"
    single.write_text("one file\n")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "file").touch()
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    container = node.run(
        pod,
        "main",
        SLEEP,
        spaces=spaces(),
        mounts=[
            mapped_mount("/volume", str(volume), OWN),
            mapped_mount("/etc/single", str(single), OWN, readonly=True),
            api.Mount(container_path="/plain", host_path=str(plain)),
        ],
    )
    assert inside(node, container, "stat -c %u:%g /volume /volume/root /volume/user").split() == [
        "0:0",
        "0:0",
        "1000:1001",
    ]
    inside(node, container, "touch /volume/new; chown 7:8 /volume/new; echo x >>/volume/root")
    assert owner(volume / "new") == (7, 8)
    assert inside(node, container, "cat /etc/single") == "one file\n"
    assert node.exec(container, "sh", "-c", "echo x >>/etc/single")[0] != 0
    # Without mappings a volume is the node's: root inside is a stranger to it.
    assert inside(node, container, "stat -c %u:%g /plain/file") == "65534:65534\n"
    assert node.exec(container, "touch", "/plain/new")[0] != 0


def test_mounts_below_a_volume_come_along_and_new_ones_reach_it(
    node: Node, handler: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for name in ("tmp", "later"):
        (source / name).mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", source], check=True)
    try:
        subprocess.run(["mount", "--make-shared", source], check=True)
        for name in ("tmp", "proc", "later"):
            (source / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "tmp"], check=True)
        (source / "tmp/file").touch()
        pod = node.run_pod("pod", handler=handler, spaces=spaces())
        mount = mapped_mount(
            "/source", str(source), OWN, propagation=api.PROPAGATION_HOST_TO_CONTAINER
        )
        if probes.RELEASE < (6, 3):  # since then tmpfs can be mapped (mount_setattr(2))
            with pytest.raises(grpc.RpcError, match="its file system cannot map owners"):
                node.run(pod, "main", SLEEP, spaces=spaces(), mounts=[mount])
            return
        container = node.run(pod, "main", SLEEP, spaces=spaces(), mounts=[mount])
        assert inside(node, container, "stat -c %u /source/tmp/file") == "0\n"
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "later"], check=True)
        (source / "later/file").touch()
        assert inside(node, container, "ls /source/later") == "file\n"
        # A file system that cannot be mapped below one that can.
        subprocess.run(["mount", "-t", "proc", "none", source / "proc"], check=True)
        again = node.run(pod, "again", SLEEP, spaces=spaces(), mounts=[mount])
        assert inside(node, again, "stat -c %u /source /source/proc/1").split() == ["0", "65534"]
        for name in (container, again):
            node.stop_container(name)
            node.remove_container(name)
        # What was bound for the containers is taken down, and only that.
        kept = [str(m.target) for m in list_mounts() if source in (m.target, *m.target.parents)]
        assert kept == [str(source / name).rstrip("/.") for name in (".", "tmp", "later", "proc")]
    finally:
        node.remove_everything()
        subprocess.run(["umount", "--recursive", source], check=True)


def test_commands_and_terminals_are_in_the_user_namespace(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    container = node.run(
        pod, "main", ["sh", "-c", "tty; id -u; sleep 1000"], spaces=spaces(), tty=True
    )
    assert "/dev/pts/0" in node.wait_log("pod", "main", "/dev/pts/0")
    assert inside(node, container, "cat /proc/self/uid_map").split() == ["0", str(USERS), "65536"]
    code, _, _ = node.exec(container, "sh", "-c", "touch /by-exec && echo out >/dev/stderr")
    assert code == 0
    upper = node.state_root / "containers" / container / "upper"
    assert owner(upper / "by-exec") == (USERS, GROUPS)


def test_output_can_be_opened_again_by_name(node: Node, handler: str) -> None:
    """/dev/stdout leads to a pipe that conmon has made, as root of the node."""
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    for name, user in (("root", None), ("other", 1000)):
        command = ["sh", "-c", "echo by name >/dev/stdout; sleep 1000"]
        node.run(pod, name, command, spaces=spaces(), user=user)
        assert "by name" in node.wait_log("pod", name, "by name")


def test_the_network_belongs_to_the_pod(node: Node, handler: str) -> None:
    """Root inside may set it up, sysctls are written as asked, ping is for everybody in there."""
    pod = node.run_pod(
        "pod",
        handler=handler,
        spaces=spaces(),
        sysctls={
            "net.ipv4.ip_local_port_range": "20000 30000",
            "kernel.shm_rmid_forced": "1",
            "fs.mqueue.msg_max": "20",
            "kernel.domainname": "example",
        },
    )
    container = node.run(pod, "main", SLEEP, spaces=spaces())
    said = inside(
        node,
        container,
        "cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/shm_rmid_forced fs/mqueue/msg_max"
        " kernel/domainname net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start",
    )
    assert said.split() == ["20000", "30000", "1", "20", "example", "0", "65535", "0"]
    assert inside(node, container, "hostname").strip() == "pod"
    assert node.pod_status(pod).network.ip in inside(node, container, "ip addr show eth0")
    assert node.exec(container, "ping", "-c", "1", "127.0.0.1")[0] == 0
    # What no container may by default: it has no CAP_NET_ADMIN, not even over its own network.
    assert node.exec(container, "ip", "addr", "add", "127.0.0.9/8", "dev", "lo")[0] != 0


def test_privileged_inside_is_still_nobody_outside(node: Node, handler: str) -> None:
    """All capabilities over what is the pod's, none over what is the node's."""
    pod = node.run_pod("pod", handler=handler, spaces=spaces(), privileged=True)
    container = node.run(pod, "main", SLEEP, spaces=spaces(), privileged=True)
    assert inside(node, container, "cat /proc/self/uid_map").split()[1] == str(USERS)
    inside(node, container, "ip addr add 127.0.0.9/8 dev lo")
    inside(node, container, "mkdir /m && mount -t tmpfs none /m && mount -t proc none /m")
    for attempt in (
        "hostname new && cat /proc/1/root/etc/shadow-of-the-node",
        "echo 1 >/proc/sys/kernel/panic",
        "mknod /disk b 254 0",
        "mount -t ext4 /dev/vda /m",
        "echo b >/proc/sysrq-trigger",
        "dmesg -n 1",
    ):
        assert node.exec(container, "sh", "-c", attempt)[0] != 0, attempt


def test_a_debugger_joins_its_target(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    target = node.run(pod, "target", SLEEP, spaces=spaces())
    own = namespaces(pid="TARGET", target=target, user=OWN)
    debugger = node.run(pod, "debugger", SLEEP, spaces=own)
    pids = [node.container_pid(c) for c in (target, debugger)]
    assert namespace_of(pids[0], "pid") == namespace_of(pids[1], "pid")
    assert "sleep 1000" in inside(node, debugger, "cat /proc/1/cmdline | tr '\\0' ' '")


def test_a_read_only_root_with_masked_paths(node: Node, handler: str, tmp_path: Path) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    request = node.create_request(
        pod,
        "main",
        SLEEP,
        spaces=spaces(),
        read_only=True,
        mounts=[mapped_mount("/new/place", str(tmp_path), OWN)],
    )
    security = request.config.linux.security_context
    security.masked_paths.extend(["/proc/kcore", "/sys/firmware"])
    security.readonly_paths.extend(["/proc/sys"])
    container = node.runtime.CreateContainer(request).container_id
    node.ids.add(container)
    node.start(container)
    assert node.exec(container, "touch", "/made")[0] != 0
    inside(node, container, "touch /new/place/made")
    assert owner(tmp_path / "made") == (0, 0)
    assert inside(node, container, "ls /sys/firmware") == ""
    assert node.exec(container, "sh", "-c", "echo x >/proc/sys/kernel/shmmax")[0] != 0


def test_a_read_only_root_where_run_has_flags_of_its_own(certs_d: Path, handler: str) -> None:
    """As systemd mounts /run: nobody in a user namespace may drop these flags in a remount."""
    with Node.running("flags", certs_d, run_flags="nosuid,nodev") as node:
        pod = node.run_pod("pod", handler=handler, spaces=spaces())
        container = node.run(pod, "main", SLEEP, spaces=spaces(), read_only=True)
        rows = [row.split() for row in inside(node, container, "cat /proc/mounts").splitlines()]
        for place in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
            [flags] = [set(row[3].split(",")) for row in rows if row[1] == place]
            assert {"ro", "nosuid", "nodev"} <= flags
        node.remove_everything()
        node.assert_clean()


@pytest.mark.parametrize("moment", range(6))
def test_killed_while_it_is_made(node: Node, moment: int) -> None:
    """The daemon dies in the middle of a pod's or a container's creation; then all goes on."""
    own, handler = spaces(), ["crun", "runc"][moment % 2]
    request = api.RunPodSandboxRequest(
        config=node.pod_config("pod", spaces=own), runtime_handler=handler
    )
    making = node.runtime.RunPodSandbox.future(request)
    time.sleep(0.02 * moment)
    node.restart()
    making.exception()
    node.assert_true()
    pod = node.run_pod("pod", handler=handler, spaces=own)
    creating = node.runtime.CreateContainer.future(
        node.create_request(pod, "main", SLEEP, spaces=own)
    )
    time.sleep(0.015 * moment)
    node.restart()
    creating.exception()
    node.assert_true()
    container = node.run(pod, "main", SLEEP, spaces=own)
    inside(node, container, "touch /made")


def test_on_the_host_network(node: Node, handler: str) -> None:
    own = spaces(network="NODE")
    pod = node.run_pod("pod", handler=handler, spaces=own)
    container = node.run(pod, "main", SLEEP, spaces=own)
    assert namespace_of(node.container_pid(container), "net") == namespace_of("self", "net")
    shown = inside(node, container, "ls /sys/class/net").split()
    assert sorted(shown) == sorted(path.name for path in Path("/sys/class/net").iterdir())
    assert node.exec(container, "ip", "addr", "add", "127.0.0.9/8", "dev", "lo")[0] != 0
    rows = [row.split() for row in inside(node, container, "cat /proc/mounts").splitlines()]
    writable = [row[1] for row in rows if row[2] == "sysfs" and "rw" in row[3].split(",")]
    assert writable == []
    assert inside(node, container, "hostname").strip() == os.uname().nodename


def test_survives_the_daemon_and_is_taken_apart_by_the_next(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    container = node.run(pod, "main", SLEEP, spaces=spaces())
    made = node.create(pod, "made", SLEEP, spaces=spaces())
    node.restart()
    node.assert_true()
    assert inside(node, container, "cat /proc/self/uid_map").split()[1] == str(USERS)
    node.start(made)
    late = node.run(pod, "late", SLEEP, spaces=spaces())
    assert namespace_of(node.container_pid(late), "user") == namespace_of(
        node.container_pid(container), "user"
    )
    node.restart()
    node.remove_everything()
    node.assert_clean()


def test_containers_stay_in_the_pods_control_group(node: Node, handler: str) -> None:
    """CVE-2025-47291: containers of user namespaces were put elsewhere, without any limit."""
    pod = node.run_pod("pod", handler=handler, spaces=spaces())
    container = node.run(pod, "main", SLEEP, spaces=spaces())
    own = groups.parent(node.tag, "pod")
    for pid in (node.container_pid(container), node.pod_pid(pod)):
        rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert rows
        for row in rows:
            assert row.split(":", 2)[2].startswith(f"{own}/"), row


def test_several_pods_share_layers_and_nothing_else(node: Node, handler: str) -> None:
    mappings = [user_namespace(first) for first in (300_000, 500_000)]
    owners = []
    for number, user in enumerate(mappings):
        own = namespaces(user=user)
        pod = node.run_pod(f"pod{number}", handler=handler, spaces=own)
        container = node.run(pod, "main", SLEEP, spaces=own)
        inside(node, container, "touch /made && test -O /bin && test -O /bin/busybox")
        upper = node.state_root / "containers" / container / "upper"
        owners.append(owner(upper / "made"))
    assert owners == [(300_000, 300_000), (500_000, 500_000)]


REFUSED = {
    "two lines": (
        api.UserNamespace(mode=api.POD, uids=[*OWN.uids, *OWN.uids], gids=[*OWN.gids, *OWN.gids]),
        "1 mapping",
    ),
    "no lines": (api.UserNamespace(mode=api.POD), "1 mapping"),
    "root not mapped": (user_namespace(USERS, inside=1), "must map root"),
    "root of the node": (user_namespace(0), "node's root"),
    "container": (api.UserNamespace(mode=api.CONTAINER), "CONTAINER"),
    "target": (api.UserNamespace(mode=api.TARGET), "TARGET"),
    "node with lines": (
        api.UserNamespace(mode=api.NODE, uids=OWN.uids, gids=OWN.gids),
        "0 mapping",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mappings_that_cannot_be_are_refused(node: Node, case: str) -> None:
    user, words = REFUSED[case]
    with pytest.raises(grpc.RpcError) as error:
        node.run_pod("pod", spaces=namespaces(user=user))
    assert words in refusal(error)
    assert node.pods() == []


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_the_nodes_processes_and_memory_are_not_shared(node: Node, kind: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        node.run_pod("pod", spaces=spaces(**{kind: "NODE"}))
    assert f"node's {kind}" in refusal(error)


def test_what_a_container_cannot_be(node: Node, tmp_path: Path) -> None:
    pod = node.run_pod("pod", spaces=spaces())
    other = namespaces(user=user_namespace(600_000))
    both = api.PROPAGATION_BIDIRECTIONAL
    for words, options in {
        "is not the pod's": {"spaces": other},
        "user 65536 does not exist": {"spaces": spaces(), "user": 65536},
        "group 70000 does not exist": {"spaces": spaces(), "user": 1, "groups": [70000]},
        "bidirectional": {
            "spaces": spaces(),
            "mounts": [mapped_mount("/m", str(tmp_path), OWN, propagation=both)],
        },
    }.items():
        with pytest.raises(grpc.RpcError) as error:
            node.create(pod, "main", SLEEP, **options)
        assert words in refusal(error)
    assert node.containers() == []
    # Who names no user namespace is in the pod's.
    container = node.run(pod, "main", SLEEP, spaces=namespaces())
    assert inside(node, container, "cat /proc/self/uid_map").split()[1] == str(USERS)


def test_announced_for_both_runtimes(node: Node) -> None:
    status = node.runtime.Status(api.StatusRequest())
    features = {h.name: h.features.user_namespaces for h in status.runtime_handlers}
    assert features == {"": True, "crun": True, "runc": True}
    assert status.features.user_namespaces_host_network
