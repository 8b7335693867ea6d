"""Public keys and what they have signed.

As sigstore has it: ECDSA and RSA (PKCS #1 v1.5) over SHA-256, Ed25519 over the message itself.
Only ever imported by the judge's process (see the package's text for why).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from imageservice.trust.refusal import MaterialInvalid, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

PublicKey: TypeAlias = "ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey"

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
#: NIST SP 800-131A rev. 2: shorter ones are disallowed.
_RSA_BITS: Final = 2048
_RSA_MOST_BITS: Final = 16384


def load_key(pem: bytes, *, what: str) -> PublicKey:
    """The one key in a PEM file of a policy; raises MaterialInvalid."""
    if pem.count(b"-----BEGIN ") > 1:
        raise MaterialInvalid(f"{what} holds more than one key; name each by itself (keyPaths)")
    try:
        return checked(load_pem_public_key(pem), what=what)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MaterialInvalid(f"{what} is no public key in PEM") from error
    except Refused as error:
        raise MaterialInvalid(str(error)) from error


def checked(key: object, *, what: str) -> PublicKey:
    """`key`, if it is of a kind that sigstore uses; raises Refused."""
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, _CURVES):
            return key
        case rsa.RSAPublicKey() if _RSA_BITS <= key.key_size <= _RSA_MOST_BITS:
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case _:
            raise Refused(
                f"{what} must be ECDSA (P-256, P-384, P-521), RSA of {_RSA_BITS} bits or more, or"
                " Ed25519"
            )


def der_of(key: PublicKey) -> bytes:
    """The key's SubjectPublicKeyInfo: what tells whether two keys are one."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def is_signed_by(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `key` made `signature` over `message`."""
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, message, ec.ECDSA(SHA256()))
            case rsa.RSAPublicKey():
                key.verify(signature, message, padding.PKCS1v15(), SHA256())
            case _:
                key.verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed_by_any(keys: Iterable[PublicKey], signature: bytes, message: bytes) -> bool:
    """Whether one of `keys` made `signature` over `message`."""
    return any(is_signed_by(key, signature, message) for key in keys)
