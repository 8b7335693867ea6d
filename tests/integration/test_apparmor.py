"""AppArmor as pods meet it, where the kernel has it: our default profile, named ones, none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.security.apparmor_text import DEFAULT_PROFILE
from tests.kit.messages import namespaces
from tests.kit.node import Node
from tests.kit.rights import (
    Change,
    apparmor,
    capabilities,
    create_with,
    of_process,
    profile,
    run_with,
    seccomp,
    status_field,
)
from tests.probes import no_apparmor

pytestmark = pytest.mark.skipif(bool(no_apparmor()), reason=no_apparmor())

PARSER = "/usr/sbin/apparmor_parser"
SLEEP = ["sleep", "1000"]
NAMED = "podwright-test-deny-write"
NAMED_TEXT = f"""
profile {NAMED} flags=(attach_disconnected) {{
  file,
  signal,
  deny /tmp/** w,
}}
"""
ENFORCED = f"{DEFAULT_PROFILE} (enforce)"


def parser(option: str, text: str) -> None:
    subprocess.run([PARSER, option, "--skip-cache"], input=text, text=True, check=True)


def unload(name: str) -> None:
    parser("--remove", f"profile {name} {{ }}\n")


def loaded() -> list[str]:
    text = Path("/sys/kernel/security/apparmor/profiles").read_text()
    return [line.rpartition(" (")[0] for line in text.splitlines()]


def label_of(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/apparmor/current").read_text().strip("\n\0")


@pytest.fixture
def named() -> Iterator[str]:
    """A profile that was loaded after the daemon had started."""
    parser("--replace", NAMED_TEXT)
    yield NAMED
    unload(NAMED)


def nothing(_: api.LinuxContainerSecurityContext) -> None:
    """Ask for nothing."""


def refused(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    return error.value.code(), error.value.details()  # type: ignore[attr-defined]


# Which profile it is.


@pytest.mark.parametrize("change", [nothing, apparmor("RuntimeDefault")], ids=["unset", "asked"])
def test_the_default_holds_container_command_and_pause(
    node: Node, handler: str, change: Change
) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, change)
    assert label_of(node.program_pid(container)) == ENFORCED
    assert label_of(node.pod_pid(pod)) == ENFORCED
    assert ENFORCED in node.exec(container, "cat", "/proc/self/attr/current")[1]


def test_unconfined_is_unconfined(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, apparmor("Unconfined"))
    assert label_of(node.program_pid(container)) == "unconfined"
    assert node.exec(container, "cat", "/proc/self/attr/current")[1].startswith("unconfined")


def test_privileged_has_no_default_but_keeps_a_named_one(
    node: Node, handler: str, named: str
) -> None:
    pod = node.run_pod("pod", handler=handler, privileged=True)
    plain = node.run(pod, "plain", SLEEP, privileged=True)
    with_name = run_with(node, pod, "named", SLEEP, apparmor("Localhost", named), privileged=True)
    assert label_of(node.program_pid(plain)) == "unconfined"
    assert label_of(node.program_pid(with_name)) == f"{named} (enforce)"
    assert label_of(node.pod_pid(pod)) == "unconfined"


@pytest.mark.parametrize("prefix", ["", "localhost/"])
def test_a_profile_loaded_later_is_found_and_enforced(
    node: Node, handler: str, named: str, prefix: str
) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, apparmor("Localhost", prefix + named))
    assert label_of(node.program_pid(container)) == f"{named} (enforce)"
    code, _, words = node.exec(container, "touch", "/tmp/x")
    assert code != 0
    assert "ermission denied" in words
    assert node.exec(container, "touch", "/x")[0] == 0


def test_the_older_field_means_the_same(node: Node, handler: str, named: str) -> None:
    def old(value: str) -> Change:
        return lambda context: setattr(context, "apparmor_profile", value)

    pod = node.run_pod("pod", handler=handler)
    for number, (value, label) in enumerate(
        [
            (f"localhost/{named}", f"{named} (enforce)"),
            ("runtime/default", ENFORCED),
            ("unconfined", "unconfined"),
        ]
    ):
        container = run_with(node, pod, f"c{number}", SLEEP, old(value))
        assert label_of(node.program_pid(container)) == label


@pytest.mark.parametrize("name", ["podwright-test-missing", f"{DEFAULT_PROFILE}x"])
def test_a_missing_profile_is_refused_by_name(node: Node, handler: str, name: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    with pytest.raises(grpc.RpcError) as error:
        create_with(node, pod, "main", SLEEP, apparmor("Localhost", name))
    code, words = refused(error)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert name in words
    assert not node.containers()


def test_a_pod_with_a_missing_profile_is_refused(node: Node, handler: str) -> None:
    config = node.pod_config("pod")
    config.linux.security_context.apparmor.CopyFrom(profile("Localhost", "podwright-test-missing"))
    with pytest.raises(grpc.RpcError) as error:
        node.run_config(config, handler=handler)
    assert "podwright-test-missing" in refused(error)[1]
    assert not node.pods()


# What the default profile does.


def mighty(context: api.LinuxContainerSecurityContext) -> None:
    """All capabilities and no filter: what is refused now, the profile refuses."""
    capabilities(add=["ALL"])(context)
    seccomp("Unconfined")(context)


@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs x /mnt",
        "mount -o remount,rw /sys",
        "mount --bind /etc /mnt",
        "umount /dev/shm",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo x > /proc/sys/kernel/core_pattern",
        "cat /proc/kcore",
        "echo h > /proc/sysrq-trigger",
        "mknod /dev/mem c 1 1 && cat /dev/mem",
    ],
)
def test_even_a_mighty_container_is_held(node: Node, handler: str, script: str) -> None:
    """No masked or read-only path helps here: the client sent none."""
    pod = node.run_pod("pod", handler=handler)
    held = run_with(node, pod, "held", SLEEP, mighty)
    code, _, words = node.exec(held, "sh", "-c", f"mkdir -p /mnt; {script} > /dev/null")
    assert code != 0
    assert "ermission denied" in words or "denied" in words or "not permitted" in words


def test_without_the_profile_the_same_container_mounts(node: Node, handler: str) -> None:
    """The test above sees the profile, not something else."""
    pod = node.run_pod("pod", handler=handler)
    free = run_with(node, pod, "free", SLEEP, mighty, apparmor("Unconfined"))
    assert node.exec(free, "sh", "-c", "mkdir -p /mnt; mount -t tmpfs x /mnt")[0] == 0


def test_ordinary_programs_do_not_notice(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    for script in (
        "echo x > /tmp/x && mv /tmp/x /y && ln /y /z && ln -s /y /w && rm /w /y /z",
        "mkfifo /tmp/f && mkdir -p /a/b/c && rm -r /a",
        "cp /bin/busybox /tmp/busybox && /tmp/busybox true",
        "cat /proc/1/environ /proc/1/maps /proc/meminfo /proc/sys/kernel/hostname > /dev/null",
        "sleep 100 & kill -TERM $! && wait $!; [ $? = 143 ]",
        "chown 1000 /tmp && chmod 1777 /tmp && su -s /bin/sh nobody -c id || id",
        "ls -lR /sys/class/net > /dev/null; hostname > /dev/null",
        "echo 10 > /proc/self/oom_score_adj",
        "nslookup localhost 127.0.0.1 > /dev/null 2>&1; ping -c 1 127.0.0.1 > /dev/null",
    ):
        assert node.exec(container, "sh", "-c", script)[0] == 0, script


def test_signals_come_in_from_the_node_and_between_containers(node: Node, handler: str) -> None:
    spaces = namespaces(pid="POD")
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    script = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.2; done"
    first = node.run(pod, "first", ["sh", "-c", script], spaces=spaces)
    second = node.run(pod, "second", SLEEP, spaces=spaces)
    node.wait_log("pod", "first", "ready")
    status = of_process(node.container_pid(first))
    assert node.exec(second, "kill", "-TERM", status_field(status, "NSpid").split()[-1])[0] == 0
    assert node.wait_exited(first).exit_code == 7
    node.stop_container(second, grace_s=5)
    assert node.wait_exited(second).exit_code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)


# The profile and the daemon.


def test_a_profile_that_has_gone_is_loaded_again(node: Node, handler: str) -> None:
    unload(DEFAULT_PROFILE)
    assert DEFAULT_PROFILE not in loaded()
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    assert label_of(node.program_pid(container)) == ENFORCED


def test_it_stays_when_the_daemon_ends_and_the_next_one_puts_its_own(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    pid = node.program_pid(container)
    node.kill()
    assert label_of(pid) == ENFORCED
    parser("--replace", f"profile {DEFAULT_PROFILE} {{ file, }}\n")
    node.start_daemon()
    code, _, words = node.exec(container, "sh", "-c", ": > /proc/sys/kernel/sysrq")
    assert code != 0, words
    assert label_of(pid) == ENFORCED


def test_without_the_parser_only_who_asks_for_the_default_is_refused(
    certs_d: Path, named: str
) -> None:
    settings = {
        "runtime.apparmor_parser_path": json.dumps("/nonexistent/apparmor_parser"),
    }
    if DEFAULT_PROFILE in loaded():
        unload(DEFAULT_PROFILE)
    with Node.running("no parser", certs_d, settings=settings) as node:
        pod = node.run_pod("pod")
        with pytest.raises(grpc.RpcError) as error:
            create_with(node, pod, "asked", SLEEP, apparmor("RuntimeDefault"))
        code, words = refused(error)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "/nonexistent/apparmor_parser" in words
        plain = node.run(pod, "plain", SLEEP)
        assert label_of(node.program_pid(plain)) == "unconfined"
        other = run_with(node, pod, "named", SLEEP, apparmor("Localhost", named))
        assert label_of(node.program_pid(other)) == f"{named} (enforce)"
        node.remove_everything()
        node.assert_clean()


def test_switched_off_it_is_as_on_a_node_without(certs_d: Path, named: str) -> None:
    with Node.running("off", certs_d, settings={"runtime.apparmor": '"off"'}) as node:
        pod = node.run_pod("pod")
        for number, change in enumerate(
            [nothing, apparmor("RuntimeDefault"), apparmor("Unconfined")]
        ):
            container = run_with(node, pod, f"c{number}", SLEEP, change)
            assert label_of(node.program_pid(container)) == "unconfined"
        with pytest.raises(grpc.RpcError) as error:
            create_with(node, pod, "named", SLEEP, apparmor("Localhost", named))
        assert "runtime.apparmor" in refused(error)[1]
        node.remove_everything()
        node.assert_clean()


def test_check_tells_of_it(node: Node) -> None:
    program = Path(sys.executable).with_name("podwright")
    text = subprocess.run(
        [program, "check", "--config", node.config], capture_output=True, text=True, check=False
    ).stdout
    assert f"{DEFAULT_PROFILE} loaded" in " ".join(text.split())
