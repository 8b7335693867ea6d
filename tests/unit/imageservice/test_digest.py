"""Only exactly well-formed digests become values."""

from __future__ import annotations

import hashlib

import pytest

from imageservice.digest import Digest, new_hasher
from imageservice.errors import DigestInvalid

HEX = "0123456789abcdef" * 4


def test_a_digest_keeps_its_text():
    assert str(Digest.parse(f"sha256:{HEX}")) == f"sha256:{HEX}"
    assert str(Digest.parse(f"sha512:{HEX}{HEX}")) == f"sha512:{HEX}{HEX}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha512:{HEX}",
        f"md5:{HEX[:32]}",
        f"sha256+b64:{HEX}",
        "sha256:../../../../../../../../../../../../../../../../../../etc/passwd",
        f"sha256:{HEX[:-1]}\0",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        f"sha256:{HEX[:-1]}é",
        f"sha256:{HEX[:-1]}\u0660",
        "sha256:" + "a" * 100_000,
    ],
)
def test_everything_else_is_refused_and_shown_safely(text):
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_bytes_match_their_digest_and_no_other():
    digest = Digest.of(b"abc")
    assert digest.hex == hashlib.sha256(b"abc").hexdigest()
    assert digest.matches(bytearray(b"abc"))
    assert not digest.matches(b"abd")
    assert Digest.of(b"abc", "sha512").matches(b"abc")


def test_a_hasher_is_fresh_each_time():
    digest = Digest.of(b"abc")
    first = digest.hasher()
    first.update(b"a")
    second = digest.hasher()
    second.update(b"abc")
    assert second.hexdigest() == digest.hex


def test_other_algorithms_have_no_hasher():
    with pytest.raises(DigestInvalid):
        new_hasher("md5")
