"""Overlay options that do not fit: one page of text for mount(2), one call per layer beyond it.

mount(2) copies at most a page of option text (mount(2), "data"); 128 layers need more. Relative
paths after a chdir are the old way around, but the working directory belongs to the whole process.
The new mount interface takes each layer by itself ("lowerdir+", Linux 6.7), by descriptor where the
path is longer than the 255 bytes a value may have (6.13), before that by the descriptor's name in
/proc, which mountinfo shows then. Older kernels get the names of descriptors for all of them: a
page has room for some 200.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from sandbox.host import syscalls as sc
from sandbox.host.errors import InvalidArgument, PodwrightError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Option text of mount(2) with its final NUL must fit in one page; 4096 is the smallest page.
DATA_LIMIT_BYTES: Final = 4096
#: Longest value of fsconfig(2) FSCONFIG_SET_STRING without its NUL (fs/fsopen.c).
_VALUE_LIMIT_BYTES: Final = 255
_PATH_KEYS: Final = ("lowerdir", "upperdir", "workdir", "lowerdir+", "datadir+")
_COLON = re.compile(r"(?<!\\):")


def join_options(words: Sequence[str], *, path: str) -> str:
    r"""The words as mount(2) takes them; commas inside an overlay path are escaped as `\,`.

    Raises:
        InvalidArgument: a comma would split a word that has no quotes and no escape.
    """
    return ",".join(_escaped(word, path) for word in words)


def _escaped(word: str, path: str) -> str:
    key, _, value = word.partition("=")
    if "," not in value or (value.startswith('"') and value.endswith('"')):
        if "," in key:
            raise InvalidArgument("mount option holds a comma", option=word, path=path)
        return word
    if key not in _PATH_KEYS:
        raise InvalidArgument("mount option holds a comma", option=word, path=path)
    return key + "=" + re.sub(r"(?<!\\),", r"\\,", value)


def split_layers(value: str) -> list[str]:
    r"""The directories of a `lowerdir=` value, topmost first; `\:` and `\,` are unescaped."""
    return [_plain(part) for part in _COLON.split(value)]


def _plain(escaped: str) -> str:
    return re.sub(r"\\(.)", r"\1", escaped)


def mount_by_layers(
    source: str,
    target: Path,
    words: Sequence[str],
    *,
    attributes: int,
    syscalls: sc.Syscalls,
) -> None:
    """Mount an overlay through fsopen(2), one layer at a time.

    Raises:
        Unsupported: the kernel has no such interface.
        PodwrightError: what the kernel said, with its own message as hint.
    """
    context = _supported(lambda: syscalls.fsopen("overlay"))
    try:
        try:
            syscalls.fsconfig_string(context, "source", source or "overlay")
            for word in words:
                _configure(context, word, syscalls)
            if attributes & sc.MOUNT_ATTR_RDONLY:
                syscalls.fsconfig_flag(context, "ro")
            syscalls.fsconfig_create(context)
        except PodwrightError as error:
            error.hint = error.hint or _kernel_message(context)
            raise
        mount = syscalls.fsmount(context, attributes)
        try:
            syscalls.move_mount(mount, "", sc.AT_FDCWD, target, sc.MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(mount)
    finally:
        os.close(context)


def mount_by_descriptors(
    source: str, target: Path, words: Sequence[str], *, flags: int, syscalls: sc.Syscalls
) -> None:
    """Mount an overlay by mount(2), every directory by the short name of a descriptor of ours.

    Raises:
        Unsupported: there are too many layers even so.
        PodwrightError: what the kernel said.
    """
    with ExitStack() as stack:

        def short(path: str) -> str:
            fd = syscalls.openat2(sc.AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"

        told = []
        for word in words:
            key, _, value = word.partition("=")
            if key == "lowerdir":
                told.append(f"{key}={':'.join(map(short, split_layers(value)))}")
            elif key in _PATH_KEYS:
                told.append(f"{key}={short(_plain(value))}")
            else:
                told.append(word)
        data = join_options(told, path=str(target))
        if len(os.fsencode(data)) >= DATA_LIMIT_BYTES:
            raise Unsupported(
                "overlay has more layers than this kernel takes",
                hint="use an image with fewer layers, or Linux 6.7 or later",
                path=str(target),
            )
        syscalls.mount(source, target, "overlay", flags, data)


def _supported(call: Callable[[], int]) -> int:
    try:
        return call()
    except PodwrightError as error:
        if sc.errno_of(error) == errno.ENOSYS:
            raise Unsupported(
                "overlay options are longer than a page",
                hint="use fewer layers or a shorter storage path, or Linux 6.7 or later",
            ) from error
        raise


def _configure(context: int, word: str, syscalls: sc.Syscalls) -> None:
    key, equals, value = word.partition("=")
    if not equals:
        syscalls.fsconfig_flag(context, key)
    elif key == "lowerdir":
        for layer in split_layers(value):
            _set_path(context, "lowerdir+", layer, syscalls)
    elif key in _PATH_KEYS:
        _set_path(context, key, _plain(value), syscalls)
    else:
        # Quotes are the grammar of mount(2)'s text (context="a,b"); here a value is by itself.
        quoted = len(value) > 1 and value.startswith('"') and value.endswith('"')
        syscalls.fsconfig_string(context, key, value[1:-1] if quoted else value)


def _set_path(context: int, key: str, path: str, syscalls: sc.Syscalls) -> None:
    if len(os.fsencode(path)) <= _VALUE_LIMIT_BYTES:
        _set_text(context, key, path, path, syscalls)
        return
    fd = syscalls.openat2(sc.AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY)
    try:
        try:
            syscalls.fsconfig_fd(context, key, fd)
        except PodwrightError as error:
            # Before Linux 6.13 a layer is text, and no O_PATH descriptor is taken for any option.
            if sc.errno_of(error) not in (errno.EBADF, errno.EINVAL):
                raise
            _set_text(context, key, f"/proc/self/fd/{fd}", path, syscalls)
    finally:
        os.close(fd)


def _set_text(context: int, key: str, text: str, path: str, syscalls: sc.Syscalls) -> None:
    try:
        syscalls.fsconfig_string(context, key, text)
    except PodwrightError as error:
        if key == "lowerdir+" and sc.errno_of(error) == errno.EINVAL:
            raise Unsupported(
                f"overlay layer {path} cannot be added",
                hint=_kernel_message(context) or "more layers than a page holds need Linux 6.7",
            ) from error
        raise


def _kernel_message(context: int) -> str:
    """What the kernel wrote into the context: lines such as "e overlay: No source specified"."""
    lines: list[str] = []
    try:
        while len(lines) < 8:
            lines.append(os.read(context, 1024).decode(errors="replace").strip())
    except OSError:
        pass  # ENODATA: no more messages; EBADF under a fake
    return "; ".join(lines)
