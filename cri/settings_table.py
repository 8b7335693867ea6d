"""Every setting of the daemon, once: name, type, default, help, and whether it can be reloaded.

Parser, flags, `podwright config` and the manual come from this table. The defaults are those of the
packages' own settings values, so a default is written in one place. A setting lives in a section of
the TOML file; names of durations and sizes end in their unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar

from cni.settings import CniSettings
from imageservice.settings import ImageSettings
from metrics.settings import MetricsSettings
from sandbox.host.errors import InvalidArgument
from sandbox.settings import SandboxSettings

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T", covariant=True)
W = TypeVar("W", bound=str)

CgroupDriverChoice = Literal["auto", "cgroupfs", "systemd"]

#: Nothing in this daemon waits longer than a week.
_SECONDS_LIMIT: Final = 7 * 24 * 3600.0
_INTEGER_LIMIT: Final = 2**53


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """One setting.

    Attributes:
        section: table of the TOML file.
        name: key in that table.
        parse: turns the TOML value into the value; raises InvalidArgument saying what is expected.
        default: the value when nothing is configured.
        help: one line for people.
        reloadable: a change takes effect without a restart.
    """

    section: str
    name: str
    parse: Callable[[object], T]
    default: T
    help: str
    reloadable: bool = False

    @property
    def key(self) -> str:
        """`section.name`."""
        return f"{self.section}.{self.name}"


def text(value: object) -> str:
    """A string on one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidArgument("expected a string on one line")
    return value


def path(value: object) -> Path:
    """An absolute path."""
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise InvalidArgument("expected an absolute path")
    return Path(value)


def optional_path(value: object) -> Path | None:
    """An absolute path, or "" for the derived default."""
    return None if value == "" else path(value)


def paths(value: object) -> tuple[Path, ...]:
    """A list of absolute paths."""
    if not isinstance(value, list):
        raise InvalidArgument("expected a list of absolute paths")
    return tuple(path(entry) for entry in value)


def words(value: object) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list):
        raise InvalidArgument("expected a list of strings")
    return tuple(text(entry) for entry in value)


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidArgument("expected true or false")
    return value


def seconds(value: object) -> float:
    """A duration in seconds, fractions allowed, 0 included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument("expected a number of seconds")
    if not 0 <= value <= _SECONDS_LIMIT:
        raise InvalidArgument(f"expected 0 to {_SECONDS_LIMIT:.0f} seconds")
    return float(value)


def integer(low: int, high: int = _INTEGER_LIMIT) -> Callable[[object], int]:
    """A whole number from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidArgument(f"expected a whole number from {low} to {high}")
        return value

    return parse


def choice(*allowed: W) -> Callable[[object], W]:
    """One of a few words."""

    def parse(value: object) -> W:
        for word in allowed:
            if value == word:
                return word
        raise InvalidArgument(f"expected one of {', '.join(allowed)}")

    return parse


def variables(value: object) -> tuple[tuple[str, str], ...]:
    """A list of NAME=value."""
    result = []
    for entry in words(value):
        name, equals, content = entry.partition("=")
        if not name or not equals:
            raise InvalidArgument('expected a list of "NAME=value"')
        result.append((name, content))
    return tuple(result)


_SANDBOX = SandboxSettings()
_TIMES = _SANDBOX.timeouts
_CNI = CniSettings()
_IMAGES = ImageSettings()
_METRICS = MetricsSettings()

RUN_ROOT = Setting(
    "daemon", "run_root", path, _SANDBOX.run_root, "what must not outlive a boot; on a tmpfs"
)
STATE_ROOT = Setting("daemon", "state_root", path, _SANDBOX.state_root, "what must outlive a boot")
SOCKET = Setting(
    "daemon", "socket", optional_path, None, "gRPC socket; empty: podwright.sock in run_root"
)
LOG_LEVEL = Setting(
    "daemon",
    "log_level",
    choice("debug", "info", "warning", "error"),
    "info",
    "least level that is logged",
    reloadable=True,
)
LOG_FORMAT = Setting(
    "daemon", "log_format", choice("text", "json"), "text", "one key=value line or one JSON object"
)
STOP_GRACE = Setting(
    "daemon", "stop_grace_s", seconds, 10.0, "time that calls in flight get when the daemon stops"
)

