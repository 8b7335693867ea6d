"""SELinux as pods meet it, where a policy is enforced: labels, levels, volumes, what is refused.

`hack/vm test --lsm selinux` runs this in a machine that has one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.messages import BUSYBOX, namespaces, user_namespace
from tests.kit.node import Node
from tests.kit.rights import Change, capabilities, create_with, run_with
from tests.probes import RELEASE, no_selinux

pytestmark = pytest.mark.skipif(bool(no_selinux()), reason=no_selinux())

SLEEP = ["sleep", "1000"]
FILE_LABEL = "security.selinux"


def process_label(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip("\n\0")


def file_label(path: str | Path) -> str:
    return os.getxattr(path, FILE_LABEL, follow_symlinks=False).rstrip(b"\0").decode()


def parts(label: str) -> tuple[str, str]:
    """Type and level."""
    _, _, kind, level = label.split(":", 3)
    return kind, level


def of_container(node: Node, container: str) -> tuple[str, str]:
    return parts(process_label(node.container_pid(container)))


def selinux(**fields: str) -> Change:
    return lambda context: context.selinux_options.CopyFrom(api.SELinuxOption(**fields))


def run_labelled_pod(node: Node, name: str, handler: str, **fields: str) -> str:
    config = node.pod_config(name)
    config.linux.security_context.selinux_options.CopyFrom(api.SELinuxOption(**fields))
    return node.run_config(config, handler=handler)


def sh(node: Node, container: str, script: str) -> tuple[int, str]:
    code, out, err = node.exec(container, "sh", "-c", script)
    return code, out + err


@pytest.fixture
def volume() -> Iterator[Path]:
    """A directory as somebody on the node makes one, with a file."""
    with tempfile.TemporaryDirectory(prefix="podwright-test-volume-", dir="/var/tmp") as name:
        path = Path(name)
        (path / "below").mkdir()
        (path / "below/file").write_text("hello\n")
        yield path


def mounted(path: Path, *, relabel: bool) -> api.Mount:
    return api.Mount(container_path="/v", host_path=str(path), selinux_relabel=relabel)


# Whose label is what.


def test_a_pods_processes_and_files_have_its_own_level(node: Node, handler: str) -> None:
    pod, other = (node.run_pod(name, handler=handler) for name in ("pod", "other"))
    main, side = (node.run(pod, name, SLEEP) for name in ("main", "side"))
    stranger = node.run(other, "stranger", SLEEP)
    kind, level = of_container(node, main)
    assert kind == "container_t"
    assert level.startswith("s0:c")
    assert level.count(",") == 1
    assert of_container(node, side) == (kind, level)
    assert parts(process_label(node.pod_pid(pod))) == (kind, level)
    their_kind, their_level = of_container(node, stranger)
    assert (their_kind, their_level == level) == ("container_t", False)
    code, label, _ = node.exec(main, "cat", "/proc/self/attr/current")
    assert (code, parts(label.strip("\n\0"))) == (0, (kind, level))
    root = f"/proc/{node.container_pid(main)}/root"
    for place in ("/", "/bin/busybox", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
        assert parts(file_label(root + place)) == ("container_file_t", level), place
    for place in ("/dev/shm", "/dev"):
        assert parts(file_label(root + place)) == ("container_file_t", level), place


def test_ordinary_programs_do_not_notice(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    for script in (
        "cat /etc/hosts /etc/hostname /etc/resolv.conf > /dev/null && echo '# x' >> /etc/hosts",
        "echo x > /dev/shm/x && cat /dev/shm/x && echo x > /tmp/x && mv /tmp/x /y && rm /y",
        "cp /bin/busybox /tmp/busybox && /tmp/busybox true",
        "mkdir -p /a/b && ln -s /a /c && rm -r /a /c",
        "mkfifo /fifo && rm /fifo && echo x > /dev/null && head -c 8 /dev/urandom > /dev/null",
        "cat /proc/1/environ /proc/meminfo /proc/self/maps > /dev/null && ls /sys/class/net",
        "sleep 100 & kill -TERM $! && wait $!; [ $? = 143 ]",
        "echo out; echo err >&2; hostname",
        "ls /sys/fs/cgroup > /dev/null; ls /dev/mqueue && ls /dev/pts",
    ):
        code, words = sh(node, container, script)
        assert code == 0, (script, words)
    terminal = node.run(pod, "terminal", ["sh", "-c", "tty && echo written"], tty=True)
    assert node.wait_exited(terminal).exit_code == 0
    assert "written" in node.log_of("pod", "terminal")


def test_the_level_outlives_the_daemon(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    before = node.run(pod, "before", SLEEP)
    held = of_container(node, before)
    node.restart()
    assert of_container(node, before) == held
    assert of_container(node, node.run(pod, "after", SLEEP)) == held
    code, label, _ = node.exec(before, "cat", "/proc/self/attr/current")
    assert (code, parts(label.strip("\n\0"))) == (0, held)
    other = node.run_pod("other", handler=handler)
    assert of_container(node, node.run(other, "other", SLEEP))[1] != held[1]


# What is asked for.


def test_what_pod_and_container_ask_for_takes_the_defaults_place(node: Node, handler: str) -> None:
    pod = run_labelled_pod(node, "pod", handler, level="s0:c7,c9")
    assert parts(process_label(node.pod_pid(pod))) == ("container_t", "s0:c7,c9")
    plain = node.run(pod, "plain", SLEEP)
    assert of_container(node, plain) == ("container_t", "s0:c7,c9")
    own = run_with(node, pod, "own", SLEEP, selinux(level="s0:c3"))
    assert of_container(node, own) == ("container_t", "s0:c3")
    assert parts(file_label(f"/proc/{node.container_pid(own)}/root/"))[1] == "s0:c3"
    whole = selinux(user="system_u", role="system_r", type="spc_t", level="s0:c1,c2")
    all_parts = run_with(node, pod, "all", SLEEP, whole)
    pid = node.container_pid(all_parts)
    assert process_label(pid) == "system_u:system_r:spc_t:s0:c1,c2"
    assert file_label(f"/proc/{pid}/root/") == "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(
    "fields",
    [{"type": "podwright_test_t"}, {"user": "nobody_u"}, {"level": "s0:c5000"}],
    ids=["type", "user", "level"],
)
def test_a_label_that_the_policy_does_not_know_is_refused(
    node: Node, fields: dict[str, str]
) -> None:
    pod = node.run_pod("pod")
    with pytest.raises(grpc.RpcError) as of_container_only:
        create_with(node, pod, "main", SLEEP, selinux(**fields))
    with pytest.raises(grpc.RpcError) as of_pod:
        run_labelled_pod(node, "refused", "", **fields)
    for error in (of_container_only.value, of_pod.value):
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        words = error.details() or ""
        assert next(iter(fields.values())) in words
        assert "seLinuxOptions" in words
    assert not node.containers()
    assert [each.id for each in node.pods()] == [pod]


# Who is not held.


def test_privileged_is_unconfined_with_the_pods_level(
    node: Node, handler: str, volume: Path
) -> None:
    pod = node.run_pod("pod", handler=handler, privileged=True)
    mounts = [mounted(volume, relabel=False)]
    held = node.run(pod, "held", SLEEP, mounts=mounts)
    free = node.run(pod, "free", SLEEP, privileged=True, mounts=mounts)
    kind, level = of_container(node, held)
    assert (kind, of_container(node, free)) == ("container_t", ("spc_t", level))
    script = "cat /v/below/file && echo x > /v/new && cp /bin/busybox /tmp/busybox"
    assert sh(node, free, f"{script} && /tmp/busybox true") == (0, "hello\n")
    assert sh(node, held, "cat /v/below/file")[0] != 0
    assert "spc_t" in node.exec(free, "cat", "/proc/self/attr/current")[1]


@pytest.mark.parametrize("which", ["pid", "ipc"])
def test_who_sees_the_nodes_processes_or_ipc_is_not_separated(
    node: Node, handler: str, which: str
) -> None:
    spaces = namespaces(pid="NODE") if which == "pid" else namespaces(ipc="NODE")
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    container = node.run(pod, "main", SLEEP, spaces=spaces)
    assert of_container(node, container)[0] == "spc_t"
    assert parts(process_label(node.pod_pid(pod)))[0] == "spc_t"
    assert sh(node, container, "cat /etc/hosts && echo x > /x && ls /proc/1/ns > /dev/null")[0] == 0
    asked = run_with(node, pod, "asked", SLEEP, selinux(type="container_t"), spaces=spaces)
    assert of_container(node, asked)[0] == "container_t"


# Volumes.


def test_a_volume_is_for_the_pod_that_it_was_labelled_for(
    node: Node, handler: str, volume: Path
) -> None:
    """Even with every capability: what refuses is the policy, by type and then by level."""
    mighty = capabilities(add=["ALL"])
    first, second = (node.run_pod(name, handler=handler) for name in ("first", "second"))
    own = file_label(volume / "below/file")
    bare = run_with(node, first, "bare", SLEEP, mighty, mounts=[mounted(volume, relabel=False)])
    code, words = sh(node, bare, "cat /v/below/file")
    assert code != 0
    assert "ermission denied" in words
    assert file_label(volume / "below/file") == own
    mine = run_with(node, first, "mine", SLEEP, mighty, mounts=[mounted(volume, relabel=True)])
    level = of_container(node, mine)[1]
    assert sh(node, mine, "cat /v/below/file && echo x > /v/below/new")[0] == 0
    for path in (volume, volume / "below", volume / "below/file", volume / "below/new"):
        assert parts(file_label(path)) == ("container_file_t", level), path
    # All of the pod can; the pod beside it cannot, until the volume is given to it.
    assert sh(node, bare, "cat /v/below/file")[0] == 0
    theirs = [mounted(volume, relabel=False)]
    stranger = run_with(node, second, "stranger", SLEEP, mighty, mounts=theirs)
    code, words = sh(node, stranger, "cat /v/below/file || echo x > /v/new")
    assert code != 0
    assert "ermission denied" in words
    taken = run_with(node, second, "taken", SLEEP, mighty, mounts=[mounted(volume, relabel=True)])
    assert sh(node, taken, "cat /v/below/file")[0] == 0
    assert sh(node, mine, "cat /v/below/file")[0] != 0


def test_a_level_without_categories_shares_a_volume(node: Node, handler: str, volume: Path) -> None:
    first = run_labelled_pod(node, "first", handler, level="s0")
    second = node.run_pod("second", handler=handler)
    giver = node.run(first, "giver", SLEEP, mounts=[mounted(volume, relabel=True)])
    assert parts(file_label(volume)) == ("container_file_t", "s0")
    taker = node.run(second, "taker", SLEEP, mounts=[mounted(volume, relabel=False)])
    for container in (giver, taker):
        assert sh(node, container, "cat /v/below/file && echo x >> /v/shared")[0] == 0


def test_an_image_volume_is_readable(node: Node, handler: str) -> None:
    mount = api.Mount(
        container_path="/image",
        image=api.ImageSpec(image=BUSYBOX),
        image_sub_path="bin",
        readonly=True,
    )
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP, mounts=[mount])
    assert sh(node, container, "/image/busybox echo runs") == (0, "runs\n")
    place = f"/proc/{node.container_pid(container)}/root/image/busybox"
    assert parts(file_label(place)) == ("container_file_t", of_container(node, container)[1])


# With other ways to make a root file system.


@pytest.mark.parametrize("form", ["indexed", "tree", "native"])
def test_every_form_of_layers_gives_a_labelled_root(certs_d: Path, form: str) -> None:
    if form == "indexed" and RELEASE < (6, 12):
        pytest.skip("this kernel cannot mount EROFS from a file")
    settings = {"image.layer_form": f'"{form}"'}
    if form == "native":
        settings = {"image.storage_driver": '"native"'}
    with Node.running(form, certs_d, settings=settings) as node:
        pod = node.run_pod("pod")
        container = node.run(pod, "main", SLEEP)
        kind, level = of_container(node, container)
        assert kind == "container_t"
        root = f"/proc/{node.container_pid(container)}/root/bin"
        assert parts(file_label(root)) == ("container_file_t", level)
        script = "cat /bin/busybox > /tmp/busybox && chmod 755 /tmp/busybox && /tmp/busybox true"
        assert sh(node, container, script)[0] == 0
        node.remove_everything()
        node.assert_clean()


def test_in_a_user_namespace(node: Node, handler: str) -> None:
    spaces = namespaces(user=user_namespace(300_000))
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    container = node.run(pod, "main", SLEEP, spaces=spaces)
    kind, level = of_container(node, container)
    assert kind == "container_t"
    assert parts(process_label(node.pod_pid(pod))) == (kind, level)
    assert sh(node, container, "cat /etc/hosts && echo x > /x && echo x > /dev/shm/x")[0] == 0


# What else is told.


def test_check_tells_of_it(node: Node) -> None:
    program = Path(sys.executable).with_name("podwright")
    text = subprocess.run(
        [program, "check", "--config", node.config], capture_output=True, text=True, check=False
    ).stdout
    assert "containers run as system_u:system_r:container_t:s0" in " ".join(text.split())


def test_switched_off_it_is_as_on_a_node_without(certs_d: Path) -> None:
    with Node.running("off", certs_d, settings={"runtime.selinux": '"off"'}) as node:
        pod = node.run_pod("pod")
        container = run_with(node, pod, "main", SLEEP, selinux(type="container_t"))
        assert of_container(node, container)[0] != "container_t"
        node.remove_everything()
        node.assert_clean()
