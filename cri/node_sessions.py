"""The node's containers and pods as the streaming server sees them: `cri.streaming.backend`."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox import oci
from sandbox.errors import ContainerNotRunning, PodNotReady
from sandbox.host.errors import DeadlineExceeded, PodwrightError, Unavailable
from sandbox.interactive import InteractiveRequest
from sandbox.model import NamespaceMode
from sandbox.monitor import control
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cri.streaming.targets import AttachTarget, ExecTarget
    from sandbox.compose import Composer
    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.interactive import InteractiveExec, InteractiveExecs
    from sandbox.model import Container, PodSandbox
    from sandbox.monitor.hub import AttachHubs, Seat, SeatInput, SeatOutput
    from sandbox.paths import Paths
    from sandbox.runtime.driver import OciRuntime
    from sandbox.store import StateStore

#: A connection on the loopback is there at once, unless the listener's queue is full.
CONNECT_S: Final = 10.0
#: Tried in this order, as everybody does.
_LOOPBACKS: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class NodeSessions:
    """See `cri.streaming.backend.Sessions`."""

    def __init__(
        self,
        *,
        store: StateStore,
        paths: Paths,
        composer: Composer,
        runtime_of: Callable[[Container], OciRuntime],
        execs: InteractiveExecs,
        hubs: AttachHubs,
        namespaces: NamespaceWorker,
    ) -> None:
        self._store = store
        self._paths = paths
        self._composer = composer
        self._runtime_of = runtime_of
        self._execs = execs
        self._hubs = hubs
        self._namespaces = namespaces

    def check_container(self, container_id: str) -> str:
        """See the protocol."""
        return self._running(container_id).id

    def check_pod(self, pod_id: str) -> str:
        """See the protocol."""
        return self._ready(pod_id).id

    def _running(self, container_id: str) -> Container:
        container = self._store.find_container(container_id)
        if container.state is not ContainerState.RUNNING or container.init is None:
            raise ContainerNotRunning(
                f"container is in state {container.state.name}, nobody can be connected to it",
                container=container.id,
            )
        return container

    def _ready(self, pod_id: str) -> PodSandbox:
        pod = self._store.find_pod(pod_id)
        if pod.state is not PodState.READY:
            raise PodNotReady("pod sandbox is not ready, it has no ports", pod=pod.id)
        return pod

    async def exec(self, target: ExecTarget) -> InteractiveExec:
        """See the protocol."""
        container = self._running(target.container_id)
        assert container.init is not None, "checked by _running"
        bundle = self._paths.container(container.id)
        process = self._composer.exec_process(bundle, target.command)
        return await self._execs.start(
            InteractiveRequest(
                container_id=container.id,
                runtime=self._runtime_of(container),
                directory=bundle,
                cgroup_path=container.cgroup_path,
                init=container.init,
                process_json=on_terminal(process) if target.tty else process,
                terminal=target.tty,
                stdin=target.stdin,
                stdout=target.stdout,
                stderr=target.stderr,
            )
        )

    async def attach(self, target: AttachTarget) -> Attachment:
        """See the protocol."""
        container = self._running(target.container_id)
        config = container.config
        bundle = self._paths.container(container.id)
        seat = await self._hubs.attach(
            bundle,
            stdin_once=config.stdin_once,
            terminal=config.tty,
            stdin=target.stdin and config.stdin,
            stdout=target.stdout,
            # A client with a terminal sees both on it, also where the container has none.
            stderr=target.stderr or (target.tty and not config.tty),
        )
        return Attachment(seat, bundle if config.tty else None)

    async def connect(self, pod_id: str, port: int) -> socket.socket:
        """See the protocol."""
        pod = self._ready(pod_id)
        reasons = []
        for family, address in _LOOPBACKS:
            try:
                return await self._connect(pod, family, (address, port))
            except OSError as error:
                # asyncio's own words name the address and the number, not the reason.
                reason = os.strerror(error.errno) if error.errno else str(error)
                reasons.append(f"{address}: {reason.lower()}")
        raise Unavailable(
            f"port {port} of the pod cannot be reached: {', '.join(reasons)}", pod=pod.id
        )

    async def _connect(
        self, pod: PodSandbox, family: socket.AddressFamily, address: tuple[str, int]
    ) -> socket.socket:
        """Raises OSError as the kernel does."""
        make = partial(_socket, family)
        if pod.config.security.namespaces.network is NamespaceMode.NODE:
            link = make()
        else:
            # A socket stays in the namespace it was made in; connecting needs no thread.
            link = await self._namespaces.run_in_network(self._paths.pins(pod.id) / "net", make)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(link, address)
        except BaseException as error:
            link.close()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"port {address[1]} of the pod does not answer", pod=pod.id
                ) from error
            raise
        return link


class Attachment:
    """Somebody's seat at a container; `cri.streaming.backend.Command`."""

    def __init__(self, seat: Seat, terminal_bundle: Path | None) -> None:
        """Take the seat over.

        Args:
            seat: ours to close.
            terminal_bundle: the container's bundle when it has a terminal.
        """
        self._seat = seat
        self._bundle = terminal_bundle

    @property
    def stdin(self) -> SeatInput | None:
        """See the protocol."""
        return self._seat.stdin

    @property
    def stdout(self) -> SeatOutput | None:
        """See the protocol."""
        return self._seat.stdout

    @property
    def stderr(self) -> SeatOutput | None:
        """See the protocol."""
        return self._seat.stderr

    def resize(self, columns: int, rows: int) -> None:
        """See the protocol."""
        message = control.resize_message(columns, rows)
        if self._bundle is not None and message is not None:
            # A monitor that is gone ends the session by itself.
            with suppress(PodwrightError):
                control.send(self._bundle / "winsz", message)

    async def wait(self) -> None:
        """See the protocol: a container that was only attached to has no exit code to tell."""
        await self._seat.wait()

    async def close(self) -> None:
        """See the protocol."""
        self._seat.close()


def on_terminal(process_json: bytes) -> bytes:
    """An OCI process that runs on a terminal, and knows of one unless it knows of another."""
    process = msgspec.json.decode(process_json, type=oci.Process)
    env = process.env
    if not any(entry.startswith("TERM=") for entry in env):
        env = (*env, "TERM=xterm")
    return oci.encode(msgspec.structs.replace(process, terminal=True, env=env))


def _socket(family: socket.AddressFamily) -> socket.socket:
    link = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    link.setblocking(False)
    return link
