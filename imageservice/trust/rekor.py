"""The transparency log's receipt for a signature, verified without asking the log.

cosign puts it beside the signature as the annotation `bundle`: the log's entry (`body`, the time it
came in, its place) and the log's signature over the canonical JSON of those four (the "signed entry
timestamp"). The receipt is good if the log's key made that signature and the entry, a hashedrekord
0.0.1, speaks of this very signature, of this key or certificate and of this document. What it adds
is the time: a certificate of ten minutes' life was valid when the log saw it used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.strict_json import strict_object
from imageservice.trust.keys import is_signed_by_any
from imageservice.trust.refusal import Refused
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageservice.trust.keys import PublicKey

#: An entry holds a certificate in base64 in base64: 4 KiB. PEM chains make it more.
MAX_BUNDLE_BYTES: Final = 128 * 1024
#: Years 1970 to 9999, what a certificate's time can say at most.
_LAST_SECOND: Final = 253_402_300_799
_HEX: Final = frozenset("0123456789abcdef")


class _Bytes(msgspec.Struct, frozen=True):
    content: bytes


class _RekorSignature(msgspec.Struct, frozen=True, rename="camel"):
    content: bytes
    public_key: _Bytes


class _Hash(msgspec.Struct, frozen=True):
    algorithm: str
    value: str


class _Data(msgspec.Struct, frozen=True):
    hash: _Hash


class _Spec(msgspec.Struct, frozen=True):
    data: _Data
    signature: _RekorSignature


class _Entry(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    spec: _Spec


_entry_decoder: Final = msgspec.json.Decoder(_Entry)


class Receipt(msgspec.Struct, frozen=True):
    """What a log has vouched for.

    Attributes:
        integrated_s: when the entry came in, seconds since 1970.
        signer: PEM of the key or certificate that the entry names.
        signature: the signature that it is about.
        sha256: of the signed document, lower-case hexadecimal.
    """

    integrated_s: int
    signer: bytes
    signature: bytes
    sha256: str


def read_receipt(bundle: str, log_keys: Sequence[PublicKey]) -> Receipt:
    """The receipt in a bundle, its signature by one of the logs checked; raises Refused.

    It is then `check_receipt` that must find that it is about this signature.
    """
    document = _object(bundle.encode(), "log entry")
    if set(document) != {"SignedEntryTimestamp", "Payload"}:
        raise Refused("log entry must have exactly SignedEntryTimestamp and Payload")
    payload = document["Payload"]
    if not isinstance(payload, dict) or set(payload) != {
        "body",
        "integratedTime",
        "logIndex",
        "logID",
    }:
        raise Refused("log entry's payload must have exactly body, integratedTime, logIndex, logID")
    body, log_id = payload["body"], payload["logID"]
    time_s, place = payload["integratedTime"], payload["logIndex"]
    if not isinstance(body, str) or not isinstance(log_id, str) or not _HEX.issuperset(log_id):
        raise Refused("log entry: body must be base64 and logID hexadecimal")
    if not _is_count(time_s) or not _is_count(place):
        raise Refused("log entry: integratedTime and logIndex must be whole numbers")
    entry = _base64(body, "log entry's body")
    # RFC 8785 of these four: base64, hexadecimal and whole numbers have one spelling each, so the
    # order of the keys and the lack of spaces are all there is to do.
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
    stamp = _base64(document["SignedEntryTimestamp"], "log entry's signature")
    if not is_signed_by_any(log_keys, stamp, canonical):
        raise Refused("log entry is not signed by a log of the policy")
    return _receipt(entry, int(time_s))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LAST_SECOND


def _receipt(entry: bytes, integrated_s: int) -> Receipt:
    _object(entry, "log entry's body")
    try:
        parsed = _entry_decoder.decode(entry)
    except msgspec.MsgspecError as error:
        raise Refused("log entry's body is not understood") from error
    if (parsed.kind, parsed.api_version) != ("hashedrekord", "0.0.1"):
        raise Refused("log entry is no hashedrekord of version 0.0.1")
    digest = parsed.spec.data.hash
    if digest.algorithm != "sha256":
        raise Refused("log entry's hash is not sha256")
    signature = parsed.spec.signature
    return Receipt(integrated_s, signature.public_key.content, signature.content, digest.value)


def check_receipt(receipt: Receipt, signature: bytes, document: bytes) -> None:
    """Refuse a receipt that is for another signature or document; raises Refused."""
    if receipt.signature != signature:
        raise Refused("log entry is about another signature")
    if receipt.sha256 != hashlib.sha256(document).hexdigest():
        raise Refused("log entry is about another document")


def _object(body: bytes, what: str) -> dict[str, object]:
    try:
        return strict_object(body, limit_bytes=MAX_BUNDLE_BYTES, what=what)
    except PodwrightError as error:
        raise Refused(error.message) from error


def _base64(text: object, what: str) -> bytes:
    if isinstance(text, str):
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise Refused(f"{what} is not base64")
