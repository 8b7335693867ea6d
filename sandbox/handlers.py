"""The OCI runtimes by the names that pods ask for, while they may come, change and go.

One book for all engines, changed in one place (`learn`, `retire`) by the event loop's thread: at
the start, and when the configuration is read again. A handler that the configuration has no longer
is *retired*: no new pod gets it, and those that have it are run, stopped and removed with it until
the daemon ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from sandbox.host.errors import InvalidArgument
from sandbox.runtime.books import is_gvisor

if TYPE_CHECKING:
    from sandbox.runtime.driver import OciRuntime, RuntimeInfo
    from sandbox.settings import RuntimeHandler
    from sandbox.spec.inputs import HostFacts

V = TypeVar("V")


@dataclass(slots=True)
class Handlers:
    """See the module text. Engines hold the collections themselves, which are never replaced.

    Attributes:
        default: the handler of pods that name none.
        compile_seccomp: runtimes that take a compiled filter are given one.
        runtimes: by name, retired ones and those whose program does not run included.
        infos: what the programs that run have said of themselves.
        missing: why the others do not.
        facts: the node as each runtime's documents must be made for.
        patterns: annotations that count for it, and that it may see.
        devices_withheld: privileged containers get no host devices.
        precompiled: it takes a compiled seccomp filter.
        own_sandboxes: it makes a sandbox of each container.
        usable: runtimes whose books can be read and whose programs run.
        shared_books: its root may be somebody else's too (`sandbox.sweep`).
        retired: names that no new pod gets.
    """

    default: str
    compile_seccomp: bool = False
    runtimes: dict[str, OciRuntime] = field(default_factory=dict)
    infos: dict[str, RuntimeInfo] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, HostFacts] = field(default_factory=dict)
    patterns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    devices_withheld: set[str] = field(default_factory=set)
    precompiled: set[str] = field(default_factory=set)
    own_sandboxes: set[str] = field(default_factory=set)
    usable: dict[str, OciRuntime] = field(default_factory=dict)
    shared_books: set[str] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)

    def wanted(self, handler: str) -> tuple[str, OciRuntime]:
        """The runtime that a pod's handler stands for; empty is the default.

        Raises:
            InvalidArgument: no such handler is configured.
        """
        name = handler or self.default
        runtime = self.runtimes.get(name)
        if runtime is None or name in self.retired:
            known = ", ".join(sorted(self.runtimes.keys() - self.retired))
            raise InvalidArgument(
                f"runtime handler {handler!r} is not configured",
                hint=f"configured are: {known};"
                " add a [runtimes.NAME] table or correct the RuntimeClass",
            )
        return name, runtime

    def learn(
        self,
        handler: RuntimeHandler,
        runtime: OciRuntime,
        info: RuntimeInfo | None,
        facts: HostFacts,
        *,
        missing: str = "",
        shared: bool = False,
    ) -> None:
        """Take over a handler, a new one or one that has changed.

        Args:
            handler: as configured.
            runtime: drives it.
            info: what the program has said; None where it does not run.
            facts: the node for this runtime.
            missing: why the program does not run.
            shared: its root is not the daemon's own.
        """
        name = handler.name
        self.retired.discard(name)
        self.runtimes[name] = runtime
        self.facts[name] = facts
        self.patterns[name] = handler.allowed_annotations
        _put(self.infos, name, info)
        _put(self.missing, name, missing or None)
        _put(self.usable, name, None if info is None else runtime)
        withheld = handler.privileged_without_host_devices
        compiled = self.compile_seccomp and info is not None and info.compiled_seccomp
        _mark(self.devices_withheld, name, wanted=withheld)
        _mark(self.precompiled, name, wanted=compiled)
        _mark(self.own_sandboxes, name, wanted=is_gvisor(handler))
        _mark(self.shared_books, name, wanted=shared)

    def retire(self, name: str) -> None:
        """No new pod gets it from now on."""
        self.retired.add(name)
        self.infos.pop(name, None)
        self.missing.pop(name, None)


def _put(into: dict[str, V], key: str, value: V | None) -> None:
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value


def _mark(into: set[str], name: str, *, wanted: bool) -> None:
    (into.add if wanted else into.discard)(name)
