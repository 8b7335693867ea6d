"""Every setting of the daemon, once: name, type, default, help, and whether it can be reloaded.

Parser, flags, `podwright config` and the manual come from this table. The defaults are those of the
packages' own settings values, so a default is written in one place. A setting lives in a section of
the TOML file; names of durations and sizes end in their unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from cni.settings import CniSettings
from cri import settings_devices, settings_images, settings_security, settings_speed
from cri.setting import (
    Setting,
    boolean,
    choice,
    integer,
    optional_path,
    path,
    paths,
    seconds,
    text,
    variables,
    words,
)
from cri.streaming.settings import StreamingSettings, TlsChoice
from metrics.settings import LogRateSettings, MetricsSettings, SamplerSettings
from sandbox.settings import SandboxSettings

CgroupDriverChoice = Literal["auto", "cgroupfs", "systemd"]

_SANDBOX = SandboxSettings()
_TIMES = _SANDBOX.timeouts
_CNI = CniSettings()
_METRICS = MetricsSettings()
_SAMPLER = SamplerSettings()
_LOG_RATES = LogRateSettings()
_STREAMING = StreamingSettings()

RUN_ROOT = Setting(
    "daemon", "run_root", path, _SANDBOX.run_root, "what must not outlive a boot; on a tmpfs"
)
STATE_ROOT = Setting("daemon", "state_root", path, _SANDBOX.state_root, "what must outlive a boot")
SOCKET = Setting(
    "daemon", "socket", optional_path, None, "gRPC socket; empty: podwright.sock in run_root"
)
SOCKET_GID = Setting(
    "daemon",
    "socket_gid",
    integer(0, 2**32 - 2),
    0,
    "group that may use the socket, as a number; whoever is in it is as good as root",
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
SWEEP_INTERVAL = Setting(
    "daemon",
    "sweep_interval_s",
    seconds,
    60.0,
    "how often records are held against the kernel; 0: only at the start",
)
BACKUP_INTERVAL = Setting(
    "daemon",
    "backup_interval_s",
    seconds,
    600.0,
    "how often the state is copied where it has changed; 0: only at the start",
)

DEFAULT_RUNTIME = Setting(
    "runtime",
    "default",
    text,
    _SANDBOX.default_handler,
    "handler of pods that name none",
    reloadable=True,
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
PIDS_LIMIT = Setting(
    "runtime",
    "pids_limit",
    integer(0, 4_194_304),
    0,
    "processes of each container; 0: only the pod's own limit",
)
WRITABLE_LAYER = Setting(
    "runtime",
    "writable_layer_bytes",
    integer(0),
    0,
    "most that a container may write to its root; 0: no limit; podwright check says if it can be",
)
EXEC_OUTPUT = Setting(
    "runtime",
    "exec_output_bytes",
    integer(1024, _SANDBOX.exec_output_bytes),
    _SANDBOX.exec_output_bytes,
    "most that ExecSync returns, both outputs together",
)
EXEC_OUTPUTS = Setting(
    "runtime",
    "exec_outputs_bytes",
    integer(0),
    _SANDBOX.exec_outputs_bytes,
    "most that all ExecSyncs keep at once; beyond it each keeps its first 64 KiB",
)
CREATE_TIMEOUT = Setting(
    "runtime", "create_timeout_s", seconds, _TIMES.create_s, "one create by the runtime, hooks too"
)
OPERATION_TIMEOUT = Setting(
    "runtime",
    "operation_timeout_s",
    seconds,
    _TIMES.operation_s,
    "any other call of the runtime, and an exec until its command begins",
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
    "cni",
    "conf_dir",
    path,
    _CNI.conf_dir,
    "network configurations; the first one is used",
    reloadable=True,
)
CNI_CONF_TEMPLATE = Setting(
    "cni",
    "conf_template",
    optional_path,
    _CNI.conf_template,
    "makes a configuration of the pod addresses that the kubelet tells; empty: none",
    reloadable=True,
)
CNI_BIN_DIRS = Setting(
    "cni", "bin_dirs", paths, _CNI.bin_dirs, "plugins, searched in this order", reloadable=True
)
CNI_CACHE_DIR = Setting(
    "cni", "cache_dir", optional_path, None, "saved results; empty: cni in state_root"
)
CNI_DEFAULT_NETWORK = Setting(
    "cni",
    "default_network",
    text,
    _CNI.default_network,
    "name of the network; empty: the first",
    reloadable=True,
)
CNI_IP_PREF = Setting(
    "cni",
    "ip_pref",
    choice("ipv4", "ipv6", "cni"),
    _CNI.ip_pref,
    "family of a pod's first address",
    reloadable=True,
)
CNI_ADD_TIMEOUT = Setting(
    "cni", "add_timeout_s", seconds, _CNI.add_timeout_s, "ADD of all plugins", reloadable=True
)
CNI_DELETE_TIMEOUT = Setting(
    "cni", "delete_timeout_s", seconds, _CNI.delete_timeout_s, "DEL of each plugin", reloadable=True
)
CNI_CHECK_TIMEOUT = Setting(
    "cni", "check_timeout_s", seconds, _CNI.check_timeout_s, "CHECK of each plugin", reloadable=True
)
CNI_QUERY_TIMEOUT = Setting(
    "cni",
    "query_timeout_s",
    seconds,
    _CNI.query_timeout_s,
    "STATUS, VERSION, GC of each plugin",
    reloadable=True,
)
CNI_POLL = Setting(
    "cni",
    "poll_s",
    seconds,
    _CNI.poll_s,
    "how often a ready network is looked at anew",
    reloadable=True,
)
CNI_POLL_UNREADY = Setting(
    "cni",
    "poll_unready_s",
    seconds,
    _CNI.poll_unready_s,
    "the same while it is not ready",
    reloadable=True,
)
CNI_STATUS_GRACE = Setting(
    "cni",
    "status_grace_s",
    seconds,
    _CNI.status_grace_s,
    "STATUS may fail this long",
    reloadable=True,
)
CNI_ENVIRONMENT = Setting(
    "cni",
    "environment",
    variables,
    _CNI.environment,
    "further variables for plugins, NAME=value",
    reloadable=True,
)

METRICS_ADDRESS = Setting(
    "metrics", "address", text, _METRICS.address, "IP:PORT of GET /metrics; empty: not served"
)
METRICS_TIMEOUT = Setting(
    "metrics", "request_timeout_s", seconds, _METRICS.request_timeout_s, "for one scrape"
)
SAMPLE_INTERVAL = Setting(
    "metrics",
    "sample_interval_s",
    seconds,
    _SAMPLER.interval_s,
    "how often usage of pods and containers is measured unasked; 0: only when asked for",
)
SAMPLE_AGE = Setting(
    "metrics", "sample_min_age_s", seconds, _SAMPLER.min_age_s, "usage younger is not measured anew"
)
LAYER_AGE = Setting(
    "metrics",
    "layer_age_s",
    seconds,
    _SAMPLER.layer_age_s,
    "writable layers measured later than this ago are not measured anew",
)

LOG_INTERVAL = Setting(
    "metrics",
    "log_interval_s",
    seconds,
    _LOG_RATES.interval_s,
    "how often the sizes of container logs are looked at; 0: never",
)
LOG_RATE_WARNING = Setting(
    "metrics",
    "log_rate_warning_bytes",
    integer(0),
    _LOG_RATES.warning_bytes,
    "a container that logs more than this in a second is named in the daemon's log; 0: none is",
)
LOG_RATE_PODS = Setting(
    "metrics",
    "log_rate_pods",
    integer(0, 100),
    _LOG_RATES.pods,
    "pods with the highest log rates that get a metric with their name; 0: none",
)

STREAMING_ADDRESS = Setting(
    "streaming", "address", text, _STREAMING.address, "IP:PORT of exec, attach and port-forward"
)
STREAMING_TLS: Setting[TlsChoice] = Setting(
    "streaming",
    "tls",
    choice("off", "self-made", "pair"),
    _STREAMING.tls,
    "self-made: a certificate made at each start; pair: the two files below",
)
STREAMING_TLS_CERT = Setting(
    "streaming", "tls_cert", optional_path, None, "certificate chain, PEM; read at each start"
)
STREAMING_TLS_KEY = Setting("streaming", "tls_key", optional_path, None, "its key, PEM")
STREAMING_IDLE = Setting(
    "streaming",
    "idle_timeout_s",
    seconds,
    _STREAMING.idle_timeout_s,
    "a session on which nothing moves is closed",
)
STREAMING_CREATION = Setting(
    "streaming",
    "creation_timeout_s",
    seconds,
    _STREAMING.creation_timeout_s,
    "for a client to open the streams of its session",
)
STREAMING_TOKEN_LIFE = Setting(
    "streaming",
    "token_life_s",
    seconds,
    _STREAMING.token_life_s,
    "from the answer with a URL until a client must have come",
)

_ALL: Final[tuple[Setting[object], ...]] = (
    *(value for value in list(globals().values()) if isinstance(value, Setting)),
    *settings_images.TABLE,
    *settings_speed.TABLE,
    *settings_security.TABLE,
    *settings_devices.TABLE,
)
_SECTIONS: Final = tuple(dict.fromkeys(setting.section for setting in _ALL))
#: In the order of `podwright config`: each section once.
TABLE: Final = tuple(sorted(_ALL, key=lambda setting: _SECTIONS.index(setting.section)))

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
        "annotations that count and are passed on to it; a trailing * matches any rest",
    ),
    Setting(
        "runtimes.NAME",
        "privileged_without_host_devices",
        boolean,
        False,
        "privileged containers do not get the node's devices",
    ),
)
