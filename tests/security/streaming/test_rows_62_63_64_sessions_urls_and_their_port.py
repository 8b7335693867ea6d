"""The URLs of streaming sessions, and what else is on that port.

Row 62, CVE-2018-1002102: a client was led elsewhere by a redirect.
Row 63: the token in the URL is all that authenticates a client.
Row 64, CVE-2024-23334, CVE-2026-69243: files were served, and upgrades misread.

Tried: tokens used twice, for another kind, guessed, and more of them than may wait; paths of files
and malformed upgrades.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.node import PATIENCE_S, Node
from tests.security.conftest import code_of

SLEEP = ["sleep", "1000"]


def exchange(url: str, request: bytes) -> bytes:
    """All that comes back for these bytes."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as link:
        link.sendall(request)
        link.shutdown(socket.SHUT_WR)
        answer = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while piece := link.recv(65_536):
                answer += piece
        return bytes(answer)


def upgrade(path: str, *, method: str = "POST", version: str = "HTTP/1.1", more: str = "") -> bytes:
    return (
        f"{method} {path} {version}\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        f"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n{more}\r\n"
    ).encode()


@pytest.mark.cell("ES7")
def test_a_token_is_all_there_is_and_good_once(node: Node) -> None:
    container = node.run(node.run_pod(), "main", SLEEP)
    request = api.ExecRequest(container_id=container, cmd=["true"], stdout=True)

    def new() -> str:
        url = node.runtime.Exec(request, timeout=PATIENCE_S).url
        assert urlsplit(url).hostname == "127.0.0.1"
        return str(url)

    url = new()
    token = urlsplit(url).path.rpartition("/")[2]
    assert len(token) >= 22, "128 bits"
    listening = [int(line.split()[1].split(":")[0], 16) for line in _listeners(urlsplit(url).port)]
    assert listening == [0x0100007F], "on the loopback, and nowhere else"
    assert b" 404 " in exchange(url, upgrade(f"/attach/{token}"))
    assert b" 404 " in exchange(url, upgrade(f"/exec/{token}")), "it was shown, so it is spent"
    good = new()
    path = urlsplit(good).path
    assert b" 101 " in exchange(good, upgrade(path))
    assert b" 404 " in exchange(good, upgrade(path))
    # More than may wait are refused, and the others stay good.
    first = new()
    with pytest.raises(grpc.RpcError) as refused:
        [new() for _ in range(1001)]
    assert code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert b" 101 " in exchange(first, upgrade(urlsplit(first).path))


def test_nothing_else_is_served_and_nobody_is_led_elsewhere(node: Node) -> None:
    container = node.run(node.run_pod(), "main", SLEEP)
    request = api.ExecRequest(container_id=container, cmd=["true"], stdout=True)
    url = node.runtime.Exec(request, timeout=PATIENCE_S).url
    path = urlsplit(url).path
    tries = [
        *(upgrade(p) for p in ("/", "/exec", "/exec/", "/exec/../../etc/passwd", "//etc/passwd")),
        *(upgrade(p) for p in ("/static/../etc/passwd", "/exec/%2e%2e%2fetc", "http://x/exec/a")),
        b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        upgrade(path, version="HTTP/1.0"),
        upgrade(path, version="HTTP/2.0"),
        upgrade(path, method="DELETE"),
        upgrade(path, more="Content-Length: 5\r\n") + b"smugg",
        upgrade(path, more="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        upgrade(path, more="Content-Length: 5\r\nContent-Length: 6\r\n"),
        upgrade(path).replace(b"Upgrade: SPDY/3.1", b"Upgrade: h2c"),
        upgrade(path).replace(b"Connection: Upgrade", b"Connection: close"),
        upgrade(path).replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"),
        upgrade(path).replace(b"\r\n", b"\n "),
    ]
    for each in tries:
        answer = exchange(url, each)
        status = answer.split(b" ", 2)[1:2]
        assert not answer or status[0][:1] in (b"4", b"5"), (each, answer)
        assert b"ocation:" not in answer
        assert b"root:" not in answer
    assert b" 101 " in exchange(url, upgrade(path)), "none of these spent the token"


def _listeners(port: int | None) -> list[str]:
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and int(words[1].split(":")[1], 16) == port:
                found.append(line)
    return found
