"""What overlayfs of this kernel can do, learnt by mounting a small one."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host import fuse
from sandbox.host.errors import PodwrightError, Unsupported, map_os_errors
from sandbox.host.files import remove_tree
from sandbox.host.idmap import WORD
from sandbox.host.journal import get_logger
from sandbox.host.mounts import Mount, mount_all, mount_one, unmount, unmount_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner
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


def probe_mapping(directory: Path, namespace: Path, syscalls: Syscalls) -> str:
    """Why root file systems cannot have the mapping of a user namespace; empty when they can.

    Mounts a small overlay on a layer with mapped owners and looks who owns a file in it; blocking.

    Args:
        directory: made, used and removed; on the file system that holds the layers.
        namespace: where a user namespace is pinned whose root is not the node's.
        syscalls: the kernel.
    """
    parts = {name: directory / name for name in ("layer", "lower", "upper", "work", "target")}
    words = tuple(f"{name}dir={parts[name]}" for name in ("lower", "upper", "work"))
    bind = Mount("bind", str(parts["layer"]), parts["lower"], ("bind", "ro", f"{WORD}={namespace}"))
    try:
        with _probing_now(directory, parts, syscalls):
            (parts["layer"] / "file").touch(0o600)
            mount_all(
                [bind, Mount("overlay", "overlay", parts["target"], words)], syscalls=syscalls
            )
            if (parts["target"] / "file").stat().st_uid == 0:
                return "overlayfs does not follow the mapping of its layers"
    except (PodwrightError, OSError) as error:
        return str(error)
    return ""


async def probe_fuse(
    directory: Path, program: Path, *, runner: ProcessRunner, syscalls: Syscalls, clock: Clock
) -> None:
    """Have fuse-overlayfs serve a small root file system, with a whiteout and a write.

    Args:
        directory: made, used and removed; on the file system that will hold the layers.
        program: fuse-overlayfs.
        runner: starts it.
        syscalls: the kernel.
        clock: for the waiting.

    Raises:
        Unsupported: it does not work there.
    """
    parts = {name: directory / name for name in ("low", "top", "upper", "work", "target")}
    words = (
        f"lowerdir={parts['top']}:{parts['low']}",
        *(f"{name}dir={parts[name]}" for name in ("upper", "work")),
    )

    def fill() -> None:
        with map_os_errors("cannot make probe directories", path=str(directory)):
            fuse.DEVICE.open("rb").close()
            for name in ("seen", "hidden"):
                (parts["low"] / name).touch()
            os.mknod(parts["top"] / "hidden", stat.S_IFCHR, os.makedev(0, 0))

    def look() -> str:
        names = sorted(path.name for path in parts["target"].iterdir())
        (parts["target"] / "new").touch()
        fits = names == ["seen"] and (parts["upper"] / "new").exists()
        return "" if fits else "it does not show layers as overlayfs does"

    try:
        async with AsyncExitStack() as stack, _probing(directory, parts, syscalls):
            await asyncio.to_thread(fill)
            mount = Mount(fuse.FUSE_OVERLAYFS, str(program), parts["target"], words)
            server = await fuse.serve(mount, runner=runner, syscalls=syscalls, clock=clock)
            stack.push_async_callback(fuse.ended, server)
            reason = await asyncio.to_thread(look)
    except (PodwrightError, OSError) as error:
        reason = str(error)
    if reason:
        raise Unsupported(
            f"fuse-overlayfs cannot be used for images here: {reason}",
            hint="install fuse-overlayfs, load the fuse module and let the daemon open /dev/fuse",
            path=str(directory.parent),
        )


async def probe_fuse_mapping(
    directory: Path,
    namespace: Path,
    program: Path,
    *,
    runner: ProcessRunner,
    syscalls: Syscalls,
    clock: Clock,
) -> str:
    """As `probe_mapping`, with fuse-overlayfs."""
    parts = {name: directory / name for name in ("layer", "lower", "upper", "work", "target")}
    words = tuple(f"{name}dir={parts[name]}" for name in ("lower", "upper", "work"))
    source = str(parts["layer"])
    bind = Mount("bind", source, parts["lower"], ("bind", "ro", f"{WORD}={namespace}"))

    def fill() -> None:
        with map_os_errors("cannot make probe directories", path=str(directory)):
            (parts["layer"] / "file").touch(0o600)
        mount_one(bind, syscalls=syscalls)

    try:
        async with AsyncExitStack() as stack, _probing(directory, parts, syscalls):
            await asyncio.to_thread(fill)
            mount = Mount(fuse.FUSE_OVERLAYFS, str(program), parts["target"], words)
            server = await fuse.serve(mount, runner=runner, syscalls=syscalls, clock=clock)
            stack.push_async_callback(fuse.ended, server)
            status = await asyncio.to_thread((parts["target"] / "file").stat)
            if status.st_uid == 0:
                return "fuse-overlayfs does not follow the mapping of its layers"
    except (PodwrightError, OSError) as error:
        return str(error)
    return ""


def probe_bind_mapping(directory: Path, namespace: Path, syscalls: Syscalls) -> str:
    """As `probe_mapping`, for a directory that is bound as it is; blocking."""
    parts = {name: directory / name for name in ("source", "target")}
    mapped = Mount("bind", str(parts["source"]), parts["target"], ("bind", f"{WORD}={namespace}"))
    try:
        with _probing_now(directory, parts, syscalls):
            mount_one(mapped, syscalls=syscalls)
            if parts["target"].stat().st_uid == 0:
                return "owners are not mapped"
    except (PodwrightError, OSError) as error:
        return str(error)
    return ""


@contextmanager
def _probing_now(directory: Path, parts: Mapping[str, Path], syscalls: Syscalls) -> Iterator[None]:
    """Make the directories, and take away everything below when the block ends; blocking."""

    def clear() -> None:
        # A daemon that was killed in the middle of this has left mounts.
        unmount_tree(directory, syscalls=syscalls)
        remove_tree(directory)

    clear()
    with map_os_errors("cannot make probe directories", path=str(directory)):
        directory.mkdir(0o700)
        for path in parts.values():
            path.mkdir(0o700)
    try:
        yield
    finally:
        clear()


@asynccontextmanager
async def _probing(
    directory: Path, parts: Mapping[str, Path], syscalls: Syscalls
) -> AsyncIterator[None]:
    """`_probing_now` in threads."""
    block = _probing_now(directory, parts, syscalls)
    await asyncio.to_thread(block.__enter__)
    try:
        yield
    finally:
        await asyncio.shield(asyncio.to_thread(block.__exit__, None, None, None))


def _mounts(options: tuple[str, ...], target: Path, syscalls: Syscalls) -> bool:
    try:
        mount_one(Mount("overlay", "overlay", target, options), syscalls=syscalls)
    except PodwrightError as error:
        _log.debug("overlay options are not taken", options=",".join(options), error=error)
        return False
    unmount(target, syscalls=syscalls)
    remove_tree(target.parent / "work" / "work")  # `volatile` left its mark there
    return True
