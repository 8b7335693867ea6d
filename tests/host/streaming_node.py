"""The streaming server over real containers: runtime, conmon and namespaces are real.

Only the records are the test's: which containers and pods there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cri.node_sessions import NodeSessions
from cri.streaming.server import StreamingServer
from cri.streaming.settings import StreamingSettings
from cri.streaming.targets import AttachTarget, ExecTarget
from sandbox.host.libc import LibcSyscalls
from sandbox.host.namespaces import NamespaceWorker
from sandbox.interactive import InteractiveExecs
from sandbox.model import (
    Container,
    ContainerConfig,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
)
from sandbox.monitor.hub import AttachHubs
from sandbox.monitor.request import Created
from sandbox.paths import Paths
from sandbox.states import ContainerState, PodState
from tests.fakes.streaming_clients import SpdyClient, WebSocketClient
from tests.host.runtime_node import RuntimeNode

SPDY, WEBSOCKET = "v4.channel.k8s.io", "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
NAMES = ("stdin", "stdout", "stderr", "error", "resize")


class Records:
    """What the store would know."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.pods: dict[str, PodSandbox] = {}

    def find_container(self, container_id: str) -> Container:
        return self.containers[container_id]

    def find_pod(self, pod_id: str) -> PodSandbox:
        return self.pods[pod_id]


class Processes:
    """What the composer would make of a command."""

    def exec_process(self, bundle: Path, command: Sequence[str]) -> bytes:
        return json.dumps({**RuntimeNode.process(*command), "terminal": False}).encode()


class StreamingNode:
    """A `RuntimeNode` with a streaming server in front."""

    def __init__(self, node: RuntimeNode, group: asyncio.TaskGroup) -> None:
        self.node = node
        self.records = Records()
        self.paths = Paths(run_root=node.root, state_root=node.root)
        self.namespaces = NamespaceWorker(syscalls=LibcSyscalls(), clock=node.clock)
        self.server = StreamingServer(
            StreamingSettings(),
            NodeSessions(
                store=self.records,  # type: ignore[arg-type]
                paths=self.paths,
                composer=Processes(),  # type: ignore[arg-type]
                runtime_of=lambda _: node.runtime,
                execs=InteractiveExecs(
                    node.settings,
                    runner=node.runner,
                    cgroups=node.cgroups,
                    clock=node.clock,
                    group=group,
                ),
                hubs=AttachHubs(group),
                namespaces=self.namespaces,
            ),
            clock=node.clock,
        )

    async def container(self, *args: str, **changes: object) -> tuple[str, Created]:
        """A running container, known to the server."""
        cid, created = await self.node.run(*args, **changes)
        self.records.containers[cid] = Container(
            id=cid,
            pod_id="",
            config=ContainerConfig(
                name=cid,
                tty=bool(changes.get("terminal")),
                stdin=bool(changes.get("stdin")),
                stdin_once=bool(changes.get("stdin_once")),
            ),
            state=ContainerState.RUNNING,
            created_at_ns=0,
            cgroup_path=self.node.cgroup(cid),
            init=created.init,
        )
        return cid, created

    async def pod(self, pod_id: str, *, host_network: bool = False) -> PodSandbox:
        """A pod with nothing but its network."""
        mode = NamespaceMode.NODE if host_network else NamespaceMode.POD
        pod = PodSandbox(
            id=pod_id,
            config=PodConfig(
                metadata=PodMetadata(name=pod_id, uid=pod_id, namespace="default"),
                security=PodSecurity(namespaces=NamespaceOptions(network=mode)),
            ),
            state=PodState.READY,
            created_at_ns=0,
        )
        self.records.pods[pod_id] = pod
        if not host_network:
            await self.namespaces.create(self.paths.pins(pod_id), frozenset({"net"}))
        return pod

    async def close(self) -> None:
        for pod_id in self.records.pods:
            await self.namespaces.unpin(self.paths.pins(pod_id))
        self.namespaces.close()

    # Clients.

    async def exec(
        self,
        how: str,
        cid: str,
        *command: str,
        tty: bool = False,
        stdin: bool = False,
    ) -> Session:
        target = ExecTarget(
            container_id=cid,
            command=command,
            tty=tty,
            stdin=stdin,
            stdout=True,
            stderr=not tty,
        )
        return await self._session(how, self.server.exec_url(target), target)

    async def attach(
        self, how: str, cid: str, *, tty: bool = False, stdin: bool = False
    ) -> Session:
        target = AttachTarget(container_id=cid, tty=tty, stdin=stdin, stdout=True, stderr=not tty)
        return await self._session(how, self.server.attach_url(target), target)

    async def _session(self, how: str, url: str, target: ExecTarget | AttachTarget) -> Session:
        if how == "websocket":
            return Session(await WebSocketClient.connect(url, WEBSOCKET), list(range(5)))
        client = await SpdyClient.connect(url, SPDY)
        wanted = [name for name in NAMES[:3] if getattr(target, name)]
        wanted += ["error", *(["resize"] if target.tty else [])]
        opened = await client.open_all(*wanted)
        return Session(client, [opened.get(name, -1) for name in NAMES])


class Session:
    """One client, whichever protocol it speaks; streams by the numbers above."""

    def __init__(self, client: SpdyClient | WebSocketClient, numbers: list[int]) -> None:
        self.client = client
        self._numbers = numbers

    def send(self, stream: int, data: bytes) -> None:
        self.client.send(self._numbers[stream], data)

    def finish(self, stream: int = STDIN) -> None:
        self.client.finish(self._numbers[stream])

    def resize(self, columns: int, rows: int) -> None:
        self.send(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode() + b"\n")

    def got(self, stream: int) -> bytes:
        return bytes(self.client.received[self._numbers[stream]])

    async def until(self, stream: int, text: bytes) -> None:
        await self.client.until_received(self._numbers[stream], text)

    async def end(self) -> int | str:
        """The exit code, or the words of a failure, once the server has closed."""
        await self.client.wait_closed()
        await self.client.close()
        status = json.loads(self.got(ERROR))
        if status["status"] == "Success":
            return 0
        if status["reason"] == "NonZeroExitCode":
            return int(status["details"]["causes"][0]["message"])
        return str(status["message"])

    async def die(self) -> None:
        await self.client.die()
        await self.client.close()


@contextlib.asynccontextmanager
async def streaming(node: RuntimeNode) -> AsyncIterator[StreamingNode]:
    """The server runs meanwhile; what the test made is cleaned up after it."""
    async with asyncio.TaskGroup() as group:
        made = StreamingNode(node, group)
        await made.server.start(group)
        try:
            yield made
        finally:
            await made.server.close()
            await made.close()
            await node.clean()
