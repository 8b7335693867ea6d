"""Content digests: the one name of a blob, checked to the letter before it becomes a path or a URL.

A digest comes from strangers (manifests, references, headers), and unchecked ones have led out of
the store and to foreign URLs (CVE-2024-3727). So the grammar is narrower than the OCI one: two
algorithms, lower-case hexadecimal, exact length, nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Protocol

from imageservice.errors import DigestInvalid

#: Algorithm -> number of hexadecimal characters (OCI image-spec, descriptor.md).
HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_HEX: Final = frozenset("0123456789abcdef")


class Hasher(Protocol):
    """The part of hashlib's objects that is used; `update` releases the interpreter lock."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Hash more bytes."""
        ...

    def hexdigest(self) -> str:
        """Lower-case hexadecimal of what was hashed so far."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`algorithm:hex`; an existing value is always well formed."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        """Refuse what the grammar does not allow."""
        length = HEX_LENGTHS.get(self.algorithm)
        if length is None or len(self.hex) != length or not _HEX.issuperset(self.hex):
            raise DigestInvalid(
                f"invalid digest {_shown(f'{self.algorithm}:{self.hex}')}",
                hint="expected sha256: or sha512: and lower-case hexadecimal of full length",
            )

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest `text` spells; raises DigestInvalid."""
        algorithm, _, hexadecimal = text.partition(":")
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of `data`; raises DigestInvalid for an unknown algorithm."""
        hasher = new_hasher(algorithm)
        hasher.update(data)
        return cls(algorithm, hasher.hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hasher of this digest's algorithm."""
        return new_hasher(self.algorithm)

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether `data` has this digest."""
        return Digest.of(data, self.algorithm) == self

    @property
    def short(self) -> str:
        """Twelve characters for people; never a key."""
        return self.hex[:12]

    def __str__(self) -> str:
        """`algorithm:hex`."""
        return f"{self.algorithm}:{self.hex}"


def new_hasher(algorithm: str) -> Hasher:
    """A hasher for an accepted `algorithm`; raises DigestInvalid for any other."""
    if algorithm not in HEX_LENGTHS:
        raise DigestInvalid(f"digest algorithm {_shown(algorithm)} is not accepted")
    return hashlib.new(algorithm)


def _shown(text: str) -> str:
    """`text` fit for a message: quoted, control characters escaped, bounded."""
    return ascii(text if len(text) <= 80 else text[:80] + "…")
