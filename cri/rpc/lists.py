"""Answers to list calls, joined from entries that were serialised when the object changed.

The kubelet asks for every pod and container each second. Values are frozen, so an object that is
the same (`is`) as at the last call has the same bytes; what is left of a list call is a join. The
bytes of a message with one repeated field are its entries one after the other, each with the
field's tag and its length (protobuf encoding, "length-delimited records").

A streamed list is the same entries in several messages, each far below what a client accepts: a
node with twenty thousand exited containers has lists that no single message may hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from cri import validate
from cri.encoding import varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from google.protobuf.message import Message

#: Field 1, wire type 2: `items`, `containers` and `images` all have number 1.
_TAG: Final = b"\x0a"
#: Where a message of a stream ends (bytes): a sixteenth of what clients accept, and little enough
#: to be joined in a fraction of a millisecond.
CHUNK_BYTES: Final = 1024 * 1024
#: Entries of objects that are gone are dropped when the cache is this much larger than the list.
_SLACK: Final = 64


class HasId(Protocol):
    """A frozen value with an id."""

    @property
    def id(self) -> str:
        """The id."""
        ...


V = TypeVar("V", bound=HasId)


class ListCache(Generic[V]):
    """Serialised entries by id, each valid for one value; for the event loop's thread only."""

    def __init__(self, encode: Callable[[V], Message]) -> None:
        self._encode = encode
        self._entries: dict[str, tuple[V, bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def join(self, values: Iterable[V], total: int) -> bytes:
        """The response with these entries; `total` is how many objects exist in all."""
        parts = [self._entry(value) for value in values]
        self._trim(total)
        return b"".join(parts)

    def stream(self, values: Iterable[V], total: int) -> Iterator[bytes]:
        """The same in messages of about `CHUNK_BYTES`; none when there is no entry."""
        yield from chunks(self._entry(value) for value in values)
        self._trim(total)

    def _trim(self, total: int) -> None:
        if len(self._entries) > 2 * total + _SLACK:
            # Objects are gone: begin anew rather than track every removal.
            self._entries.clear()

    def _entry(self, value: V) -> bytes:
        known = self._entries.get(value.id)
        if known is not None and known[0] is value:
            return known[1]
        found = entry(self._encode(value))
        self._entries[value.id] = (value, found)
        return found


def entry(message: Message) -> bytes:
    """A message as one entry of the response's repeated field."""
    return entry_of(message.SerializeToString())


def entry_of(body: bytes) -> bytes:
    """A serialised message as one entry of the response's repeated field."""
    return _TAG + varint(len(body)) + body


def chunks(entries: Iterable[bytes], limit_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Entries joined to messages that end with the first entry at or beyond the limit."""
    parts: list[bytes] = []
    size = 0
    for part in entries:
        parts.append(part)
        size += len(part)
        if size >= limit_bytes:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def id_prefix(value: str, field: str) -> str:
    """An id filter: empty for all, else a whole id or the beginning of one."""
    return validate.text(value, field, limit=validate.NAME_LIMIT)


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether all labels of the selector are there with the same values."""
    return all(labels.get(key) == value for key, value in selector.items())
