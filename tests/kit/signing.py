"""Signatures of images, made as cosign makes them: keys, a Fulcio, a Rekor, and what they write.

All of it is real: certificates, receipts and signatures are made by `cryptography` with keys of the
test's own, in the layout that cosign pushes (`sha256-<hex>.sig`, one layer for each signature).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imageservice.trust.attachments import SIGNATURE_TYPE
from imageservice.trust.certificates import ISSUER_V1, ISSUER_V2
from imageservice.trust.model import BUNDLE, CERTIFICATE, CHAIN, SIGNATURE, Signature
from tests.kit.oci import Image

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
ISSUER: Final = "https://accounts.example.com"
EMAIL: Final = "builder@example.com"
#: When the images of these tests were signed; certificates were valid for ten minutes then.
SIGNED_AT: Final = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)

KINDS: Final = ("P-256", "P-384", "P-521", "RSA", "Ed25519")


def new_key(kind: str = "P-256") -> PrivateKey:
    """A key of one of `KINDS`."""
    match kind:
        case "RSA":
            return rsa.generate_private_key(65537, 2048)
        case "Ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
            return ec.generate_private_key({**curves, "K-256": ec.SECP256K1()}[kind])


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def sign(key: PrivateKey, message: bytes) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(message, ec.ECDSA(SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(message, padding.PKCS1v15(), SHA256())
        case _:
            return key.sign(message)


def payload(reference: str, digest: str) -> bytes:
    """The document that says: this digest, under this name."""
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()


def signed(key: PrivateKey, document: bytes, **annotations: str) -> Signature:
    """A signature of `document`; further annotations by `bundle`, `certificate`, `chain`."""
    names = {"bundle": BUNDLE, "certificate": CERTIFICATE, "chain": CHAIN}
    text = base64.b64encode(sign(key, document)).decode()
    return Signature(
        payload=document,
        annotations={SIGNATURE: text, **{names[k]: v for k, v in annotations.items() if v}},
    )


def pem(*certificates: x509.Certificate) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


@dataclass
class Authority:
    """A root and one authority below it, as Fulcio has them.

    Attributes:
        valid: both certificates' first and last day.
        usages: extended key usages of the lower one; empty: it states none.
        may_sign: what the lower one's BasicConstraints say.
    """

    valid: tuple[datetime, datetime] = (
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2040, 1, 1, tzinfo=UTC),
    )
    usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CODE_SIGNING,)
    may_sign: bool = True
    root_key: PrivateKey = field(default_factory=new_key)
    key: PrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self.root = self._authority("root", self.root_key, "root", self.root_key, 1)
        self.between = self._authority("between", self.key, "root", self.root_key, 0)

    def _authority(
        self, name: str, key: PrivateKey, issuer: str, issuer_key: PrivateKey, depth: int
    ) -> x509.Certificate:
        is_root = name == issuer
        may = is_root or self.may_sign
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.valid[0])
            .not_valid_after(self.valid[1])
            .add_extension(x509.BasicConstraints(may, depth if may else None), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
        )
        if self.usages and not is_root:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.usages), critical=False)
        return builder.sign(issuer_key, SHA256())

    def issue(
        self,
        key: PrivateKey,
        *,
        names: Sequence[x509.GeneralName] = (x509.RFC822Name(EMAIL),),
        issuer: str | None = ISSUER,
        issuer_v1: str | None = None,
        start: datetime = SIGNED_AT - timedelta(minutes=1),
        life: timedelta = timedelta(minutes=10),
        usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CODE_SIGNING,),
    ) -> x509.Certificate:
        """A certificate for whoever `names` says, with no subject, as Fulcio issues them."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(_name("between"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + life)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if issuer is not None:
            encoded = issuer.encode()
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ISSUER_V2, bytes([0x0C, len(encoded)]) + encoded),
                critical=False,
            )
        if issuer_v1 is not None:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ISSUER_V1, issuer_v1.encode()), critical=False
            )
        return builder.sign(self.key, SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass
class Log:
    """A transparency log that signs receipts."""

    key: PrivateKey = field(default_factory=new_key)

    @property
    def pem(self) -> bytes:
        return public_pem(self.key)

    def entry(self, signer: str | bytes, signature: bytes, document: bytes) -> dict[str, object]:
        """A hashedrekord of that signature."""
        text = signer.encode() if isinstance(signer, str) else signer
        return {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {
                    "hash": {"algorithm": "sha256", "value": hashlib.sha256(document).hexdigest()}
                },
                "signature": {
                    "content": base64.b64encode(signature).decode(),
                    "publicKey": {"content": base64.b64encode(text).decode()},
                },
            },
        }

    def bundle(
        self, entry: Mapping[str, object] | bytes, *, at: datetime = SIGNED_AT, place: int = 123_456
    ) -> str:
        """The annotation that holds the receipt for this entry."""
        body = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
        fields = {
            "body": base64.b64encode(body).decode(),
            "integratedTime": int(at.timestamp()),
            "logID": hashlib.sha256(self.pem).hexdigest(),
            "logIndex": place,
        }
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        stamp = base64.b64encode(sign(self.key, canonical)).decode()
        # The order and the spaces that the annotation has are not those that were signed.
        shown = {key: fields[key] for key in ("logIndex", "body", "logID", "integratedTime")}
        return json.dumps({"SignedEntryTimestamp": stamp, "Payload": shown})

    def logged(self, key: PrivateKey, document: bytes, *, at: datetime = SIGNED_AT) -> Signature:
        """A signature by a key of one's own that the log has seen."""
        plain = signed(key, document)
        raw = base64.b64decode(plain.annotations[SIGNATURE])
        bundle = self.bundle(self.entry(public_pem(key), raw, document), at=at)
        return Signature(payload=document, annotations={**plain.annotations, BUNDLE: bundle})


def keyless(
    authority: Authority,
    log: Log,
    document: bytes,
    *,
    at: datetime = SIGNED_AT,
    certificate: x509.Certificate | None = None,
    key: PrivateKey | None = None,
) -> Signature:
    """What `cosign sign` makes without a key: a short certificate and the log's receipt."""
    own = key or new_key()
    leaf = certificate or authority.issue(own)
    raw = sign(own, document)
    bundle = log.bundle(log.entry(pem(leaf), raw, document), at=at)
    return Signature(
        payload=document,
        annotations={
            SIGNATURE: base64.b64encode(raw).decode(),
            CERTIFICATE: pem(leaf),
            CHAIN: pem(authority.between, authority.root),
            BUNDLE: bundle,
        },
    )


def attachment(signatures: Iterable[Signature]) -> Image:
    """The image whose layers are these signatures, to be pushed as `signature_tag`."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        blobs[digest] = data
        return {"mediaType": media_type, "size": len(data), "digest": digest}

    layers = [
        {**add(one.payload, SIGNATURE_TYPE), "annotations": one.annotations} for one in signatures
    ]
    diff_ids = [layer["digest"] for layer in layers]
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": add(json.dumps(config).encode(), OCI_CONFIG),
            "layers": layers,
        }
    ).encode()
    top = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    return Image(top=top, manifests={top: (OCI_MANIFEST, manifest)}, blobs=blobs)


def signature_tag(digest: str) -> str:
    """The tag that signatures of this digest are looked for under."""
    return f"{digest.replace(':', '-')}.sig"
