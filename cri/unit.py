"""The systemd unit that `podwright unit` prints: made here, because the program's path is ours.

podwright unit > /etc/systemd/system/podwright.service
systemctl daemon-reload && systemctl enable --now podwright
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Beyond the grace of the calls in flight: closing the databases on a slow disk (seconds).
STOP_MARGIN_S: Final = 30

_TEMPLATE: Final = """\
# Made by `podwright unit`; see systemd.unit(5) for how to change single lines in a drop-in.
[Unit]
Description=Podwright, a container runtime for Kubernetes
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target local-fs.target
Before=kubelet.service
# Never give up: a node without its runtime cannot even stop what runs on it.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={start}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=2
# Fed only after the daemon has answered a call through its own socket.
WatchdogSec=60
TimeoutStartSec=300
TimeoutStopSec={stop_s}
# Containers and their monitors outlive the daemon: stopping it ends its own process alone.
KillMode=process
Delegate=yes
# The last that the memory killer takes; containers get their own scores.
OOMScoreAdjust=-999
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit_text(start: Sequence[str], *, stop_grace_s: float) -> str:
    """The unit.

    Args:
        start: the command that serves, an absolute path first.
        stop_grace_s: time that calls in flight get at the end.

    Raises:
        InvalidArgument: the command cannot be written in a unit.
    """
    if not start or not start[0].startswith("/"):
        raise InvalidArgument("the program of a unit needs an absolute path", path=str(start[:1]))
    words = " ".join(_quoted(word) for word in start)
    return _TEMPLATE.format(start=words, stop_s=int(stop_grace_s) + STOP_MARGIN_S)


def _quoted(word: str) -> str:
    """One argument as systemd.service(5), "COMMAND LINES", reads it."""
    if not word.isprintable():
        raise InvalidArgument("an argument of a unit must be on one line", argument=word)
    word = word.replace("%", "%%").replace("$", "$$")
    if word and not set(word) & set(" \"'\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
