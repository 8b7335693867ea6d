"""crictl in every verb, the real program, against a daemon of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
from pathlib import Path

import pytest

from tests.kit.calls import until
from tests.kit.crictl import Crictl, CrictlFailed, pipe_of
from tests.kit.messages import BUSYBOX, PREDEFINED_GROUP, namespaces
from tests.kit.node import Node
from tests.kit.registry import free_port

SLEEP = ["sleep", "1000"]
#: A program that tells what it is told, until it is told "end".
PARROT = [
    "sh",
    "-c",
    'while read -r line; do echo "said $line"; [ "$line" != end ] || exit 3; done',
]
ECHO_SERVER = ["nc", "-ll", "-p", "8080", "-e", "cat"]
TRANSPORTS = pytest.mark.parametrize("transport", ["spdy", "websocket"])


@pytest.fixture(scope="module", autouse=True)
def visited(shared_node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first forwarded port makes the daemon's thread for visits, which then stays."""
    node = shared_node
    crictl = Crictl(node.socket, tmp_path_factory.mktemp("crictl"))
    refused(crictl, node.run_pod("visited"))
    node.remove_everything()
    node.take_baseline()


@pytest.fixture
def crictl(node: Node, tmp_path: Path) -> Crictl:
    return Crictl(node.socket, tmp_path)


@pytest.fixture
def pod(node: Node) -> str:
    return node.run_pod("pod", labels={"tier": "front"})


