"""Tickets for the streaming server: random, bound to one request, good once, dead after a minute.

Nothing else authenticates a client, so: 256 bits from the kernel; the table is keyed by a keyed
hash, so that the time of a look-up tells nothing about a token, and the token itself is compared in
constant time; whoever shows a token spends it, whatever comes of it. At most 1000 wait at a time:
a client that asks for URLs in a loop and never comes is told to slow down.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sandbox.host.errors import ResourceExhausted

if TYPE_CHECKING:
    from sandbox.host.clock import Clock

T = TypeVar("T")

TOKEN_BYTES: Final = 32
#: Pending at a time; Kubernetes' own streaming library has the same bound.
PENDING_LIMIT: Final = 1000
#: Nobody's token is longer in the URL; more is not even hashed.
_TEXT_LIMIT: Final = 128


@dataclass(frozen=True, slots=True)
class _Ticket(Generic[T]):
    token: str
    target: T
    expires_ns: int


class Tokens(Generic[T]):
    """The pending tokens of one server; in memory only, a restart forgets them."""

    def __init__(
        self, *, clock: Clock, life_s: float = 60.0, pending_limit: int = PENDING_LIMIT
    ) -> None:
        self._clock = clock
        self._life_ns = int(life_s * 1e9)
        self._limit = pending_limit
        self._key = secrets.token_bytes(32)
        #: Insertion order is order of expiry: every ticket lives equally long.
        self._tickets: dict[bytes, _Ticket[T]] = {}

    def __len__(self) -> int:
        """How many are pending."""
        self._drop_expired()
        return len(self._tickets)

    def issue(self, target: T) -> str:
        """A new token for `target`.

        Raises:
            ResourceExhausted: too many are pending.
        """
        self._drop_expired()
        if len(self._tickets) >= self._limit:
            raise ResourceExhausted(
                f"{self._limit} streaming sessions wait for their clients",
                hint="connect to the URLs handed out, or wait until they expire",
            )
        token = secrets.token_urlsafe(TOKEN_BYTES)
        expires_ns = self._clock.monotonic_ns() + self._life_ns
        self._tickets[self._digest(token)] = _Ticket(token, target, expires_ns)
        return token

    def redeem(self, token: str) -> T | None:
        """What the token was issued for, once; None for one unknown, spent or expired."""
        self._drop_expired()
        if len(token) > _TEXT_LIMIT or not token.isascii():
            return None
        ticket = self._tickets.pop(self._digest(token), None)
        if ticket is None or not hmac.compare_digest(ticket.token, token):
            return None
        return ticket.target

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()

    def _drop_expired(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for digest, ticket in list(self._tickets.items()):
            if ticket.expires_ns > now_ns:
                break
            del self._tickets[digest]
