"""Settings of what confines containers; a part of `settings_table`, which explains settings."""

from __future__ import annotations

from typing import Final, Literal

from cri.setting import Setting, boolean, choice, optional_path, path, words
from sandbox.lsm import LsmSettings

LsmChoice = Literal["auto", "off"]

_LSM = LsmSettings()

APPARMOR: Setting[LsmChoice] = Setting(
    "runtime",
    "apparmor",
    choice("auto", "off"),
    "auto",
    "auto: confine containers by AppArmor where the kernel has it; off: as if it had not",
)
APPARMOR_PARSER = Setting(
    "runtime",
    "apparmor_parser_path",
    path,
    _LSM.parser,
    "loads our own profile, podwright-default, which RuntimeDefault stands for",
)
SELINUX: Setting[LsmChoice] = Setting(
    "runtime",
    "selinux",
    choice("auto", "off"),
    "auto",
    "auto: label containers where SELinux runs; off: as if it did not",
)
SELINUX_HOST_NETWORK = Setting(
    "runtime",
    "selinux_host_network",
    boolean,
    _LSM.selinux_host_network,
    "label pods on the host's network too; false: only those that ask for labels",
)
SECCOMP_DEFAULT = Setting(
    "runtime",
    "seccomp_default_profile",
    optional_path,
    None,
    "seccomp profile that RuntimeDefault stands for; read at each start; empty: our own",
)
COMPILED_SECCOMP = Setting(
    "runtime",
    "compiled_seccomp",
    boolean,
    True,
    "compile seccomp filters once and hand them to runtimes that take them",
)

ACCEPTED_ADVISORIES: Setting[tuple[str, ...]] = Setting(
    "check",
    "accepted_advisories",
    words,
    (),
    "holes by their public names (CVE-...) that you know to be mended or out of reach here",
)
HOLES_AT_START = Setting(
    "check",
    "holes_at_start",
    boolean,
    True,
    "name known holes of runtimes, plugins and libraries in the log after each start",
)

TABLE: Final[tuple[Setting[object], ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Setting)
)
