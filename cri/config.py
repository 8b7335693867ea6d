"""Configuration: files, drop-ins and flags become one checked value with the origin of every part.

Read in this order, later ones win key by key: defaults, the environment,
`/etc/podwright/config.toml`, the files `config.d/*.toml` beside it in lexical order,
`--set section.key=value` and the named flags. Of the environment only proxies are read, and what
cannot be used of them is left out instead of refused: a shell has it for other programs. Every
problem of all files is collected before anything is refused, so that one run shows them all; an
unknown key is refused with the nearest known one, because a setting that is silently ignored is
worse than a daemon that does not start.

Engines never see this module: each is given its own frozen settings value, made here.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

from cni.settings import CniSettings
from cri import settings_devices as devices
from cri import settings_images as image_table
from cri import settings_security as security
from cri import settings_speed as speed
from cri import settings_table as table
from cri.config_files import ConfigInvalid, Reading
from cri.streaming.settings import StreamingSettings
from imageservice.proxies import Proxies
from imageservice.settings import ImageSettings
from metrics.settings import LogRateSettings, MetricsSettings, SamplerSettings
from sandbox.lsm import LsmSettings
from sandbox.settings import SandboxSettings, SandboxTimeouts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cri.setting import Setting
    from sandbox.settings import CgroupDriver, RuntimeHandler

DEFAULT_PATH: Final = Path("/etc/podwright/config.toml")
FLAG: Final = "flag"


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Config:
    """The effective configuration.

    Attributes:
        values: value of every setting by `section.name`.
        origins: where each came from: `default`, `FILE:LINE` or `flag`; handlers' keys included
            when they are not the default.
        handlers: the runtime handlers.
        files: the files read, in order.
    """

    values: Mapping[str, object]
    origins: Mapping[str, str]
    handlers: tuple[RuntimeHandler, ...]
    files: tuple[Path, ...]

    def get(self, setting: Setting[T]) -> T:
        """The value of `setting`."""
        return cast("T", self.values[setting.key])

    @property
    def socket(self) -> Path:
        """Where gRPC is served."""
        return self.get(table.SOCKET) or self.get(table.RUN_ROOT) / "podwright.sock"

    def sandbox(self) -> SandboxSettings:
        """What the sandbox engine is told."""
        driver = self.get(table.CGROUP_DRIVER)
        return SandboxSettings(
            run_root=real_place(self.get(table.RUN_ROOT)),
            state_root=real_place(self.get(table.STATE_ROOT)),
            handlers=self.handlers,
            default_handler=self.get(table.DEFAULT_RUNTIME),
            cgroup_driver=detect_cgroup_driver() if driver == "auto" else driver,
            conmon_path=self.get(table.CONMON_PATH),
            monitor_cgroup=self.get(table.MONITOR_CGROUP),
            exec_output_bytes=self.get(table.EXEC_OUTPUT),
            exec_outputs_bytes=self.get(table.EXEC_OUTPUTS),
            rlimits=self.get(devices.RLIMITS),
            cdi_spec_dirs=self.get(devices.CDI_SPEC_DIRS),
            hooks_dirs=self.get(devices.HOOKS_DIRS),
            device_ownership=self.get(devices.DEVICE_OWNERSHIP),
            timeouts=SandboxTimeouts(
                create_s=self.get(table.CREATE_TIMEOUT),
                operation_s=self.get(table.OPERATION_TIMEOUT),
                probe_s=self.get(table.PROBE_TIMEOUT),
                exit_file_s=self.get(table.EXIT_FILE_TIMEOUT),
                exec_drain_s=self.get(table.EXEC_DRAIN_TIMEOUT),
                exec_kill_s=self.get(table.EXEC_KILL_TIMEOUT),
                reopen_s=self.get(table.REOPEN_TIMEOUT),
                kill_s=self.get(table.KILL_TIMEOUT),
            ),
        )

    def lsm(self) -> LsmSettings:
        """What AppArmor and SELinux are told."""
        return LsmSettings(
            apparmor=self.get(security.APPARMOR) == "auto",
            selinux=self.get(security.SELINUX) == "auto",
            parser=self.get(security.APPARMOR_PARSER),
            selinux_host_network=self.get(security.SELINUX_HOST_NETWORK),
        )

    def cni(self) -> CniSettings:
        """What the network package is told."""
        return CniSettings(
            conf_dir=self.get(table.CNI_CONF_DIR),
            conf_template=self.get(table.CNI_CONF_TEMPLATE),
            bin_dirs=self.get(table.CNI_BIN_DIRS),
            cache_dir=self.get(table.CNI_CACHE_DIR) or self.get(table.STATE_ROOT) / "cni",
            default_network=self.get(table.CNI_DEFAULT_NETWORK),
            ip_pref=self.get(table.CNI_IP_PREF),
            add_timeout_s=self.get(table.CNI_ADD_TIMEOUT),
            delete_timeout_s=self.get(table.CNI_DELETE_TIMEOUT),
            check_timeout_s=self.get(table.CNI_CHECK_TIMEOUT),
            query_timeout_s=self.get(table.CNI_QUERY_TIMEOUT),
            poll_s=self.get(table.CNI_POLL),
            poll_unready_s=self.get(table.CNI_POLL_UNREADY),
            status_grace_s=self.get(table.CNI_STATUS_GRACE),
            skip_idle=self.get(speed.SKIP_IDLE_PLUGINS),
            environment=self.get(table.CNI_ENVIRONMENT),
        )

    def images(self) -> ImageSettings:
        """What the image service is told."""
        return ImageSettings(
            root=real_place(
                self.get(image_table.IMAGE_ROOT) or self.get(table.STATE_ROOT) / "images"
            ),
            additional_stores=self.get(image_table.ADDITIONAL_STORES),
            keep_blobs=self.get(image_table.KEEP_BLOBS),
            registry_config_dirs=self.get(image_table.REGISTRY_DIRS),
            auth_file=self.get(image_table.AUTH_FILE),
            namespaced_auth_dir=self.get(image_table.NAMESPACED_AUTH_DIR),
            credential_helper_dirs=self.get(image_table.HELPER_DIRS),
            proxies=Proxies(
                https=self.get(image_table.HTTPS_PROXY),
                http=self.get(image_table.HTTP_PROXY),
                exceptions=self.get(image_table.NO_PROXY),
            ),
            layer_form=self.get(image_table.LAYER_FORM),
            storage_driver=self.get(image_table.STORAGE_DRIVER),
            fuse_overlayfs_path=self.get(image_table.FUSE_OVERLAYFS_PATH),
            max_concurrent_downloads=self.get(image_table.MAX_DOWNLOADS),
            max_node_downloads=self.get(image_table.MAX_NODE_DOWNLOADS),
            pull_progress_timeout_s=self.get(image_table.PULL_PROGRESS_TIMEOUT),
            min_progress_bytes=self.get(image_table.MIN_PROGRESS),
            connect_timeout_s=self.get(image_table.CONNECT_TIMEOUT),
            mirror_connect_timeout_s=self.get(image_table.MIRROR_CONNECT_TIMEOUT),
            response_timeout_s=self.get(image_table.RESPONSE_TIMEOUT),
            max_connections_per_host=self.get(image_table.MAX_CONNECTIONS),
            max_connections_per_layer=self.get(image_table.MAX_LAYER_CONNECTIONS),
            range_bytes=self.get(image_table.RANGE_BYTES),
            range_memory_bytes=self.get(image_table.RANGE_MEMORY),
            pinned_images=self.get(image_table.PINNED_IMAGES),
            unpack_workers=self.get(image_table.UNPACK_WORKERS),
            unpack_idle_s=self.get(image_table.UNPACK_IDLE),
            unpack_progress_timeout_s=self.get(image_table.UNPACK_PROGRESS_TIMEOUT),
            max_layer_bytes=self.get(image_table.MAX_LAYER_BYTES),
            max_expansion_ratio=self.get(image_table.MAX_EXPANSION),
            max_layer_entries=self.get(image_table.MAX_LAYER_ENTRIES),
            keep_partial_s=self.get(image_table.KEEP_PARTIAL),
            signature_policy=self.get(image_table.SIGNATURE_POLICY),
            signature_policy_dir=self.get(image_table.SIGNATURE_POLICY_DIR),
            blocked_registries=self.get(image_table.BLOCKED_REGISTRIES),
        )

    def streaming(self) -> StreamingSettings:
        """What the streaming server is told."""
        return StreamingSettings(
            address=self.get(table.STREAMING_ADDRESS),
            tls=self.get(table.STREAMING_TLS),
            tls_cert=self.get(table.STREAMING_TLS_CERT),
            tls_key=self.get(table.STREAMING_TLS_KEY),
            idle_timeout_s=self.get(table.STREAMING_IDLE),
            creation_timeout_s=self.get(table.STREAMING_CREATION),
            token_life_s=self.get(table.STREAMING_TOKEN_LIFE),
        )

    def sampler(self) -> SamplerSettings:
        """What is told to who measures pods and containers."""
        return SamplerSettings(
            interval_s=self.get(table.SAMPLE_INTERVAL),
            min_age_s=self.get(table.SAMPLE_AGE),
            layer_age_s=self.get(table.LAYER_AGE),
        )

    def log_rates(self) -> LogRateSettings:
        """What is told to who watches the logs of containers."""
        return LogRateSettings(
            interval_s=self.get(table.LOG_INTERVAL),
            warning_bytes=self.get(table.LOG_RATE_WARNING),
            pods=self.get(table.LOG_RATE_PODS),
        )

    def metrics(self) -> MetricsSettings:
        """What the metrics endpoint is told."""
        return MetricsSettings(
            address=self.get(table.METRICS_ADDRESS),
            request_timeout_s=self.get(table.METRICS_TIMEOUT),
        )


def real_place(path: Path) -> Path:
    """The same place without links on the way, as the kernel's list of mounts has it.

    The last part is kept as it is: what it may be is decided where it is made.
    """
    return path.parent.resolve() / path.name


def detect_cgroup_driver(system: Path = Path("/run/systemd/system")) -> CgroupDriver:
    """`systemd` where systemd runs the node (sd_booted(3)), else `cgroupfs`.

    A node has one writer of its cgroups; where systemd is that writer, others are undone by it.
    """
    return "systemd" if system.is_dir() else "cgroupfs"


def load(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The effective configuration.

    Args:
        path: the main file; None for the default one, which need not exist.
        overrides: values of flags by `section.name`.
        environ: the environment.

    Raises:
        ConfigInvalid: with every problem found.
    """
    reading = Reading()
    for setting, value, variable in image_table.from_environment(environ):
        reading.variable(setting, value, variable)
    files = reading.tree(path or DEFAULT_PATH, required=path is not None)
    for key, value in (overrides or {}).items():
        section, _, name = key.rpartition(".")
        reading.value(section, name, value, FLAG)
    config = Config(
        values=reading.values,
        origins=reading.origins,
        handlers=reading.handlers(),
        files=files,
    )
    # Each package checks what its settings mean together.
    if not reading.problems:
        for make in (config.sandbox, config.cni, config.images, config.metrics, config.streaming):
            reading.attempt("", make)
    if reading.problems:
        raise ConfigInvalid(reading.problems)
    return config


def flag_value(text: str) -> object:
    """The value in `--set key=VALUE`: TOML where it is TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_text(value: object) -> str:
    """`value` as TOML, for `podwright config`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_text(entry) for entry in _flat(value)) + "]"
    text = "" if value is None else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _flat(value: Iterable[object]) -> list[object]:
    """Pairs of (name, value) as NAME=value, everything else as it is."""
    return ["=".join(map(str, v)) if isinstance(v, tuple) else v for v in value]
