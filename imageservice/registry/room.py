"""Memory for pieces that are ahead of their turn: one bound for all transfers of the node.

What a transfer may hold by itself (connections times the length of a piece) says nothing of a node
that pulls twenty images at once. So each has a share of one room and takes more only while there is
some. Nobody waits for it: a transfer that has none goes on over one connection, and needs none.
"""

from __future__ import annotations


class Room:
    """So many bytes. For one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self._free_bytes = limit_bytes

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self._free_bytes

    def take(self, size_bytes: int) -> bool:
        """Take all of it or nothing; whether it was there."""
        if size_bytes > self._free_bytes:
            return False
        self._free_bytes -= size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self._free_bytes += size_bytes


class Share:
    """What one transfer holds of the room, counted in its pieces."""

    def __init__(self, room: Room, piece_bytes: int) -> None:
        self._room = room
        self._piece_bytes = piece_bytes
        self._pieces = 0

    def reach(self, pieces: int) -> bool:
        """Hold room for at least so many; False, and as before, where there is not enough."""
        more = pieces - self._pieces
        if more > 0:
            if not self._room.take(more * self._piece_bytes):
                return False
            self._pieces = pieces
        return True

    def close(self) -> None:
        """Hold nothing any more; may be used again."""
        pieces, self._pieces = self._pieces, 0
        self._room.give(pieces * self._piece_bytes)
