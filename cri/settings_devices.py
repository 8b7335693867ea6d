"""Settings of what the node adds to containers; a part of `settings_table`, which explains them."""

from __future__ import annotations

from typing import Final

from cri.setting import Setting, boolean, paths, rlimits
from sandbox.settings import SandboxSettings

_SANDBOX = SandboxSettings()

RLIMITS = Setting(
    "runtime",
    "rlimits",
    rlimits,
    _SANDBOX.rlimits,
    'resource limits of each container, such as ["nofile=1024:4096"]; others are the daemon\'s own',
)
CDI_SPEC_DIRS = Setting(
    "runtime",
    "cdi_spec_dirs",
    paths,
    _SANDBOX.cdi_spec_dirs,
    "CDI files of devices; the last directory is the strongest; followed while they change",
)
HOOKS_DIRS = Setting(
    "runtime",
    "hooks_dirs",
    paths,
    _SANDBOX.hooks_dirs,
    "OCI hooks that fitting containers run, see oci-hooks(5); must belong to root alone",
)
DEVICE_OWNERSHIP = Setting(
    "runtime",
    "device_ownership_from_security_context",
    boolean,
    _SANDBOX.device_ownership,
    "devices in a container belong to its runAsUser and runAsGroup, not to the host's owner, who is"
    " nobody in a pod with a user namespace",
)

TABLE: Final[tuple[Setting[object], ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Setting)
)
