"""Certificates of signers: Fulcio's, good for minutes, and those of an operator's own authority.

The path is built and checked by `cryptography` (RFC 5280: signatures, times, path lengths, name
constraints). Its profile for web servers demands extensions that signing authorities need not have,
so what Go's verifier demands, and with it cosign and skopeo, is asked for here: authorities say
that they are authorities, and whoever states key usages states the right ones.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from imageservice.trust.keys import checked
from imageservice.trust.refusal import MaterialInvalid, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageservice.trust.keys import PublicKey
    from imageservice.trust.model import FulcioRoot, PkiRoot

#: Certificates in one PEM text; Fulcio sends three.
MAX_CERTIFICATES: Final = 16
#: PEM of as many.
MAX_PEM_BYTES: Final = 64 * 1024
#: Authorities between leaf and root.
_MAX_DEPTH: Final = 8
#: Fulcio's own extensions: the issuer as bare text, and as a DER UTF8String (sigstore/fulcio,
#: docs/oid-info.md).
ISSUER_V1: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
ISSUER_V2: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_UTF8_STRING: Final = 0x0C


#: What the library says of certificates that it does not understand.
_UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)


def load_certificates(pem: bytes, *, what: str) -> list[x509.Certificate]:
    """All certificates of a PEM text, at least one; raises Refused."""
    if len(pem) > MAX_PEM_BYTES or pem.count(b"-----BEGIN ") > MAX_CERTIFICATES:
        raise Refused(f"{what}: more than {MAX_CERTIFICATES} certificates or {MAX_PEM_BYTES} bytes")
    try:
        return x509.load_pem_x509_certificates(pem)
    except _UNREADABLE as error:
        raise Refused(f"{what} cannot be read") from error


def load_authorities(pem: bytes, *, what: str) -> list[x509.Certificate]:
    """Certificates that the policy names; raises MaterialInvalid."""
    try:
        return load_certificates(pem, what=what)
    except Refused as error:
        raise MaterialInvalid(str(error)) from error


def load_leaf(pem: str) -> x509.Certificate:
    """The one certificate beside a signature; raises Refused."""
    found = load_certificates(pem.encode(), what="certificate")
    if len(found) != 1:
        raise Refused("more than one certificate where the signer's own is expected")
    return found[0]


def check_fulcio(
    leaf: x509.Certificate, chain: str, root: FulcioRoot, integrated_s: int
) -> PublicKey:
    """The key of a certificate that Fulcio gave to the right person, valid at that time.

    Raises:
        Refused: naming what is wrong with the certificate.
        MaterialInvalid: the policy's authorities cannot be read.
    """
    roots = load_authorities(root.authorities, what="fulcio's authorities")
    _check_path(leaf, _between(chain), roots, datetime.fromtimestamp(integrated_s, UTC), _SHORT)
    issuer = _issuer(leaf)
    if issuer != root.oidc_issuer:
        raise Refused(f"certificate was issued for {issuer[:200]!a}, not {root.oidc_issuer!a}")
    _check_email(leaf, root.subject_email)
    return _key(leaf)


def check_pki(
    leaf: x509.Certificate, chain: str, root: PkiRoot, now_s: int
) -> tuple[PublicKey, int]:
    """The key of a certificate of the operator's own, and when the path to it ends.

    Raises:
        Refused, MaterialInvalid: as for `check_fulcio`.
    """
    roots = load_authorities(root.roots, what="pki's roots")
    between = _between(chain)
    if root.intermediates:
        between += load_authorities(root.intermediates, what="pki's intermediates")
    path = _check_path(leaf, between, roots, datetime.fromtimestamp(now_s, UTC), _OWN)
    if root.subject_email:
        _check_email(leaf, root.subject_email)
    if root.subject_hostname:
        _check_hostname(leaf, root.subject_hostname)
    ends = min(int(one.not_valid_after_utc.timestamp()) for one in path)
    return _key(leaf), ends


def _key(leaf: x509.Certificate) -> PublicKey:
    try:
        return checked(leaf.public_key(), what="certificate's key")
    except _UNREADABLE as error:
        raise Refused("certificate's key cannot be read") from error


def _between(chain: str) -> list[x509.Certificate]:
    return load_certificates(chain.encode(), what="certificate chain") if chain else []


def _check_path(
    leaf: x509.Certificate,
    between: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    time: datetime,
    leaf_policy: ExtensionPolicy,
) -> Sequence[x509.Certificate]:
    verifier = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(time)
        .max_chain_depth(_MAX_DEPTH)
        .extension_policies(ca_policy=_CA, ee_policy=leaf_policy)
        .build_client_verifier()
    )
    try:
        return verifier.verify(leaf, list(between)).chain
    except (VerificationError, *_UNREADABLE) as error:
        reason = str(error).partition("(encountered processing")[0].rpartition("Error: ")[2].strip()
        raise Refused(
            f"certificate does not lead to the policy's authorities at {time:%Y-%m-%d %H:%M:%S}Z:"
            f" {ascii(reason[:200])[1:-1]}"
        ) from error


def _is_authority(
    policy: Policy, certificate: x509.Certificate, extension: x509.BasicConstraints
) -> None:
    if not extension.ca:
        raise ValueError("a certificate on the way is no authority")


def _signs_certificates(
    policy: Policy, certificate: x509.Certificate, extension: x509.KeyUsage | None
) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError("an authority's key is not for signing certificates")


def _signs_documents(
    policy: Policy, certificate: x509.Certificate, extension: x509.KeyUsage | None
) -> None:
    if extension is not None and not extension.digital_signature:
        raise ValueError("the certificate's key is not for signatures")


def _for_code(
    policy: Policy, certificate: x509.Certificate, extension: x509.ExtendedKeyUsage | None
) -> None:
    wanted = {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if extension is not None and wanted.isdisjoint(extension):
        raise ValueError("the certificate is not for code signing")


_CA: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_code)
)
_LEAF: Final = (
    ExtensionPolicy.permit_all()
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_documents)
    .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
)
#: Fulcio's always state what they are for; Go's verifier would take one that does not.
_SHORT: Final = _LEAF.require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_code)
#: Others' need not: no extended key usage is any usage (RFC 5280, 4.2.1.12).
_OWN: Final = _LEAF.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_code)


def _names(leaf: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE as error:
        raise Refused("certificate's subject cannot be read") from error


def _check_email(leaf: x509.Certificate, wanted: str) -> None:
    found = _names(leaf).get_values_for_type(x509.RFC822Name)
    if wanted not in found:
        raise Refused(f"certificate is of {', '.join(found)[:200]!a}, not {wanted!a}")


def _check_hostname(leaf: x509.Certificate, wanted: str) -> None:
    found = _names(leaf).get_values_for_type(x509.DNSName)
    name = wanted.lower().rstrip(".")
    above = name.partition(".")[2]
    for offered in (entry.lower().rstrip(".") for entry in found):
        # A wildcard is a whole label at the left and stands for exactly one (RFC 9525, 6.3).
        if offered == name or (above and offered == f"*.{above}"):
            return
    raise Refused(f"certificate is of {', '.join(found)[:200]!a}, not {wanted!a}")


def _issuer(leaf: x509.Certificate) -> str:
    """The OIDC issuer that Fulcio has put into the certificate; both spellings must agree."""
    found: set[str] = set()
    try:
        for extension in leaf.extensions:
            value = extension.value
            if not isinstance(value, x509.UnrecognizedExtension):
                continue
            if extension.oid == ISSUER_V1:
                found.add(value.value.decode())
            elif extension.oid == ISSUER_V2:
                found.add(_utf8_string(value.value))
    except _UNREADABLE as error:
        raise Refused("certificate's extensions cannot be read") from error
    if len(found) != 1:
        what = "two different OIDC issuers" if found else "no OIDC issuer"
        raise Refused(f"certificate names {what}")
    return found.pop()


def _utf8_string(der: bytes) -> str:
    """A DER UTF8String, short or long form, and nothing after it; raises ValueError."""
    if len(der) < 2 or der[0] != _UTF8_STRING:
        raise ValueError("not a UTF8String")
    length, start = der[1], 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
        if length < 0x80 or der[2] == 0:
            raise ValueError("length is not in its shortest form")
    if len(der) != start + length:
        raise ValueError("length is wrong")
    return der[start:].decode()
