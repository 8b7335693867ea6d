"""The OCI runtime document (config.json) as typed values: only the fields we emit.

Pinned to runtime-spec 1.0.2, the newest version that Debian's crun 1.8 and runc 1.1 both take. Of
what came later only seccomp's `defaultErrnoRet` and the mount option `rro` are used, known to both.
Fields are snake_case here and camelCase on disk. What is left at its default is not written, so an
absent key means "the runtime's default"; a field the specification requires has no default here.

Not a parser: a document is only ever written by us and read by the runtime. The seccomp profiles of
administrators, which are read, are the business of `sandbox.security.seccomp`.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from sandbox.host.errors import InvalidArgument

#: The version every document of ours states, but for one that needs what came later.
OCI_VERSION: Final = "1.0.2"

NamespaceType = Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup"]

SeccompAction = Literal[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
]

SeccompOperator = Literal[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
]


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of every part: immutable, camelCase on disk, defaults not written."""


class User(Document, frozen=True, kw_only=True):
    """config.md, POSIX process user. `additional_gids` includes the primary group."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()


class ProcessCapabilities(Document, frozen=True, kw_only=True):
    """The five sets of capabilities(7), names with CAP_, in the kernel's order."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Document, frozen=True, kw_only=True):
    """One limit of getrlimit(2); `type` such as RLIMIT_NOFILE, in that resource's own unit."""

    type: str
    soft: int
    hard: int


class Process(Document, frozen=True, kw_only=True):
    """What is executed, as whom, with which rights."""

    terminal: bool = False
    user: User
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str
    capabilities: ProcessCapabilities
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    oom_score_adj: int | None = None
    selinux_label: str = ""


class Root(Document, frozen=True, kw_only=True):
    """The root file system's path on the host."""

    path: str
    readonly: bool = False


class Mount(Document, frozen=True, kw_only=True):
    """One mount, in the order in which the runtime makes them."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()


class Namespace(Document, frozen=True, kw_only=True):
    """A namespace to make (no path) or to join (path of a pin); one not listed is the host's."""

    type: NamespaceType
    path: str = ""


class IdMapping(Document, frozen=True, kw_only=True):
    """config-linux.md, user namespace mappings: `size` ids; the names end in ID, not in Id."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class Device(Document, frozen=True, kw_only=True):
    """A device node to make in the container; `file_mode` holds permission bits only."""

    path: str
    type: Literal["c", "b", "p"]
    major: int = -1
    minor: int = -1
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceRule(Document, frozen=True, kw_only=True):
    """One line of the device cgroup; no number means every number, later lines win.

    `type` and `access` are always written: crun takes an absent `access` for an empty one.
    """

    allow: bool
    type: Literal["a", "c", "b"]
    major: int | None = None
    minor: int | None = None
    access: str


class Memory(Document, frozen=True, kw_only=True):
    """Bytes; -1 is unlimited. `swap` is memory and swap together, as cgroup v1 counts."""

    limit: int | None = None
    swap: int | None = None


class Cpu(Document, frozen=True, kw_only=True):
    """`shares` in cgroup v1 shares (the runtime turns them into a weight), the others in µs."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    cpus: str = ""
    mems: str = ""


class Pids(Document, frozen=True, kw_only=True):
    """Most processes and threads."""

    limit: int


class HugepageLimit(Document, frozen=True, kw_only=True):
    """Bytes of pages of one size, `page_size` such as 2MB."""

    page_size: str
    limit: int


class Resources(Document, frozen=True, kw_only=True):
    """Cgroup limits; also what `update --resources` reads."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: dict[str, str] = {}


class SeccompArg(Document, frozen=True, kw_only=True):
    """A condition on one argument register; several in one rule must all hold."""

    index: int
    value: int
    value_two: int = 0
    op: SeccompOperator


class SeccompRule(Document, frozen=True, kw_only=True):
    """What to do for these system calls."""

    names: tuple[str, ...]
    action: SeccompAction
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] = ()


class Seccomp(Document, frozen=True, kw_only=True):
    """A filter with plain rules only: conditions were decided before it came here."""

    default_action: SeccompAction
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SeccompRule, ...] = ()


class IntelRdt(Document, frozen=True, kw_only=True):
    """Cache and memory bandwidth by resctrl; the last two came with runtime-spec 1.3."""

    clos_id: str = msgspec.field(name="closID", default="")
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False


class NetDevice(Document, frozen=True, kw_only=True):
    """A network interface of the host that moves in, by its name inside; runtime-spec 1.3."""

    name: str


class Linux(Document, frozen=True, kw_only=True):
    """The Linux part."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Resources | None = None
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None
    net_devices: dict[str, NetDevice] = {}


class Hook(Document, frozen=True, kw_only=True):
    """A program the runtime runs at a point of the life cycle; `timeout` in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(Document, frozen=True, kw_only=True):
    """config.md, POSIX-platform hooks; all but `start_container` run on the host, as root."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


#: Names of the stages as in the document, with the field of each.
HOOK_STAGES: Final = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}


class Spec(Document, frozen=True, kw_only=True):
    """The whole document; `sandbox.spec.build` is the only place that composes one."""

    oci_version: str
    process: Process
    root: Root
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks | None = None
    annotations: dict[str, str] = {}
    linux: Linux


def encode(document: Document) -> bytes:
    """The document as JSON, canonical: equal values give equal bytes (mappings sorted by key).

    Takes a `Spec` for a bundle, a `Process` for `exec --process`, or `Resources` for `update`.

    Raises:
        InvalidArgument: a text in it cannot be written as UTF-8 (a lone surrogate).
    """
    try:
        return msgspec.json.encode(document, order="deterministic")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            "a text of the container's configuration is not valid UTF-8",
            hint="look for a lone surrogate (\\ud800 to \\udfff) in arguments and environment",
        ) from error
