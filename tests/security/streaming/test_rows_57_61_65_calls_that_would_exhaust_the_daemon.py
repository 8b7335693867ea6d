"""Calls over the socket that cost their sender nothing: output, resets, nesting, nonsense.

Row 57, CVE-2022-1708, CVE-2022-31030: the output of ExecSync was kept without a bound.
Row 61, CVE-2023-44487: streams of HTTP/2 opened and reset in a flood.
Row 65, CVE-2025-4565, CVE-2026-0994: nesting without a limit in protobuf's parser.

Tried: a hundred commands that write for a minute, at once; a flood of resets, of settings and of
garbage on the socket and on the streaming port, with others being served meanwhile; deep nesting;
and for each of the contract's RPCs messages that no client should send, after which nothing may be
left.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from protos import api_pb2 as api
from sandbox.settings import SandboxSettings
from tests.kit import census
from tests.kit.calls import until
from tests.kit.node import PATIENCE_S, Node
from tests.kit.walks import files_below
from tests.unit.cri.messages import TEXTS, messages

MIB = 1 << 20
#: What a flood of frames may cost, and fragments.
GROWTH_LIMIT_BYTES = 400 * MIB
#: Commands at once that write for ever, and for how long (seconds).
ENDLESS = 100
ENDLESS_S = 60 if os.environ.get("PODWRIGHT_WHOLE_MATRIX") else 15  # whole before a release
#: Beside what commands may keep together: the share of each of them, buffers, fragments.
SLACK_BYTES = 96 * MIB
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RESETS = 20_000
#: Nothing that a client sends may be told as a fault of the node.
WRONG = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}
#: Paths that no directory is made for when a request names them.
SAFE_TEXTS = [text for text in TEXTS if not text.startswith("/a")] + ["/proc", "/dev/null", "/tmp"]
METHODS = {
    f"/{service.full_name}/{method.name}": (
        GetMessageClass(method.input_type),
        method.server_streaming,
    )
    for service in api.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def answers(node: Node) -> None:
    assert node.runtime.Version(api.VersionRequest(), timeout=PATIENCE_S).runtime_name


def memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def disk_bytes(node: Node) -> int:
    """What lies in the daemon's directories."""
    roots = (node.run_root, node.state_root / "containers")
    return sum(about.st_size for _, about in files_below(*roots))


# Row 57.


@pytest.mark.cell("ES3")
def test_endless_output_of_a_hundred_commands_costs_one_pool(node: Node, handler: str) -> None:
    """A minute of it: memory is what all may keep together, and what is dropped is kept nowhere."""
    container = node.run(node.run_pod(handler=handler), "main", ["sleep", "1000"])
    Path(f"/proc/{node.pid}/clear_refs").write_text("5")
    before, on_disk = memory(node.pid, "VmRSS"), disk_bytes(node)

    def endless(_: int) -> grpc.StatusCode:
        request = api.ExecSyncRequest(
            container_id=container, cmd=["yes", "y" * 1000], timeout=ENDLESS_S
        )
        try:
            node.runtime.ExecSync(request, timeout=PATIENCE_S + ENDLESS_S)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined]
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(ENDLESS) as clients:
        calls = [clients.submit(endless, number) for number in range(ENDLESS)]
        until(
            lambda: len(node.processes_doing("yes yyy")) >= ENDLESS or calls[0].done(),
            "all of them write at once",
        )
        assert not any(call.done() for call in calls)
        answers(node)
        # A probe beside them has its answer.
        assert node.exec(container, "echo", "alive") == (0, "alive\n", "")
        assert disk_bytes(node) - on_disk < 16 * MIB, "output is kept on disk"
        codes = {call.result() for call in calls}
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert memory(node.pid, "VmHWM") - before < SandboxSettings().exec_outputs_bytes + SLACK_BYTES
    assert not node.processes_doing("yes yyy")
    assert disk_bytes(node) - on_disk < 16 * MIB, "output is left on disk"


