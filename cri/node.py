"""What the node can do, from what was probed at start and what the network says now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri.node_facts import NETWORK_READY, RUNTIME_READY, Condition, Handler, NodeFacts
from sandbox.host.journal import get_logger
from sandbox.runtime.command import version_numbers
from sandbox.security.seccomp import SeccompHost
from sandbox.spec.inputs import HostFacts as SpecFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni.network import PodNetwork
    from sandbox.handlers import Handlers
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.host.host_facts import HostFacts
    from sandbox.runtime.driver import RuntimeInfo
    from sandbox.security.seccomp import Profile
    from sandbox.settings import CgroupDriver

#: mount_setattr(2) came with Linux 5.12; without it a mount cannot be made read-only recursively.
RECURSIVE_READ_ONLY_KERNEL = (5, 12)
#: By program: runc's release notes (1.1.0: sources of bind mounts are opened outside), crun's NEWS
#: (1.5: the same).
USER_NAMESPACES_SINCE = {"crun": (1, 5), "runc": (1, 1)}

_log = get_logger("node")


def spec_facts(
    host: HostFacts,
    layout: CgroupLayout,
    info: RuntimeInfo | None,
    seccomp_default: Profile | None = None,
    *,
    no_user_namespaces: str = "not tried",
) -> SpecFacts:
    """The node as the OCI document of one runtime must be made for, but for its LSMs.

    Those may change while the daemon runs; the composer asks `sandbox.lsm` each time.
    `no_user_namespaces` says why the node itself has none, whatever the runtime; empty if it has.
    """
    return SpecFacts(
        cgroup_version=layout.version,
        controllers=layout.available,
        swap_limit=swap_is_limited(layout),
        capabilities=host.capabilities_effective,
        oom_score_adj_floor=host.oom_score_adj_floor,
        recursive_read_only=recursive_read_only(host, info),
        runtime_spec=info.runtime_spec if info is not None else (1, 0),
        no_user_namespaces=no_user_namespaces or runtime_lacks_user_namespaces(info),
        # Seen with crun 1.8.1; naming what is below twice would do no harm.
        binds_top_only=info is not None and info.name == "crun",
        seccomp=SeccompHost(
            supported=host.seccomp,
            machine=host.architecture,
            kernel=host.kernel_version,
            default=seccomp_default,
        ),
    )


def swap_is_limited(layout: CgroupLayout) -> bool:
    """Whether the kernel accounts for swap: some groups have the file then. Blocking, briefly.

    The root of version 2 has no limits at all, so a group below it is asked.
    """
    if layout.version == 1:
        file = layout.file("/", "memory", "memory.memsw.limit_in_bytes")
        return file is not None and file.exists()
    return layout.root is not None and any(layout.root.glob("*/memory.swap.max"))


def recursive_read_only(host: HostFacts, info: RuntimeInfo | None) -> bool:
    """Whether a recursively read-only mount can be made: by the kernel and by the runtime."""
    able = info is not None and info.recursive_read_only
    return able and host.kernel_version >= RECURSIVE_READ_ONLY_KERNEL


def runtime_lacks_user_namespaces(info: RuntimeInfo | None) -> str:
    """Why containers of a runtime cannot be in a pod's user namespace; empty when they can.

    Owners of mounts are mapped by us, so all a runtime must do is join a user namespace by its path
    (and bind a source that it could not reach as the root of that namespace).
    """
    if info is None:
        return "its program does not run"
    needed = USER_NAMESPACES_SINCE.get(info.name)
    if needed is None or not info.user_namespaces:
        return f"{info.name} joins no user namespace of a pod"
    if version_numbers(info.version) < needed:
        return f"{info.name} {info.version} is older than {'.'.join(map(str, needed))}"
    return ""


class NodeStatus:
    """Answers Status, without waiting for anything."""

    def __init__(
        self,
        *,
        network: PodNetwork,
        host: HostFacts,
        driver: CgroupDriver,
        handlers: Handlers,
        config: Callable[[], Mapping[str, object]],
        no_user_namespaces: str = "not tried",
        reports: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        """`reports` are further facts of verbose status, asked for each time."""
        self._reports = reports or {}
        self._network = network
        self._host = host
        self._driver: CgroupDriver = driver
        self._book = handlers
        self._config = config
        self._no_user_namespaces = no_user_namespaces

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        """Have the network's configuration made of it, where a template is set."""
        if await self._network.set_pod_cidr(pod_cidr):
            _log.info("network configured for the node's pod addresses", pod_cidr=pod_cidr)

    def facts(self) -> NodeFacts:
        """The node as of now."""
        ok, reason, message = self._network.ready()
        handlers = self._handlers()
        return NodeFacts(
            conditions=(self._runtime_condition(), Condition(NETWORK_READY, ok, reason, message)),
            handlers=handlers,
            user_namespaces_host_network=any(h.user_namespaces for h in handlers),
            cgroup_driver=self._driver,
            mount_options=True,
            info={
                "config": self._config(),
                "network": self._network.describe(),
                "runtimes": {
                    **{n: f"{i.name} {i.version}" for n, i in self._book.infos.items()},
                    **self._book.missing,
                },
                **{name: report() for name, report in self._reports.items()},
            },
        )

    def _runtime_condition(self) -> Condition:
        default = self._book.default
        trouble = self._book.missing.get(default)
        if trouble is None:
            return Condition(RUNTIME_READY, True)
        return Condition(
            RUNTIME_READY,
            False,
            "DefaultRuntimeUnusable",
            f"runtime handler {default}: {trouble}",
        )

    def _handlers(self) -> tuple[Handler, ...]:
        def handler(label: str, name: str) -> Handler:
            info = self._book.infos.get(name)
            return Handler(
                label,
                recursive_read_only_mounts=recursive_read_only(self._host, info),
                user_namespaces=not (
                    self._no_user_namespaces or runtime_lacks_user_namespaces(info)
                ),
            )

        return (
            handler("", self._book.default),
            *(handler(n, n) for n in sorted({*self._book.infos, *self._book.missing})),
        )
