"""What an operator may set about pod networks, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from sandbox.host.errors import InvalidArgument

IpPreference = Literal["ipv4", "ipv6", "cni"]

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class CniSettings:
    """Where configurations, plugins and saved results are, and how long a plugin may take.

    Attributes:
        conf_dir: the first valid file in lexical order is the pod network; it need not exist yet.
        bin_dirs: searched in order for a plugin's program.
        conf_template: from this a configuration is made in `conf_dir` when the kubelet tells the
            node's pod addresses (`cni.template`); None: configurations come from others only.
        cache_dir: configuration and result of every attachment; `results/` is made below it.
        default_network: take the first valid configuration of this name; empty: the first of all.
        ip_pref: which family is the pod's primary address; `cni` keeps the plugins' order.
        add_timeout_s: for the whole chain. Below half of the kubelet's 4 minutes for RunPodSandbox,
            so that a failed ADD, its DEL and the answer fit into one request.
        delete_timeout_s: for each plugin, so that one that hangs does not take the others' time.
        check_timeout_s: for each plugin.
        query_timeout_s: STATUS, VERSION and GC, for each plugin.
        poll_s: how often readiness is looked at anew while the network is ready.
        poll_unready_s: the same while it is not.
        status_grace_s: how long STATUS may fail before a ready network is called not ready.
        output_limit_bytes: of a plugin's standard output, and of its standard error.
        skip_idle: leave out plugins that are known to have nothing to do for a pod, see `cni.idle`.
        environment: what plugins get besides PATH, LANG and CNI_*; the daemon's own environment is
            never passed on, it may hold proxies' passwords.
    """

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: tuple[Path, ...] = (
        Path("/opt/cni/bin"),
        Path("/usr/lib/cni"),
        Path("/usr/libexec/cni"),
    )
    conf_template: Path | None = None
    cache_dir: Path = Path("/var/lib/podwright/cni")
    default_network: str = ""
    ip_pref: IpPreference = "ipv4"
    add_timeout_s: float = 110.0
    delete_timeout_s: float = 60.0
    check_timeout_s: float = 60.0
    query_timeout_s: float = 10.0
    poll_s: float = 5.0
    poll_unready_s: float = 1.0
    status_grace_s: float = 10.0
    output_limit_bytes: int = MIB
    skip_idle: bool = True
    environment: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse what could only fail later, in the middle of a pod's start.

        Raises:
            InvalidArgument: no plugin directory, a relative one, one with a colon (CNI_PATH is
                a colon separated list), or a variable that is the protocol's own.
        """
        if not self.bin_dirs:
            raise InvalidArgument("no directory for network plugins is set")
        for directory in self.bin_dirs:
            if not directory.is_absolute() or ":" in str(directory):
                raise InvalidArgument(
                    "plugin directory must be absolute and without a colon", path=str(directory)
                )
        for name, _ in self.environment:
            if name.startswith("CNI_") or not name or "=" in name:
                raise InvalidArgument("variable cannot be set for network plugins", variable=name)