DEFAULT_RUNTIME = Setting(
    "runtime", "default", text, _SANDBOX.default_handler, "handler of pods that name none"
)
CGROUP_DRIVER: Setting[CgroupDriverChoice] = Setting(
    "runtime",
    "cgroup_driver",
    choice("auto", "cgroupfs", "systemd"),
    "auto",
    "who makes cgroups; auto: systemd where it runs the node; the kubelet follows what it is",
)
CONMON_PATH = Setting("runtime", "conmon_path", path, _SANDBOX.conmon_path, "the monitor program")
PAUSE_PATH = Setting(
    "runtime",
    "pause_path",
    path,
    Path("/usr/bin/catatonit"),
    "statically linked program that holds a pod's namespaces",
)
MONITOR_CGROUP = Setting(
    "runtime", "monitor_cgroup", text, _SANDBOX.monitor_cgroup, "cgroup of monitors; empty: ours"
)
EXEC_OUTPUT = Setting(
    "runtime",
    "exec_output_bytes",
    integer(1024, _SANDBOX.exec_output_bytes),
    _SANDBOX.exec_output_bytes,
    "most that ExecSync returns, both outputs together",
)
CREATE_TIMEOUT = Setting(
    "runtime", "create_timeout_s", seconds, _TIMES.create_s, "one create by the runtime, hooks too"
)
OPERATION_TIMEOUT = Setting(
    "runtime", "operation_timeout_s", seconds, _TIMES.operation_s, "any other call of the runtime"
)
PROBE_TIMEOUT = Setting(
    "runtime", "probe_timeout_s", seconds, _TIMES.probe_s, "asking a program for its version"
)
EXIT_FILE_TIMEOUT = Setting(
    "runtime", "exit_file_timeout_s", seconds, _TIMES.exit_file_s, "waiting for conmon's exit file"
)
EXEC_DRAIN_TIMEOUT = Setting(
    "runtime",
    "exec_drain_timeout_s",
    seconds,
    _TIMES.exec_drain_s,
    "output of an exec whose command has ended but whose pipes are still held",
)
EXEC_KILL_TIMEOUT = Setting(
    "runtime", "exec_kill_timeout_s", seconds, _TIMES.exec_kill_s, "end of an exec after SIGKILL"
)
REOPEN_TIMEOUT = Setting(
    "runtime", "reopen_timeout_s", seconds, _TIMES.reopen_s, "opening of a new log by conmon"
)
KILL_TIMEOUT = Setting(
    "runtime", "kill_timeout_s", seconds, _TIMES.kill_s, "end of a cgroup's processes after SIGKILL"
)

CNI_CONF_DIR = Setting(
    "cni", "conf_dir", path, _CNI.conf_dir, "network configurations; the first one is used"
)
CNI_BIN_DIRS = Setting("cni", "bin_dirs", paths, _CNI.bin_dirs, "plugins, searched in this order")
CNI_CACHE_DIR = Setting(
    "cni", "cache_dir", optional_path, None, "saved results; empty: cni in state_root"
)
CNI_DEFAULT_NETWORK = Setting(
    "cni", "default_network", text, _CNI.default_network, "name of the network; empty: the first"
)
CNI_IP_PREF = Setting(
    "cni", "ip_pref", choice("ipv4", "ipv6", "cni"), _CNI.ip_pref, "family of a pod's first address"
)
CNI_ADD_TIMEOUT = Setting("cni", "add_timeout_s", seconds, _CNI.add_timeout_s, "ADD of all plugins")
CNI_DELETE_TIMEOUT = Setting(
    "cni", "delete_timeout_s", seconds, _CNI.delete_timeout_s, "DEL of each plugin"
)
CNI_CHECK_TIMEOUT = Setting(
    "cni", "check_timeout_s", seconds, _CNI.check_timeout_s, "CHECK of each plugin"
)
CNI_QUERY_TIMEOUT = Setting(
    "cni", "query_timeout_s", seconds, _CNI.query_timeout_s, "STATUS, VERSION, GC of each plugin"
)
CNI_POLL = Setting(
    "cni", "poll_s", seconds, _CNI.poll_s, "how often a ready network is looked at anew"
)
CNI_POLL_UNREADY = Setting(
    "cni", "poll_unready_s", seconds, _CNI.poll_unready_s, "the same while it is not ready"
)
CNI_STATUS_GRACE = Setting(
    "cni", "status_grace_s", seconds, _CNI.status_grace_s, "STATUS may fail this long"
)
CNI_ENVIRONMENT = Setting(
    "cni", "environment", variables, _CNI.environment, "further variables for plugins, NAME=value"
)

