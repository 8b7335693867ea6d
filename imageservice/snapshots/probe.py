"""What overlayfs of this kernel can do, learnt by mounting a small one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError, Unsupported, map_os_errors
from sandbox.host.files import remove_tree
from sandbox.host.journal import get_logger
from sandbox.host.mounts import Mount, mount_one, unmount

if TYPE_CHECKING:
    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)
_INDEX_PARAMETER: Final = Path("/sys/module/overlay/parameters/index")


def probe_options(directory: Path, syscalls: Syscalls) -> tuple[str, ...]:
    """The options for a writable overlay that this kernel takes; blocking.

    Args:
        directory: made, used and removed; on the file system that will hold the layers.
        syscalls: the kernel.

    Raises:
        Unsupported: overlayfs does not work there at all.
        PodwrightError: as the kernel says.
    """
    remove_tree(directory)
    parts = {name: directory / name for name in ("lower", "upper", "work", "target")}
    with map_os_errors("cannot make probe directories", path=str(directory)):
        directory.mkdir(0o700)
        for path in parts.values():
            path.mkdir(0o700)
    plain = ("index=off",) if _INDEX_PARAMETER.exists() else ()
    words = tuple(f"{name}dir={parts[name]}" for name in ("lower", "upper", "work"))
    try:
        for options in dict.fromkeys((("volatile", *plain), plain, ())):
            if _mounts((*words, *options), parts["target"], syscalls):
                return options
    finally:
        remove_tree(directory)
    raise Unsupported(
        "overlayfs cannot be used for images here",
        hint="load the overlay module, and keep images on ext4, XFS with ftype=1 or tmpfs",
        path=str(directory.parent),
    )


def _mounts(options: tuple[str, ...], target: Path, syscalls: Syscalls) -> bool:
    try:
        mount_one(Mount("overlay", "overlay", target, options), syscalls=syscalls)
    except PodwrightError as error:
        _log.debug("overlay options are not taken", options=",".join(options), error=error)
        return False
    unmount(target, syscalls=syscalls)
    remove_tree(target.parent / "work" / "work")  # `volatile` left its mark there
    return True
