"""Resource limits of a container's process: from texts of the node and of annotations. Pure.

A limit is written `NAME=SOFT:HARD` or `NAME=BOTH`, such as `nofile=1024:4096` or `core=unlimited`;
the names are those of getrlimit(2) without RLIMIT_, in any case. What nobody names is inherited
from the daemon.

Whoever writes a pod may ask for limits where the administrator lists the annotation among the
handler's `allowed_annotations`:

    podwright.io/rlimits: nofile=1024:4096,core=0        for every container of the pod
    rlimits.podwright.io/NAME: memlock=unlimited         for the container NAME, over the others
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sandbox import oci
from sandbox.host.errors import InvalidArgument
from sandbox.spec.process import check_rlimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Annotation for every container of a pod, and the beginning of that for one container.
ALL_CONTAINERS: Final = "podwright.io/rlimits"
ONE_CONTAINER: Final = "rlimits.podwright.io/"
#: RLIM_INFINITY of <asm-generic/resource.h>.
UNLIMITED: Final = 2**64 - 1
#: Sixteen limits with their numbers take less (characters).
TEXT_LIMIT: Final = 1024
_LIMIT: Final = re.compile(
    r"(?:RLIMIT_)?([A-Z]+)=(\d{1,20}|UNLIMITED|-1)(?::(\d{1,20}|UNLIMITED|-1))?", re.ASCII
)


def parse_rlimit(text: str) -> oci.Rlimit:
    """One limit.

    Raises:
        InvalidArgument: it is not written as above, unknown, or soft is above hard.
    """
    match = _LIMIT.fullmatch(text.strip().upper())
    if match is None:
        raise InvalidArgument(
            f"not a resource limit: {text[:64]!a}", hint="such as nofile=1024:4096 or core=0"
        )
    soft = _value(match[2])
    limit = oci.Rlimit(
        type=f"RLIMIT_{match[1]}", soft=soft, hard=soft if match[3] is None else _value(match[3])
    )
    return check_rlimits((limit,))[0]


def _value(text: str) -> int:
    return UNLIMITED if text in ("UNLIMITED", "-1") else int(text)


def asked_rlimits(annotations: Mapping[str, str], container_name: str) -> tuple[oci.Rlimit, ...]:
    """What the annotations ask for; those of the one container win.

    Raises:
        InvalidArgument: naming the annotation.
    """
    found: dict[str, oci.Rlimit] = {}
    for key in (ALL_CONTAINERS, ONE_CONTAINER + container_name):
        text = annotations.get(key, "")
        if len(text) > TEXT_LIMIT:
            raise InvalidArgument(f"annotation {key} is longer than {TEXT_LIMIT} characters")
        for part in filter(None, (part.strip() for part in text.split(","))):
            try:
                limit = parse_rlimit(part)
            except InvalidArgument as error:
                raise InvalidArgument(f"annotation {key}: {error}") from error
            found[limit.type] = limit
    return tuple(found.values())


def merged(*layers: Iterable[oci.Rlimit]) -> tuple[oci.Rlimit, ...]:
    """Limits by name, later layers winning."""
    return tuple({limit.type: limit for layer in layers for limit in layer}.values())


def check_settable(limits: Iterable[oci.Rlimit], ceilings: Mapping[str, int], whose: str) -> None:
    """Make sure that the daemon may set the limits: without CAP_SYS_RESOURCE it can only lower.

    Args:
        limits: to be set.
        ceilings: the highest hard limit of each that can be set here.
        whose: for the message.

    Raises:
        InvalidArgument: naming the limit and the ceiling.
    """
    for limit in limits:
        ceiling = ceilings.get(limit.type, UNLIMITED)
        if limit.hard > ceiling:
            name = limit.type.removeprefix("RLIMIT_").lower()
            hard = "unlimited" if limit.hard == UNLIMITED else str(limit.hard)
            raise InvalidArgument(
                f"{whose}: {name} cannot be {hard}, the daemon may set at most {ceiling}",
                hint=f"raise the limit of the daemon itself (Limit{name.upper()}= of its unit),"
                " give it CAP_SYS_RESOURCE, or ask for less",
            )
