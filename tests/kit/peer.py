"""Any CRI runtime as what faults are tried on: a socket, and how to kill and start what serves it.

The census here is of what every runtime leaves in the same way: processes and mounts below its
directories, addresses of pods.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc

from protos import api_pb2 as api
from tests.kit import judge, runtimes
from tests.kit.calls import Calls
from tests.kit.faults import PATIENCE_S
from tests.kit.judge import InvariantBroken

#: How long leftovers may take to go.
_SETTLE_S: Final = PATIENCE_S


class Peer(Calls):
    """One runtime under test."""

    def __init__(self, runtime: runtimes.Runtime) -> None:
        super().__init__(runtime.socket, f"podwright-peer-{os.getpid()}", runtime.work / "logs")
        self.name = runtime.name
        self._runtime = runtime
        self._configs: dict[str, api.PodSandboxConfig] = {}

    def start_daemon(self) -> float:
        """Start the daemon; how long it took until it answered (seconds)."""
        began_s = time.monotonic()
        self._runtime.start()
        self.connect()
        return time.monotonic() - began_s

    def run_config(
        self, config: api.PodSandboxConfig, *, handler: str = "", timeout: float = PATIENCE_S
    ) -> str:
        """See `Calls`; the configuration is repeated with each container, as a kubelet does."""
        pod = super().run_config(config, handler=handler, timeout=timeout)
        self._configs[pod] = config
        return pod

    def create_request(
        self, pod: str, name: str, command: Sequence[str], **options: object
    ) -> api.CreateContainerRequest:
        """See `Calls`; containerd takes the log's directory from here."""
        request = super().create_request(pod, name, command, **options)
        request.sandbox_config.CopyFrom(self._configs[pod])
        return request

    def kill(self) -> None:
        """SIGKILL of the daemon."""
        self._runtime.kill()
        self.hang_up()

    def processes(self) -> dict[int, str]:
        """Processes of this runtime besides its daemon."""
        found = runtimes.processes_of(str(self.socket.parent), str(self._runtime.work))
        return {pid: text for pid, text in found.items() if pid != self._runtime.pid}

    def monitor_of(self, container: str, pod: str) -> int:
        """The process that watches the container."""
        for pid, text in self.processes().items():
            name = Path(text.split(" ", 1)[0]).name
            if name in ("conmon", "containerd-shim-runc-v2") and (container in text or pod in text):
                return pid
        raise AssertionError("nobody watches it")

    def leftovers(self) -> list[str]:
        """What is there though no pod is."""
        work = self._runtime.work
        addresses = [path.name for path in (work / "ipam").glob("*/*.*.*.*")]
        below = runtimes.mounts_below(str(self.socket.parent), str(work))
        return [
            *(f"process {text[:80]}" for text in self.processes().values()),
            *(f"mount {target[-80:]}" for target in below if "programs/" not in target),
            *(f"address {name}" for name in addresses),
        ]

    def networks(self) -> Path:
        """The directory of the network's configuration."""
        return self._runtime.work / "cni"

    def remove_everything(self) -> None:
        """Stop and remove every pod, as a client would, a second time where the first failed."""
        for pod in self.pods():
            with contextlib.suppress(grpc.RpcError):
                self.stop_pod(pod.id)
                self.remove_pod(pod.id)
        for pod in self.pods():
            with judge.judging("I8"):
                self.stop_pod(pod.id)
                self.remove_pod(pod.id)

    def assert_clean(self) -> None:
        """Invariant I2, once no pod is there."""
        deadline_s = time.monotonic() + _SETTLE_S
        while left := [each for each in self.leftovers() if each not in self.usual]:
            if time.monotonic() > deadline_s:
                raise InvariantBroken("I2", "; ".join(left[:4]))
            time.sleep(0.1)

    #: What is there when no pod is.
    usual: Sequence[str] = ()
