"""protobuf ↔ values for what pods and containers have in common: namespaces, security, resources.

From the wire comes a checked value or InvalidArgument naming the field, never another exception;
to the wire goes what is stored, as it came. Only `cri.convert_*` and `cri.rpc` see protobuf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri import validate
from protos import api_pb2 as pb
from sandbox.model import (
    HugepageLimit,
    IdMapping,
    ImageSpec,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SecurityProfile,
    SELinuxOptions,
    UserNamespace,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: One huge page size of each order of magnitude a kernel knows is fewer than this.
_HUGEPAGE_LIMITS: Final = 16
#: A mapping line covers ids below 2**32 (user_namespaces(7)).
_ID_SPACE: Final = 2**32
_INT64_MAX: Final = 2**63 - 1
#: Kernel bounds of cpu.cfs_period_us and cpu.max: 1 ms to 1 s (Documentation/scheduler/sched-bwc).
_CPU_PERIOD_MIN_USEC: Final = 1_000
_CPU_PERIOD_MAX_USEC: Final = 1_000_000
#: OOM_SCORE_ADJ_MIN and _MAX of linux/oom.h.
_OOM_SCORE_ADJ: Final = 1_000

_MODES: Final = {
    NamespaceMode.POD: pb.POD,
    NamespaceMode.CONTAINER: pb.CONTAINER,
    NamespaceMode.NODE: pb.NODE,
    NamespaceMode.TARGET: pb.TARGET,
}


def id_mappings(lines: Sequence[pb.IDMapping], field: str) -> tuple[IdMapping, ...]:
    """Lines of a user namespace mapping; empty or overflowing ranges are refused."""
    validate.count(lines, field)
    for index, line in enumerate(lines):
        if line.length == 0:
            validate.refuse(f"{field}[{index}].length", "must not be 0")
        if max(line.host_id, line.container_id) + line.length > _ID_SPACE:
            validate.refuse(f"{field}[{index}]", "reaches beyond the last id")
    return tuple(
        IdMapping(host_id=m.host_id, container_id=m.container_id, length=m.length) for m in lines
    )


def id_mapping_messages(lines: Sequence[IdMapping]) -> list[pb.IDMapping]:
    """The reverse of `id_mappings`."""
    return [
        pb.IDMapping(host_id=m.host_id, container_id=m.container_id, length=m.length) for m in lines
    ]


def namespaces(message: pb.NamespaceOption, field: str) -> NamespaceOptions:
    """Which namespaces are shared; network and IPC are the pod's or the node's, nothing else."""
    network = validate.enum(NamespaceMode, message.network, f"{field}.network")
    ipc = validate.enum(NamespaceMode, message.ipc, f"{field}.ipc")
    pid = validate.enum(NamespaceMode, message.pid, f"{field}.pid")
    for kind, mode in (("network", network), ("ipc", ipc)):
        if mode not in {NamespaceMode.POD, NamespaceMode.NODE}:
            validate.refuse(f"{field}.{kind}", f"{mode.name} is not possible: use POD or NODE")
    target_id = validate.text(message.target_id, f"{field}.target_id", limit=validate.NAME_LIMIT)
    if pid is NamespaceMode.TARGET and not target_id:
        validate.refuse(f"{field}.target_id", "must name a container when pid is TARGET")
    user = None
    if message.HasField("userns_options"):
        user = user_namespace(message.userns_options, f"{field}.userns_options")
    return NamespaceOptions(network=network, pid=pid, ipc=ipc, target_id=target_id, user=user)


def user_namespace(message: pb.UserNamespace, field: str) -> UserNamespace:
    """The node's user namespace without mappings, or the pod's own with exactly one line each.

    One line is what kubelets send and what the field's runtimes accept (KEP-127).
    """
    mode = validate.enum(NamespaceMode, message.mode, f"{field}.mode")
    if mode not in {NamespaceMode.POD, NamespaceMode.NODE}:
        validate.refuse(f"{field}.mode", f"{mode.name} is not possible: use POD or NODE")
    uids = id_mappings(message.uids, f"{field}.uids")
    gids = id_mappings(message.gids, f"{field}.gids")
    expected = 1 if mode is NamespaceMode.POD else 0
    for kind, lines in (("uids", uids), ("gids", gids)):
        if len(lines) != expected:
            validate.refuse(
                f"{field}.{kind}",
                f"needs {expected} mapping(s) with mode {mode.name}, not {len(lines)}",
            )
    return UserNamespace(mode=mode, uids=uids, gids=gids)


def namespaces_message(value: NamespaceOptions) -> pb.NamespaceOption:
    """The reverse of `namespaces`."""
    message = pb.NamespaceOption(
        network=_MODES[value.network],
        pid=_MODES[value.pid],
        ipc=_MODES[value.ipc],
        target_id=value.target_id,
    )
    if value.user is not None:
        message.userns_options.mode = _MODES[value.user.mode]
        message.userns_options.uids.extend(id_mapping_messages(value.user.uids))
        message.userns_options.gids.extend(id_mapping_messages(value.user.gids))
    return message


def seccomp(
    message: pb.SecurityProfile | None, deprecated: str, field: str
) -> SecurityProfile | None:
    """The seccomp profile: the typed field, or the string older clients send when that is unset."""
    if message is None:
        defaults = {"runtime/default", "docker/default"}
        profile = _profile_of_string(deprecated, defaults, f"{field}_profile_path")
    else:
        profile = _profile(message, field)
    if profile is not None and profile.profile_type is ProfileType.LOCALHOST:
        validate.absolute_path(profile.localhost_ref, f"{field}.localhost_ref")
    return profile


def apparmor(
    message: pb.SecurityProfile | None, deprecated: str, field: str
) -> SecurityProfile | None:
    """The AppArmor profile; a Localhost one is named, not a path."""
    if message is None:
        return _profile_of_string(deprecated, {"runtime/default"}, f"{field}_profile")
    return _profile(message, field)


def _profile(message: pb.SecurityProfile, field: str) -> SecurityProfile:
    kind = validate.enum(ProfileType, message.profile_type, f"{field}.profile_type")
    reference = message.localhost_ref.removeprefix("localhost/")
    # An empty reference must never come to mean "unconfined" (CVE-2023-2431).
    if kind is ProfileType.LOCALHOST:
        validate.required(reference, f"{field}.localhost_ref")
    elif reference:
        validate.refuse(f"{field}.localhost_ref", f"must be empty with profile type {kind.name}")
    return SecurityProfile(profile_type=kind, localhost_ref=reference)


def _profile_of_string(text: str, defaults: set[str], field: str) -> SecurityProfile | None:
    if not text:
        return None
    kind, reference = ProfileType.RUNTIME_DEFAULT, ""
    if text == "unconfined":
        kind = ProfileType.UNCONFINED
    elif text.startswith("localhost/"):
        kind = ProfileType.LOCALHOST
        reference = validate.required(text.removeprefix("localhost/"), field)
    elif text not in defaults:
        validate.refuse(
            field, f"{text[:64]!r} is not runtime/default, unconfined or localhost/PROFILE"
        )
    return SecurityProfile(profile_type=kind, localhost_ref=reference)


def selinux(message: pb.SELinuxOption, field: str) -> SELinuxOptions:
    """The parts of an SELinux label."""
    return SELinuxOptions(
        user=validate.text(message.user, f"{field}.user", limit=validate.NAME_LIMIT),
        role=validate.text(message.role, f"{field}.role", limit=validate.NAME_LIMIT),
        type=validate.text(message.type, f"{field}.type", limit=validate.NAME_LIMIT),
        level=validate.text(message.level, f"{field}.level"),
    )


def user_id(value: int, field: str) -> int:
    """A user or group id."""
    return validate.whole(value, field, 0, validate.USER_ID_LIMIT)


def group_ids(values: Sequence[int], field: str) -> tuple[int, ...]:
    """Supplemental groups; NGROUPS_MAX is 65536, far more than `validate.LIST_LIMIT`."""
    validate.count(values, field)
    return tuple(user_id(value, f"{field}[{i}]") for i, value in enumerate(values))


def resources(message: pb.LinuxContainerResources, field: str) -> LinuxResources:
    """Limits asked for; 0 means not asked for, -1 means unlimited where the kernel has that."""
    period = message.cpu_period
    if period != 0:
        validate.whole(period, f"{field}.cpu_period", _CPU_PERIOD_MIN_USEC, _CPU_PERIOD_MAX_USEC)
    hugepages = message.hugepage_limits
    validate.count(hugepages, f"{field}.hugepage_limits", _HUGEPAGE_LIMITS)
    return LinuxResources(
        cpu_period_usec=period,
        cpu_quota_usec=validate.whole(message.cpu_quota, f"{field}.cpu_quota", -1, _INT64_MAX),
        cpu_shares=validate.whole(message.cpu_shares, f"{field}.cpu_shares", 0, _INT64_MAX),
        memory_limit_bytes=validate.whole(
            message.memory_limit_in_bytes, f"{field}.memory_limit_in_bytes", -1, _INT64_MAX
        ),
        memory_swap_limit_bytes=validate.whole(
            message.memory_swap_limit_in_bytes,
            f"{field}.memory_swap_limit_in_bytes",
            -1,
            _INT64_MAX,
        ),
        oom_score_adj=validate.whole(
            message.oom_score_adj, f"{field}.oom_score_adj", -_OOM_SCORE_ADJ, _OOM_SCORE_ADJ
        ),
        cpuset_cpus=validate.cpu_list(message.cpuset_cpus, f"{field}.cpuset_cpus"),
        cpuset_mems=validate.cpu_list(message.cpuset_mems, f"{field}.cpuset_mems"),
        hugepage_limits=tuple(
            HugepageLimit(
                page_size=validate.page_size(limit.page_size, f"{field}.hugepage_limits.page_size"),
                limit_bytes=limit.limit,
            )
            for limit in hugepages
        ),
        unified=validate.unified(message.unified, f"{field}.unified"),
    )


def resources_message(value: LinuxResources) -> pb.LinuxContainerResources:
    """The reverse of `resources`."""
    return pb.LinuxContainerResources(
        cpu_period=value.cpu_period_usec,
        cpu_quota=value.cpu_quota_usec,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit_bytes,
        memory_swap_limit_in_bytes=value.memory_swap_limit_bytes,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=[
            pb.HugepageLimit(page_size=limit.page_size, limit=limit.limit_bytes)
            for limit in value.hugepage_limits
        ],
        unified=value.unified,
    )


def image_spec(message: pb.ImageSpec, field: str) -> ImageSpec:
    """Which image is meant; the reference itself is parsed by the image service."""
    return ImageSpec(
        image=validate.required(message.image, f"{field}.image"),
        annotations=validate.string_map(message.annotations, f"{field}.annotations"),
        user_specified_image=validate.text(
            message.user_specified_image, f"{field}.user_specified_image"
        ),
        runtime_handler=validate.text(message.runtime_handler, f"{field}.runtime_handler"),
        image_ref=validate.text(message.image_ref, f"{field}.image_ref"),
    )


def image_spec_message(value: ImageSpec) -> pb.ImageSpec:
    """The reverse of `image_spec`."""
    return pb.ImageSpec(
        image=value.image,
        annotations=value.annotations,
        user_specified_image=value.user_specified_image,
        runtime_handler=value.runtime_handler,
        image_ref=value.image_ref,
    )
