"""The document that a signature signs: "simple signing" as cosign and skopeo write it.

    {"critical": {"type": "cosign container image signature",
                  "image": {"docker-manifest-digest": "sha256:…"},
                  "identity": {"docker-reference": "registry.example.com/team/app:1"}},
     "optional": null or an object}

It is read only after its signature was found good, and still strictly: whoever signs for us need
not be whoever wrote every reader of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from imageservice.digest import Digest
from imageservice.errors import DigestInvalid
from imageservice.strict_json import strict_object
from imageservice.trust.refusal import Refused
from sandbox.host.errors import PodwrightError

#: cosign's have 250 bytes and what users add as annotations (`cosign sign -a`).
MAX_PAYLOAD_BYTES: Final = 64 * 1024
TYPE: Final = "cosign container image signature"


@dataclass(frozen=True, slots=True)
class Payload:
    """What was signed: this digest, under this name."""

    digest: Digest
    reference: str


def parse_payload(body: bytes) -> Payload:
    """Read a payload; raises Refused."""
    try:
        document = strict_object(body, limit_bytes=MAX_PAYLOAD_BYTES, what="signed document")
    except PodwrightError as error:
        raise Refused(error.message) from error
    _exactly(document, {"critical", "optional"}, "signed document")
    if not isinstance(document["optional"], dict | None):
        raise Refused("signed document: optional must be an object or null")
    critical = _exactly(document["critical"], {"type", "image", "identity"}, "critical")
    image = _exactly(critical["image"], {"docker-manifest-digest"}, "critical.image")
    identity = _exactly(critical["identity"], {"docker-reference"}, "critical.identity")
    if critical["type"] != TYPE:
        raise Refused(f"signed document is of type {ascii(critical['type'])[:80]}")
    digest, reference = image["docker-manifest-digest"], identity["docker-reference"]
    if not isinstance(digest, str) or not isinstance(reference, str):
        raise Refused("signed document: digest and reference must be strings")
    try:
        return Payload(Digest.parse(digest), reference)
    except DigestInvalid as error:
        raise Refused(error.message) from error


def _exactly(value: object, keys: set[str], where: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != keys:
        raise Refused(f"{where} must have exactly the keys {', '.join(sorted(keys))}")
    return value
