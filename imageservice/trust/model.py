"""What is asked of the judge and what it answers; the values travel to its process as JSON."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

MatchKind = Literal[
    "matchExact",
    "matchRepoDigestOrExact",
    "matchRepository",
    "exactReference",
    "exactRepository",
    "remapIdentity",
]

#: Annotations of a signature that mean something to us, as cosign spells them.
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
CHAIN: Final = "dev.sigstore.cosign/chain"
BUNDLE: Final = "dev.sigstore.cosign/bundle"
ANNOTATIONS: Final = (SIGNATURE, CERTIFICATE, CHAIN, BUNDLE)


class Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value that cannot be misread on the other side."""


class Identity(Frozen, frozen=True):
    """`signedIdentity`: what the name inside a signature must be.

    Attributes:
        kind: the type in the policy's words.
        value: `dockerReference` or `dockerRepository`.
        prefix, signed_prefix: of `remapIdentity`.
    """

    kind: MatchKind = "matchRepoDigestOrExact"
    value: str = ""
    prefix: str = ""
    signed_prefix: str = ""


class FulcioRoot(Frozen, frozen=True):
    """Whose certificates count, issued to whom; times come from the log's entry."""

    authorities: bytes
    oidc_issuer: str
    subject_email: str


class PkiRoot(Frozen, frozen=True):
    """An authority of the operator's own; its certificates must be valid now."""

    roots: bytes
    intermediates: bytes = b""
    subject_email: str = ""
    subject_hostname: str = ""


class Demand(Frozen, frozen=True):
    """One `sigstoreSigned` requirement with its key material read.

    Attributes:
        label: how messages call it.
        keys: PEM of public keys, any of which will do; or one of `fulcio` and `pki`.
        rekor_keys: PEM of transparency logs' keys; if there are any, an entry is demanded.
    """

    label: str
    keys: tuple[bytes, ...] = ()
    fulcio: FulcioRoot | None = None
    pki: PkiRoot | None = None
    rekor_keys: tuple[bytes, ...] = ()
    identity: Identity = Identity()


class Signature(Frozen, frozen=True):
    """A stranger's signature: what was signed, and the annotations that say how."""

    payload: bytes
    annotations: dict[str, str]


class Question(Frozen, frozen=True):
    """May this image be run under this name?

    Attributes:
        reference: the name in canonical form, with a tag or a digest and never both.
        digests: of the manifest, and of the index that led to it.
        demands: all must be met, each by any one signature.
        signatures: what was found for these digests.
        now_s: wall clock in seconds since 1970.
    """

    reference: str
    digests: tuple[str, ...]
    demands: tuple[Demand, ...]
    signatures: tuple[Signature, ...]
    now_s: int


class Answer(Frozen, frozen=True):
    """Yes or no.

    Attributes:
        accepted: every demand was met.
        reason: why not, for a person; fit for one line.
        valid_until_s: when a certificate that was relied on ends; None where time plays no part.
        is_policy_fault: the policy's own keys or certificates cannot be used.
    """

    accepted: bool
    reason: str = ""
    valid_until_s: int | None = None
    is_policy_fault: bool = False


question_decoder: Final = msgspec.json.Decoder(Question)
answer_decoder: Final = msgspec.json.Decoder(Answer)
encode: Final = msgspec.json.Encoder().encode
