"""Where everything of an object lies: every path derives from its id alone.

That is what lets a sweep find the leavings of a creation that was killed half-way, without the
record: the names of directories, mounts, namespace pins, bundles and exit files are functions of
the id. What must not outlive a boot is under the run root (a tmpfs), what may is under the state
root.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The two roots and everything below them."""

    run_root: Path = Path("/run/podwright")
    state_root: Path = Path("/var/lib/podwright")

    @property
    def state_file(self) -> Path:
        """The SQLite file of `sandbox.store`."""
        return self.state_root / "state.db"

    @property
    def pods(self) -> Path:
        """Run directories of pods."""
        return self.run_root / "pods"

    @property
    def namespaces(self) -> Path:
        """Directories of namespace pins, one per pod."""
        return self.run_root / "namespaces"

    @property
    def containers(self) -> Path:
        """Run directories (OCI bundles) of containers."""
        return self.run_root / "containers"

    @property
    def exits(self) -> Path:
        """Exit files, one per container, written by conmon."""
        return self.run_root / "exits"

    @property
    def programs(self) -> Path:
        """Where runtimes are sealed, one directory per handler."""
        return self.run_root / "programs"

    @property
    def records(self) -> Path:
        """Second copies of records (`sandbox.records`), which die with the boot."""
        return self.run_root / "records"

    @property
    def layers(self) -> Path:
        """Writable layers of containers."""
        return self.state_root / "containers"

    @property
    def pause_rootfs(self) -> Path:
        """The one root file system that all pause processes share, read-only.

        Under the state root, because a distribution may mount /run without permission to execute.
        """
        return self.state_root / "pause"

    def pod(self, pod_id: str) -> Path:
        """Run directory of a pod: bundle, resolv.conf, hostname, hosts, shm."""
        return self.pods / pod_id

    def shm(self, pod_id: str) -> Path:
        """The pod's /dev/shm."""
        return self.pod(pod_id) / "shm"

    def pins(self, pod_id: str) -> Path:
        """Directory of a pod's pinned namespaces: files user, net, ipc, uts, pid."""
        return self.namespaces / pod_id

    def container(self, container_id: str) -> Path:
        """Run directory of a container; it is its OCI bundle."""
        return self.containers / container_id

    def rootfs(self, container_id: str) -> Path:
        """Mount point of a container's root file system."""
        return self.container(container_id) / "rootfs"

    def lower(self, container_id: str) -> Path:
        """Where layers are mounted with mapped owners while a root file system is made of them."""
        return self.container(container_id) / "lower"

    def places(self, container_id: str) -> Path:
        """Where `sandbox.placing` mounts what root of a user namespace could not reach."""
        return self.container(container_id) / "mounts"

    def image_volume(self, container_id: str, image_id: str) -> Path:
        """Mount point of an image that a container has as a volume."""
        return self.container(container_id) / "image-volumes" / image_id.removeprefix("sha256:")

    def layer(self, container_id: str) -> Path:
        """A container's writable layer: directories upper and work, and image-volumes."""
        return self.layers / container_id

    def exit_file(self, container_id: str) -> Path:
        """Where conmon writes the exit status of a container."""
        return self.exits / container_id
