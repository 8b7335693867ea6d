"""What SIGHUP changes, and where: by key of a setting, who is told its new value."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from cri import settings_images
from cri import settings_table as table
from sandbox.host import journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cni.network import PodNetwork
    from cri.config import Config
    from imageservice.registry.client import RegistryClient
    from imageservice.service import ImageService
    from sandbox.handlers import Handlers

    Apply = Callable[[Config], object]

#: Where results are saved is where the pods of now have theirs.
_NETWORK: Final = tuple(
    setting.key
    for setting in table.TABLE
    if setting.section == "cni" and setting.key != table.CNI_CACHE_DIR.key
)


def appliers(
    registries: RegistryClient, images: ImageService, network: PodNetwork, handlers: Handlers
) -> Mapping[str, Apply]:
    """For `cri.reload.Reloader`. None of them may fail: the configuration is valid by then."""
    directories, pinned = settings_images.REGISTRY_DIRS, settings_images.PINNED_IMAGES
    return {
        table.LOG_LEVEL.key: set_log_level,
        directories.key: lambda new: registries.hosts.look_in(new.get(directories)),
        pinned.key: lambda new: images.inventory.configure_pinned(new.get(pinned)),
        table.DEFAULT_RUNTIME.key: partial(_choose_default, handlers),
        **dict.fromkeys(_NETWORK, lambda new: network.configure(new.cni())),
    }


def set_log_level(config: Config) -> None:
    """Log from the level of `config` on."""
    journal.configure(config.get(table.LOG_LEVEL), json=config.get(table.LOG_FORMAT) == "json")


def _choose_default(handlers: Handlers, config: Config) -> None:
    handlers.default = config.get(table.DEFAULT_RUNTIME)
