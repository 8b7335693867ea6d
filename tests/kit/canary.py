"""Invariant I7: what of the machine itself no pod and no fault may change.

Only what nobody else on a busy machine changes beside us: its users and names, settings of the
kernel that runtimes like to touch, the modes of the top directories.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit.judge import InvariantBroken

_FILES: Final = "/etc/passwd /etc/group /etc/shadow /etc/hosts /etc/hostname /etc/resolv.conf"
_DIRECTORIES: Final = "/ /etc /root /usr /usr/bin /home /opt /srv /dev /proc /sys /run /var /tmp"
_SETTINGS: Final = (
    *("kernel/hostname", "kernel/domainname", "kernel/core_pattern", "kernel/panic"),
    *("kernel/shmmax", "kernel/msgmax", "kernel/sem", "kernel/randomize_va_space"),
    *("kernel/modprobe", "fs/mqueue/msg_max", "vm/overcommit_memory", "vm/panic_on_oom"),
    *("net/ipv4/ip_forward", "net/ipv4/ip_unprivileged_port_start"),
    *("net/ipv4/conf/all/rp_filter", "net/ipv6/conf/all/disable_ipv6", "net/core/somaxconn"),
)


@dataclass(frozen=True, slots=True)
class HostPicture:
    """How it was at one moment."""

    seen: dict[str, object]

    @classmethod
    def taken(cls) -> HostPicture:
        """How it is now."""
        seen: dict[str, object] = {}
        for name in _FILES.split():
            path = Path(name)
            if path.exists():
                about = path.stat()
                seen[name] = (about.st_mode, about.st_uid, about.st_gid, path.read_bytes())
        for name in _DIRECTORIES.split():
            about = os.lstat(name)
            seen[name] = (about.st_mode, about.st_uid, about.st_gid)
        for name in _SETTINGS:
            path = Path("/proc/sys", name)
            if path.exists():
                seen[str(path)] = path.read_text()
        return cls(seen)

    def assert_untouched(self) -> None:
        """Raise InvariantBroken when something is not as it was."""
        now = HostPicture.taken().seen
        changed = [name for name in self.seen if now.get(name) != self.seen[name]]
        if changed:
            raise InvariantBroken("I7", f"changed: {changed}")
