"""Composition root: builds the real objects, wires them, starts them in order, stops them in order.

Nothing else in the project constructs an engine. Order of start: the run root is claimed (a second
daemon stops here), directories and the pause root are made, programs are probed, the state is
opened and held against the kernel, and only then does the socket answer: an answer is true from
the first one. Order of stop is the reverse; pods are not touched.
"""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from cni.network import PodNetwork
from cri import settings_security as security
from cri import settings_speed as speed
from cri import settings_table as table
from cri.check.exposure import warn
from cri.config import toml_text
from cri.engines import Parts, build_engines, seccomp_default
from cri.handler_reload import HandlerBook
from cri.lifecycles import build_lifecycles
from cri.log_rates import LogRates
from cri.node import NodeStatus, spec_facts
from cri.node_sessions import NodeSessions
from cri.notify import answers, feed, notify, watchdog_interval_s
from cri.reload import Reloader
from cri.reloadable import appliers
from cri.rpc.service import build_methods
from cri.runtimes import RuntimeMaker
from cri.server import RpcServer, claim_run_root
from cri.stats import Stats
from cri.streaming.server import StreamingServer
from cri.tidying import begin_tidying
from cri.upkeep import Countdown, begin_upkeep, reloading
from cri.userns import lack_of_user_namespaces
from imageservice.registry.client import RegistryClient
from imageservice.service import ImageService
from metrics.endpoint import MetricsEndpoint
from metrics.instruments import Instruments
from sandbox.cgroups import Cgroups
from sandbox.handlers import Handlers
from sandbox.host import files, oom
from sandbox.host.clock import SystemClock
from sandbox.host.errors import Internal
from sandbox.host.host_facts import HostFacts
from sandbox.host.journal import get_logger
from sandbox.host.libc import LibcSyscalls
from sandbox.host.namespaces import NamespaceWorker
from sandbox.host.priority import Precedence
from sandbox.host.processes import HostProcessRunner
from sandbox.host.rlimits import raise_open_files
from sandbox.host.systemd import Systemd
from sandbox.host.usernamespaces import UserNamespaces
from sandbox.host.warmth import AttachWarmth
from sandbox.interactive import InteractiveExecs
from sandbox.layer_limits import LayerLimits
from sandbox.leavings import Leavings
from sandbox.lsm import Lsm
from sandbox.monitor.hub import AttachHubs
from sandbox.paths import Paths
from sandbox.podfiles import install_pause
from sandbox.records import Records
from sandbox.store import StateStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri.config import Config
    from sandbox.host.cgroupfs import CgroupLayout
    from sandbox.host.rlimits import OpenFiles

#: Blocking calls at once; a thread costs some tens of KiB once it has run.
BLOCKING_CALLS: Final = 32

#: A node that loses its runtime service loses the means to stop what eats its memory. The kubelet
#: gives itself the same value; only what must outlive the daemon is lower (conmon: -1000).
OOM_SCORE_ADJ: Final = -999

_log = get_logger("daemon")


