"""Pod engine: what a pod sandbox is made of, step by step.

A pod is: a directory with its small files, a /dev/shm, pinned namespaces (net, ipc, uts, pid when
shared, user where it has its own), and a pause process that reaps zombies. The engine takes and
gives paths and values; it knows nothing of CNI, images or gRPC: `cri.pod_lifecycle` puts the steps
in order and runs independent ones at once. Undoing a creation, stopping and removing are lists of
the same idempotent steps.

Why namespaces are pinned first and joined by path, by the pause process too: they exist before any
process of the pod, so CNI can work on the network while pause is being made, and nobody ever joins
`/proc/PID/ns` of a number that may have been reused.

Why pause has no conmon: it writes nothing and its exit code means nothing; its end is seen by
pidfd.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox import podfiles
from sandbox.host import files, mounts
from sandbox.host.errors import InvalidArgument, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.pidfd import Process, boot_id, hold, start_ticks
from sandbox.host.threads import to_its_end
from sandbox.mapping import id_map
from sandbox.model import NamespaceMode, PodSandbox, ProcessRef
from sandbox.spec.linux import check_pod
from sandbox.spec.sysctls import IPV6_SYSCTLS
from sandbox.states import PodState
from sandbox.steps import run_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sandbox.cgroups import Cgroups
    from sandbox.compose import Composer
    from sandbox.handlers import Handlers
    from sandbox.host.clock import Clock
    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.host.syscalls import Syscalls
    from sandbox.host.sysctls import Kind
    from sandbox.host.usernamespaces import UserNamespaces
    from sandbox.leavings import Leavings
    from sandbox.lsm import Lsm
    from sandbox.model import PodConfig
    from sandbox.paths import Paths
    from sandbox.spec.inputs import PinKind
    from sandbox.steps import Step
    from sandbox.store import StateStore

#: How long the pause process may take to vanish after SIGKILL before the step counts as failed.
PAUSE_KILL_WAIT_S: Final = 10.0
#: What plugins enter, and the namespace that owns it.
_NETWORK_PINS: Final = frozenset({"net", "user"})
#: There where the node has IPv6 at all.
_IPV6: Final = Path("/proc/sys/net/ipv6")

_log = get_logger("pods")


class PodEngine:
    """Makes, stops and takes apart pod sandboxes."""

    def __init__(
        self,
        *,
        paths: Paths,
        store: StateStore,
        handlers: Handlers,
        namespaces: NamespaceWorker,
        user_namespaces: UserNamespaces,
        cgroups: Cgroups,
        leavings: Leavings,
        syscalls: Syscalls,
        clock: Clock,
        group: asyncio.TaskGroup,
        composer: Composer,
        lsm: Lsm,
    ) -> None:
        self._paths = paths
        self._store = store
        self._handlers = handlers
        self._namespaces = namespaces
        self._user_namespaces = user_namespaces
        self._cgroups = cgroups
        self._leavings = leavings
        self._syscalls = syscalls
        self._clock = clock
        self._group = group
        self._composer = composer
        self._lsm = lsm
        self._on_stopped: Callable[[PodSandbox], None] = lambda _pod: None
        self._watched: set[str] = set()

    def on_stopped(self, call: Callable[[PodSandbox], None]) -> None:
        """Have `call` told of every pod whose pause process ended by itself."""
        self._on_stopped = call

    # Creation, in the order in which the lifecycle calls it.

    async def reserve(self, config: PodConfig, handler: str) -> PodSandbox:
        """Record the intent: a new pod in state CREATING that holds its name.

        Raises:
            AlreadyExists: another pod holds the name.
            InvalidArgument: unknown handler, or namespaces that no pod can have.
            Unsupported: a user namespace where this node or the handler has none.
        """
        runtime_name, _ = self._handlers.wanted(handler)
        check_pod(config, self._handlers.facts[runtime_name], runtime_name)
        pod_id = secrets.token_hex(32)
        with self._lsm.level(config, self._selinux_levels()) as level:
            pod = PodSandbox(
                id=pod_id,
                config=config,
                state=PodState.CREATING,
                created_at_ns=self._clock.wall_ns(),
                handler=handler,
                runtime=runtime_name,
                cgroup_path=self._cgroups.pod_cgroup(config.cgroup_parent, pod_id),
                selinux_level=level,
            )
            await self._store.add_pod(pod)
        return pod

    async def pin_namespaces(
        self, pod: PodSandbox, sysctls: Mapping[str, str]
    ) -> dict[PinKind, Path]:
        """Make and pin the namespaces the pod does not share with the node.

        Returns:
            Path of each pin by kind (user, net, ipc, uts).

        Raises:
            InvalidArgument: a sysctl was refused by the kernel.
            Unsupported: no user namespace can be made.
        """
        wanted = pod.config.security.namespaces
        kinds: set[Kind] = set()
        if wanted.network is not NamespaceMode.NODE:
            kinds |= {"net", "uts"}
        if wanted.ipc is not NamespaceMode.NODE:
            kinds.add("ipc")
        directory = self._paths.pins(pod.id)
        hostname = podfiles.hostname_of(pod) if "uts" in kinds else ""
        if "net" in kinds and _IPV6.exists():
            sysctls = {**IPV6_SYSCTLS, **sysctls}
        ids = id_map(pod, self._paths)
        if ids is None:
            made = await self._namespaces.create(
                directory, frozenset(kinds), hostname=hostname, sysctls=sysctls
            )
            return {kind: made[kind] for kind in kinds}
        made = await self._user_namespaces.create(
            directory,
            frozenset(kinds),
            uids=ids.uids,
            gids=ids.gids,
            hostname=hostname,
            sysctls=sysctls,
        )
        return {"user": made["user"], **{kind: made[kind] for kind in kinds}}

    def network_pin(self, pod: PodSandbox) -> Path:
        """Where the pod's network namespace is pinned."""
        return self._paths.pins(pod.id) / "net"

    async def make_files(self, pod: PodSandbox) -> None:
        """Write the pod's files and mount its /dev/shm."""

        def work() -> None:
            label = self._composer.pod_label(pod)
            podfiles.write_pod_files(pod, self._paths, podfiles.hostname_of(pod))
            podfiles.label_pod_files(pod, self._paths, label, syscalls=self._syscalls)
            podfiles.mount_shm(pod, self._paths, label, syscalls=self._syscalls)

        await to_its_end(work)

    async def start_pause(self, pod: PodSandbox, pins: Mapping[PinKind, Path]) -> ProcessRef:
        """Start the pause process in the pinned namespaces; pin its pid namespace where shared.

        Raises:
            RuntimeFailed: the OCI runtime refused, with its own words.
        """
        runtime = self._handlers.runtimes[pod.runtime]
        bundle = self._paths.pod(pod.id) / "bundle"

        spec = await self._composer.pause(pod, pins)

        def write_bundle() -> None:
            podfiles.place_pause(pod, self._paths, syscalls=self._syscalls)
            files.make_private_dir(bundle, mode=0o700)
            files.write_atomic(bundle / "config.json", spec, mode=0o600, durable=False)

        await to_its_end(write_bundle)
        await self._cgroups.prepare(pod.cgroup_path, pod.config.cgroup_parent)
        await self._limit(pod.id, pod.config)
        pid = await runtime.create(bundle, pod.id, bundle / "pid")
        ticks = start_ticks(pid)
        if ticks is None:
            raise InvalidArgument("pause process ended before it was started", pod=pod.id, pid=pid)
        pause = ProcessRef(pid=pid, start_ticks=ticks, boot_id=boot_id())
        await runtime.start(pod.id)
        if pod.config.security.namespaces.pid is not NamespaceMode.NODE:
            await self._namespaces.pin_process(pid, "pid", self._paths.pins(pod.id) / "pid")
        return pause

    async def mark_ready(
        self, pod: PodSandbox, pause: ProcessRef, *, ips: tuple[str, ...], cni_result: str
    ) -> PodSandbox:
        """Write /etc/hosts, record that the pod is ready, and watch its pause process."""
        ready = msgspec.structs.replace(
            pod, state=PodState.READY, pause=pause, ips=ips, cni_result=cni_result
        )

        def write_hosts() -> None:
            podfiles.write_hosts(ready, self._paths, podfiles.hostname_of(ready))
            label = self._composer.pod_label(ready)
            podfiles.label_pod_files(ready, self._paths, label, syscalls=self._syscalls)

        await to_its_end(write_hosts)
        await self._store.save(ready)
        self.watch(ready)
        return ready

    def stored_spec(self, pod: PodSandbox) -> object:
        """The pause process's OCI document as JSON values; None once its bundle is gone."""
        return self._composer.stored_spec(self._paths.pod(pod.id) / "bundle")

    # Life.

    def process(self, pod: PodSandbox) -> Process | None:
        """The living pause process, or None; the caller closes it."""
        if pod.pause is None:
            return None
        return Process.open(pod.pause.pid, pod.pause.start_ticks, pod.pause.boot_id)

    def watch(self, pod: PodSandbox) -> None:
        """Notice the end of the pause process (within milliseconds, by pidfd)."""
        if pod.id not in self._watched:
            self._watched.add(pod.id)
            self._group.create_task(self._watch(pod), name=f"watch pod {pod.id[:12]}")

    async def _watch(self, pod: PodSandbox) -> None:
        try:
            process = None if pod.pause is None else await hold(pod.pause, self._clock)
            if process is not None:
                try:
                    await process.wait()
                finally:
                    process.close()
        finally:
            self._watched.discard(pod.id)
        if await self.note_stopped(pod.id):
            self._on_stopped(pod)

    async def note_stopped(self, pod_id: str) -> bool:
        """Record that a ready pod is ready no more; False when it was not ready before.

        Not synced: after a power failure no pod is.
        """
        pod = self._store.pods.get(pod_id)
        if pod is not None and pod.state is PodState.READY:
            stopped = msgspec.structs.replace(pod, state=PodState.NOT_READY)
            await self._store.note(stopped, synced=False)
            return True
        return False

    async def resize(self, pod_id: str, config: PodConfig) -> None:
        """Record `config`, whose limits are new, after applying them where the group is ours.

        Raises:
            FailedPrecondition: more memory is in use than the new limit.
            InvalidArgument: a value the kernel does not take; nothing has changed.
        """
        await self._limit(pod_id, config)
        pod = self._store.pods.get(pod_id)
        if pod is not None:
            await self._store.save(msgspec.structs.replace(pod, config=config))

    async def _limit(self, pod_id: str, config: PodConfig) -> None:
        if config.resources is not None:
            await self._cgroups.limit_pod(config.cgroup_parent, pod_id, config.resources)

    # Teardown.

    async def stop(self, pod: PodSandbox) -> None:
        """End the pause process and let go of namespaces and shared memory; idempotent.

        The network must have been detached before: the pin goes here.
        """
        await self.note_stopped(pod.id)
        await run_steps("pod", pod.id, [*self._process_steps(pod), *self._place_steps(pod)])

    async def end_processes(self, pod: PodSandbox) -> None:
        """The part of `stop` that may run while the network is being detached; idempotent.

        The network is in its pin, not in the pause process. Beside the plugins this costs no time:
        it is a third of stopping a pod (12 of 36 ms on the reference machine).
        """
        await run_steps("pod", pod.id, self._process_steps(pod))

    async def let_go_beside(self, pod: PodSandbox) -> None:
        """After `end_processes`, and also beside the plugins: all but what they need; idempotent.

        Each pin and the shared memory take the kernel 0.5 ms and more, for it waits until nobody
        looks at a mount any more.
        """
        await run_steps("pod", pod.id, self._place_steps(pod, keep=_NETWORK_PINS))

    async def let_go(self, pod: PodSandbox) -> None:
        """The rest, after the others have succeeded and the network is detached; idempotent."""
        await run_steps("pod", pod.id, [self._unpin(pod)])

    def _process_steps(self, pod: PodSandbox) -> list[Step]:
        group, parent = pod.cgroup_path, pod.config.cgroup_parent
        return [
            ("pause process", lambda: self._kill_pause(pod)),
            # What else is in its cgroup: helpers of a runtime that is more than one process.
            ("processes", lambda: self._cgroups.kill(group)),
            ("runtime state", lambda: self._delete_runtime_state(pod)),
            ("cgroup", lambda: self._cgroups.remove_pod(group, parent, pod.id)),
        ]

    def _place_steps(self, pod: PodSandbox, *, keep: Collection[str] = ()) -> list[Step]:
        return [self._unpin(pod, keep), ("shared memory", lambda: self._unmount(pod))]

    def _unpin(self, pod: PodSandbox, keep: Collection[str] = ()) -> Step:
        return ("namespaces", lambda: self._namespaces.unpin(self._paths.pins(pod.id), keep=keep))

    async def dismantle(self, pod: PodSandbox) -> None:
        """Everything of the pod but its record; also undoes a creation stopped at any point."""
        half_made = pod.pause is None
        await run_steps(
            "pod",
            pod.id,
            [
                *([("helpers", lambda: self._leavings.kill_helpers(pod.id))] if half_made else []),
                ("stop", lambda: self.stop(pod)),
                ("run directory", lambda: self._remove_directory(self._paths.pod(pod.id))),
            ],
        )

    async def note_trouble(self, pod: PodSandbox, error: PodwrightError) -> None:
        """Keep a pod whose undo failed listed as NOTREADY: the client finds and removes it."""
        current = self._store.pods.get(pod.id, pod)
        await self._store.note(
            msgspec.structs.replace(
                current, state=PodState.NOT_READY, failed=True, trouble=str(error)
            )
        )

    async def note_stuck(self, pod_id: str, trouble: str) -> None:
        """Record why the pod cannot be taken apart now; empty: it could."""
        pod = self._store.pods.get(pod_id)
        if pod is not None and pod.trouble != trouble:
            await self._store.note(msgspec.structs.replace(pod, trouble=trouble))

    def _selinux_levels(self) -> list[str]:
        levels = [pod.selinux_level for pod in self._store.pods.values()]
        asked = (one.config.security.selinux for one in self._store.containers.values())
        return [level for level in (*levels, *(o.level for o in asked if o)) if level]

    async def _kill_pause(self, pod: PodSandbox) -> None:
        process = self.process(pod)
        if process is None:
            return
        try:
            process.send_signal(9)
            async with asyncio.timeout(PAUSE_KILL_WAIT_S):
                await process.wait()
        except TimeoutError:
            raise PodwrightError("pause process does not end after SIGKILL", pod=pod.id) from None
        finally:
            process.close()

    async def _delete_runtime_state(self, pod: PodSandbox) -> None:
        runtime = self._handlers.runtimes.get(pod.runtime)
        if runtime is None:
            _log.warning(
                "runtime of a pod is no longer configured", pod=pod.id, runtime=pod.runtime
            )
            return
        await runtime.delete(pod.id, force=True, init=pod.pause)

    async def _unmount(self, pod: PodSandbox) -> None:
        await asyncio.to_thread(podfiles.unmount_all, pod, self._paths, syscalls=self._syscalls)

    async def _remove_directory(self, directory: Path) -> None:
        await asyncio.to_thread(mounts.clear_away, directory, syscalls=self._syscalls)