IMAGE_ROOT = Setting("image", "root", optional_path, None, "images; empty: images in state_root")
REGISTRY_DIRS = Setting(
    "image",
    "registry_config_dirs",
    paths,
    _IMAGES.registry_config_dirs,
    "certs.d directories; the first that knows a registry wins; read at each pull",
)
MAX_DOWNLOADS = Setting(
    "image",
    "max_concurrent_downloads",
    integer(1, 64),
    _IMAGES.max_concurrent_downloads,
    "layers of one pull fetched at once",
)
PULL_PROGRESS_TIMEOUT = Setting(
    "image",
    "pull_progress_timeout_s",
    seconds,
    _IMAGES.pull_progress_timeout_s,
    "a transfer that moves fewer than min_progress_bytes in this time is given up",
)
MIN_PROGRESS = Setting(
    "image", "min_progress_bytes", integer(1), _IMAGES.min_progress_bytes, "see above"
)
CONNECT_TIMEOUT = Setting(
    "image", "connect_timeout_s", seconds, _IMAGES.connect_timeout_s, "TCP and TLS to a registry"
)
MIRROR_CONNECT_TIMEOUT = Setting(
    "image",
    "mirror_connect_timeout_s",
    seconds,
    _IMAGES.mirror_connect_timeout_s,
    "the same while another host is left to try",
)
RESPONSE_TIMEOUT = Setting(
    "image", "response_timeout_s", seconds, _IMAGES.response_timeout_s, "headers of an answer"
)
MAX_CONNECTIONS = Setting(
    "image",
    "max_connections_per_host",
    integer(1, 256),
    _IMAGES.max_connections_per_host,
    "connections to one registry at once",
)
PINNED_IMAGES = Setting(
    "image",
    "pinned_images",
    words,
    _IMAGES.pinned_images,
    "images that the kubelet's collection leaves alone",
)

METRICS_ADDRESS = Setting(
    "metrics", "address", text, _METRICS.address, "IP:PORT of GET /metrics; empty: not served"
)
METRICS_TIMEOUT = Setting(
    "metrics", "request_timeout_s", seconds, _METRICS.request_timeout_s, "for one scrape"
)

#: In the order of `podwright config`.
TABLE: Final[tuple[Setting[object], ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Setting)
)

#: Keys of a [runtimes.NAME] table.
HANDLER_TABLE: Final[tuple[Setting[object], ...]] = (
    Setting("runtimes.NAME", "path", path, None, "the OCI runtime's program"),
    Setting("runtimes.NAME", "root", path, None, "its state; default: runtime/NAME in run_root"),
    Setting("runtimes.NAME", "options", words, (), "further global options, each beginning --"),
    Setting(
        "runtimes.NAME",
        "allowed_annotations",
        words,
        (),
        "annotations passed on to it; a trailing * matches any rest",
    ),
    Setting(
        "runtimes.NAME",
        "privileged_without_host_devices",
        boolean,
        False,
        "privileged containers do not get the node's devices",
    ),
)
