"""Devices of a request and of CDI files, hooks of the node, limits: as a container really has them.

The character devices are nodes of /dev/null's, /dev/zero's and /dev/full's numbers under other
names, so that reading tells which one it is.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.crictl import cri_tools
from tests.kit.messages import namespaces, user_namespace
from tests.kit.node import PATIENCE_S, Node

SLEEP = ["sleep", "1000"]
#: Named by tests of CDI; the strongest last, as in the configuration.
PLACES = Path("/run") / f"podwright-test-cdi-{os.getpid()}"
STATIC, DYNAMIC, HOOKS = PLACES / "etc-cdi", PLACES / "run-cdi", PLACES / "hooks.d"
SETTINGS = {
    "runtime.cdi_spec_dirs": json.dumps([str(STATIC), str(DYNAMIC)]),
    "runtime.hooks_dirs": json.dumps([str(HOOKS)]),
    "runtime.rlimits": '["nofile=1000:2000", "core=0"]',
    "runtime.pids_limit": "50",
    "runtime.device_ownership_from_security_context": "true",
    "runtimes.crun.allowed_annotations": '["podwright.io/*", "rlimits.podwright.io/*"]',
    "runtimes.runc.allowed_annotations": '["podwright.io/*", "rlimits.podwright.io/*"]',
}
#: Linux Documentation/admin-guide/devices.txt.
ZERO, FULL = (1, 5), (1, 7)


@pytest.fixture(autouse=True)
def places(shared_node: Node) -> Iterator[Path]:
    """Empty directories of CDI files and hooks, and one for what tests make."""
    for directory in (STATIC, DYNAMIC, HOOKS):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    yield PLACES
    subprocess.run(["rm", "-r", str(PLACES)], check=True)


def make_node(name: str, numbers: tuple[int, int], *, mode: int = 0o666) -> Path:
    path = PLACES / name
    os.mknod(path, stat.S_IFCHR | mode, os.makedev(*numbers))
    path.chmod(mode)
    return path


def write_cdi(directory: Path, name: str, **document: object) -> Path:
    """A specification that states what is not given."""
    whole = {"cdiVersion": "1.0.0", "kind": "vendor.test/gauge", **document}
    path = directory / name
    path.write_text(json.dumps(whole))
    return path


def device(name: str, **edits: object) -> dict[str, object]:
    return {"name": name, "containerEdits": edits}


def create(
    node: Node,
    pod: str,
    name: str = "main",
    command: list[str] = SLEEP,
    *,
    cdi: tuple[str, ...] = (),
    devices: tuple[api.Device, ...] = (),
    annotations: dict[str, str] | None = None,
    **options: object,
) -> str:
    """Create and start; the id."""
    request = node.create_request(pod, name, command, **options)
    request.config.CDI_devices.extend(api.CDIDevice(name=each) for each in cdi)
    request.config.devices.extend(devices)
    request.config.annotations.update(annotations or {})
    made = node.runtime.CreateContainer(request, timeout=PATIENCE_S).container_id
    node.ids.add(made)
    return node.start(made)


def refusal(node: Node, pod: str, **options: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        create(node, pod, "refused", **options)  # type: ignore[arg-type]
    assert not [c for c in node.containers() if c.metadata.name == "refused"]
    return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]


def says(node: Node, container: str, script: str) -> str:
    code, output, errors = node.exec(container, "sh", "-c", script)
    assert code == 0, (code, output, errors)
    return output.strip()


# CDI.


def test_a_cdi_device_brings_all_that_its_file_says(node: Node, handler: str) -> None:
    zero = make_node("zero-of-host", ZERO)
    library = PLACES / "library"
    library.mkdir()
    (library / "driver.so").write_text("driver 7")
    library.chmod(0o755)
    (library / "driver.so").chmod(0o644)
    ran = PLACES / "hook-ran"
    write_cdi(
        STATIC,
        "vendor.json",
        containerEdits={"env": ["GAUGE_DRIVER=7", "PATH=/gauge/bin:/bin"]},
        devices=[
            device(
                "g0",
                env=["GAUGE=0"],
                deviceNodes=[
                    {"path": "/dev/gauge0", "hostPath": str(zero), "permissions": "rw"},
                    {
                        "path": "/dev/gauge-full",
                        "type": "c",
                        "major": 1,
                        "minor": 7,
                        "fileMode": 0o640,
                        "uid": 5,
                        "gid": 6,
                    },
                ],
                mounts=[
                    {
                        "hostPath": str(library),
                        "containerPath": "/usr/lib/gauge",
                        "options": ["ro", "nosuid", "rbind"],
                    },
                    {"hostPath": "tmpfs", "containerPath": "/gauge/tmp", "type": "tmpfs"},
                ],
                hooks=[
                    {
                        "hookName": "createRuntime",
                        "path": "/bin/sh",
                        "args": ["sh", "-c", f"cat > {ran}"],
                    }
                ],
                additionalGids=[4242],
            ),
            device("g1", env=["GAUGE=1"]),
        ],
    )
    pod = node.run_pod("pod", handler=handler)
    container = create(node, pod, cdi=("vendor.test/gauge=g0",), user=1234, group=2345)
    # The container's own user owns a node whose owner nobody says; permissions from the host.
    assert says(node, container, "stat -c '%F %t,%T %a %u %g' /dev/gauge0") == (
        "character special file 1,5 666 1234 2345"
    )
    assert says(node, container, "stat -c '%t,%T %a %u %g' /dev/gauge-full") == "1,7 640 5 6"
    assert says(node, container, "head -c 3 /dev/gauge0 | od -An -tx1") == "00 00 00"
    assert says(node, container, "cat /usr/lib/gauge/driver.so") == "driver 7"
    assert says(node, container, "touch /usr/lib/gauge/x 2>&1 || echo $?").endswith("1")
    assert "/gauge/tmp tmpfs" in says(node, container, "cat /proc/mounts")
    assert says(node, container, "echo $GAUGE $GAUGE_DRIVER; echo $PATH") == (
        "0 7\n/gauge/bin:/bin"
    )
    assert "4242" in says(node, container, "id -G").split()
    state = json.loads(ran.read_text())
    assert (state["id"], state["pid"]) == (container, node.container_pid(container))


def test_field_and_annotations_count_once_each_and_a_pods_annotations_never(node: Node) -> None:
    write_cdi(STATIC, "v.json", devices=[device(n, env=[f"G_{n}=1"]) for n in ("a", "b", "c")])
    pod = node.run_pod("pod", annotations={"cdi.k8s.io/author_x": "vendor.test/gauge=c"})
    container = create(
        node,
        pod,
        cdi=("vendor.test/gauge=a", "vendor.test/gauge=a"),
        annotations={"cdi.k8s.io/plugin_1": "vendor.test/gauge=a,vendor.test/gauge=b"},
    )
    assert says(node, container, "env | grep ^G_ | sort") == "G_a=1\nG_b=1"


def test_files_are_followed_while_they_change(node: Node) -> None:
    pod = node.run_pod("pod")
    name = "vendor.test/gauge=g0"
    code, words = refusal(node, pod, cdi=(name,))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"CDI device {name} is not known" in words
    assert f"looked in {STATIC}, {DYNAMIC}" in words
    assert "podwright check" in words
    file = write_cdi(DYNAMIC, "v.json", devices=[device("g0", env=["GAUGE=first"])])
    assert says(node, create(node, pod, "one", cdi=(name,)), "echo $GAUGE") == "first"
    write_cdi(DYNAMIC, "v.json", devices=[device("g0", env=["GAUGE=second"])])
    assert says(node, create(node, pod, "two", cdi=(name,)), "echo $GAUGE") == "second"
    file.unlink()
    assert "is not known" in refusal(node, pod, cdi=(name,))[1]
    # YAML, as tools write it.
    (STATIC / "v.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: vendor.test/gauge\ndevices:\n"
        "- name: g0\n  containerEdits:\n    env:\n    - GAUGE=third\n"
    )
    assert says(node, create(node, pod, "three", cdi=(name,)), "echo $GAUGE") == "third"


def test_the_later_directory_wins_and_two_files_of_one_are_a_conflict(node: Node) -> None:
    pod = node.run_pod("pod")
    name = "vendor.test/gauge=g0"
    write_cdi(STATIC, "a.json", devices=[device("g0", env=["GAUGE=static"])])
    write_cdi(DYNAMIC, "b.json", devices=[device("g0", env=["GAUGE=dynamic"])])
    assert says(node, create(node, pod, cdi=(name,)), "echo $GAUGE") == "dynamic"
    write_cdi(DYNAMIC, "c.json", devices=[device("g0", env=["GAUGE=other"])])
    code, words = refusal(node, pod, cdi=(name,))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"{DYNAMIC}/b.json" in words
    assert f"{DYNAMIC}/c.json" in words


def test_a_broken_file_is_named_and_hides_no_other(node: Node) -> None:
    pod = node.run_pod("pod")
    write_cdi(STATIC, "good.json", devices=[device("g0", env=["GAUGE=good"])])
    broken = STATIC / "broken.json"
    broken.write_text('{"cdiVersion": "1.0.0", "kind": "other.test/x", "devices": [{}]}')
    assert says(node, create(node, pod, cdi=("vendor.test/gauge=g0",)), "echo $GAUGE") == "good"
    _, words = refusal(node, pod, cdi=("other.test/x=0",))
    assert str(broken) in words
    assert "name" in words
    checked = subprocess.run(
        [Path(sys.executable).with_name("podwright"), "check", "--config", str(node.config)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert str(broken) in checked.stdout


@pytest.mark.parametrize("which", ["file", "directory"])
def test_what_others_could_have_written_does_not_count(node: Node, which: str) -> None:
    pod = node.run_pod("pod")
    file = write_cdi(DYNAMIC, "v.json", devices=[device("g0", env=["GAUGE=evil"])])
    loose = file if which == "file" else DYNAMIC
    loose.chmod(loose.stat().st_mode | stat.S_IWOTH)
    _, words = refusal(node, pod, cdi=("vendor.test/gauge=g0",))
    assert f"{loose} can be written by others than root" in words
    loose.chmod(loose.stat().st_mode & ~stat.S_IWOTH)
    os.chown(loose, 12345, 0)
    _, words = refusal(node, pod, cdi=("vendor.test/gauge=g0",))
    assert f"{loose} belongs to user 12345" in words
    os.chown(loose, 0, 0)
    assert says(node, create(node, pod, cdi=("vendor.test/gauge=g0",)), "echo $GAUGE") == "evil"


def test_what_is_missing_for_a_device_is_named_with_it(node: Node) -> None:
    pod = node.run_pod("pod")
    gone = PLACES / "no-such-node"
    write_cdi(
        STATIC,
        "v.json",
        devices=[
            device("node", deviceNodes=[{"path": str(gone)}]),
            device("mount", mounts=[{"hostPath": str(gone), "containerPath": "/x"}]),
            device("rdt", intelRdt={"closID": "fast"}),
        ],
    )
    for name in ("node", "mount"):
        code, words = refusal(node, pod, cdi=(f"vendor.test/gauge={name}",))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"CDI device vendor.test/gauge={name}" in words
        assert str(gone) in words
    if not Path("/sys/fs/resctrl/schemata").exists():
        words = refusal(node, pod, cdi=("vendor.test/gauge=rdt",))[1]
        assert "resctrl is not mounted" in words
    code, words = refusal(node, pod, cdi=("gauge",))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "'gauge'" in words


def test_inspect_shows_cdi_devices_and_what_they_became(node: Node) -> None:
    write_cdi(STATIC, "v.json", devices=[device("g0", env=["GAUGE=shown"])])
    container = create(node, node.run_pod("pod"), cdi=("vendor.test/gauge=g0",))
    shown = subprocess.run(
        [
            cri_tools() / "crictl",
            "--runtime-endpoint",
            f"unix://{node.socket}",
            "inspect",
            container,
        ],
        capture_output=True,
        check=True,
    ).stdout
    info = json.loads(shown)["info"]
    assert info["config"]["cdi_devices"] == ["vendor.test/gauge=g0"]
    assert "GAUGE=shown" in info["runtimeSpec"]["process"]["env"]


# Devices of the request.


def test_devices_of_the_request_belong_to_the_containers_user(node: Node, handler: str) -> None:
    zero = make_node("zero", ZERO, mode=0o600)
    pod = node.run_pod("pod", handler=handler)
    wanted = api.Device(container_path="/dev/mine", host_path=str(zero), permissions="rw")
    container = create(node, pod, devices=(wanted,), user=1234, group=2345)
    assert says(node, container, "stat -c '%t,%T %a %u %g' /dev/mine") == "1,5 600 1234 2345"
    assert says(node, container, "head -c 2 /dev/mine | od -An -tx1") == "00 00"
    # Without a group asked for, the host's stays.
    container = create(node, pod, "two", devices=(wanted,), user=1234)
    assert says(node, container, "stat -c '%u %g' /dev/mine") == "1234 0"
    assert (zero.stat().st_uid, zero.stat().st_gid) == (0, 0)


def test_devices_in_a_user_namespace_belong_to_its_user(node: Node, handler: str) -> None:
    zero = make_node("zero", ZERO, mode=0o600)
    own = namespaces(user=user_namespace(200_000, gids=400_000))
    pod = node.run_pod("pod", handler=handler, spaces=own)
    wanted = api.Device(container_path="/dev/mine", host_path=str(zero), permissions="rw")
    container = create(node, pod, devices=(wanted,), user=1234, group=2345, spaces=own)
    assert says(node, container, "stat -c '%t,%T %a %u %g' /dev/mine") == "1,5 600 1234 2345"
    assert says(node, container, "head -c 2 /dev/mine | od -An -tx1") == "00 00"
    assert (zero.stat().st_uid, zero.stat().st_gid) == (0, 0)


# Hooks.


def write_hook(name: str, script: str, when: dict[str, object], stages: list[str]) -> Path:
    program = PLACES / f"{name}.sh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    path = HOOKS / f"{name}.json"
    path.write_text(
        json.dumps(
            {
                "version": "1.0.0",
                "hook": {"path": str(program), "args": [name, "word"], "env": ["HOOK=of the node"]},
                "when": when,
                "stages": stages,
            }
        )
    )
    return path


def test_hooks_of_the_node_run_at_their_stages(node: Node, handler: str) -> None:
    log = PLACES / "log"
    for stage in ("prestart", "createRuntime", "createContainer", "poststart", "poststop"):
        script = f'echo "{stage} $1 $HOOK $(wc -c)" >> {log}'
        write_hook(stage, script, {"always": True}, [stage])
    pod = node.run_pod("pod", handler=handler)
    container = create(node, pod)
    until(lambda: "poststart" in log.read_text(), "the last hook of the start has run")
    assert "poststop" not in log.read_text()
    node.remove_container(container)
    until(lambda: "poststop" in log.read_text(), "the hook of the end has run")
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ]
    for _, word, *hook, size_bytes in lines:
        assert (word, hook) == ("word", ["of", "the", "node"])
        assert int(size_bytes) > 50, "the container's state is on standard input"


def test_hooks_run_only_for_containers_that_fit(node: Node) -> None:
    log = PLACES / "log"
    log.touch()
    stages = ["createRuntime"]
    write_hook("annotated", f"echo annotated >> {log}", {"annotations": {"^a.test/": "^y"}}, stages)
    write_hook("command", f"echo command >> {log}", {"commands": ["/?sleep$"]}, stages)
    write_hook("mounts", f"echo mounts >> {log}", {"hasBindMounts": True}, stages)
    write_hook("both", f"echo both >> {log}", {"hasBindMounts": True, "commands": ["x"]}, stages)
    create(node, node.run_pod("plain"), command=["sh", "-c", "sleep 1000"])
    assert log.read_text() == ""
    create(node, node.run_pod("sleeps"))
    assert log.read_text() == "command\n"
    pod = node.run_pod("pod", annotations={"a.test/hook": "yes"})
    mount = api.Mount(host_path=str(PLACES), container_path="/places")
    create(node, pod, command=["sh", "-c", "sleep 1000"], mounts=[mount])
    assert log.read_text().splitlines()[1:] == ["annotated", "mounts"]


def test_a_failing_hook_fails_the_container_in_its_own_words(node: Node, handler: str) -> None:
    write_hook("guard", "echo no entry today >&2; exit 3", {"always": True}, ["createRuntime"])
    code, words = refusal(node, node.run_pod("pod", handler=handler))
    assert code is not grpc.StatusCode.OK
    assert "hook" in words


def test_a_hook_that_cannot_be_used_is_never_left_out(node: Node) -> None:
    pod = node.run_pod("pod")
    file = write_hook("guard", "true", {"always": True}, ["createRuntime"])
    whole = file.read_text()
    file.write_text(whole.replace('"1.0.0"', '"0.1.0"'))
    code, words = refusal(node, pod)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(file) in words
    file.write_text(whole)
    (PLACES / "guard.sh").chmod(0o757)
    assert f"{PLACES}/guard.sh can be written by others" in refusal(node, pod)[1]
    (PLACES / "guard.sh").unlink()
    assert f"{PLACES}/guard.sh" in refusal(node, pod)[1]
    file.unlink()
    create(node, pod)


# Limits.


def test_resource_limits_of_the_node_and_of_allowed_annotations(node: Node, handler: str) -> None:
    pod = node.run_pod("plain", handler=handler)
    assert limits_of(node, create(node, pod)) == {"open files": (1000, 2000), "core": (0, 0)}
    pod = node.run_pod(
        "asks",
        handler=handler,
        annotations={
            "podwright.io/rlimits": "nofile=1500:1600, core=4096",
            "rlimits.podwright.io/two": "nofile=700",
        },
    )
    one = create(node, pod, "one")
    assert limits_of(node, one) == {"open files": (1500, 1600), "core": (4096, 4096)}
    two = create(node, pod, "two")
    assert limits_of(node, two) == {"open files": (700, 700), "core": (4096, 4096)}
    # What exec runs has them as well. Only the hard one: the Go runtime below runc 1.1 raises its
    # own soft limit of open files, and a command may get that.
    assert says(node, two, "ulimit -Hn; ulimit -Hc").split() == ["700", "8"]
    assert "podwright.io" not in json.dumps(spec_of(node, two)["annotations"])


def limits_of(node: Node, container: str) -> dict[str, tuple[int, int]]:
    """Soft and hard limit of the container's first process, as the kernel has them."""
    lines = Path(f"/proc/{node.program_pid(container)}/limits").read_text().splitlines()
    names = {"Max open files": "open files", "Max core file size": "core"}
    return {
        names[line[:26].strip()]: (int(line[26:47]), int(line[47:68]))
        for line in lines
        if line[:26].strip() in names
    }