@pytest.mark.cell("ES3")
def test_an_answer_has_at_most_its_limit(node: Node, handler: str) -> None:
    """Several of them in turn: each ends well, is cut, and is gone from memory with its answer."""
    container = node.run(node.run_pod(handler=handler), "main", ["sleep", "1000"])
    request = api.ExecSyncRequest(
        container_id=container, cmd=["sh", "-c", "yes | head -c 60000000; exit 3"], timeout=0
    )
    for _ in range(3):
        answer = node.runtime.ExecSync(request, timeout=PATIENCE_S)
        assert answer.exit_code == 3
        assert len(answer.stdout) == SandboxSettings().exec_output_bytes
        # All of the same letter and its newline: cut at the end, and nowhere else.
        assert answer.stdout == b"y\n" * (len(answer.stdout) // 2)
    # What all may hold is whole again: an hundredth command has as much as the first.
    assert memory(node.pid, "VmRSS") < GROWTH_LIMIT_BYTES


# Row 61.


def _frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
    return head + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header without Huffman coding and indexing (RFC 7541, 6.2.2)."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


HEADERS = b"".join(
    _literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/runtime.v1.RuntimeService/Version"),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
FLOODS = {
    "reset": lambda n: _frame(1, 2 * n + 1, HEADERS, 4) + _frame(3, 2 * n + 1, b"\0\0\0\x08"),
    "settings": lambda n: _frame(4, 0, b"\0\x04" + struct.pack(">I", 65_535 + n % 2)),
    "ping": lambda n: _frame(6, 0, struct.pack(">Q", n)),
    "continuation": lambda n: _frame(9, 1, _literal(b"x", b"y" * 100)),
    "empty-data": lambda n: _frame(0, 1),
    "window": lambda n: _frame(8, 0, b"\0\0\0\x01"),
    "priority": lambda n: _frame(2, 2 * n + 1, b"\0\0\0\0\x10"),
}


@pytest.mark.cell("MF11")
def test_floods_of_frames_on_the_socket(node: Node) -> None:
    threads = census.threads(node.pid)
    Path(f"/proc/{node.pid}/clear_refs").write_text("5")
    before = memory(node.pid, "VmRSS")
    for kind, frame in FLOODS.items():
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(str(node.socket))
            opened = _frame(1, 1, HEADERS, 0 if kind == "continuation" else 4)
            # Sent away, or held: both are good.
            with contextlib.suppress(OSError):
                link.sendall(PREFACE + _frame(4, 0) + opened)
                for begin in range(0, RESETS, 500):
                    link.sendall(b"".join(map(frame, range(begin + 1, begin + 501))))
            answers(node)
    for noise in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01",
        os.urandom(65_536),
    ):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(node.socket))
            with contextlib.suppress(OSError):
                link.sendall(noise)
            answers(node)
    assert memory(node.pid, "VmHWM") - before < GROWTH_LIMIT_BYTES
    until(lambda: census.threads(node.pid) <= threads + 8, "threads are as before")


@pytest.mark.cell("MF11")
def test_floods_of_connections_on_the_streaming_port(node: Node) -> None:
    container = node.run(node.run_pod(), "main", ["sleep", "1000"])
    request = api.ExecRequest(container_id=container, cmd=["true"], stdout=True)
    url = urlsplit(node.runtime.Exec(request, timeout=PATIENCE_S).url)
    address = (url.hostname or "", url.port or 0)
    dice = random.Random(61)
    lines = (
        *(b"GET / HTTP/1.1\r\n", PREFACE, b"\x80\x03\0\x04\xff\xff\xff", b"\0"),
        *(b"POST /exec/x HTTP/1.1\r\nUpgrade: SPDY/3.1\r\n", b"GET /exec/x HTTP/1.0\r\n\r\n"),
    )
    links = []
    for number in range(600):
        link = socket.create_connection(address, timeout=PATIENCE_S)
        links.append(link)
        with contextlib.suppress(OSError):
            link.sendall(lines[number % len(lines)] + dice.randbytes(dice.randrange(50)))
    answers(node)
    for link in links:
        link.close()
    # The token that was issued before all that is still good, or was never harmed by it.
    assert node.runtime.Exec(request, timeout=PATIENCE_S).url.startswith("http://127.0.0.1:")


# Row 65.


