"""`Mount`, the one currency of what is to be mounted, and carrying it out and taking it back.

The image store emits `Mount` values, the spec builder reads them, and neither knows the other.
Options are the words of mount(8); which of them are flags of mount(2), attributes of
mount_setattr(2), propagation or text for the file system is decided here and nowhere else.

    Mount("bind", "/srv/data", Path("/run/x"), ("rbind", "ro", "nosuid"))
    Mount("overlay", "overlay", Path("/run/r"), ("lowerdir=/l2:/l1", "upperdir=/u", "workdir=/w"))
    Mount("tmpfs", "shm", Path("/run/shm"), ("size=65536k", "mode=1777", "nodev"))
    Mount("bind", "/srv/data", Path("/run/x"), ("rbind", "X-mount.idmap=/run/namespaces/p/user"))

All functions block: call them in a thread.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandbox.host import idmap, overlay
from sandbox.host import syscalls as sc
from sandbox.host.clock import Clock, SystemClock
from sandbox.host.errors import (
    Busy,
    InvalidArgument,
    PodwrightError,
    Unsupported,
    from_os_error,
)
from sandbox.host.mountinfo import MountInfo, list_mounts, mount_of, mounts_below
from sandbox.host.trees import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "Mount",
    "MountInfo",
    "clear_away",
    "list_mounts",
    "mount_all",
    "mount_of",
    "mount_one",
    "mounts_below",
    "unmount",
    "unmount_tree",
]

#: Wait between tries when umount2 says EBUSY; then the mount is detached. A program that looked
#: into the mount for a moment (a scanner, du) is gone after this, one that lives there is not.
BUSY_RETRY_DELAY_S: Final = 0.1
BUSY_RETRIES: Final = 3
#: Mounts stacked on one place that `unmount` takes away before it calls the place endless.
STACK_LIMIT: Final = 128

#: mount(8) word -> (mount(2) flags to set, flags to clear).
_FLAGS: Final = {
    "defaults": (0, 0),
    "rw": (0, sc.MS_RDONLY),
    "ro": (sc.MS_RDONLY, 0),
    "suid": (0, sc.MS_NOSUID),
    "nosuid": (sc.MS_NOSUID, 0),
    "dev": (0, sc.MS_NODEV),
    "nodev": (sc.MS_NODEV, 0),
    "exec": (0, sc.MS_NOEXEC),
    "noexec": (sc.MS_NOEXEC, 0),
    "async": (0, sc.MS_SYNCHRONOUS),
    "sync": (sc.MS_SYNCHRONOUS, 0),
    "dirsync": (sc.MS_DIRSYNC, 0),
    "mand": (sc.MS_MANDLOCK, 0),
    "nomand": (0, sc.MS_MANDLOCK),
    "atime": (0, sc.MS_NOATIME),
    "noatime": (sc.MS_NOATIME, 0),
    "diratime": (0, sc.MS_NODIRATIME),
    "nodiratime": (sc.MS_NODIRATIME, 0),
    "relatime": (sc.MS_RELATIME, 0),
    "norelatime": (0, sc.MS_RELATIME),
    "strictatime": (sc.MS_STRICTATIME, 0),
    "nostrictatime": (0, sc.MS_STRICTATIME),
    "lazytime": (sc.MS_LAZYTIME, 0),
    "nolazytime": (0, sc.MS_LAZYTIME),
    "symfollow": (0, sc.MS_NOSYMFOLLOW),
    "nosymfollow": (sc.MS_NOSYMFOLLOW, 0),
    "silent": (sc.MS_SILENT, 0),
    "remount": (sc.MS_REMOUNT, 0),
    "bind": (sc.MS_BIND, 0),
    "rbind": (sc.MS_BIND | sc.MS_REC, 0),
}
_PROPAGATION: Final = {
    "private": sc.MS_PRIVATE,
    "rprivate": sc.MS_PRIVATE | sc.MS_REC,
    "slave": sc.MS_SLAVE,
    "rslave": sc.MS_SLAVE | sc.MS_REC,
    "shared": sc.MS_SHARED,
    "rshared": sc.MS_SHARED | sc.MS_REC,
    "unbindable": sc.MS_UNBINDABLE,
    "runbindable": sc.MS_UNBINDABLE | sc.MS_REC,
}
#: Attributes that mount_setattr(2) and a bind mount know, by mount(2) flag.
_ATTRIBUTES: Final = {
    sc.MS_RDONLY: sc.MOUNT_ATTR_RDONLY,
    sc.MS_NOSUID: sc.MOUNT_ATTR_NOSUID,
    sc.MS_NODEV: sc.MOUNT_ATTR_NODEV,
    sc.MS_NOEXEC: sc.MOUNT_ATTR_NOEXEC,
    sc.MS_NODIRATIME: sc.MOUNT_ATTR_NODIRATIME,
    sc.MS_NOSYMFOLLOW: sc.MOUNT_ATTR_NOSYMFOLLOW,
}
#: Access-time modes are one field of the attributes, not bits: linux/mount.h.
_ATIME: Final = {
    sc.MS_NOATIME: sc.MOUNT_ATTR_NOATIME,
    sc.MS_STRICTATIME: sc.MOUNT_ATTR_STRICTATIME,
    sc.MS_RELATIME: sc.MOUNT_ATTR_RELATIME,
}
#: Words for "read-only, and every mount below as well" (runtime-spec's name; ours too).
_RECURSIVE_READ_ONLY: Final = "rro"


@dataclass(frozen=True, slots=True)
class Mount:
    """Something to mount: `type` as in mount(8) -t ("bind" and "none" included), words, a place."""

    type: str
    source: str
    target: Path
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class _Parsed:
    """A mount's words, sorted by who understands them."""

    flags: int = 0
    cleared: int = 0
    propagation: list[int] = field(default_factory=list)
    recursive_read_only: bool = False
    idmap: str = ""
    data: list[str] = field(default_factory=list)


