"""From a pod's or container's value to the OCI document: look up, resolve, build, encode.

The one place where the pure spec builder meets the machine. Lookups block, so a container's run in
one thread call; what was looked up for it is thrown away after, only the document stays, in the
bundle, where `exec` and verbose status read it again.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox import lookup, oci
from sandbox.additions import Additions
from sandbox.errors import ContainerNotRunning
from sandbox.host import files
from sandbox.host.errors import FailedPrecondition, NotFound
from sandbox.host.threads import to_its_end
from sandbox.mapping import check_mapped, id_map, own_user_namespace
from sandbox.model import ContainerUser, NamespaceMode
from sandbox.placing import place_devices, place_sources
from sandbox.podfiles import hostname_of, pause_root
from sandbox.precompile import FilterCompiler
from sandbox.relabel import relabel_sources
from sandbox.resize import Resize
from sandbox.runtime.books import as_own_sandbox
from sandbox.spec.build import container_labels, container_spec, pause_spec, pod_labels
from sandbox.spec.inputs import ContainerInputs, PodFiles, PodInputs
from sandbox.spec.mounts import image_volume_paths
from sandbox.spec.process import oom_score_adj
from sandbox.spec.resources import merge_resources, to_oci
from sandbox.states import ContainerState
from sandbox.users import resolve_user

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.host.syscalls import Syscalls
    from sandbox.lsm import Lsm
    from sandbox.model import Container, ImageDefaults, LinuxResources, PodSandbox
    from sandbox.paths import Paths
    from sandbox.spec.inputs import HostFacts, PinKind
    from sandbox.store import StateStore
    from sandbox.users import ResolvedUser

#: What runs as pause, as seen inside its root: `-P` waits for ever and reaps (catatonit(1)).
PAUSE_ARGV: Final = ("/catatonit", "-P")
#: Of the document in a bundle (OCI runtime-spec, bundle.md).
_NAME: Final = "config.json"
#: A document of ours is some tens of KiB; the limit guards against a damaged file (bytes).
SPEC_LIMIT_BYTES: Final = 16 * 1024 * 1024


class Composer:
    """Composes documents for the pods and containers of this node."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: StateStore,
        namespaces: NamespaceWorker,
        syscalls: Syscalls,
        facts: Mapping[str, HostFacts],
        lsm: Lsm,
        additions: Additions | None = None,
        pids_limit: int | None = None,
        annotation_patterns: Mapping[str, tuple[str, ...]] | None = None,
        devices_withheld: Collection[str] = (),
        filters: FilterCompiler | None = None,
        own_sandboxes: Collection[str] = (),
    ) -> None:
        """Prepare.

        Args:
            paths: where everything lies.
            store: to find the target of a TARGET pid namespace.
            namespaces: pins the target's pid namespace.
            syscalls: mounts what the root of a user namespace could not reach.
            facts: what the node can do, by name of the OCI runtime; without `lsm`.
            lsm: AppArmor and SELinux as they are when a document is made.
            additions: CDI devices, hooks and resource limits of the node; None for none of them.
            pids_limit: of every container; None leaves it to the pod's cgroup.
            annotation_patterns: by runtime name, which of a pod's annotations the runtime may see.
            devices_withheld: names of runtimes whose privileged containers get no host devices.
            filters: compiles seccomp filters; None leaves that to the runtimes.
            own_sandboxes: names of runtimes that make a sandbox of each container.
        """
        self._paths = paths
        self._store = store
        self._namespaces = namespaces
        self._syscalls = syscalls
        self._facts = facts
        self._lsm = lsm
        self._additions = additions or Additions()
        self._pids_limit = pids_limit
        self._patterns = {} if annotation_patterns is None else annotation_patterns
        self._devices_withheld = devices_withheld
        self._filters = filters or FilterCompiler()
        self._own_sandboxes = own_sandboxes

    async def pause(self, pod: PodSandbox, pins: Mapping[PinKind, Path]) -> bytes:
        """The document of a pod's pause process.

        Raises:
            InvalidArgument, Unsupported, FailedPrecondition: something in the pod's request.
        """
        host = await self._host(pod.runtime)
        return await to_its_end(functools.partial(self._pause, pod, pins, host))

    async def _host(self, runtime: str) -> HostFacts:
        """The node as it is now."""
        return dataclasses.replace(
            self._facts[runtime], apparmor=await self._lsm.apparmor(), selinux=self._lsm.selinux
        )

    def pod_label(self, pod: PodSandbox) -> str:
        """SELinux label of the pod's own files; empty where it has none.

        Raises:
            InvalidArgument, FailedPrecondition: the pod's options.
        """
        host = dataclasses.replace(self._facts[pod.runtime], selinux=self._lsm.selinux)
        return self._lsm.known(pod_labels(pod.config, host, pod.selinux_level))

    def mount_label(self, pod: PodSandbox, container: Container) -> str:
        """SELinux label of a container's root; empty where it has none.

        Raises:
            InvalidArgument, FailedPrecondition: the container's options.
        """
        host = dataclasses.replace(self._facts[container.runtime], selinux=self._lsm.selinux)
        labels = container_labels(container.config, pod.config, host, pod.selinux_level)
        return self._lsm.known(labels)

    def _pause(self, pod: PodSandbox, pins: Mapping[PinKind, Path], host: HostFacts) -> bytes:
        spec = pause_spec(
            PodInputs(
                id=pod.id,
                config=pod.config,
                hostname=hostname_of(pod),
                pins=pins,
                rootfs=pause_root(pod, self._paths),
                argv=PAUSE_ARGV,
                cgroups_path=pod.cgroup_path,
                host=host,
                selinux_level=pod.selinux_level,
                seccomp_content=lookup.localhost_profile(
                    pod.config.security.seccomp, privileged=pod.config.security.privileged
                ),
                annotation_patterns=self._patterns.get(pod.runtime, ()),
            )
        )
        return self._encode(spec, pod)

    async def container(
        self,
        pod: PodSandbox,
        container: Container,
        image: ImageDefaults,
        rootfs: Path,
        *,
        volumes: Mapping[int, Path],
    ) -> ContainerUser:
        """Write the document of a container whose root file system is mounted at `rootfs`.

        It goes into the container's bundle. `volumes` says by place in the request's mounts where
        the images of image volumes are. The answer is the user that it will run as.

        Raises:
            InvalidArgument, Unsupported, FailedPrecondition: something in the request.
            NotFound: a device or the target container does not exist.
        """
        target = await self._target_pid(pod, container)
        host = await self._host(container.runtime)
        return await to_its_end(
            functools.partial(self._container, pod, container, image, rootfs, volumes, target, host)
        )

    def resize(self, container: Container, asked: LinuxResources) -> Resize:
        """Other limits for a container: what `asked` sets, and what held before for the rest.

        Raises:
            InvalidArgument, Unsupported: something in the request.
        """
        merged = merge_resources(container.resources, asked)
        floor = self._facts[container.runtime].oom_score_adj_floor
        return Resize(
            asked=asked,
            merged=merged,
            document=oci.encode(self._resources(container.runtime, merged)),
            oom_score_adj=oom_score_adj(merged, floor=floor) if asked.oom_score_adj else None,
        )

    def _resources(self, runtime: str, wanted: LinuxResources) -> oci.Resources:
        host = self._facts[runtime]
        return to_oci(
            wanted,
            cgroup_version=host.cgroup_version,
            controllers=host.controllers,
            swap_limit=host.swap_limit,
            pids_limit=self._pids_limit,
        )

    def note_resize(self, container: Container, change: Resize) -> None:
        """Have the stored document say what holds: commands get their OOM score from it. Blocking.

        Raises:
            NotFound: the container is being removed.
        """
        path = self._paths.container(container.id) / _NAME
        document = files.read_limited(path, SPEC_LIMIT_BYTES)
        spec = msgspec.json.decode(document, type=oci.Spec)
        process, linux = spec.process, spec.linux
        if change.oom_score_adj is not None:
            process = msgspec.structs.replace(process, oom_score_adj=change.oom_score_adj)
        if linux is not None:
            devices = linux.resources.devices if linux.resources is not None else ()
            limits = self._resources(container.runtime, change.merged)
            linux = msgspec.structs.replace(
                linux, resources=msgspec.structs.replace(limits, devices=devices)
            )
        spec = msgspec.structs.replace(spec, process=process, linux=linux)
        self._write(container, oci.encode(spec))

    def exec_process(self, bundle: Path, command: Sequence[str]) -> bytes:
        """The OCI process of a command in a container: its own process with other arguments.

        User, groups, capabilities, environment, limits and labels are thereby the container's,
        never less.

        Raises:
            ContainerNotRunning: the bundle is gone.
        """
        try:
            document = files.read_limited(bundle / _NAME, SPEC_LIMIT_BYTES)
        except NotFound as error:
            raise ContainerNotRunning(
                "container is being removed", container=bundle.name
            ) from error
        process = msgspec.json.decode(document, type=oci.Spec).process
        return oci.encode(msgspec.structs.replace(process, args=tuple(command), terminal=False))

    def stored_spec(self, bundle: Path) -> object:
        """The document in a bundle as JSON values; None once the bundle is gone."""
        try:
            document = files.read_limited(bundle / _NAME, SPEC_LIMIT_BYTES)
        except NotFound:
            return None
        return msgspec.json.decode(document)

    def _container(
        self,
        pod: PodSandbox,
        container: Container,
        image: ImageDefaults,
        rootfs: Path,
        image_mounts: Mapping[int, Path],
        target: Path | None,
        host: HostFacts,
    ) -> ContainerUser:
        config, security = container.config, container.config.security
        all_devices = security.privileged and container.runtime not in self._devices_withheld
        lookup.check_root(rootfs)
        user = resolve_user(
            image.user,
            security,
            passwd=lookup.user_file(rootfs, "passwd"),
            group=lookup.user_file(rootfs, "group"),
        )
        ids = id_map(pod, self._paths)
        resolved = lookup.resolve_mounts(
            config.mounts,
            image_mounts,
            recursive_read_only=host.recursive_read_only,
            pod_user=own_user_namespace(pod.config.security.namespaces),
        )
        owner = self._additions.device_owner(config)
        devices = lookup.resolve_devices(config.devices, owner=owner)
        edits = self._additions.edits(
            pod.config, config, image, user=user, runtime_spec=host.runtime_spec
        )
        sources = resolved
        if ids is not None:
            check_mapped(ids, user.uid, user.additional_gids)
            places = self._paths.places(container.id)
            resolved = place_sources(resolved, places, ids, host, syscalls=self._syscalls)
            devices, edits = place_devices(
                devices, edits, places, ids, owner=owner, syscalls=self._syscalls
            )
        volumes = {
            path: lookup.volume_directory(rootfs, path, ids)
            for path in image_volume_paths(image, config.mounts)
        }
        spec = container_spec(
            ContainerInputs(
                id=container.id,
                pod_id=pod.id,
                config=config,
                pod=pod.config,
                image=image,
                image_name=container.image_name,
                user=user,
                rootfs=rootfs,
                pins=self.pins(pod),
                target_pid=target,
                hostname=hostname_of(pod),
                files=self._files(pod),
                mounts=resolved,
                image_volumes=volumes,
                devices=devices,
                host_devices=lookup.host_devices() if all_devices else (),
                cgroups_path=container.cgroup_path,
                host=host,
                selinux_level=pod.selinux_level,
                edits=edits,
                rlimits=self._additions.rlimits_of(pod.config, container),
                pids_limit=self._pids_limit,
                seccomp_content=lookup.localhost_profile(
                    security.seccomp, privileged=security.privileged
                ),
                annotation_patterns=self._patterns.get(container.runtime, ()),
            )
        )
        # Last, when nothing of the request can be refused any more: a label is not taken back.
        if spec.linux is not None:
            relabel_sources(sources, spec.linux.mount_label, syscalls=self._syscalls)
        self._write(container, self._encode(spec, pod))
        return _stored_user(user)

    def _write(self, container: Container, document: bytes) -> None:
        # Not synced: it lives in the run directory, and no longer than its processes.
        path = self._paths.container(container.id) / _NAME
        files.write_atomic(path, document, mode=0o600, durable=False)

    def _encode(self, spec: oci.Spec, pod: PodSandbox) -> bytes:
        if pod.runtime in self._own_sandboxes:
            spec = as_own_sandbox(spec, hostname_of(pod))
        return oci.encode(self._filters.applied(spec, pod.runtime))

    def pins(self, pod: PodSandbox) -> dict[PinKind, Path]:
        """The namespaces that are pinned for a pod."""
        directory = self._paths.pins(pod.id)
        wanted = pod.config.security.namespaces
        pins: dict[PinKind, Path] = {}
        if own_user_namespace(wanted) is not None:
            pins["user"] = directory / "user"
        if wanted.network is not NamespaceMode.NODE:
            pins["net"] = directory / "net"
            pins["uts"] = directory / "uts"
        if wanted.ipc is not NamespaceMode.NODE:
            pins["ipc"] = directory / "ipc"
        if wanted.pid is not NamespaceMode.NODE:
            pins["pid"] = directory / "pid"
        return pins

    def _files(self, pod: PodSandbox) -> PodFiles:
        directory = self._paths.pod(pod.id)
        host_ipc = pod.config.security.namespaces.ipc is NamespaceMode.NODE
        return PodFiles(
            shm=Path("/dev/shm") if host_ipc else self._paths.shm(pod.id),  # noqa: S108
            resolv_conf=directory / "resolv.conf",
            hostname=directory / "hostname",
            hosts=directory / "hosts",
            flags=lookup.mount_flags(directory),
        )

    async def _target_pid(self, pod: PodSandbox, container: Container) -> Path | None:
        """Pin the pid namespace of the container that a TARGET mode names."""
        options = container.config.security.namespaces
        if options.pid is not NamespaceMode.TARGET:
            return None
        target = self._store.find_container(options.target_id)
        if target.pod_id != pod.id:
            raise FailedPrecondition(
                "target container is in another pod", container=target.id, pod=target.pod_id
            )
        if target.state is not ContainerState.RUNNING or target.init is None:
            raise ContainerNotRunning(
                f"target container is in state {target.state.name}, not running",
                container=target.id,
            )
        # In the container's own directory, so that its teardown unmounts the pin too.
        pin = self._paths.container(container.id) / "target-pid"
        await self._namespaces.pin_process(
            target.init.pid, "pid", pin, start_ticks=target.init.start_ticks
        )
        return pin


def _stored_user(user: ResolvedUser) -> ContainerUser:
    return ContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.additional_gids)
