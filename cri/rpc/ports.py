"""What the RPC classes need of the rest of the daemon, as protocols.

The daemon hands in the real objects, tests hand in small fakes. Every method may be called again at
any time with the same arguments: CRI clients repeat what timed out. Cancelling a waiting caller
never undoes what it asked for.

Ids may be given in full or as a unique prefix. On unknown ids the `status` and acting methods raise
NotFound, `stop` and `remove` succeed. Errors are classes of `sandbox.host.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cri.events import Subscription
    from cri.node_facts import NodeFacts
    from cri.usage import ContainerUsage, PodScrape, PodUsage
    from imageservice.credentials import Credential
    from imageservice.loading import Loader
    from imageservice.saving import Saver
    from imageservice.service import FsInfo, Image, Progress
    from imageservice.verify import StoreVerifier
    from sandbox.model import (
        Container,
        ContainerConfig,
        LinuxResources,
        PodConfig,
        PodSandbox,
    )


class Pods(Protocol):
    """Pod sandboxes."""

    async def run(self, config: PodConfig, handler: str) -> str:
        """Make a pod and return its id; the same request again returns the same id."""
        ...

    async def stop(self, pod_id: str) -> None:
        """End everything in the pod and give its network back."""
        ...

    async def remove(self, pod_id: str) -> None:
        """Stop the pod where needed, then forget it and its containers."""
        ...

    def status(self, pod_id: str) -> PodSandbox:
        """The pod; raises NotFound, or InvalidArgument for an ambiguous prefix."""
        ...

    def list(self) -> Collection[PodSandbox]:
        """The pods that clients may see; unchanged pods are the same objects as before."""
        ...

    def verbose(self, pod: PodSandbox) -> Mapping[str, object]:
        """More about a pod, as JSON values: `pid`, `runtimeSpec`, `config`, `cniResult`.

        Called in a thread of its own, because it may read files.
        """
        ...

    async def update_resources(
        self, pod_id: str, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        """Record other limits of the whole pod, and apply them where its cgroup is ours."""
        ...


class ExecResult(Protocol):
    """How a command ended; both outputs together fit into one gRPC message."""

    @property
    def stdout(self) -> bytes:
        """Standard output."""
        ...

    @property
    def stderr(self) -> bytes:
        """Standard error."""
        ...

    @property
    def exit_code(self) -> int:
        """Exit status, 128 + N for signal N."""
        ...


class Containers(Protocol):
    """Containers."""

    async def create(self, pod_id: str, config: ContainerConfig, pod_config: PodConfig) -> str:
        """Make a container and return its id; the same request again returns the same id."""
        ...

    async def start(self, container_id: str) -> None:
        """Let a created container run."""
        ...

    async def stop(self, container_id: str, timeout_s: int) -> None:
        """Signal, wait at most `timeout_s`, kill; a later, shorter time shortens the wait."""
        ...

    async def remove(self, container_id: str) -> None:
        """Kill the container where needed, then forget it."""
        ...

    def status(self, container_id: str) -> Container:
        """The container; raises NotFound, or InvalidArgument for an ambiguous prefix."""
        ...

    def list(self) -> Collection[Container]:
        """The containers that clients may see; unchanged ones are the same objects as before."""
        ...

    def of_pod(self, pod_id: str) -> Sequence[Container]:
        """Those of one pod, oldest first."""
        ...

    def verbose(self, container: Container) -> Mapping[str, object]:
        """More about a container: `sandboxID`, `pid` and `runtimeSpec` at least; in a thread."""
        ...

    async def exec_sync(self, container_id: str, cmd: Sequence[str], timeout_s: int) -> ExecResult:
        """Run a command; `timeout_s` 0 is no limit. Raises DeadlineExceeded once all is killed."""
        ...

    async def update_resources(
        self, container_id: str, resources: LinuxResources, annotations: Mapping[str, str]
    ) -> None:
        """Change the limits that are set in `resources`, keep the others."""
        ...

    async def reopen_log(self, container_id: str) -> None:
        """Continue the log in a new file at the old path."""
        ...


class Images(Protocol):
    """The image service."""

    async def pull(
        self,
        image: str,
        credential: Credential | None,
        *,
        namespace: str = "",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Image:
        """Fetch and unpack an image; callers for the same image share one download.

        `namespace` is that of the pod it is for, if any.
        """
        ...

    def list(self, filter_image: str = "") -> Sequence[Image]:
        """All images, or the one that `filter_image` names."""
        ...

    def status(self, image: str) -> Image | None:
        """The image that a tag, digest, id or id prefix names, or None."""
        ...

    async def remove(self, image: str) -> None:
        """Forget the image with all its names; unknown is success."""
        ...

    async def pin(self, image: str, *, pinned: bool) -> Image:
        """Keep the kubelet's garbage collection from the image, or no longer."""
        ...

    @property
    def loader(self) -> Loader:
        """Brings images in from archives."""
        ...

    @property
    def saver(self) -> Saver:
        """Writes images to archives."""
        ...

    @property
    def verifier(self) -> StoreVerifier:
        """Looks whether everything is what it was."""
        ...

    async def fs_info(self) -> FsInfo:
        """What images and containers take on disk."""
        ...


class Usages(Protocol):
    """What pods and containers use."""

    async def containers(self, chosen: Collection[Container]) -> Sequence[ContainerUsage]:
        """One for each, in their order; of an exited container what it left on disk."""
        ...

    async def pods(self, chosen: Collection[PodSandbox]) -> Sequence[PodUsage]:
        """One for each that is ready, in their order."""
        ...

    async def scrape(self) -> Sequence[PodScrape]:
        """All metrics of all ready pods."""
        ...


class EventSource(Protocol):
    """What happens to pods and containers."""

    def subscribe(self) -> Subscription:
        """Everything that happens from when the result is entered as a context."""
        ...


class Node(Protocol):
    """The node's condition."""

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        """Take note of the node's pod addresses; empty changes nothing."""
        ...

    def facts(self) -> NodeFacts:
        """The facts as of now, without waiting for anything."""
        ...
