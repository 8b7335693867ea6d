"""Settings of short ways that may be switched off; a part of `settings_table`.

Each falls back by itself where the node or the runtime's version does not allow it.
"""

from __future__ import annotations

from typing import Final

from cri.setting import Setting, boolean

DIRECT_START = Setting(
    "runtime",
    "direct_start",
    boolean,
    True,
    "start containers of crun by the pipe that they wait at, without running crun",
)
DIRECT_DELETE = Setting(
    "runtime",
    "direct_delete",
    boolean,
    True,
    "forget dead containers of crun and runc by removing what they keep of them, without running "
    "them; needs direct_start, since whoever must see each start must see each end",
)
SEALED_PROGRAMS = Setting(
    "runtime",
    "sealed_programs",
    boolean,
    True,
    "run crun from a read-only mount, so that it need not copy itself each time",
)
WARM_CGROUPS = Setting(
    "runtime",
    "warm_cgroups",
    boolean,
    True,
    "keep the kernel ready to move processes between cgroups while pods and containers are made",
)
EARLY_MONITOR = Setting(
    "runtime",
    "early_monitor",
    boolean,
    True,
    "start a container's monitor, which then waits, while its root file system is mounted",
)
SECCOMP_TREES = Setting(
    "runtime",
    "seccomp_trees",
    boolean,
    True,
    "compile long seccomp filters for crun as trees, which the kernel loads and runs faster",
)
SKIP_IDLE_PLUGINS = Setting(
    "cni",
    "skip_idle",
    boolean,
    True,
    "do not run the reference plugins portmap and bandwidth for pods that have no host port or no "
    "limit, for which they do nothing",
    reloadable=True,
)
COME_FIRST = Setting(
    "daemon",
    "come_first",
    boolean,
    True,
    "while many calls are under way, run the daemon's own threads before others, never what it "
    "starts; a niceness that the daemon was started with is kept",
)
TIDYING = Setting(
    "runtime",
    "tidying",
    boolean,
    True,
    "when no call that changes something is under way, collect garbage and give free memory back",
)

TABLE: Final[tuple[Setting[object], ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Setting)
)