def _parse(mount: Mount) -> _Parsed:
    parsed = _Parsed()
    if mount.type == "bind":
        parsed.flags |= sc.MS_BIND
    elif mount.type == "rbind":
        parsed.flags |= sc.MS_BIND | sc.MS_REC
    for word in mount.options:
        if "\0" in word:
            raise InvalidArgument("mount option contains a NUL byte", path=str(mount.target))
        if word in _FLAGS:
            on, off = _FLAGS[word]
            parsed.flags = (parsed.flags | on) & ~off
            parsed.cleared = (parsed.cleared | off) & ~on
        elif word in _PROPAGATION:
            parsed.propagation.append(_PROPAGATION[word])
        elif word == _RECURSIVE_READ_ONLY:
            parsed.recursive_read_only = True
        elif word.startswith(idmap.WORD + "="):
            parsed.idmap = word.partition("=")[2]
        elif word:
            parsed.data.append(word)
    return parsed


def mount_one(mount: Mount, *, syscalls: sc.Syscalls) -> None:
    """Mount; what was begun is undone when a later step of it fails.

    The target must exist and its last component must not be a symlink.

    Raises:
        NotFound: source or target is missing.
        InvalidArgument: the words do not fit the file system, or the target is a symlink.
        Unsupported: the kernel cannot do it (file system type, recursive read-only, long lists).
        Busy, Denied, ResourceExhausted: as the kernel says.
    """
    parsed = _parse(mount)
    _refuse_symlink(mount.target)
    if parsed.flags & sc.MS_REMOUNT:
        _attributes_or_remount(mount, parsed, syscalls)
        _propagate(mount, parsed, syscalls)
        return
    if not _is_new(mount, parsed):
        _propagate(mount, parsed, syscalls)
        return
    try:
        _mount_new(mount, parsed, syscalls)
    except PodwrightError as error:
        if sc.errno_of(error) == errno.ENOENT:
            error.hint = error.hint or f"source {mount.source} or the target does not exist"
        raise
    try:
        if parsed.flags & sc.MS_BIND:
            # Owner's flags of the source mount stay: mount_setattr changes only what was asked,
            # where a bind remount would silently give back suid or exec that the source forbids.
            _set_attributes(mount, parsed, syscalls)
        if parsed.recursive_read_only:
            syscalls.mount_setattr(
                sc.AT_FDCWD, mount.target, sc.AT_RECURSIVE, attr_set=sc.MOUNT_ATTR_RDONLY
            )
        _propagate(mount, parsed, syscalls)
    except BaseException:
        with suppress(PodwrightError):
            syscalls.umount2(mount.target, sc.MNT_DETACH | sc.UMOUNT_NOFOLLOW)
        raise


