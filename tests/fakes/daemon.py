"""The ports of the RPC classes in memory: they record their calls and can be told to fail.

They keep values the way the real lifecycles do (frozen, replaced on change), so that what the lists
cache is tried for real.
"""

import asyncio
from dataclasses import dataclass, field

import msgspec

from cri.events import Events
from cri.node_facts import Condition, Handler, NodeFacts
from cri.usage import ContainerUsage, PodUsage
from imageservice.saving import SavedArchive
from sandbox.host.errors import NotFound
from sandbox.model import Container, PodSandbox
from sandbox.states import ContainerState, PodState
from tests.fakes.clock import FakeClock


@dataclass(frozen=True)
class ExecOutput:
    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0


@dataclass(frozen=True)
class FakeImage:
    id: str
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size_bytes: int = 1
    user: str = ""
    config: dict = field(default_factory=dict)
    pinned: bool = False
    own: bool = True
    stores: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()


class Recording:
    def __init__(self):
        self.calls = []
        self.fail = {}
        self.gate = None

    async def _call(self, name, *args):
        self.calls.append((name, *args))
        if self.gate is not None:
            await self.gate.wait()
        self._maybe_fail(name)

    def _maybe_fail(self, name):
        if name in self.fail:
            raise self.fail[name]


class FakePods(Recording):
    def __init__(self):
        super().__init__()
        self.pods = {}

    async def run(self, config, handler):
        await self._call("run", config, handler)
        pod_id = f"{len(self.pods):064x}"
        self.pods[pod_id] = PodSandbox(
            id=pod_id,
            config=config,
            state=PodState.READY,
            created_at_ns=1000 + len(self.pods),
            handler=handler,
        )
        return pod_id

    async def stop(self, pod_id):
        await self._call("stop", pod_id)
        if pod_id in self.pods:
            self.pods[pod_id] = msgspec.structs.replace(self.pods[pod_id], state=PodState.NOT_READY)

    async def remove(self, pod_id):
        await self._call("remove", pod_id)
        self.pods.pop(pod_id, None)

    async def update_resources(self, pod_id, overhead, resources):
        await self._call("update_resources", pod_id, overhead, resources)

    def status(self, pod_id):
        self._maybe_fail("status")
        if pod_id not in self.pods:
            raise NotFound("no such pod", pod=pod_id)
        return self.pods[pod_id]

    def list(self):
        self._maybe_fail("list")
        return list(self.pods.values())

    def verbose(self, pod):
        return {"pid": 42, "runtimeSpec": {"ociVersion": "1.0.2"}}


class FakeContainers(Recording):
    def __init__(self):
        super().__init__()
        self.containers = {}
        self.output = ExecOutput()

    async def create(self, pod_id, config, pod_config):
        await self._call("create", pod_id, config, pod_config)
        container_id = f"{len(self.containers):064x}"
        self.containers[container_id] = Container(
            id=container_id,
            pod_id=pod_id,
            config=config,
            state=ContainerState.CREATED,
            created_at_ns=1000 + len(self.containers),
            image_id="sha256:1",
        )
        return container_id

    async def start(self, container_id):
        await self._call("start", container_id)
        self.containers[container_id] = msgspec.structs.replace(
            self.status(container_id), state=ContainerState.RUNNING
        )

    async def stop(self, container_id, timeout_s):
        await self._call("stop", container_id, timeout_s)

    async def remove(self, container_id):
        await self._call("remove", container_id)
        self.containers.pop(container_id, None)

    def status(self, container_id):
        if container_id not in self.containers:
            raise NotFound("no such container", container=container_id)
        return self.containers[container_id]

    def list(self):
        return list(self.containers.values())

    def of_pod(self, pod_id):
        return [c for c in self.containers.values() if c.pod_id == pod_id]

    def verbose(self, container):
        return {"sandboxID": container.pod_id, "pid": 43, "runtimeSpec": {}}

    async def exec_sync(self, container_id, cmd, timeout_s):
        await self._call("exec_sync", container_id, cmd, timeout_s)
        return self.output

    async def update_resources(self, container_id, resources, annotations):
        await self._call("update_resources", container_id, resources, annotations)

    async def reopen_log(self, container_id):
        await self._call("reopen_log", container_id)


class FakeImages(Recording):
    def __init__(self):
        super().__init__()
        self.images = {}
        self.progress = []
        self.namespaces = []

    def add(self, image, *names):
        self.images[image.id] = image
        for name in names:
            self.images[name] = image

    async def pull(self, image, credential, *, namespace="", on_progress=None):
        self.calls.append(("pull", image, credential))
        self.namespaces.append(namespace)
        for step in self.progress:
            if on_progress is not None:
                on_progress(step)
            await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        self._maybe_fail("pull")
        return self.images[image]

    def list(self, filter_image=""):
        if filter_image:
            found = self.images.get(filter_image)
            return [] if found is None else [found]
        return list({image.id: image for image in self.images.values()}.values())

    def status(self, image):
        return self.images.get(image)

    async def remove(self, image):
        await self._call("remove", image)

    async def pin(self, image, *, pinned):
        await self._call("pin", image, pinned)

    @property
    def loader(self):
        return self

    @property
    def saver(self):
        return self

    async def load(self, chunks, *, name="", pinned=False, on_progress=None):
        data = b"".join([chunk async for chunk in chunks])
        for step in self.progress:
            on_progress(step)
        await self._call("load", data, name, pinned)
        return self.list()

    async def save(self, images, form):
        await self._call("save", tuple(images), form)
        archive = SavedArchive(tuple(images))
        archive.add("document", b"x" * 1000)
        return archive

    async def fs_info(self):
        raise NotImplementedError


class FakeUsages:
    """Usage by id of the object; what is not in `samples` has none."""

    def __init__(self):
        self.samples = {}
        self.layers = {}
        self.scrapes = []

    async def containers(self, chosen):
        return [
            ContainerUsage(c, self.samples.get(c.id), self.layers.get(c.id), "/layers")
            for c in chosen
        ]

    async def pods(self, chosen):
        return [
            PodUsage(p, self.samples.get(p.id), ()) for p in chosen if p.state is PodState.READY
        ]

    async def scrape(self):
        return self.scrapes


class FakeEvents:
    """The real broker over objects that a test puts here."""

    def __init__(self, queue_limit=4096):
        self.pods = {}
        self.containers = {}
        self.dropped = 0
        self.clock = FakeClock()
        self.broker = Events(self, clock=self.clock, observer=self, queue_limit=queue_limit)

    def containers_of(self, pod_id):
        return [c for c in self.containers.values() if c.pod_id == pod_id]

    def events_dropped(self, count):
        self.dropped += count

    def subscribe(self):
        return self.broker.subscribe()


class FakeNode:
    def __init__(self):
        self.pod_cidrs = []
        self.now = NodeFacts(
            conditions=(
                Condition("RuntimeReady", True),
                Condition("NetworkReady", False, "NetworkPluginNotReady", "no configuration"),
            ),
            handlers=(Handler(""), Handler("crun", recursive_read_only_mounts=True)),
            cgroup_driver="systemd",
            info={"config": {"a": 1}},
        )

    async def set_pod_cidr(self, pod_cidr):
        self.pod_cidrs.append(pod_cidr)

    def facts(self):
        return self.now


class RecordingObserver:
    def __init__(self):
        self.ended = []

    def rpc(self, method, code, seconds):
        assert seconds >= 0
        self.ended.append((method, code))
