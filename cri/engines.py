"""The engines below the CRI, built and wired to each other; the daemon gives what they stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri import settings_security as security
from cri import settings_speed as speed
from cri import settings_table as table
from sandbox.additions import Additions
from sandbox.compose import Composer
from sandbox.containers import ContainerEngine
from sandbox.endings import Endings
from sandbox.execs import Execs
from sandbox.lookup import profile_file
from sandbox.monitor.conmon import Conmon
from sandbox.monitor.exits import ExitWatch
from sandbox.pods import PodEngine
from sandbox.precompile import FilterCompiler
from sandbox.roots import Roots
from sandbox.security.seccomp import parse_profile

if TYPE_CHECKING:
    import asyncio

    from cri.config import Config
    from metrics.instruments import Instruments
    from sandbox.cgroups import Cgroups
    from sandbox.handlers import Handlers
    from sandbox.host.clock import Clock
    from sandbox.host.host_facts import HostFacts
    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.rlimits import OpenFiles
    from sandbox.host.syscalls import Syscalls
    from sandbox.host.usernamespaces import UserNamespaces
    from sandbox.layer_limits import LayerLimits
    from sandbox.leavings import Leavings
    from sandbox.lsm import Lsm
    from sandbox.paths import Paths
    from sandbox.security.seccomp import Profile
    from sandbox.settings import SandboxSettings
    from sandbox.store import StateStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the engines stand on, probed and opened already."""

    config: Config
    sandbox: SandboxSettings
    paths: Paths
    store: StateStore
    handlers: Handlers
    #: What programs are given of open files; None: what the daemon has.
    open_files: OpenFiles | None
    host: HostFacts
    cgroups: Cgroups
    namespaces: NamespaceWorker
    user_namespaces: UserNamespaces
    #: Why no pod of this node can have one; empty when they can.
    no_user_namespaces: str
    leavings: Leavings
    limits: LayerLimits
    lsm: Lsm
    runner: ProcessRunner
    syscalls: Syscalls
    clock: Clock
    group: asyncio.TaskGroup
    instruments: Instruments


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What the life cycles drive; `exits` is to be closed after them."""

    additions: Additions
    composer: Composer
    exits: ExitWatch
    endings: Endings
    roots: Roots
    containers: ContainerEngine
    pods: PodEngine
    execs: Execs


def build_engines(parts: Parts) -> Engines:
    """Build them; nothing is started yet."""
    handlers = parts.handlers
    additions = Additions.of(
        parts.sandbox,
        may_raise="CAP_SYS_RESOURCE" in parts.host.capabilities_effective,
        clock=parts.clock,
        open_files=parts.open_files,
        patterns=handlers.patterns,
    )
    composer = Composer(
        paths=parts.paths,
        store=parts.store,
        namespaces=parts.namespaces,
        syscalls=parts.syscalls,
        facts=handlers.facts,
        lsm=parts.lsm,
        additions=additions,
        pids_limit=parts.config.get(table.PIDS_LIMIT) or None,
        annotation_patterns=handlers.patterns,
        own_sandboxes=handlers.own_sandboxes,
        filters=FilterCompiler(handlers.precompiled, trees=parts.config.get(speed.SECCOMP_TREES)),
        devices_withheld=handlers.devices_withheld,
    )
    conmon = Conmon(
        parts.sandbox,
        runner=parts.runner,
        cgroups=parts.cgroups,
        clock=parts.clock,
        observer=parts.instruments,
        early=parts.config.get(speed.EARLY_MONITOR),
    )
    exits = ExitWatch(
        lambda exit_: endings.exited(exit_),
        group=parts.group,
        clock=parts.clock,
        counts=parts.cgroups,
        exit_dir=parts.paths.exits,
        exit_file_s=parts.sandbox.timeouts.exit_file_s,
    )
    roots = Roots(
        parts.paths,
        runner=parts.runner,
        cgroups=parts.cgroups,
        monitor_cgroup=parts.sandbox.monitor_cgroup,
        syscalls=parts.syscalls,
        clock=parts.clock,
        group=parts.group,
    )
    endings = Endings(
        paths=parts.paths,
        store=parts.store,
        roots=roots,
        runtimes=handlers.runtimes,
        exits=exits,
        cgroups=parts.cgroups,
        leavings=parts.leavings,
        limits=parts.limits,
        syscalls=parts.syscalls,
        clock=parts.clock,
        group=parts.group,
    )
    containers = ContainerEngine(
        paths=parts.paths,
        store=parts.store,
        runtimes=handlers.runtimes,
        conmon=conmon,
        exits=exits,
        endings=endings,
        limits=parts.limits,
        cgroups=parts.cgroups,
        syscalls=parts.syscalls,
        clock=parts.clock,
        group=parts.group,
    )
    pods = PodEngine(
        paths=parts.paths,
        store=parts.store,
        handlers=handlers,
        namespaces=parts.namespaces,
        user_namespaces=parts.user_namespaces,
        cgroups=parts.cgroups,
        leavings=parts.leavings,
        syscalls=parts.syscalls,
        clock=parts.clock,
        group=parts.group,
        composer=composer,
        lsm=parts.lsm,
    )
    execs = Execs(
        parts.sandbox,
        runner=parts.runner,
        cgroups=parts.cgroups,
        clock=parts.clock,
        observer=parts.instruments,
    )
    return Engines(
        additions=additions,
        composer=composer,
        exits=exits,
        endings=endings,
        roots=roots,
        containers=containers,
        pods=pods,
        execs=execs,
    )


def seccomp_default(config: Config) -> Profile | None:
    """The profile that the configuration has for RuntimeDefault; None for the one of the product.

    Raises:
        InvalidArgument: it cannot be used.
    """
    path = config.get(security.SECCOMP_DEFAULT)
    if path is None:
        return None
    return parse_profile(profile_file(path), what=f"{security.SECCOMP_DEFAULT.key} {path}")