@pytest.mark.cell("MF3")
def test_nesting_is_bounded(node: Node) -> None:
    """A message in a message in a message, as unknown fields and as known ones."""
    for depth in (50, 1000, 100_000):
        for start in (b"\x0b", b"\x0a"):
            if start == b"\x0b":
                data = b"\x7b" * depth + b"\x7c" * depth
            else:
                data = b""
                for _ in range(min(depth, 2000)):
                    data = b"\x0a" + _varint(len(data)) + data
            code, text = raw(node, "/runtime.v1.RuntimeService/RunPodSandbox", data)
            assert code is grpc.StatusCode.INVALID_ARGUMENT, (depth, text)
    answers(node)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def raw(
    node: Node, path: str, data: bytes, *, streams: bool = False
) -> tuple[grpc.StatusCode, str]:
    """The end of a call with these bytes for a request."""
    channel = node._channel
    assert channel is not None
    try:
        if streams:
            # One that only answers when something happens is cut off; that is an end as well.
            for _ in channel.unary_stream(path)(data, timeout=0.2):
                pass
        else:
            channel.unary_unary(path)(data, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""  # type: ignore[attr-defined]
    return grpc.StatusCode.OK, ""


# Every request message of the contract.


FUZZ = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.cell("MF1", "MF3", "MF4", "MF5", "MF6")
def test_every_call_takes_what_no_client_should_send(node: Node) -> None:
    wrong = []

    def hostile_calls(path: str, request_class: type, streams: bool) -> Callable[[], None]:
        @FUZZ
        @given(messages(request_class, SAFE_TEXTS), st.binary(max_size=100), st.booleans())
        def run(message: Message, noise: bytes, noisy: bool) -> None:
            tamed(node, message)
            data = message.SerializeToString()
            if noisy:
                data = data[: len(data) // 2] + noise
            code, text = raw(node, path, data, streams=streams)
            if code in WRONG or "Traceback" in text or ".py" in text:
                wrong.append((path, code, text))

        return run

    assert len(METHODS) >= 43
    for path, (request_class, streams) in METHODS.items():
        hostile_calls(path, request_class, streams)()
        answers(node)
    assert not wrong


def tamed(node: Node, message: object) -> None:
    """Let what would be accepted lie where the test may leave things; the rest stays hostile."""
    for name in ("config", "sandbox_config"):
        config = getattr(message, name, None)
        if isinstance(config, api.PodSandboxConfig):
            if config.log_directory.startswith("/") and ".." not in config.log_directory:
                config.log_directory = str(node.logs / "fuzz")
            config.linux.cgroup_parent = f"/{node.tag}/pod-fuzz"
        if isinstance(config, api.ContainerConfig):
            for mount in config.mounts:
                mount.propagation = api.PROPAGATION_PRIVATE


@pytest.mark.cell("MF5", "MF6", "MF8")
def test_pods_of_hostile_but_whole_requests(node: Node, handler: str) -> None:
    """Random parts over a request that would be accepted, so that some are, and really made."""
    wrong, made = [], []

    @FUZZ
    @given(messages(api.PodSandboxConfig, SAFE_TEXTS), messages(api.ContainerConfig, SAFE_TEXTS))
    def run(pod_part: api.PodSandboxConfig, part: api.ContainerConfig) -> None:
        request = api.RunPodSandboxRequest(runtime_handler=handler)
        pod_part.linux.ClearField("sysctls")
        request.config.CopyFrom(pod_part)
        request.config.MergeFrom(node.pod_config("whole"))
        tamed(node, request)
        path = "/runtime.v1.RuntimeService/RunPodSandbox"
        code, text = raw(node, path, request.SerializeToString())
        if code in WRONG:
            wrong.append((path, code, text))
        pod = next(iter(node.pods()), None)
        if pod is None:
            return
        node.ids.add(pod.id)
        made.append(pod.id)
        create = node.create_request(pod.id, "main", ["sleep", "1000"])
        whole = create.config
        part.MergeFrom(whole)
        create.config.CopyFrom(part)
        tamed(node, create)
        path = "/runtime.v1.RuntimeService/CreateContainer"
        code, text = raw(node, path, create.SerializeToString())
        if code in WRONG:
            wrong.append((path, code, text))
        for container in node.containers():
            node.ids.add(container.id)
        node.remove_everything()

    run()
    answers(node)
    assert not wrong
