"""Starting programs by posix_spawn(3), in a thread of its own.

Python's own ways keep the interpreter lock from the fork to the exec, and a fork that shares memory
stops the thread until then. Where the processors are busy, as while many pods start at once, the
child waits for its turn meanwhile, and with it every answer of the daemon: with four clients a
third of all the time that the lock was held. A call through ctypes gives the lock away.

The thread has its own umask (unshare(2), CLONE_FS). Every descriptor of ours is closed on exec;
those that were inherited are made so before the first start, and glibc 2.34 closes what lies above
the ones that are passed on as well.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The daemon's own 077 is for files of its own. An OCI runtime makes the directories that lead to a
#: mount inside a container's root, and a user of the container must be able to walk them.
CHILD_UMASK: Final = 0o022
#: What the thread's name begins with.
SPAWNER_NAME: Final = "spawner"
#: What is told to audit hooks before a start, with the argument vector.
AUDIT_EVENT: Final = "podwright.spawn"

_CLONE_FS: Final = 0x200  # linux/sched.h
# spawn.h of glibc and musl.
_SETSIGDEF: Final = 0x04
_SETSIGMASK: Final = 0x08
_SETSID: Final = 0x80
#: More than any C library's posix_spawnattr_t (336), posix_spawn_file_actions_t (80), sigset_t.
_OPAQUE_BYTES: Final = 512
#: Python ignores these; a program expects them as they are (subprocess, restore_signals).
_RESTORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)

_libc = ctypes.CDLL(None, use_errno=True)


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    pass_fds: Sequence[int],
    streams: tuple[int, int, int],
    *,
    new_session: bool,
) -> tuple[int, int]:
    """Start a program and return its process id and a pidfd; only in `SPAWNER`.

    Args:
        argv: the program by its path, or by its name in the `PATH` of `env`, and its arguments.
        env: all of its environment.
        cwd: its working directory.
        pass_fds: open in the program under the same numbers; none below 3.
        streams: what it has as standard input, output and error.
        new_session: whether it leads a session, and with it a process group, of its own.

    Raises:
        OSError: it cannot be started, or not be watched; it does not run then.
    """
    sys.audit(AUDIT_EVENT, argv)
    path = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=env.get("PATH", ""))
    if path is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    actions = ctypes.create_string_buffer(_OPAQUE_BYTES)
    attributes = ctypes.create_string_buffer(_OPAQUE_BYTES)
    # Kept free for the pidfd: a program that runs unwatched would be worse than none.
    spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.posix_spawn_file_actions_init(actions))
        _check(_libc.posix_spawnattr_init(attributes))
        _check(_libc.posix_spawn_file_actions_addchdir_np(actions, os.fsencode(cwd)))
        for target, source in enumerate(streams):
            _check(_libc.posix_spawn_file_actions_adddup2(actions, source, target))
        for fd in pass_fds:
            _check(_libc.posix_spawn_file_actions_adddup2(actions, fd, fd))
        if hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np"):
            above = max(pass_fds, default=2) + 1
            _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, above))
        _set_attributes(attributes, new_session=new_session)
        pid = ctypes.c_int()
        number = _libc.posix_spawn(
            ctypes.byref(pid), os.fsencode(path), actions, attributes, _words(argv),
            _words([f"{key}={value}" for key, value in env.items()]),
        )  # fmt: skip
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
        _libc.posix_spawnattr_destroy(attributes)
        os.close(spare)
    if number:
        # The directory is entered before the program is executed, and both say ENOENT.
        where = argv[0] if Path(cwd).is_dir() else cwd
        raise OSError(number, os.strerror(number), where)
    try:
        return pid.value, os.pidfd_open(pid.value)
    except OSError:  # another thread has taken the number meanwhile
        (os.killpg if new_session else os.kill)(pid.value, signal.SIGKILL)
        os.waitpid(pid.value, 0)
        raise


def _begin() -> None:
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:
        pass  # a standard stream was closed; no pipe of ours may get its number
    os.close(fd)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
        if int(name) > 2:
            with suppress(OSError):  # that of the listing
                flags = fcntl.fcntl(int(name), fcntl.F_GETFD)
                fcntl.fcntl(int(name), fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    if _libc.unshare(_CLONE_FS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare")
    os.umask(CHILD_UMASK)


def _set_attributes(attributes: ctypes.Array[ctypes.c_char], *, new_session: bool) -> None:
    signals = ctypes.create_string_buffer(_OPAQUE_BYTES)
    _libc.sigemptyset(signals)
    _check(_libc.posix_spawnattr_setsigmask(attributes, signals))
    for number in _RESTORED:
        _libc.sigaddset(signals, int(number))
    _check(_libc.posix_spawnattr_setsigdefault(attributes, signals))
    flags = _SETSIGDEF | _SETSIGMASK | (_SETSID if new_session else 0)
    _check(_libc.posix_spawnattr_setflags(attributes, ctypes.c_short(flags)))


def _words(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    words = [os.fsencode(text) for text in texts]
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


#: The thread, of which there is one; it begins with the first program.
SPAWNER: Final = ThreadPoolExecutor(1, SPAWNER_NAME, _begin)
