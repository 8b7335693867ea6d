"""How much a container may write to its root file system: a project quota on its writable layer.

The layer's directory gets a project of its own before anything is made in it, so upper and work
directory and the volumes that its image declares count together; the container sees EDQUOT ("Disk
quota exceeded"). Two ways to a limit:

* `runtime.writable_layer_bytes` is every container's, and the most that can be had;
* the annotation `podwright.io/writable-layer-bytes` of a container, or of its pod for all of them,
  asks for less, where the handler's `allowed_annotations` lets it through.

A limit is a promise. Where the file system cannot keep it, a daemon with the setting does not
start, and a container with the annotation is refused; neither runs without. Who has
CAP_SYS_RESOURCE, such as a privileged container, is not held: the kernel exempts it.

Which project is whose is written in the directories themselves and nowhere else, so it cannot
disagree with them: it is read back from there at the start, and projects of ours that have a limit
but no files are what was left of layers that were removed just before an end.
"""

from __future__ import annotations

import asyncio
import re
import threading
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Final

from sandbox.host import files
from sandbox.host.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PodwrightError,
    ResourceExhausted,
    Unsupported,
)
from sandbox.host.journal import get_logger
from sandbox.host.project_quota import (
    ProjectUse,
    QuotaState,
    join_project,
    limit_project,
    project_of,
    projects_from,
    quota_state,
    use_of,
)
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

ANNOTATION: Final = "podwright.io/writable-layer-bytes"
#: Far from where others number projects: kubelets begin at 1,048,577, container tools near 1.
FIRST_PROJECT: Final = 0x5057_0000
PROJECTS: Final = 0x1_0000
#: Less than a few directories and files of overlayfs' own is no layer.
LEAST_BYTES: Final = 64 * 1024
REMEDY: Final = (
    "mount the file system of state_root with -o prjquota; ext4 must first get the feature:"
    ' tune2fs -O project,quota, unmounted; where the mount says "No such process",'
    " modprobe quota_v2, if this kernel has that module"
)

#: By storage driver: why nothing can be limited with it.
LACKS: Final = {
    "fuse-overlayfs": "fuse-overlayfs writes with the node's own rights, which no quota holds",
    "native": "with the storage driver native, what is written is not apart from the image",
}

_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_QUANTITY: Final = re.compile(r"([1-9][0-9]{0,17})([KMG]i?)?")

_log = get_logger("layers")


def asked_bytes(
    pod: Mapping[str, str],
    container: Mapping[str, str],
    *,
    patterns: Iterable[str],
    most_bytes: int,
) -> int:
    """The limit of one container, 0 for none. Pure.

    Args:
        pod: annotations of the pod.
        container: annotations of the container, which win.
        patterns: the handler's `allowed_annotations`; what they do not name is not looked at.
        most_bytes: the setting; 0: no limit of its own, and none on what may be asked for.

    Raises:
        InvalidArgument: the annotation is no size, or more than the setting.
    """
    text = container.get(ANNOTATION, pod.get(ANNOTATION))
    if text is None or not any(_lets_through(pattern) for pattern in patterns):
        return most_bytes
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            f"annotation {ANNOTATION} is not a size: {text[:64]!r}",
            hint="write a whole number of bytes, or one with K, M, G, Ki, Mi or Gi",
        )
    wanted = int(match[1]) * _UNITS[match[2] or ""]
    if wanted < LEAST_BYTES or (most_bytes and wanted > most_bytes):
        most = f" to {most_bytes}" if most_bytes else " bytes or more"
        raise InvalidArgument(
            f"annotation {ANNOTATION} must be {LEAST_BYTES}{most}: {wanted}",
            hint="the upper bound is the setting runtime.writable_layer_bytes",
        )
    return wanted


def _lets_through(pattern: str) -> bool:
    """As everywhere, a pattern must name the prefix: `*` alone does not open what steers."""
    return pattern.startswith("podwright.io/") and fnmatchcase(ANNOTATION, pattern)


