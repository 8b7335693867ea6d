"""Where an OCI runtime keeps its books below `--root`, and what gVisor needs that others do not.

crun and runc have a directory for each container, named by its id. runsc has two files instead,
`ID_sandbox:SANDBOX.state` and `.lock`.

A container of a pod is a sandbox of its own under gVisor here: runsc gives a container that joins
another's sandbox the standard streams of `runsc start`, while its output must go to the monitor,
which called `create` (seen with release 20221219). Network, /dev/shm and the pod's files are shared
through the host as always; signals, process ids, System V IPC and abstract sockets are not. Every
sandbox therefore uses the sockets of the pod's network namespace (`--network=host` means that one):
with gVisor's own network stack the first would take the pod's address away from the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import clear_away

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.oci import Spec
    from sandbox.settings import RuntimeHandler

_CONTAINER_TYPE: Final = "io.kubernetes.cri.container-type"
_MARK: Final = "_sandbox:"
_NETWORK: Final = "--network"


def is_gvisor(handler: RuntimeHandler) -> bool:
    """Whether the handler's program is runsc; by its name, as it must be known before it is run."""
    return handler.path.name == "runsc"


def needed_options(handler: RuntimeHandler) -> tuple[str, ...]:
    """Global options without which the program cannot serve a pod; the configured ones win."""
    chosen = any(option.partition("=")[0] == _NETWORK for option in handler.options)
    return () if chosen or not is_gvisor(handler) else (f"{_NETWORK}=host",)


def as_own_sandbox(spec: Spec, hostname: str) -> Spec:
    """The document for a runtime that makes a machine of its own for it: see the module text.

    The hostname is repeated because such a machine does not see that of the namespace.
    """
    kept = {key: value for key, value in spec.annotations.items() if key != _CONTAINER_TYPE}
    return msgspec.structs.replace(spec, annotations=kept, hostname=hostname)


class Books:
    """What a runtime has written down about its containers. Every method blocks."""

    def __init__(self, handler: RuntimeHandler) -> None:
        self._root = handler.root
        self._flat = is_gvisor(handler)

    def has(self, cid: str) -> bool:
        """Whether there is anything about this container."""
        return next(self._of(cid), None) is not None if self._flat else (self._root / cid).is_dir()

    def directory(self, cid: str) -> Path:
        """Where crun and runc keep a container's books, there or not."""
        return self._root / cid

    def names(self) -> frozenset[str]:
        """The containers that there is something about; none when the root is absent."""
        try:
            entries = list(self._root.iterdir())
        except FileNotFoundError:
            return frozenset()
        if self._flat:
            return frozenset(
                entry.name.partition(_MARK)[0] for entry in entries if _MARK in entry.name
            )
        return frozenset(entry.name for entry in entries if entry.is_dir())

    def forget(self, cid: str) -> None:
        """Remove what there is about a container; not an error when there is nothing.

        runc runs its `init` from a mount of its own program among the books, for the moment in
        which it opens that (libcontainer/nsenter/cloned_binary.c, try_bindfd, v1.1.5). One that was
        killed in it, as an `exec` whose time is over, leaves the mount, and can then no more delete
        the container.
        """
        if not self._flat:
            clear_away(self._root / cid, syscalls=LibcSyscalls())
            return
        for path in self._of(cid):
            path.unlink(missing_ok=True)

    def _of(self, cid: str) -> Iterator[Path]:
        # Ids have no characters with a meaning to glob (`check_container_id`).
        return self._root.glob(f"{cid}{_MARK}*")
