"""What the node adds to a container by its configuration: CDI devices, hooks, resource limits.

The request only names (a device, a limit) or is looked at (annotations, by a hook's conditions);
what then happens is written in files and settings that belong to the node's administrator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sandbox import oci
from sandbox.cdi.edits import container_edits
from sandbox.cdi.library import CdiLibrary, conflicts
from sandbox.cdi.names import wanted_devices
from sandbox.hooks import ContainerFacts, HookFiles
from sandbox.host.journal import get_logger
from sandbox.host.rlimits import rlimit_ceilings
from sandbox.spec.annotations import allowed_annotations
from sandbox.spec.inputs import Edits
from sandbox.spec.process import arguments
from sandbox.spec.rlimits import (
    ALL_CONTAINERS,
    ONE_CONTAINER,
    UNLIMITED,
    asked_rlimits,
    check_settable,
    merged,
    parse_rlimit,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.host.clock import Clock
    from sandbox.host.rlimits import OpenFiles
    from sandbox.model import Container, ContainerConfig, ImageDefaults, PodConfig
    from sandbox.settings import SandboxSettings
    from sandbox.users import ResolvedUser

_log = get_logger("additions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """See the module text.

    Attributes:
        cdi: the node's CDI files.
        hooks: the node's hooks.
        rlimits: of every container, where nothing else is asked for.
        ceilings: the highest hard limits that can be set here.
        device_ownership: devices of the request belong to runAsUser and runAsGroup.
        patterns: by runtime name, the annotations that its administrator has allowed.
    """

    cdi: CdiLibrary = field(default_factory=lambda: CdiLibrary(()))
    hooks: HookFiles = field(default_factory=lambda: HookFiles(()))
    rlimits: tuple[oci.Rlimit, ...] = ()
    ceilings: Mapping[str, int] = field(default_factory=dict)
    device_ownership: bool = False
    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse limits that no container could be given."""
        check_settable(self.rlimits, self.ceilings, "runtime.rlimits")

    @classmethod
    def of(
        cls,
        settings: SandboxSettings,
        *,
        may_raise: bool,
        clock: Clock,
        open_files: OpenFiles | None = None,
        patterns: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Additions:
        """As the node is configured.

        Args:
            settings: the configuration.
            may_raise: the daemon has CAP_SYS_RESOURCE.
            clock: for the directories.
            open_files: what containers get that ask for nothing, where the daemon has raised its
                own limit; None: what the daemon has is theirs.
            patterns: see the attribute; None: those of the settings.

        Raises:
            InvalidArgument: configured limits that this daemon cannot set.
        """
        if patterns is None:
            patterns = {h.name: h.allowed_annotations for h in settings.handlers}
        inherited = [] if open_files is None else [_open_files_limit(open_files)]
        return cls(
            cdi=CdiLibrary(settings.cdi_spec_dirs, clock=clock),
            hooks=HookFiles(settings.hooks_dirs, clock=clock),
            rlimits=merged(inherited, (parse_rlimit(text) for text in settings.rlimits)),
            ceilings=rlimit_ceilings(may_raise=may_raise),
            device_ownership=settings.device_ownership,
            patterns=patterns,
        )

    def report(self) -> None:
        """Log what of the node's files cannot be used; blocking."""
        devices = self.cdi.look()
        for problem in (*devices.problems, *conflicts(devices)):
            _log.warning("CDI file cannot be used", path=str(problem.path), reason=problem.reason)
        for problem in self.hooks.look().problems:
            _log.error(
                "hook file cannot be used; containers are refused until it is mended",
                path=str(problem.path),
                reason=problem.reason,
            )

    def edits(
        self,
        pod: PodConfig,
        config: ContainerConfig,
        image: ImageDefaults,
        *,
        user: ResolvedUser,
        runtime_spec: tuple[int, int],
    ) -> Edits:
        """The edits of the CDI devices that a container asks for, and the hooks that fit it.

        CDI's hooks run before the node's own of the same stage: these may look at what came in.
        Blocking.

        Raises:
            InvalidArgument: a name that is not one of a CDI device.
            FailedPrecondition, Unsupported: see `CdiLibrary.find`, `container_edits`, `HookFiles`.
        """
        edits = Edits()
        if names := wanted_devices(config):
            edits = container_edits(self.cdi.find(names), user=user, runtime_spec=runtime_spec)
        found = self.hooks.hooks_for(
            ContainerFacts(
                command=arguments(config, image)[0],
                annotations={**pod.annotations, **config.annotations},
                has_bind_mounts=bool(config.mounts),
            )
        )
        stages = dict.fromkeys((*edits.hooks, *found))
        hooks = {stage: (*edits.hooks.get(stage, ()), *found.get(stage, ())) for stage in stages}
        return replace(edits, hooks=hooks)

    def rlimits_of(self, pod: PodConfig, container: Container) -> tuple[oci.Rlimit, ...]:
        """The node's limits, and over them what allowed annotations of pod and container ask for.

        Raises:
            InvalidArgument: an annotation that is not readable, or more than can be set here.
        """
        config = container.config
        keys = {ALL_CONTAINERS, ONE_CONTAINER + config.name}
        annotations = {**pod.annotations, **config.annotations}
        allowed = allowed_annotations(annotations, self.patterns.get(container.runtime, ()))
        for key in sorted(keys.intersection(annotations).difference(allowed)):
            _log.warning(
                "annotation is not among the allowed ones of the handler and changes nothing",
                annotation=key,
                handler=container.runtime,
                container=container.id,
            )
        asked = asked_rlimits(allowed, config.name)
        check_settable(asked, self.ceilings, "resource limits of the annotation")
        return merged(self.rlimits, asked)

    def device_owner(self, config: ContainerConfig) -> tuple[int | None, int | None]:
        """(uid, gid) that the nodes of the request's devices get; None keeps the host's."""
        if not self.device_ownership:
            return None, None
        return config.security.run_as_user, config.security.run_as_group


def _open_files_limit(limits: OpenFiles) -> oci.Rlimit:
    # RLIM_INFINITY is -1 in Python.
    soft, hard = (UNLIMITED if value < 0 else value for value in (limits.soft, limits.hard))
    return oci.Rlimit(type="RLIMIT_NOFILE", soft=soft, hard=hard)