class LayerLimits:
    """Projects of the writable layers in one directory; for one event loop and its threads."""

    def __init__(
        self, layers: Path, *, most_bytes: int, patterns: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Nothing is touched before `open`.

        Args:
            layers: the directory that holds a directory for each container's layer.
            most_bytes: see `asked_bytes`.
            patterns: `allowed_annotations` by handler.
        """
        self._layers = layers
        self._most_bytes = most_bytes
        self._patterns = patterns
        self._state = QuotaState.OFF
        self._lack = ""
        self._lock = threading.Lock()
        self._projects: dict[str, int] = {}

    async def open(self) -> None:
        """Look what the file system can, and whose projects there are.

        Raises:
            FailedPrecondition: a limit is configured that it cannot keep.
        """
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        self._state = quota_state(self._layers)
        if self._most_bytes and self._state is not QuotaState.ENFORCED:
            raise FailedPrecondition(
                "runtime.writable_layer_bytes is set, but the file system keeps no project quota",
                path=str(self._layers),
                state=self._state.value,
                hint=f"{REMEDY}; or set it to 0",
            )
        if self._state is QuotaState.OFF:
            return
        for directory in self._layers.iterdir():
            try:
                project = project_of(directory)
            except PodwrightError:
                continue
            if _is_ours(project):
                self._projects[directory.name] = project

    def hold_to(self, driver: str) -> None:
        """Say how root file systems are made; once, at the start.

        Raises:
            FailedPrecondition: a limit is configured that cannot be kept with that driver.
        """
        self._lack = LACKS.get(driver, "")
        if self._lack and self._most_bytes:
            raise FailedPrecondition(
                f"runtime.writable_layer_bytes cannot be kept: {self._lack}",
                hint="set image.storage_driver to overlay, or runtime.writable_layer_bytes to 0",
            )

    async def sweep(self) -> None:
        """Take away limits of layers that are gone; to be called after the recovery."""
        if self._state is not QuotaState.OFF:
            await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        with self._lock:
            known = set(self._projects.values())
            try:
                for use in projects_from(self._layers, FIRST_PROJECT):
                    if not _is_ours(use.project):
                        return
                    if use.project not in known and use.limit_bytes and not use.inodes:
                        limit_project(self._layers, use.project, 0)
            except PodwrightError as error:
                _log.warning("limits of removed layers stay", error=error)

    async def apply(
        self,
        container_id: str,
        handler: str,
        pod: Mapping[str, str],
        container: Mapping[str, str],
    ) -> None:
        """Make the layer's directory with its limit, if it has one; before anything is in it.

        Args:
            container_id: whose layer.
            handler: the pod's runtime handler.
            pod: its annotations.
            container: the container's annotations.

        Raises:
            InvalidArgument: see `asked_bytes`.
            Unsupported: a limit is asked for and the file system cannot keep it.
            ResourceExhausted: no project is left.
        """
        limit_bytes = asked_bytes(
            pod,
            container,
            patterns=self._patterns.get(handler, ()),
            most_bytes=self._most_bytes,
        )
        if not limit_bytes:
            return
        if self._lack:
            raise Unsupported(
                f"annotation {ANNOTATION} cannot be kept: {self._lack}",
                hint="the storage driver overlay can (image.storage_driver)",
            )
        if self._state is not QuotaState.ENFORCED:
            raise Unsupported(
                f"annotation {ANNOTATION} cannot be kept: no project quota here",
                path=str(self._layers),
                hint=REMEDY,
            )
        await to_its_end(partial(self._apply, container_id, limit_bytes))

    def _apply(self, container_id: str, limit_bytes: int) -> None:
        directory = self._layers / container_id
        files.make_private_dir(directory)
        with self._lock:
            project = self._projects.get(container_id) or self._free_project()
            self._projects[container_id] = project
        limit_project(directory, project, limit_bytes)
        join_project(directory, project)

    def _free_project(self) -> int:
        """The first that none of ours has and that has no files, whoever made them."""
        taken = set(self._projects.values())
        for project in range(FIRST_PROJECT, FIRST_PROJECT + PROJECTS):
            if project not in taken and not use_of(self._layers, project).inodes:
                return project
        raise ResourceExhausted("no project number is left for a writable layer", limit=PROJECTS)

    def release(self, container_id: str) -> None:
        """Give the project back, after the layer's directory is gone; blocking, repeatable.

        A limit that cannot be taken away now is taken away at the next start.
        """
        with self._lock:
            project = self._projects.get(container_id)
            if project is None:
                return
            try:
                limit_project(self._layers, project, 0)
            except PodwrightError as error:
                _log.warning("limit of a removed layer stays", container=container_id, error=error)
            del self._projects[container_id]

    def use(self, container_id: str) -> ProjectUse | None:
        """What a limited layer takes, as the kernel counts it; None for others. Blocking."""
        project = self._projects.get(container_id)
        if project is None:
            return None
        try:
            return use_of(self._layers, project)
        except NotFound:
            return None


def _is_ours(project: int) -> bool:
    return FIRST_PROJECT <= project < FIRST_PROJECT + PROJECTS