def _is_new(mount: Mount, parsed: _Parsed) -> bool:
    return bool(parsed.flags & sc.MS_BIND) or mount.type not in ("", "none")


def _refuse_symlink(target: Path) -> None:
    try:
        is_link = target.is_symlink()
    except OSError as error:
        raise from_os_error(error, "cannot mount", path=str(target)) from error
    if is_link:
        raise InvalidArgument("mount target is a symlink", path=str(target))


def _mount_new(mount: Mount, parsed: _Parsed, syscalls: sc.Syscalls) -> None:
    if parsed.idmap:
        if not parsed.flags & sc.MS_BIND:
            raise InvalidArgument("only a bind mount has mapped owners", path=str(mount.target))
        idmap.mount_idmapped(
            mount.source,
            mount.target,
            parsed.idmap,
            recursive=bool(parsed.flags & sc.MS_REC),
            syscalls=syscalls,
        )
        return
    if parsed.flags & sc.MS_BIND:
        kind = parsed.flags & (sc.MS_BIND | sc.MS_REC)
        syscalls.mount(mount.source, mount.target, "", kind)
        return
    data = overlay.join_options(parsed.data, path=str(mount.target))
    if mount.type == "overlay" and len(os.fsencode(data)) >= overlay.DATA_LIMIT_BYTES:
        try:
            overlay.mount_by_layers(
                mount.source,
                mount.target,
                parsed.data,
                attributes=_attributes(parsed.flags),
                syscalls=syscalls,
            )
        except Unsupported:
            overlay.mount_by_descriptors(
                mount.source, mount.target, parsed.data, flags=parsed.flags, syscalls=syscalls
            )
        return
    syscalls.mount(mount.source, mount.target, mount.type, parsed.flags, data)


def _attributes(flags: int) -> int:
    value = sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)
    return value | next((mode for flag, mode in _ATIME.items() if flags & flag), 0)


def _set_attributes(mount: Mount, parsed: _Parsed, syscalls: sc.Syscalls) -> None:
    to_set, to_clear = _attributes(parsed.flags), _attributes(parsed.cleared)
    if any(parsed.flags & flag for flag in _ATIME):
        to_clear |= sc.MOUNT_ATTR_ATIME_MASK
    if not to_set and not to_clear:
        return
    try:
        syscalls.mount_setattr(sc.AT_FDCWD, mount.target, 0, attr_set=to_set, attr_clr=to_clear)
    except PodwrightError as error:
        if sc.errno_of(error) != errno.ENOSYS:
            raise
        # Before Linux 5.12: read what the bind inherited and say it all again.
        inherited = os.statvfs(mount.target).f_flag & ~parsed.cleared
        flags = inherited & sum(_STATVFS_FLAGS) | parsed.flags & ~(sc.MS_REC | sc.MS_REMOUNT)
        syscalls.mount("", mount.target, "", flags | sc.MS_BIND | sc.MS_REMOUNT)


#: statvfs(3) ST_* bits that have the same number as their mount(2) flag.
_STATVFS_FLAGS: Final = (
    sc.MS_RDONLY,
    sc.MS_NOSUID,
    sc.MS_NODEV,
    sc.MS_NOEXEC,
    sc.MS_NOATIME,
    sc.MS_NODIRATIME,
)


