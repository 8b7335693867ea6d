"""The user namespace of a pod, as numbers: what was asked for, checked, and where it is pinned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.host.errors import InvalidArgument
from sandbox.host.idmap import IdMap, IdRange
from sandbox.model import NamespaceMode, UserNamespace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.model import IdMapping, NamespaceOptions, PodSandbox
    from sandbox.paths import Paths


def own_user_namespace(options: NamespaceOptions) -> UserNamespace | None:
    """The user namespace that is asked for; None where it is the node's.

    Raises:
        InvalidArgument: it cannot be: a mode that means nothing, not one line each, no root.
    """
    user = options.user
    if user is None:
        return None
    if user.mode is NamespaceMode.NODE:
        if user.uids or user.gids:
            raise InvalidArgument("the node's user namespace takes no mappings")
        return None
    if user.mode is not NamespaceMode.POD:
        raise InvalidArgument(f"user namespace mode {user.mode.name} means nothing for a pod")
    for what, lines in (("uids", user.uids), ("gids", user.gids)):
        _check_lines(what, lines)
    return user


def _check_lines(what: str, lines: tuple[IdMapping, ...]) -> None:
    if len(lines) != 1:
        raise InvalidArgument(
            f"a user namespace needs one line of {what}, not {len(lines)}",
            hint="the kubelet gives each pod one range",
        )
    (line,) = lines
    if line.container_id != 0:
        raise InvalidArgument(f"{what} of a user namespace must map root (container_id 0)")
    if line.length <= 0:
        raise InvalidArgument(f"{what} of a user namespace map nothing")
    if line.host_id <= 0:
        # Root of the pod would be root of the node: the very thing that is to be avoided.
        raise InvalidArgument(f"{what} of a user namespace must not map the node's root")


def id_map(pod: PodSandbox, paths: Paths) -> IdMap | None:
    """The mapping of a pod and where its user namespace is pinned; None on the node's.

    Raises:
        InvalidArgument: see `own_user_namespace`.
    """
    user = own_user_namespace(pod.config.security.namespaces)
    if user is None:
        return None
    (uids,), (gids,) = user.uids, user.gids
    return IdMap(_range(uids), _range(gids), paths.pins(pod.id) / "user")


def _range(line: IdMapping) -> IdRange:
    return IdRange(line.container_id, line.host_id, line.length)


def check_mapped(ids: IdMap, uid: int, gids: Iterable[int]) -> None:
    """Refuse to run as somebody who does not exist in the user namespace.

    Raises:
        InvalidArgument: naming the id and the range.
    """
    asked = [("user", uid, ids.uids), *(("group", gid, ids.gids) for gid in gids)]
    for what, number, line in asked:
        if line.to_outside(number) is None:
            raise InvalidArgument(
                f"{what} {number} does not exist in the pod's user namespace",
                hint=f"it has ids from {line.inside} to {line.inside + line.length - 1}; choose"
                " one of them, or have the kubelet give pods more (userNamespaces.idsPerPod)",
            )
