"""What CRI can ask for and this version cannot do: refused by name, never silently left out.

Each line goes when the feature comes. Clients that read Status do not ask for these: no handler
announces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.host.errors import Unsupported
from sandbox.model import NamespaceMode

if TYPE_CHECKING:
    from sandbox.model import ContainerConfig, NamespaceOptions, PodConfig


def check_pod(config: PodConfig) -> None:
    """Raise Unsupported for what a pod cannot have yet."""
    _check_namespaces(config.security.namespaces)


def check_container(config: ContainerConfig) -> None:
    """Raise Unsupported for what a container cannot have yet."""
    _check_namespaces(config.security.namespaces)
    for mount in config.mounts:
        if mount.image is not None:
            raise Unsupported(
                "image volumes are not supported by this version", mount=mount.container_path
            )
        if mount.uid_mappings or mount.gid_mappings:
            raise Unsupported(
                "id-mapped mounts are not supported by this version", mount=mount.container_path
            )


def _check_namespaces(namespaces: NamespaceOptions) -> None:
    if namespaces.user is not None and namespaces.user.mode is not NamespaceMode.NODE:
        raise Unsupported(
            "user namespaces are not supported by this version",
            hint="leave hostUsers of the pod unset or true",
        )
