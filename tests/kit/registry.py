"""A registry on loopback: Debian's docker-registry over a directory, and how images get into it."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.kit.oci import Image

#: Hosts whose images the kit has. Each becomes a directory of certs.d that leads to loopback.
MIRRORED_HOSTS: Final = (
    "docker.io",
    "gcr.io",
    "k8s.gcr.io",
    "registry.k8s.io",
    "registry.localhost",
)

#: How many times slower than usual this machine is; hack/vm says so of its emulated one.
SLOWNESS: Final = float(os.environ.get("PODWRIGHT_TEST_SLOWNESS", "1"))

#: How long a program may take to answer after it was started.
START_PATIENCE_S: Final = 60.0 * SLOWNESS


_GIVEN_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Below it are ports that well-known services have.
_FIRST_PORT: Final = 12_000


class RegistryRefused(Exception):
    """The registry answered something else than what a push needs."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, and that no connection is given by chance.

    Many are asked for when a module is imported, and are used much later: a port such as the kernel
    gives to whoever connects somewhere could be somebody's by then (ip(7), ip_local_port_range).
    """
    first, last = map(int, _GIVEN_PORTS.read_text().split())
    ports = [port for port in range(_FIRST_PORT, 1 << 16) if not first <= port <= last]
    while True:
        port = secrets.choice(ports or range(first, last + 1))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def bound_to_parent(argv: Sequence[str | Path]) -> list[str]:
    """`argv` so that the program is killed when the thread that starts it ends, however it ends."""
    return [shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]


def write_config(storage: Path, port: int, path: Path) -> None:
    """Configuration for docker-registry: files in `storage`, plain HTTP on loopback."""
    path.write_text(
        "version: 0.1\n"
        "log: {level: warn, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )


def write_hosts(certs_d: Path, port: int, hosts: Sequence[str] = MIRRORED_HOSTS) -> None:
    """Lead every host to the registry on loopback, and nowhere else when that has no answer."""
    url = f"http://127.0.0.1:{port}"
    for host in hosts:
        (certs_d / host).mkdir(parents=True, exist_ok=True)
        (certs_d / host / "hosts.toml").write_text(
            f'server = "{url}"\n\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'
        )


@contextlib.contextmanager
def running_registry(storage: Path, work: Path) -> Iterator[int]:
    """Serve `storage` until the block ends; yields the port."""
    storage.mkdir(parents=True, exist_ok=True)
    process, port = _started(storage, work)
    try:
        yield port
    finally:
        stop(process)


def _started(storage: Path, work: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A registry that answers, and its port.

    Whoever asks for any port may be given the one that was free a moment ago: then it is another.
    """
    config, log = work / "registry.yml", work / "registry.log"
    attempts = 5
    while True:
        port = free_port()
        write_config(storage, port, config)
        with log.open("wb") as output:
            process = subprocess.Popen(
                bound_to_parent(["docker-registry", "serve", config]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_for_registry(port, process, log)
        except RegistryRefused:
            stop(process)
            attempts -= 1
            if not attempts or "address already in use" not in log.read_text():
                raise
        else:
            return process, port


def wait_for_registry(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the registry answers; raise with its log when it ended or stays silent."""
    deadline_s = time.monotonic() + START_PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(connection),
        ):
            connection.request("GET", "/v2/")
            if connection.getresponse().status == http.client.OK:
                return
        time.sleep(0.05)
    raise RegistryRefused(f"registry on port {port} does not answer: {log.read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> None:
    """SIGTERM, then SIGKILL; returns when the process is gone."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Pusher:
    """Pushes images over the distribution protocol, skipping blobs that are there."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def push(self, image: Image, name: str) -> None:
        """Push under `name` ("repository:tag"). Raises RegistryRefused."""
        repository, _, tag = name.rpartition(":")
        for digest, blob in image.blobs.items():
            if self._status("HEAD", f"/v2/{repository}/blobs/{digest}") != http.client.OK:
                self._upload(repository, digest, blob)
        for digest, (media_type, manifest) in image.manifests.items():
            for reference in (digest, tag) if digest == image.top else (digest,):
                path = f"/v2/{repository}/manifests/{reference}"
                headers = {"Content-Type": media_type}
                self._expect(http.client.CREATED, "PUT", path, manifest, headers)

    def close(self) -> None:
        self._connection.close()

    def _upload(self, repository: str, digest: str, blob: bytes) -> None:
        start = f"/v2/{repository}/blobs/uploads/"
        location = urlsplit(self._expect(http.client.ACCEPTED, "POST", start))
        path = f"{location.path}?{location.query}&digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        self._expect(http.client.CREATED, "PUT", path, blob, headers)

    def _status(self, method: str, path: str) -> int:
        self._connection.request(method, path)
        response = self._connection.getresponse()
        response.read()
        return response.status

    def _expect(
        self,
        status: int,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> str:
        self._connection.request(method, path, body=body, headers=headers or {})
        response = self._connection.getresponse()
        answer = response.read(4096).decode(errors="replace")
        if response.status != status:
            raise RegistryRefused(f"{method} {path}: {response.status} {answer}")
        return response.headers.get("Location", "")