def spec_of(node: Node, container: str) -> dict[str, dict[str, str]]:
    return json.loads((node.run_root / "containers" / container / "config.json").read_text())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nofile=1:999999999999", "nofile cannot be 999999999999, the daemon may set at most"),
        ("nofile=5:4", "soft 5, hard 4"),
        ("nofile", "not a resource limit"),
        ("lunch=1", "RLIMIT_LUNCH"),
        ("nofile=" + "9" * 2000, "longer than"),
    ],
)
def test_limits_that_cannot_be_are_refused_by_name(node: Node, text: str, what: str) -> None:
    pod = node.run_pod("pod", annotations={"podwright.io/rlimits": text})
    code, words = refusal(node, pod)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert what in words


def test_the_pids_limit_stops_a_bomb_in_its_container(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    neighbour, container = create(node, pod, "neighbour"), create(node, pod)
    group = pids_group(node.container_pid(container))
    assert (group / "pids.max").read_text().strip() == "50"
    bomb = "i=0; while [ $i -lt 200 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done"
    code, _, errors = node.exec(container, "sh", "-c", bomb)
    assert code != 0
    assert "fork" in errors
    assert int((group / "pids.events").read_text().split()[1]) > 0
    assert int((group / "pids.current").read_text()) <= 50
    assert says(node, neighbour, "echo alive") == "alive"


def pids_group(pid: int) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for root in (f"/sys/fs/cgroup/{controllers or 'unified'}", "/sys/fs/cgroup"):
            if controllers in ("", "pids") and Path(f"{root}{path}/pids.max").exists():
                return Path(f"{root}{path}")
    raise AssertionError(f"{pid} has no pids limit")