class Daemon:
    """The running service."""

    def __init__(self, config: Config, *, version: str, load: Callable[[], Config]) -> None:
        """Nothing is touched before `run`.

        Args:
            config: what to serve with.
            version: what to call itself.
            load: reads the configuration again, for SIGHUP.
        """
        self._config = config
        self._load = load
        self._reload_asked = asyncio.Event()
        self._sandbox = config.sandbox()
        self._version = version
        self._paths = Paths(run_root=self._sandbox.run_root, state_root=self._sandbox.state_root)
        self._clock = SystemClock()
        self._syscalls = LibcSyscalls()
        self._stopping = asyncio.Event()
        #: What programs get instead of our own; None: the same.
        self._open_files: OpenFiles | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            FailedPrecondition: another daemon serves this run root, or the state is of a newer one.
            PodwrightError: anything else that keeps the daemon from starting, naming it.
        """
        # Every file of ours is private whatever umask we were started with (CVE-2024-25621).
        os.umask(0o077)
        self._open_files = raise_open_files()
        score = oom.protect_self(OOM_SCORE_ADJ)
        if score > OOM_SCORE_ADJ:
            _log.warning(
                "the daemon is not protected from the memory killer",
                oom_score_adj=score,
                wanted=OOM_SCORE_ADJ,
                hint="give the service CAP_SYS_RESOURCE, or OOMScoreAdjust in its unit",
            )
        if self._open_files is not None:
            _log.info("open files", limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        loop = asyncio.get_running_loop()
        # Threads wait for the kernel here (mounts, syncs, walks of trees), they do not compute; the
        # default of one per core and four would let a few slow syncs hold up every mount.
        loop.set_default_executor(
            ThreadPoolExecutor(max_workers=BLOCKING_CALLS, thread_name_prefix="blocking")
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # From here on, so that one that comes during the start waits and does not end us.
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        try:
            async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
                await self._serve(group, stack)
                raise _Stopped
        except* _Stopped:
            _log.info("stopped; pods go on")

    async def _serve(self, group: asyncio.TaskGroup, stack: AsyncExitStack) -> None:
        config, sandbox, clock = self._config, self._sandbox, self._clock
        await asyncio.to_thread(self._make_directories)
        stack.callback(claim_run_root(self._paths.run_root).close)
        await asyncio.to_thread(
            install_pause, config.get(table.PAUSE_PATH), self._paths.pause_rootfs
        )

        host = HostFacts.detect()
        instruments = Instruments(self._version)
        runner = HostProcessRunner(clock=clock, open_files=self._open_files)
        cgroups = Cgroups(
            _layout(host),
            sandbox.cgroup_driver,
            clock=clock,
            kill_s=sandbox.timeouts.kill_s,
            systemd=Systemd(runner),
        )
        maker = RuntimeMaker(
            config,
            sandbox.timeouts,
            self._paths,
            systemd_cgroup=cgroups.systemd,
            runner=runner,
            syscalls=self._syscalls,
            clock=clock,
            observer=instruments,
        )
        warmth = AttachWarmth(cgroups.layout, enabled=config.get(speed.WARM_CGROUPS))
        stack.callback(warmth.close)
        made = [await maker.make(handler, stack) for handler in sandbox.handlers]
        namespaces = NamespaceWorker(syscalls=self._syscalls, clock=clock)
        stack.callback(namespaces.close)
        lsm = Lsm(config.lsm(), apparmor=host.apparmor, runner=runner)
        await lsm.start()
        await lsm.label_own(self._paths, config.images().root, syscalls=self._syscalls)
        handlers = Handlers(sandbox.default_handler, config.get(security.COMPILED_SECCOMP))
        leavings = Leavings()

        limits = LayerLimits(
            self._paths.layers,
            most_bytes=config.get(table.WRITABLE_LAYER),
            patterns=handlers.patterns,
        )
        await limits.open()
        records = Records(self._paths.records)
        store = await StateStore.open(self._paths.state_file, records, clock=clock)
        stack.push_async_callback(store.close)
        image_settings = config.images()
        registries = RegistryClient(image_settings, clock=clock, observer=instruments.pulls)
        images = ImageService(
            image_settings,
            registries,
            runner,
            syscalls=self._syscalls,
            clock=clock,
            containers_dir=self._paths.layers,
            observer=instruments.pulls,
        )
        await images.open(group)
        stack.push_async_callback(images.close)
        limits.hold_to(images.storage.driver.name)
        user_namespaces = UserNamespaces(runner=runner, worker=namespaces)
        no_user_namespaces = await lack_of_user_namespaces(
            user_namespaces,
            namespaces,
            run_root=self._paths.run_root,
            pins=self._paths.run_root / "probe",
            layers=image_settings.root / "probe-mapping",
            driver=images.storage.driver,
        )
        network = PodNetwork(
            config.cni(),
            runner,
            clock,
            is_namespace=namespaces.is_pinned,
            observer=instruments.cni_operation,
        )
        await network.start(group)
        stack.push_async_callback(network.close)

        facts = functools.partial(
            spec_facts,
            host,
            cgroups.layout,
            seccomp_default=seccomp_default(config),
            no_user_namespaces=no_user_namespaces,
        )
        book = HandlerBook(handlers, maker, facts, store=store, leavings=leavings)
        for each in made:
            book.learn(each)
        parts = Parts(
            config=config,
            sandbox=sandbox,
            paths=self._paths,
            store=store,
            handlers=handlers,
            open_files=self._open_files,
            host=host,
            cgroups=cgroups,
            namespaces=namespaces,
            user_namespaces=user_namespaces,
            no_user_namespaces=no_user_namespaces,
            leavings=leavings,
            limits=limits,
            lsm=lsm,
            runner=runner,
            syscalls=self._syscalls,
            clock=clock,
            group=group,
            instruments=instruments,
        )
        engines = build_engines(parts)
        stack.callback(engines.exits.close)
        await asyncio.to_thread(engines.additions.report)
        lifecycles = build_lifecycles(parts, engines, images, network)
        pods, containers, events = lifecycles.pods, lifecycles.containers, lifecycles.events
        await lifecycles.recovery.run()
        await limits.sweep()

        events.adopt()
        stats = Stats(
            config.sampler(),
            store=store,
            cgroups=cgroups,
            paths=self._paths,
            limits=limits,
            clock=clock,
        )
        events.on_stopped(stats.forget)
        stack.callback(stats.close)
        instruments.watch_pods(lambda: Counter(p.state.name.lower() for p in pods.list()))
        instruments.watch_containers(
            lambda: Counter(c.state.name.lower() for c in containers.list())
        )
        log_rates = LogRates(config.log_rates(), store=store, instruments=instruments, clock=clock)
        stack.callback(log_rates.close)
        endpoint = MetricsEndpoint(instruments, config.metrics())
        await endpoint.start()
        stack.push_async_callback(endpoint.close)
        reloader = Reloader(
            config,
            self._load,
            appliers(registries, images, network, handlers),
            clock=clock,
            tell=notify,
            handlers=book,
        )
        node = NodeStatus(
            network=network,
            host=host,
            driver=sandbox.cgroup_driver,
            handlers=handlers,
            config=lambda: {key: toml_text(value) for key, value in reloader.values.items()},
            no_user_namespaces=no_user_namespaces,
            reports={
                "upkeep": lifecycles.reconciler.report,
                "state": store.report,
                "reload": reloader.report,
                **images.reports,
            },
        )
        streaming = StreamingServer(
            config.streaming(),
            NodeSessions(
                store=store,
                paths=self._paths,
                composer=engines.composer,
                runtime_of=engines.containers.runtime_of,
                execs=InteractiveExecs(
                    sandbox, runner=runner, cgroups=cgroups, clock=clock, group=group
                ),
                hubs=AttachHubs(group),
                namespaces=namespaces,
            ),
            clock=clock,
        )
        await streaming.start(group)
        server = RpcServer(
            build_methods(
                pods=pods,
                containers=containers,
                images=images,
                node=node,
                usages=stats,
                events=events,
                streaming=streaming,
                clock=clock,
                version=self._version,
                moving=warmth.held,
            ),
            socket_path=config.socket,
            socket_gid=config.get(table.SOCKET_GID),
            observer=instruments,
            clock=clock,
        )
        await server.start()
        # One grace for all. In reverse: sessions, while calls are still answered; calls; then what
        # detached work is left, while its engines still live.
        left = Countdown(clock, config.get(table.STOP_GRACE))
        stack.push_async_callback(left.spend, containers.close)
        stack.push_async_callback(left.spend, pods.close)
        stack.push_async_callback(left.spend, server.stop)
        stack.push_async_callback(left.spend, streaming.close)
        stack.callback(events.close)
        group.create_task(stats.run(), name="sampler")
        group.create_task(log_rates.run(), name="log rates")
        if config.get(speed.COME_FIRST):
            server.activity.on_count = Precedence().count
        begin_tidying(group, server.activity, clock, enabled=config.get(speed.TIDYING))
        notify("READY=1")
        _log.info(
            "serving",
            socket=str(config.socket),
            version=self._version,
            pods=len(pods.list()),
            containers=len(containers.list()),
        )
        begin_upkeep(group, config, store, lifecycles, network, clock)
        group.create_task(reloading(reloader.reload, self._reload_asked), name="reload")
        interval_s = watchdog_interval_s(os.environ, os.getpid())
        alive = functools.partial(answers, config.socket)
        group.create_task(feed(alive, interval_s, clock), name="watchdog")
        if config.get(security.HOLES_AT_START):
            group.create_task(warn(config, runner), name="known holes")
        await self._stopping.wait()
        left.begin()
        notify("STOPPING=1")
        _log.info("stopping", grace_s=config.get(table.STOP_GRACE))

    def _make_directories(self) -> None:
        paths = self._paths
        files.make_private_dir(paths.run_root, mode=0o711)
        files.make_private_dir(paths.state_root, mode=0o700)
        for directory in (paths.pods, paths.namespaces, paths.containers):
            files.make_private_dir(directory, mode=0o711)
        for directory in (paths.exits, paths.layers):
            files.make_private_dir(directory, mode=0o700)


class _Stopped(Exception):
    """Ends the task group: everything that still runs is cancelled, in an orderly way."""


def _layout(host: HostFacts) -> CgroupLayout:
    if host.cgroup is None:
        raise Internal(
            "no cgroup hierarchy is mounted",
            hint="mount cgroup2 on /sys/fs/cgroup; see podwright check",
        )
    return host.cgroup
