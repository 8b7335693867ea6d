"""What CDI devices and the node's hooks change in a container's finished document.

Device nodes are not here: they go through `linux.devices` with those of the request, so that the
rules of the device cgroup are made in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sandbox import oci
from sandbox.host.errors import InvalidArgument
from sandbox.spec.mounts import MOUNTS_LIMIT
from sandbox.spec.paths import depth
from sandbox.spec.process import check_strings

if TYPE_CHECKING:
    from sandbox.spec.inputs import Edits

#: The version that a document states which moves network interfaces or uses resctrl's schemata.
NEWER_OCI_VERSION: Final = "1.3.0"


def edited(spec: oci.Spec, edits: Edits) -> oci.Spec:
    """The document with the edits in it.

    Raises:
        InvalidArgument: too many mounts, or variables that execve(2) would refuse.
    """
    rdt, moved = edits.intel_rdt, edits.net_devices
    newer = bool(moved) or (rdt is not None and bool(rdt.schemata or rdt.enable_monitoring))
    return replace(
        spec,
        oci_version=NEWER_OCI_VERSION if newer else spec.oci_version,
        process=_process(spec.process, edits),
        mounts=_mounts(spec.mounts, edits.mounts),
        hooks=_hooks(edits) or spec.hooks,
        linux=replace(
            spec.linux,
            intel_rdt=rdt or spec.linux.intel_rdt,
            net_devices={host: oci.NetDevice(name=inside) for host, inside in moved.items()},
        ),
    )


def _process(process: oci.Process, edits: Edits) -> oci.Process:
    if not edits.env and not edits.additional_gids:
        return process
    values = dict(entry.split("=", 1) for entry in (*process.env, *edits.env))
    env = tuple(f"{name}={value}" for name, value in values.items())
    check_strings(env, "an environment variable")
    gids = dict.fromkeys((*process.user.additional_gids, *edits.additional_gids))
    return replace(process, env=env, user=replace(process.user, additional_gids=tuple(gids)))


def _mounts(present: tuple[oci.Mount, ...], added: tuple[oci.Mount, ...]) -> tuple[oci.Mount, ...]:
    if not added:
        return present
    by_place = {mount.destination: mount for mount in present}
    for mount in added:
        by_place.pop(mount.destination, None)  # the last one wins, and takes its own turn
        by_place[mount.destination] = mount
    if len(by_place) > MOUNTS_LIMIT:
        raise InvalidArgument(f"a container has more than {MOUNTS_LIMIT} mounts")
    # Parents first; the sort is stable, so what was in order stays so.
    return tuple(sorted(by_place.values(), key=lambda mount: depth(mount.destination)))


def _hooks(edits: Edits) -> oci.Hooks | None:
    stages = {oci.HOOK_STAGES[stage]: tuple(hooks) for stage, hooks in edits.hooks.items() if hooks}
    return oci.Hooks(**stages) if stages else None
