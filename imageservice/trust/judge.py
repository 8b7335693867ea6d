"""The decision: a pure function of what is demanded, what was found and what time it is."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imageservice.trust.certificates import (
    check_fulcio,
    check_pki,
    load_authorities,
    load_leaf,
)
from imageservice.trust.identity import is_name_only, matches
from imageservice.trust.keys import der_of, is_signed_by_any, load_key
from imageservice.trust.model import BUNDLE, CERTIFICATE, CHAIN, SIGNATURE, Answer
from imageservice.trust.payload import parse_payload
from imageservice.trust.refusal import MaterialInvalid, Refused
from imageservice.trust.rekor import check_receipt, read_receipt

if TYPE_CHECKING:
    from imageservice.trust.keys import PublicKey
    from imageservice.trust.model import Demand, Question, Signature

#: Reasons in one message; a client is shown 2 KiB in all.
_SHOWN_REASONS: Final = 4


@dataclass(frozen=True, slots=True)
class _Root:
    """A demand with its keys parsed."""

    demand: Demand
    keys: tuple[PublicKey, ...]
    log_keys: tuple[PublicKey, ...]


def judge(question: Question) -> Answer:
    """Whether every demand is met by some signature; never raises for what strangers wrote."""
    try:
        roots = [_root(demand) for demand in question.demands]
        ends: list[int] = []
        for root in roots:
            reasons: dict[str, int] = {}
            for signature in question.signatures:
                try:
                    end = _accept(root, signature, question)
                except Refused as refusal:
                    reasons[str(refusal)] = reasons.get(str(refusal), 0) + 1
                    continue
                ends += [] if end is None else [end]
                break
            else:
                return Answer(accepted=False, reason=f"{root.demand.label}: {_summary(reasons)}")
    except MaterialInvalid as fault:
        return Answer(accepted=False, reason=str(fault), is_policy_fault=True)
    return Answer(accepted=True, valid_until_s=min(ends, default=None))


def _root(demand: Demand) -> _Root:
    if demand.fulcio is not None:
        load_authorities(demand.fulcio.authorities, what=f"{demand.label}: fulcio's authorities")
    if demand.pki is not None:
        load_authorities(demand.pki.roots, what=f"{demand.label}: pki's roots")
        if demand.pki.intermediates:
            load_authorities(demand.pki.intermediates, what=f"{demand.label}: pki's intermediates")
    what = f"{demand.label}: key"
    return _Root(
        demand,
        tuple(load_key(pem, what=f"{what} {n}") for n, pem in enumerate(demand.keys, 1)),
        tuple(
            load_key(pem, what=f"{demand.label}: log key {n}")
            for n, pem in enumerate(demand.rekor_keys, 1)
        ),
    )


def _summary(reasons: dict[str, int]) -> str:
    if not reasons:
        return "the image has no signature"
    total = sum(reasons.values())
    shown = [
        f"{reason} ({count} signatures)" if count > 1 else reason
        for reason, count in list(reasons.items())[:_SHOWN_REASONS]
    ]
    rest = len(reasons) - len(shown)
    if rest > 0:
        shown.append(f"{rest} other reasons")
    which = "its signature is not accepted" if total == 1 else f"none of {total} signatures is"
    return f"{which}: {'; '.join(shown)}"


def _accept(root: _Root, signature: Signature, question: Question) -> int | None:
    """Until when the signature meets the demand (None: for ever); raises Refused."""
    raw = _raw(signature)
    end: int | None = None
    demand = root.demand
    if demand.fulcio is not None:
        keys: tuple[PublicKey, ...] = (_by_fulcio(root, signature, raw),)
    elif demand.pki is not None:
        leaf = load_leaf(_annotation(signature, CERTIFICATE, "certificate"))
        chain = signature.annotations.get(CHAIN, "")
        key, end = check_pki(leaf, chain, demand.pki, question.now_s)
        keys = (key,)
    elif root.log_keys:
        keys = (_by_logged_key(root, signature, raw),)
    else:
        keys = root.keys
    if not is_signed_by_any(keys, raw, signature.payload):
        raise Refused("the signature was made by another key or of another document")
    _check_payload(signature, question, demand)
    return end


def _raw(signature: Signature) -> bytes:
    # Lines broken by base64(1) are let be, as Go's decoder does: people attach their own.
    text = "".join(_annotation(signature, SIGNATURE, "signature").split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("the signature is not base64") from error


def _annotation(signature: Signature, name: str, what: str) -> str:
    text = signature.annotations.get(name, "")
    if not text:
        raise Refused(f"the signature comes without a {what} (annotation {name})")
    return text


def _by_fulcio(root: _Root, signature: Signature, raw: bytes) -> PublicKey:
    assert root.demand.fulcio is not None
    leaf = load_leaf(_annotation(signature, CERTIFICATE, "certificate"))
    bundle = _annotation(signature, BUNDLE, "log entry")
    receipt = read_receipt(bundle, root.log_keys)
    check_receipt(receipt, raw, signature.payload)
    try:
        logged = load_leaf(receipt.signer.decode())
    except (UnicodeDecodeError, Refused) as error:
        raise Refused("log entry is not of a certificate") from error
    if logged != leaf:
        raise Refused("log entry is about another certificate")
    chain = signature.annotations.get(CHAIN, "")
    return check_fulcio(leaf, chain, root.demand.fulcio, receipt.integrated_s)


def _by_logged_key(root: _Root, signature: Signature, raw: bytes) -> PublicKey:
    receipt = read_receipt(_annotation(signature, BUNDLE, "log entry"), root.log_keys)
    check_receipt(receipt, raw, signature.payload)
    try:
        logged = der_of(load_key(receipt.signer, what="key"))
    except MaterialInvalid as error:
        raise Refused("log entry is not of a key") from error
    for key in root.keys:
        if der_of(key) == logged:
            return key
    raise Refused("log entry is about another key")


def _check_payload(signature: Signature, question: Question, demand: Demand) -> None:
    payload = parse_payload(signature.payload)
    if str(payload.digest) not in question.digests:
        raise Refused(f"the signature is of another image, {payload.digest}")
    if not matches(demand.identity, question.reference, payload.reference):
        advice = ""
        if is_name_only(payload.reference):
            advice = ' (cosign signs repositories; see signedIdentity "matchRepository")'
        raise Refused(
            f"the signature is for {ascii(payload.reference)[:200]}, which"
            f" {demand.identity.kind} does not accept for {question.reference}{advice}"
        )
