"""What CRI can ask for and this version cannot do: refused by name, never silently left out.

Each line goes when the feature comes. Clients that read Status do not ask for these: no handler
announces them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.host.errors import Unsupported

if TYPE_CHECKING:
    from sandbox.model import ContainerConfig


def check_container(config: ContainerConfig) -> None:
    """Raise Unsupported for what a container cannot have yet."""
    for mount in config.mounts:
        if mount.image is not None:
            raise Unsupported(
                "image volumes are not supported by this version", mount=mount.container_path
            )
