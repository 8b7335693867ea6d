"""User namespaces: made by a helper program, given their mappings, pinned like any other.

What belongs to a pod (its network, IPC and UTS namespaces) must belong to its user namespace, or
root in the pod could do nothing with it. The kernel decides that when they are made: they belong to
the user namespace of the process that makes them. So all are made by `userns_init`, and pinned from
outside while it waits:

    daemon                                  userns_init
      start ───────────────────────────────►  unshare(user)
      ◄──────────────────────────── made ───
      write uid_map and gid_map
      ── one byte ─────────────────────────►  become root, unshare(net, ipc, uts), sysctls,
                                              host name, loopback
      ◄─────────────────────────── ready ───
      pin each (bind mount) ─ SIGKILL ─────►  gone; the pins hold the namespaces

A daemon that dies at any point closes the socket, and the helper ends by itself.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PodwrightError,
    Unsupported,
    from_os_error,
    map_os_errors,
)
from sandbox.host.namespaces import check_hostname
from sandbox.host.processes import KILL_WAIT_S
from sandbox.host.sysctls import plan_sysctls, sysctl_kind
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.host.idmap import IdRange
    from sandbox.host.namespaces import NamespaceWorker
    from sandbox.host.processes import ProcessRunner, Spawned
    from sandbox.host.sysctls import Kind

#: The helper is done in 10 ms; a machine that is out of memory may take this long (seconds).
HELPER_LIMIT_S: Final = 20.0
_HELPER: Final = Path(__file__).with_name("userns_init.py")
_LINE_LIMIT_BYTES: Final = 4096
#: What unshare(2) says where user namespaces are switched off or used up.
_NO_USER_NAMESPACES: Final = frozenset({errno.ENOSPC, errno.EPERM, errno.EINVAL, errno.ENOSYS})


class UserNamespaces:
    """Makes user namespaces with what belongs to them; one per daemon."""

    def __init__(self, *, runner: ProcessRunner, worker: NamespaceWorker) -> None:
        self._runner = runner
        self._worker = worker

    async def create(
        self,
        directory: Path,
        kinds: frozenset[Kind],
        *,
        uids: IdRange,
        gids: IdRange,
        hostname: str = "",
        sysctls: Mapping[str, str] | None = None,
    ) -> dict[str, Path]:
        """A user namespace and those of `kinds` that belong to it, pinned as directory/KIND.

        What was pinned is unpinned when a step fails; when cancelled that is left to the caller,
        as with `NamespaceWorker.create`.

        Raises:
            InvalidArgument: a sysctl, a host name or a mapping is not acceptable.
            AlreadyExists: a namespace is pinned there already.
            Unsupported: this node has no user namespaces, or no more of them.
        """
        plan = plan_sysctls(sysctls or {}, kinds)
        check_hostname(hostname)
        words = [word for _, path, value in plan for word in (sysctl_kind(path) or "", path, value)]
        argv = [sys.executable, "-I", "-S", str(_HELPER), ",".join(sorted(kinds)), hostname]
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                helper = await self._runner.spawn(
                    [*argv, *words], stdin_fd=theirs.fileno(), stdout_fd=theirs.fileno()
                )
            ours.setblocking(False)
            try:
                async with asyncio.timeout(HELPER_LIMIT_S):
                    return await self._follow(helper, ours, directory, kinds, uids, gids)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"user namespace was not made within {HELPER_LIMIT_S:g} s"
                ) from error
            finally:
                helper.kill_group(signal.SIGKILL)
                with suppress(TimeoutError):
                    async with asyncio.timeout(KILL_WAIT_S):
                        await helper.wait()

    async def _follow(
        self,
        helper: Spawned,
        connection: socket.socket,
        directory: Path,
        kinds: frozenset[Kind],
        uids: IdRange,
        gids: IdRange,
    ) -> dict[str, Path]:
        loop = asyncio.get_running_loop()
        await _expect(connection, "made")
        # Not left to itself: the number would be another's once the helper has ended.
        await to_its_end(partial(_write_mappings, helper.pid, uids, gids))
        await loop.sock_sendall(connection, b"\n")
        await _expect(connection, "ready")
        pins = {kind: directory / kind for kind in ("user", *sorted(kinds))}
        try:
            for kind, pin in pins.items():
                await self._worker.pin_process(helper.pid, kind, pin)
        except PodwrightError:
            await self._worker.unpin(directory)
            raise
        return pins


def _write_mappings(pid: int, uids: IdRange, gids: IdRange) -> None:
    """The helper is our child and not reaped, so its number is its own."""
    for name, ids in (("uid_map", uids), ("gid_map", gids)):
        try:
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, ids.line.encode())
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EINVAL):
                raise InvalidArgument(
                    f"mapping is refused by the kernel: {ids.line.strip()}",
                    hint="the node itself may have fewer ids (/proc/self/uid_map)",
                ) from error
            raise from_os_error(error, f"cannot write {name}") from error


async def _expect(connection: socket.socket, word: str) -> None:
    """Wait for the helper's next line.

    Raises:
        Unsupported, InvalidArgument, PodwrightError: what it could not do.
    """
    with map_os_errors("helper of the user namespace is gone"):
        line = await asyncio.get_running_loop().sock_recv(connection, _LINE_LIMIT_BYTES)
    text = line.decode(errors="replace").strip()
    if text == word:
        return
    said, _, rest = text.partition(" ")
    if said != "failed":
        raise Internal("helper of the user namespace ended without a reason", said=text[:200])
    digits, _, what = rest.partition(" ")
    number = int(digits) if digits.isdecimal() else 0
    reason = os.strerror(number).lower()
    if what == "unshare" and number in _NO_USER_NAMESPACES:
        raise Unsupported(
            f"no user namespace can be made: {reason}",
            hint="raise the sysctl user.max_user_namespaces; see podwright check",
        )
    if "/" in what:
        key = what.replace("/", ".")
        raise InvalidArgument(f"cannot set sysctl {key}: {reason}")
    error = OSError(number, os.strerror(number))
    raise from_os_error(error, f"cannot make user namespace ({what})") from error
