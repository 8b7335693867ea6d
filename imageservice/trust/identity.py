"""`signedIdentity`: whether the name inside a signature is one that this image may carry.

Signatures name a repository and usually a tag. An image asked for by digest may carry a signature
of any tag of its repository: the digest itself was signed. cosign names the repository alone unless
told otherwise, and only `matchRepository` and `exactRepository` accept that; the others demand a
tag or a digest, so that an old image cannot be passed off under a newer tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imageservice.errors import ReferenceInvalid
from imageservice.reference import parse_reference

if TYPE_CHECKING:
    from imageservice.reference import Reference
    from imageservice.trust.model import Identity


def is_name_only(text: str) -> bool:
    """Whether a reference has neither tag nor digest (a missing tag is not `latest` here)."""
    return "@" not in text and ":" not in text.rpartition("/")[2]


def matches(identity: Identity, reference: str, signed: str) -> bool:
    """Whether a signature that names `signed` is good for an image asked for as `reference`.

    Args:
        identity: the policy's demand.
        reference: the image's name, canonical, with a tag or a digest.
        signed: `critical.identity.docker-reference`, a stranger's words.
    """
    try:
        inside = parse_reference(signed)
        match identity.kind:
            case "matchExact":
                return not is_name_only(signed) and inside == parse_reference(reference)
            case "matchRepository":
                return inside.repository == parse_reference(reference).repository
            case "exactReference":
                return not is_name_only(signed) and inside == parse_reference(identity.value)
            case "exactRepository":
                return inside.repository == parse_reference(identity.value).repository
            case "matchRepoDigestOrExact":
                return _by_digest_or_exact(parse_reference(reference), signed, inside)
            case "remapIdentity":
                return _by_digest_or_exact(_remapped(identity, reference), signed, inside)
    except ReferenceInvalid:
        return False


def _by_digest_or_exact(wanted: Reference, signed: str, inside: Reference) -> bool:
    if is_name_only(signed):
        return False
    if wanted.digest is None:
        return inside == wanted
    return inside.repository == wanted.repository


def _remapped(identity: Identity, reference: str) -> Reference:
    wanted = parse_reference(reference)
    name = wanted.repository
    if name != identity.prefix and not name.startswith(f"{identity.prefix}/"):
        return wanted
    return parse_reference(identity.signed_prefix + str(wanted)[len(identity.prefix) :])