@pytest.fixture
def container(node: Node, pod: str) -> str:
    return node.run(pod, "main", ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"])


def pod_document(node: Node, name: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": "crictl", "uid": f"uid-{name}", "attempt": 0},
        "log_directory": str(node.logs / name),
        "labels": {"made-by": "crictl"},
        "linux": {"cgroup_parent": f"/{node.tag}/pod-{name}"},
    }


def container_document(name: str, command: list[str]) -> dict[str, object]:
    return {
        "metadata": {"name": name},
        "image": {"image": BUSYBOX},
        "command": command,
        "log_path": f"{name}.log",
        "linux": {"resources": {"memory_limit_in_bytes": 64 << 20}},
    }


def with_stdin(
    node: Node, pod: str, command: list[str], *, tty: bool = False, once: bool = False
) -> str:
    """A container that listens to who attaches."""
    request = node.create_request(pod, "listener", command, tty=tty)
    request.config.stdin = True
    request.config.stdin_once = once
    container = node.runtime.CreateContainer(request, timeout=60).container_id
    node.ids.add(container)
    return node.start(container)


# What a pod lives through.


def test_a_life_by_hand(node: Node, crictl: Crictl) -> None:
    pod_file = crictl.file("pod.json", pod_document(node, "life"))
    file = crictl.file("main.json", container_document("main", ["sh", "-c", "echo hi; sleep 900"]))
    pod = crictl.run("runp", pod_file).strip()
    container = crictl.run("create", pod, file, pod_file).strip()
    node.ids |= {pod, container}
    assert crictl.run("ps", "-aq", "--state", "created").split() == [container]
    assert crictl.run("start", container).strip() == container
    assert crictl.run("ps", "-q").split()[0] == container
    assert crictl.run("pods", "-q", "--label", "made-by=crictl").split() == [pod]
    until(lambda: crictl.run("logs", container) == "hi\n", "its log tells")

    with pytest.raises(CrictlFailed, match="running"):
        crictl.run("rm", container)
    assert crictl.run("stop", "--timeout", "1", container).strip() == container
    assert crictl.run("ps", "-aq", "--state", "exited").split() == [container]
    crictl.run("rm", container)
    assert crictl.run("ps", "-aq") == ""

    assert "Stopped" in crictl.run("stopp", pod)
    assert crictl.run("pods", "-q", "--state", "notready").split() == [pod]
    assert "Removed" in crictl.run("rmp", pod)
    assert crictl.run("pods", "-q") == ""
    with pytest.raises(CrictlFailed, match=r"(?i)not ?found"):
        crictl.run("inspectp", pod)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_run_in_one_step_with_a_handler_and_remove_by_force(
    node: Node, crictl: Crictl, handler: str
) -> None:
    pod_file = crictl.file("pod.json", pod_document(node, "run"))
    file = crictl.file("main.json", container_document("main", SLEEP))
    container = crictl.run("run", "--runtime", handler, file, pod_file).strip()
    [pod] = crictl.run("pods", "-q").split()
    node.ids |= {pod, container}
    assert json.loads(crictl.run("inspectp", pod))["status"]["runtimeHandler"] == handler
    assert node.status(container).state == 1
    crictl.run("rm", "--force", container)
    assert crictl.run("ps", "-aq") == ""
    crictl.run("rmp", "--force", pod)
    assert crictl.run("pods", "-q") == ""


def test_unknown_handler_is_named(node: Node, crictl: Crictl) -> None:
    file = crictl.file("pod.json", pod_document(node, "strange"))
    with pytest.raises(CrictlFailed, match="no-such-handler"):
        crictl.run("runp", "--runtime", "no-such-handler", file)
    assert crictl.run("pods", "-q") == ""


def test_lists_and_inspection(node: Node, crictl: Crictl, pod: str, container: str) -> None:
    table = crictl.run("ps")
    assert re.search(rf"^{container[:13]}\s.*Running\s+main\s+0\s+{pod[:13]}", table, re.MULTILINE)
    table = crictl.run("pods")
    assert re.search(rf"^{pod[:13]}\s.*Ready\s+pod\s+integration\s+0", table, re.MULTILINE)
    assert crictl.run("ps", "-q", "--pod", pod, "--name", "^main$").split() == [container]
    assert crictl.run("ps", "-q", "--name", "other") == ""
    assert crictl.run("pods", "-q", "--label", "tier=back") == ""

    inspected = json.loads(crictl.run("inspect", container))
    assert inspected["status"]["state"] == "CONTAINER_RUNNING"
    assert inspected["status"]["metadata"]["name"] == "main"
    assert inspected["info"]["pid"] == node.container_pid(container)
    assert inspected["info"]["runtimeSpec"]["process"]["args"][0] == "sh"
    # The beginning of an id is enough.
    inspected = json.loads(crictl.run("inspectp", pod[:12]))
    assert inspected["status"]["id"] == pod
    assert inspected["status"]["network"]["ip"]
    assert inspected["info"]["pid"] == node.pod_pid(pod)
    template = ("-o", "go-template", "--template", "{{.status.state}}")
    assert crictl.run("inspectp", *template, pod).strip() == "SANDBOX_READY"


# Images.


def test_images_come_are_shown_and_go(node: Node, crictl: Crictl) -> None:
    said = crictl.run("pull", PREDEFINED_GROUP)
    assert "up to date" in said
    image = node.image_id(PREDEFINED_GROUP)
    repository, _, tag = PREDEFINED_GROUP.rpartition(":")
    assert re.search(rf"^{re.escape(repository)}\s+{tag}\s", crictl.run("images"), re.MULTILINE)
    assert image in crictl.run("images", "-q", "--no-trunc").split()
    shown = json.loads(crictl.run("inspecti", PREDEFINED_GROUP))
    assert shown["status"]["id"] == image
    assert PREDEFINED_GROUP in shown["status"]["repoTags"]
    assert int(shown["status"]["size"]) > 0
    assert shown["info"]["imageSpec"]["os"] == "linux"
    assert "Deleted" in crictl.run("rmi", PREDEFINED_GROUP)
    assert node.image_id(PREDEFINED_GROUP) == ""
    with pytest.raises(CrictlFailed, match="no such image"):
        crictl.run("inspecti", PREDEFINED_GROUP)
    with pytest.raises(CrictlFailed, match="no-such-image"):
        crictl.run("pull", "registry.localhost/no-such-image:1")
    used = json.loads(crictl.run("imagefsinfo"))["status"]["imageFilesystems"]
    assert int(used[0]["usedBytes"]["value"]) > 0


# What a container says.


def test_logs(node: Node, crictl: Crictl, pod: str, container: str) -> None:
    until(lambda: crictl.both("logs", container) == ("out\n", "err\n"), "both streams are there")
    stamped = crictl.run("logs", "--timestamps", "--stream", "stdout", container)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\S+ out\n", stamped)
    teller = node.run(pod, "teller", ["sh", "-c", "seq 5; read never </proc/1/fd/0; sleep 900"])
    until(lambda: len(crictl.run("logs", teller).split()) == 5, "it has counted")
    assert crictl.run("logs", "--tail", "2", teller) == "4\n5\n"


def test_log_is_followed_to_its_end_and_over_a_rotation(
    node: Node, crictl: Crictl, pod: str
) -> None:
    # Nothing is said while the files change: crictl opens the next one when it hears of it, and
    # does not come back to what it has not read of the one before.
    script = "seq 5; while [ ! -e /tmp/end ]; do sleep 0.02; done; seq 6 10; echo last"
    container = node.run(pod, "teller", ["sh", "-c", script])
    log = node.logs / "pod" / "teller_0.log"
    until(log.exists, "it writes")
    with crictl.background("logs", "--follow", container) as following:
        lines = pipe_of(following.stdout)
        assert [lines.readline() for _ in range(5)] == [f"{n}\n" for n in range(1, 6)]
        until(lambda: watches(following.pid), "it follows the directory")
        log.rename(log.with_suffix(".log.1"))
        crictl.run("logs", "--reopen", container)
        until(lambda: log in opened(following.pid), "it reads the new file")
        node.exec(container, "touch", "/tmp/end")
        told = lines.read().split()
        assert following.wait(60) == 0
    assert told == [*map(str, range(6, 11)), "last"]
    assert log.read_text().splitlines()[-1].endswith(" stdout F last")


def watches(pid: int) -> bool:
    """Whether the process has an inotify instance with a directory in it."""
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "inotify wd:" in entry.read_text():
                return True
    return False


def opened(pid: int) -> list[Path]:
    """The files that the process has open, by their present names."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(entry.readlink())
    return found


# Commands in it.


def test_exec_sync(crictl: Crictl, container: str) -> None:
    said = crictl.run("exec", "--sync", container, "sh", "-c", "echo out; echo err >&2")
    assert said.split() == ["out", "err"]
    with pytest.raises(CrictlFailed, match="exited with 5"):
        crictl.run("exec", "--sync", container, "sh", "-c", "exit 5")
    with pytest.raises(CrictlFailed, match=r"(?i)deadline|timed out|timeout"):
        crictl.run("exec", "--sync", "--timeout", "1", container, "sleep", "2000")


@TRANSPORTS
def test_exec_streams(crictl: Crictl, container: str, transport: str) -> None:
    words = ("exec", "--transport", transport)
    assert crictl.both(*words, container, "sh", "-c", "echo o; echo e >&2") == ("o\n", "e\n")
    text = "".join(f"line {number}\n" for number in range(50_000))
    assert crictl.run(*words, "--interactive", container, "cat", stdin=text) == text
    with pytest.raises(CrictlFailed, match="exit code 7"):
        crictl.run(*words, container, "sh", "-c", "exit 7")
    with pytest.raises(CrictlFailed, match=r"(?i)no such"):
        crictl.run(*words, container, "/no/such/program")


@TRANSPORTS
def test_exec_on_a_terminal(crictl: Crictl, container: str, transport: str) -> None:
    words = ("exec", "--transport", transport, "-it", container, "sh", "-i")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    with subprocess.Popen(
        crictl.argv(*words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        try:
            read_until(master, b"# ")
            assert b"/dev/pts/" in ask(master, b"tty; echo a$((40 + 2))z\n", b"a42z")

            def size() -> bytes:
                return ask(master, b"stty size; echo b$((40 + 3))z\n", b"b43z")

            # It goes another way than the shell's words, and may come after the first of them.
            until(lambda: b"33 77" in size(), "the shell has the terminal's size")
            termios.tcsetwinsize(master, (22, 66))

            def resized() -> bool:
                # In a session of its own the program is not told by the terminal, and it listens
                # only some time after its start.
                process.send_signal(signal.SIGWINCH)
                return b"22 66" in size()

            until(resized, "the shell has the new size")
            os.write(master, b"exit 0\n")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(master)


def ask(master: int, line: bytes, end: bytes) -> bytes:
    os.write(master, line)
    return read_until(master, end)


def read_until(master: int, end: bytes) -> bytes:
    said = b""
    while end not in said:
        ready, _, _ = select.select([master], [], [], 60)
        assert ready, said
        said += os.read(master, 4096)
    return said


@TRANSPORTS
def test_attach(node: Node, crictl: Crictl, pod: str, transport: str) -> None:
    container = with_stdin(node, pod, PARROT)
    words = ("attach", "--transport", transport, "--stdin", container)
    with crictl.background(*words) as first, crictl.background(*words) as second:
        # A client that is not there yet misses what is said; both are when both have heard it.
        for client in (first, second):
            pipe_of(client.stdin).write("hello\n")
            assert pipe_of(client.stdout).readline() == "said hello\n"
        pipe_of(second.stdin).write("end\n")
        for client in (first, second):
            assert pipe_of(client.stdout).read().endswith("said end\n")
            client.wait(60)
    assert node.wait_exited(container).exit_code == 3
    assert node.log_of("pod", "listener") == "said hello\nsaid hello\nsaid end\n"


@TRANSPORTS
def test_attach_once(node: Node, crictl: Crictl, pod: str, transport: str) -> None:
    container = with_stdin(node, pod, ["sh", "-c", "cat; echo over; exit 4"], once=True)
    words = ("attach", "--transport", transport, "--stdin", container)
    with crictl.background(*words) as client:
        pipe_of(client.stdin).write("a word\n")
        assert pipe_of(client.stdout).readline() == "a word\n"
        pipe_of(client.stdin).close()
        assert pipe_of(client.stdout).read() == "over\n"
    assert node.wait_exited(container).exit_code == 4


# Ports.


@TRANSPORTS
@pytest.mark.parametrize("network", ["POD", "NODE"])
def test_port_forward(node: Node, crictl: Crictl, transport: str, network: str) -> None:
    port = 8080 if network == "POD" else free_port()
    spaces = namespaces(network=network)
    pod = node.run_pod("ported", spaces=spaces)
    server = node.run(pod, "echo", [*ECHO_SERVER[:3], str(port), *ECHO_SERVER[4:]], spaces=spaces)
    # crictl ends with the first connection that is refused.
    node.wait_listening(server, port)
    with crictl.background("port-forward", "--transport", transport, pod, f":{port}") as forward:
        told = re.match(r"Forwarding from 127.0.0.1:(\d+) ->", pipe_of(forward.stdout).readline())
        assert told
        address = ("127.0.0.1", int(told[1]))
        assert answers(address, b"are you there")
        # Several at once, each with its own bytes, all of them.
        links = [socket.create_connection(address, timeout=60) for _ in range(5)]
        texts = [bytes([65 + number]) * 100_000 for number in range(5)]
        for link, text in zip(links, texts, strict=True):
            link.sendall(text)
        for link, text in zip(links, texts, strict=True):
            assert receive(link, len(text)) == text
            link.close()


def answers(address: tuple[str, int], text: bytes) -> bool:
    with socket.create_connection(address, timeout=60) as link:
        link.sendall(text)
        return receive(link, len(text)) == text


def receive(link: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (part := link.recv(65536)):
        received += part
    return received


def test_port_nobody_listens_on(crictl: Crictl, pod: str) -> None:
    refused(crictl, pod)


def refused(crictl: Crictl, pod: str) -> None:
    with crictl.background("port-forward", pod, ":81") as forward:
        told = re.match(r"Forwarding from 127.0.0.1:(\d+) ->", pipe_of(forward.stdout).readline())
        assert told
        with socket.create_connection(("127.0.0.1", int(told[1])), timeout=60) as link:
            assert receive(link, 1) == b""
        complaint = pipe_of(forward.stderr).readline()
        while "refused" not in complaint:
            complaint = pipe_of(forward.stderr).readline()
            assert complaint, "it ended without a word"


# Numbers.


def test_stats(node: Node, crictl: Crictl, pod: str) -> None:
    script = "dd if=/dev/zero of=/file bs=1024 count=512; while :; do :; done"
    container = node.run(pod, "busy", ["sh", "-c", script])
    until(lambda: node.exec(container, "test", "-e", "/file")[0] == 0, "it has written")

    def stats() -> dict[str, dict[str, dict[str, str]]]:
        [one] = json.loads(crictl.run("stats", "-o", "json", container))["stats"]
        assert one["attributes"]["id"] == container
        return one  # type: ignore[no-any-return]

    def nano_cores() -> int:
        # Absent until there are two samples to compare.
        return int(stats()["cpu"].get("usageNanoCores", {}).get("value", 0))

    until(lambda: nano_cores() > 50_000_000, "cpu is used")
    assert int(stats()["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert int(stats()["memory"]["workingSetBytes"]["value"]) > 0
    until(lambda: int(stats()["writableLayer"]["usedBytes"]["value"]) >= 512 << 10, "disk is used")
    assert re.search(rf"^{container[:13]}\s+busy\s", crictl.run("stats"), re.MULTILINE)

    def processes() -> int:
        [one] = json.loads(crictl.run("statsp", "-o", "json", pod))["stats"]
        return int(one["linux"]["process"]["processCount"]["value"])

    until(lambda: processes() >= 2, "the last look at the pod has seen the container")
    [of_pod] = json.loads(crictl.run("statsp", "-o", "json", pod))["stats"]
    assert of_pod["attributes"]["id"] == pod
    assert of_pod["linux"]["network"]["defaultInterface"]["name"] == "eth0"
    assert [each["attributes"]["id"] for each in of_pod["linux"]["containers"]] == [container]
    assert re.search(rf"\s{pod[:13]}\s", crictl.run("statsp"))


def test_metrics(crictl: Crictl, pod: str, container: str) -> None:
    described = json.loads(crictl.run("metricdescs"))["descriptors"]
    labels = {each["name"]: each["labelKeys"] for each in described}
    assert len(labels) == len(described) >= 50
    [of_pod] = json.loads(crictl.run("metricsp"))["podMetrics"]
    assert of_pod["podSandboxId"] == pod
    [of_container] = of_pod["containerMetrics"]
    assert of_container["containerId"] == container
    both = of_pod["metrics"] + of_container["metrics"]
    for metric in both:
        assert len(metric["labelValues"]) == len(labels[metric["name"]]), metric
    names = {metric["name"] for metric in both}
    assert {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} <= names
    assert "container_network_receive_bytes_total" in names


def test_events(node: Node, crictl: Crictl) -> None:
    with crictl.background("events") as listener:
        # Nobody tells when the program has subscribed: pods come until it tells of one.
        pod = ""
        for number in range(100):
            pod = node.run_pod(f"heard-{number}")
            ready, _, _ = select.select([pipe_of(listener.stdout)], [], [], 0.5)
            if ready:
                break
        container = node.run(pod, "main", SLEEP)
        node.stop_container(container)
        node.remove_container(container)
        heard: list[tuple[str, str]] = []
        decoder, text = json.JSONDecoder(), ""
        while (container, "CONTAINER_DELETED_EVENT") not in heard:
            text = (text + pipe_of(listener.stdout).readline()).lstrip()
            assert listener.poll() is None
            try:
                event, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                continue
            text = text[end:]
            heard.append((event["containerId"], event["containerEventType"]))
            assert event["podSandboxStatus"]["id"]
    of_container = [kind for subject, kind in heard if subject == container]
    steps = ("CREATED", "STARTED", "STOPPED", "DELETED")
    assert of_container == [f"CONTAINER_{step}_EVENT" for step in steps]


# Changes, and the node.


def test_update_changes_the_control_group(node: Node, crictl: Crictl, container: str) -> None:
    words = ("--memory", str(96 << 20), "--cpu-quota", "50000", "--cpu-period", "100000")
    assert crictl.run("update", *words, container).strip() == container
    inspected = json.loads(crictl.run("inspect", container))["status"]["resources"]["linux"]
    assert int(inspected["memoryLimitInBytes"]) == 96 << 20
    assert int(inspected["cpuQuota"]) == 50_000
    pid = node.container_pid(container)
    assert control_file(pid, "memory", "memory.max", "memory.limit_in_bytes") == str(96 << 20)
    quota = control_file(pid, "cpu", "cpu.max", "cpu.cfs_quota_us")
    assert quota.split()[0] == "50000"
    with pytest.raises(CrictlFailed, match=r"(?i)memory"):
        crictl.run("update", "--memory", "4096", container)
    assert control_file(pid, "memory", "memory.max", "memory.limit_in_bytes") == str(96 << 20)


def control_file(pid: int, controller: str, *names: str) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (controllers, controller, "unified", ""):
            for name in names:
                file = Path("/sys/fs/cgroup", root, path.lstrip("/"), name)
                if file.exists():
                    return file.read_text().strip()
    raise AssertionError(f"no {names} for process {pid}")


def test_checkpoint_is_refused_in_words(
    node: Node, crictl: Crictl, container: str, tmp_path: Path
) -> None:
    archive = tmp_path / "checkpoint.tar"
    with pytest.raises(CrictlFailed, match=r"Unimplemented.*CheckpointContainer"):
        crictl.run("checkpoint", "--export", archive, container)
    assert not archive.exists()
    assert node.status(container).state == 1


def test_node(node: Node, crictl: Crictl) -> None:
    version = crictl.run("version")
    assert re.search(r"RuntimeName:\s+podwright\n", version)
    assert re.search(r"RuntimeApiVersion:\s+v1\n", version)
    info = json.loads(crictl.run("info"))
    conditions = {each["type"]: each["status"] for each in info["status"]["conditions"]}
    assert conditions["RuntimeReady"] is True
    assert conditions["NetworkReady"] is True
    assert {"crun", "runc"} <= {each.get("name", "") for each in info["runtimeHandlers"]}
    assert re.search(r"(?i)cgroupfs|systemd", crictl.run("runtime-config"))
    said = crictl.both("update-runtime-config", "--pod-cidr", "10.99.0.0/16")
    assert "successfully updated" in said[1]
    with pytest.raises(CrictlFailed, match="not-a-range"):
        crictl.run("update-runtime-config", "--pod-cidr", "not-a-range")
    assert json.loads(crictl.run("info"))["status"]["conditions"] == info["status"]["conditions"]
