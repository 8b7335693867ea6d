"""Objects by the beginning of their id, as people type it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sandbox.host.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

V = TypeVar("V")


def by_prefix(objects: Mapping[str, V], wanted: str, kind: str) -> V:
    """The one object whose id begins with `wanted`, as crictl's short ids need it.

    Args:
        objects: by id.
        wanted: the beginning.
        kind: what to call one of them in an error.

    Raises:
        InvalidArgument: it is empty, or fits several.
        NotFound: it fits none.
    """
    if not wanted:
        raise InvalidArgument(f"{kind} id is empty")
    fits = [value for object_id, value in objects.items() if object_id.startswith(wanted)]
    if len(fits) > 1:
        raise InvalidArgument(
            f"{kind} id prefix {wanted} fits {len(fits)} objects", hint="give more of the id"
        )
    if not fits:
        raise NotFound(f"{kind} {wanted[:80]} does not exist")
    return fits[0]
