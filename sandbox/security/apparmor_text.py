"""The text of our own AppArmor profile, which RuntimeDefault stands for.

Written from apparmor.d(5). Its idea: capabilities, seccomp, namespaces and cgroups decide what a
container may do; this profile holds where one of them is missing or was asked away: a container
with CAP_SYS_ADMIN still mounts nothing, and one without masked paths still does not reach the
node's memory or settings through /proc and /sys.

It stands alone: no include, so neither a node without /etc/apparmor.d nor a changed abstraction
there changes what it says. Everything in it is grammar of parser 3.0, except what `parser` adds.
"""

from __future__ import annotations

import re
from typing import Final

#: Name of the profile in the kernel.
DEFAULT_PROFILE: Final = "podwright-default"

#: Peers that signal a container besides unconfined ones: Ubuntu gives the runtimes profiles of
#: their own, which confine nothing but are named (its packages of crun and runc, since 23.10).
_RUNTIMES: Final = ("crun", "runc")
#: A label that may stand in a rule as it is; any other is left out, so its signals are refused.
_LABEL: Final = re.compile(r"[A-Za-z0-9_./-]{1,255}", re.ASCII)

_BODY: Final = """\
  # What a name in the profile does not forbid is left to capabilities, seccomp and namespaces.
  capability,
  network,
  unix,
  file,
{newer}
  # The kubelet's and the runtime's signals come in; those within the profile go both ways.
{signals}
  signal (send, receive) peer={name},
  ptrace (trace, read, tracedby, readby) peer={name},

  # No mount of any kind, CAP_SYS_ADMIN or not. Unmounting as well: it would take the masks away.
  deny mount,
  deny remount,
  deny umount,
  deny pivot_root,

  # The node's memory and its emergency keys.
  deny /dev/{{mem,kmem,port}} rwl,
  deny /proc/{{mem,kmem,kcore}} rwl,
  deny /proc/sysrq-trigger rwl,

  # The node's settings: of /proc only what belongs to a process (/proc/PID/...) can be written.
  deny /proc/* wl,
  deny /proc/sys/** wl,
  deny /proc/{{acpi,asound,bus,driver,dynamic_debug,fs,irq,pressure,scsi,tty}}/** wl,

  # Of /sys only control groups, which are read-only unless the container was given its own.
  deny /sys/[^f]*/** wl,
  deny /sys/f[^s]*/** wl,
  deny /sys/fs/[^c]*/** wl,
  deny /sys/fs/c[^g]*/** wl,
  deny /sys/firmware/** rwl,
  deny /sys/kernel/security/** rwl,
  # Power meters tell what other programs compute (CVE-2020-8694).
  deny /sys/devices/virtual/powercap/** rwl,
"""
#: Kinds of rules that came with parser 4.0; a policy without them would refuse their objects.
_NEWER: Final = "  userns,\n  mqueue,\n"


def profile_text(*, parser: tuple[int, int], abi: bool, own_label: str) -> str:
    """The profile as apparmor_parser reads it.

    Args:
        parser: version of apparmor_parser as (major, minor).
        abi: the parser has a file `abi/3.0`; naming it keeps a newer kernel from applying kinds of
            rules that this text does not know.
        own_label: the daemon's own confinement, whose signals must reach the containers.
    """
    peers = ["unconfined", *_RUNTIMES]
    if own_label not in {"", *peers, DEFAULT_PROFILE} and _LABEL.fullmatch(own_label):
        peers.append(own_label)
    body = _BODY.format(
        name=DEFAULT_PROFILE,
        newer=_NEWER if parser >= (4, 0) else "",
        signals="\n".join(f"  signal (receive) peer={peer}," for peer in peers),
    )
    head = "abi <abi/3.0>,\n\n" if abi else ""
    flags = "flags=(attach_disconnected, mediate_deleted)"
    return f"{head}profile {DEFAULT_PROFILE} {flags} {{\n{body}}}\n"
