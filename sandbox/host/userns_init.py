"""The first process of a pod's user namespace: a program of its own, started by `usernamespaces`.

    python -I -S userns_init.py KINDS HOSTNAME [KIND PATH VALUE]...

It makes a user namespace, waits until the other side has written the mappings, becomes root inside,
makes the namespaces that are to belong to it, sets what was asked for, and waits to be ended while
the other side pins what it has made. Why a program: a process with threads cannot enter a user
namespace (setns(2), unshare(2)), and the daemon never forks. It imports no more than it needs, so
that it costs some 10 ms.

Standard input and output are one socket. It says `made` or `failed ERRNO WHAT`, is given a byte,
and says `ready` or `failed ERRNO WHAT`.
"""

import ctypes
import os
import socket
import struct
import sys

_USER = 0x10000000  # linux/sched.h, CLONE_NEWUSER
_FLAGS = {"net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1  # net/if.h


def main(kinds: list[str], hostname: str, sysctls: list[tuple[str, str, str]]) -> None:
    """See the module text; ends at the end of the socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_USER) != 0:
        _fail(ctypes.get_errno(), "unshare")
    _say("made")
    if not os.read(0, 1):
        return
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # As root inside and not before: what the kernel makes along with them (the root of the message
    # queues, the entries of lo in sysfs) belongs to whoever makes them.
    if libc.unshare(sum(_FLAGS[kind] for kind in kinds)) != 0:
        _fail(ctypes.get_errno(), "namespaces")
    for kind, path, value in sysctls:
        if kind == "uts":
            # The only one. Its file may be written by the node's root alone, whoever has the
            # namespace (kernel/utsname_sysctl.c), so the system call is used.
            domain = value.encode()
            if libc.setdomainname(domain, len(domain)) != 0:
                _fail(ctypes.get_errno(), path)
        else:
            _write(path, value)
    if hostname:
        name = hostname.encode()
        if libc.sethostname(name, len(name)) != 0:
            _fail(ctypes.get_errno(), "hostname")
    if "net" in kinds:
        _set_up("lo", libc)
    _say("ready")
    os.read(0, 1)


def _write(path: str, value: str) -> None:
    try:
        fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_NOFOLLOW)
        os.write(fd, value.encode() + b"\n")
        os.close(fd)
    except OSError as error:
        _fail(error.errno or 0, path)


def _set_up(interface: str, libc: ctypes.CDLL) -> None:
    request = ctypes.create_string_buffer(interface.encode(), 40)  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        if libc.ioctl(device.fileno(), _SIOCGIFFLAGS, request) != 0:
            _fail(ctypes.get_errno(), interface)
        (flags,) = struct.unpack_from("H", request.raw, 16)
        struct.pack_into("H", request, 16, flags | _IFF_UP)
        if libc.ioctl(device.fileno(), _SIOCSIFFLAGS, request) != 0:
            _fail(ctypes.get_errno(), interface)


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def _fail(number: int, what: str) -> None:
    _say(f"failed {number} {what}")
    sys.exit(1)


if __name__ == "__main__":
    rest = sys.argv[3:]
    main(
        sys.argv[1].split(",") if sys.argv[1] else [],
        sys.argv[2],
        list(zip(rest[::3], rest[1::3], rest[2::3], strict=True)),
    )