def _attributes_or_remount(mount: Mount, parsed: _Parsed, syscalls: sc.Syscalls) -> None:
    if parsed.flags & sc.MS_BIND:
        _set_attributes(mount, parsed, syscalls)
    else:
        data = overlay.join_options(parsed.data, path=str(mount.target))
        syscalls.mount(mount.source, mount.target, "", parsed.flags, data)
    if parsed.recursive_read_only:
        syscalls.mount_setattr(
            sc.AT_FDCWD, mount.target, sc.AT_RECURSIVE, attr_set=sc.MOUNT_ATTR_RDONLY
        )


def _propagate(mount: Mount, parsed: _Parsed, syscalls: sc.Syscalls) -> None:
    for kind in parsed.propagation:
        syscalls.mount("", mount.target, "", kind)


def mount_all(mounts: Iterable[Mount], *, syscalls: sc.Syscalls) -> None:
    """Mount each in order; when one fails, those before it are unmounted and its error raised.

    Raises:
        PodwrightError: as `mount_one`.
    """
    done: list[Path] = []
    try:
        for mount in mounts:
            mount_one(mount, syscalls=syscalls)
            if _is_new(mount, _parse(mount)) and "remount" not in mount.options:
                done.append(mount.target)
    except BaseException:
        for target in reversed(done):
            with suppress(PodwrightError):
                syscalls.umount2(target, sc.MNT_DETACH | sc.UMOUNT_NOFOLLOW)
        raise


def unmount(target: Path, *, syscalls: sc.Syscalls, clock: Clock | None = None) -> bool:
    """Take away everything mounted exactly at `target`; False when nothing was.

    A busy mount is tried again a few times and then detached: it vanishes from the tree at once
    and from the machine when its last user ends. A symlink at `target` is not followed.

    Raises:
        Denied: the kernel refuses.
        Busy: other programs keep mounting there.
    """
    clock = clock or SystemClock()
    for done in range(STACK_LIMIT):
        if not _unmount_top(target, syscalls, clock):
            return done > 0
    raise InvalidArgument("mounts on path do not end", path=str(target))


def _unmount_top(target: Path, syscalls: sc.Syscalls, clock: Clock) -> bool:
    for attempt in range(BUSY_RETRIES + 1):
        last = attempt == BUSY_RETRIES
        try:
            syscalls.umount2(target, sc.UMOUNT_NOFOLLOW | (sc.MNT_DETACH if last else 0))
        except PodwrightError as error:
            number = sc.errno_of(error)
            if number in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return False
            if number != errno.EBUSY or last:
                raise
            if attempt + 1 < BUSY_RETRIES:
                clock.sleep_blocking(BUSY_RETRY_DELAY_S)
        else:
            return True
    raise AssertionError("the last try returns or raises")


def unmount_tree(prefix: Path, *, syscalls: sc.Syscalls, clock: Clock | None = None) -> list[Path]:
    """Unmount everything at or below `prefix`, deepest first; the places that had a mount.

    One that fails does not stop the others; the first error is raised at the end.

    Raises:
        PodwrightError: as `unmount`.
    """
    # mountinfo has real paths; the last component is kept as given, it may be a planted symlink.
    real = prefix.parent.resolve() / prefix.name if prefix.name else prefix
    below = [mount.target for mount in mounts_below(real)]
    done: list[Path] = []
    first: PodwrightError | None = None
    for target in sorted(set(below), key=lambda path: len(path.parts), reverse=True):
        try:
            if unmount(target, syscalls=syscalls, clock=clock):
                done.append(target)
        except PodwrightError as error:
            first = first or error
    if first is not None:
        raise first
    return done


def clear_away(directory: Path, *, syscalls: sc.Syscalls) -> None:
    """Remove a directory with all below it, and take away what is mounted there; idempotent.

    Removing never crosses a mount, so it is tried first: that is all there is to do nearly always,
    and what is mounted on the whole machine need not be read for it.

    Raises:
        PodwrightError: as `unmount_tree` and `remove_tree`.
    """
    try:
        remove_tree(directory)
    except Busy:
        unmount_tree(directory, syscalls=syscalls)
        remove_tree(directory)
