"""What is accepted and what is not, with real keys, certificates and receipts made on the spot."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from imageservice.trust.judge import judge
from imageservice.trust.model import (
    BUNDLE,
    CERTIFICATE,
    CHAIN,
    SIGNATURE,
    Answer,
    Demand,
    FulcioRoot,
    Identity,
    PkiRoot,
    Question,
    Signature,
)
from tests.kit.signing import (
    EMAIL,
    ISSUER,
    KINDS,
    SIGNED_AT,
    Authority,
    Log,
    keyless,
    new_key,
    payload,
    pem,
    public_pem,
    sign,
    signed,
)

NAME = "registry.example.com/team/app:1"
DIGEST = "sha256:" + "ab" * 32
INDEX = "sha256:" + "cd" * 32
OTHER = "sha256:" + "ef" * 32
KEY = new_key()
DOCUMENT = payload(NAME, DIGEST)
AUTHORITY = Authority()
LOG = Log()
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def demand(**values: object) -> Demand:
    return Demand(label="requirement 1 (sigstoreSigned)", **{"keys": (public_pem(KEY),), **values})


def fulcio(authority: Authority = AUTHORITY, log: Log = LOG, **values: object) -> Demand:
    root = FulcioRoot(
        authorities=pem(authority.root).encode(), oidc_issuer=ISSUER, subject_email=EMAIL
    )
    return demand(keys=(), fulcio=root, rekor_keys=(log.pem,), **values)


def asked(
    *signatures: Signature,
    demands: tuple[Demand, ...] | Demand | None = None,
    reference: str = NAME,
    digests: tuple[str, ...] = (INDEX, DIGEST),
    now: datetime = NOW,
) -> Answer:
    chosen = (demand(),) if demands is None else demands
    return judge(
        Question(
            reference=reference,
            digests=digests,
            demands=(chosen,) if isinstance(chosen, Demand) else chosen,
            signatures=signatures,
            now_s=int(now.timestamp()),
        )
    )


def refused(answer: Answer, *words: str) -> None:
    assert not answer.accepted
    assert not answer.is_policy_fault
    for word in words:
        assert word in answer.reason, answer.reason


def altered(given: Signature, /, **annotations: str | None) -> Signature:
    names = {"signature": SIGNATURE, "certificate": CERTIFICATE, "chain": CHAIN, "bundle": BUNDLE}
    values = {**given.annotations, **{names[k]: v for k, v in annotations.items()}}
    kept = {key: value for key, value in values.items() if value is not None}
    return msgspec.structs.replace(given, annotations=kept)


# -- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_by_the_key_is_accepted(kind: str) -> None:
    key = new_key(kind)
    assert asked(signed(key, DOCUMENT), demands=demand(keys=(public_pem(key),))).accepted


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_by_another_key_of_that_kind_is_refused(kind: str) -> None:
    answer = asked(
        signed(new_key(kind), DOCUMENT), demands=demand(keys=(public_pem(new_key(kind)),))
    )
    refused(answer, "another key")


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_by_a_key_of_another_kind_is_refused(kind: str) -> None:
    for other in KINDS:
        if other != kind:
            policy = demand(keys=(public_pem(new_key(other)),))
            refused(asked(signed(new_key(kind), DOCUMENT), demands=policy), "another key")


def test_any_of_several_keys_will_do_and_any_of_several_signatures() -> None:
    keys = (public_pem(new_key()), public_pem(KEY))
    strange = signed(new_key(), DOCUMENT)
    assert asked(strange, signed(KEY, DOCUMENT), demands=demand(keys=keys)).accepted


def test_every_demand_must_be_met_each_by_a_signature_of_its_own() -> None:
    reviewer = new_key()
    second = Demand(label="requirement 2 (sigstoreSigned)", keys=(public_pem(reviewer),))
    both = (demand(), second)
    refused(asked(signed(KEY, DOCUMENT), demands=both), "requirement 2")
    assert asked(signed(KEY, DOCUMENT), signed(reviewer, DOCUMENT), demands=both).accepted


def test_no_signature_is_refused_in_plain_words() -> None:
    refused(asked(), "requirement 1", "the image has no signature")


def test_a_signature_of_the_index_holds_for_the_manifest_it_led_to() -> None:
    assert asked(signed(KEY, payload(NAME, INDEX))).accepted


def test_a_signature_of_another_image_is_refused() -> None:
    refused(asked(signed(KEY, payload(NAME, OTHER))), "of another image", OTHER)


def test_a_signature_replayed_for_another_repository_is_refused() -> None:
    replayed = signed(KEY, payload("registry.example.com/team/other:1", DIGEST))
    refused(asked(replayed), "team/other:1", "matchRepoDigestOrExact")


def test_a_signature_of_another_tag_is_refused_for_a_tag_and_good_for_a_digest() -> None:
    older = signed(KEY, payload("registry.example.com/team/app:0", DIGEST))
    refused(asked(older), "app:0")
    assert asked(older, reference=f"registry.example.com/team/app@{DIGEST}").accepted


def test_cosigns_names_without_a_tag_are_refused_with_the_way_out() -> None:
    bare = signed(KEY, payload("registry.example.com/team/app", DIGEST))
    refused(asked(bare), "matchRepository")
    assert asked(bare, demands=demand(identity=Identity(kind="matchRepository"))).accepted


@pytest.mark.parametrize(
    "change",
    [
        {"signature": None},
        {"signature": ""},
        {"signature": "not base64!"},
        {"signature": base64.b64encode(b"").decode()},
        {"signature": base64.b64encode(b"\x30\x00").decode()},
        {"signature": base64.b64encode(b"\x00" * 4096).decode()},
    ],
)
def test_what_is_no_signature_is_refused(change: dict[str, str | None]) -> None:
    refused(asked(altered(signed(KEY, DOCUMENT), **change)))


def test_every_changed_bit_of_a_signed_document_breaks_its_signature() -> None:
    good = signed(KEY, DOCUMENT)
    for place in range(0, len(DOCUMENT), 7):
        changed = bytearray(DOCUMENT)
        changed[place] ^= 1
        refused(asked(msgspec.structs.replace(good, payload=bytes(changed))))


def _json(**changes: object) -> bytes:
    document = json.loads(DOCUMENT)
    document.update(changes)
    return json.dumps(document).encode()


CRITICAL = json.loads(DOCUMENT)["critical"]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{" * 200_000,
        b'{"critical": {}, "optional": null}',
        DOCUMENT + b"x",
        DOCUMENT.replace(b'"critical"', b'"Critical"'),
        DOCUMENT.replace(b'{"critical"', b'{"critical": null, "critical"'),
        DOCUMENT.replace(
            b'"docker-manifest-digest"',
            f'"docker-manifest-digest": "{OTHER}", "docker-manifest-digest"'.encode(),
        ),
        _json(more=1),
        _json(optional=[]),
        _json(critical={**CRITICAL, "more": 1}),
        _json(critical={**CRITICAL, "type": "atomic container signature"}),
        _json(critical={**CRITICAL, "image": {"docker-manifest-digest": DIGEST.upper()}}),
        _json(critical={**CRITICAL, "image": {"docker-manifest-digest": [DIGEST]}}),
        _json(critical={**CRITICAL, "image": {"Docker-manifest-digest": DIGEST}}),
        _json(critical={**CRITICAL, "identity": {"docker-reference": 1}}),
        _json(critical={**CRITICAL, "identity": {"docker-reference": ""}}),
        _json(
            critical={
                **CRITICAL,
                "identity": {"docker-reference": "registry.example.com/team/app:1\n"},
            }
        ),
        _json(optional={"padding": "x" * 70_000}),
        DOCUMENT.replace(b"null", b"NaN"),
        b"\xff\xfe" + DOCUMENT,
    ],
)
def test_a_well_signed_document_that_can_be_misread_is_refused(document: bytes) -> None:
    refused(asked(signed(KEY, document)))


def test_annotations_of_the_signer_in_the_document_are_let_be() -> None:
    assert asked(signed(KEY, _json(optional={"commit": "abc", "n": 1, "creator": "us"}))).accepted


def test_a_reason_is_short_whatever_thousands_of_signatures_say() -> None:
    strange = [signed(KEY, payload(f"registry.example.com/x:{n}", DIGEST)) for n in range(500)]
    answer = asked(*strange)
    refused(answer, "none of 500 signatures", "496 other reasons")
    assert len(answer.reason) < 2000


# -- the policy's own material ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("material", "words"),
    [
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (public_pem(new_key()) + public_pem(new_key()), "more than one key"),
        (public_pem(new_key("K-256")), "must be ECDSA"),
        (pem(AUTHORITY.root).encode(), "no public key"),
    ],
)
def test_a_key_that_cannot_be_used_is_the_policys_fault(material: bytes, words: str) -> None:
    good = signed(KEY, DOCUMENT)
    answer = asked(good, demands=demand(keys=(public_pem(KEY), material)))
    assert not answer.accepted
    assert answer.is_policy_fault
    assert words in answer.reason


# -- keys with a log --------------------------------------------------------------------------


def test_a_logged_signature_by_a_key_is_accepted() -> None:
    policy = demand(keys=(public_pem(new_key()), public_pem(KEY)), rekor_keys=(Log().pem, LOG.pem))
    assert asked(LOG.logged(KEY, DOCUMENT), demands=policy).accepted


def test_an_unlogged_signature_is_refused_where_a_log_is_demanded() -> None:
    policy = demand(rekor_keys=(LOG.pem,))
    refused(asked(signed(KEY, DOCUMENT), demands=policy), "without a log entry")


def test_a_receipt_by_a_strange_log_is_refused() -> None:
    policy = demand(rekor_keys=(LOG.pem,))
    refused(asked(Log().logged(KEY, DOCUMENT), demands=policy), "not signed by a log")


def test_a_receipt_for_another_key_is_refused() -> None:
    policy = demand(keys=(public_pem(KEY),), rekor_keys=(LOG.pem,))
    raw = sign(KEY, DOCUMENT)
    bundle = LOG.bundle(LOG.entry(public_pem(new_key()), raw, DOCUMENT))
    good = signed(KEY, DOCUMENT)
    mixed = altered(good, signature=base64.b64encode(raw).decode(), bundle=bundle)
    refused(asked(mixed, demands=policy), "another key")


# -- certificates -----------------------------------------------------------------------------


def test_a_keyless_signature_is_accepted_years_after_its_certificate_ended() -> None:
    answer = asked(keyless(AUTHORITY, LOG, DOCUMENT), demands=fulcio())
    assert answer.accepted, answer.reason
    assert answer.valid_until_s is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_keyless_signature_by_keys_of_all_kinds(kind: str) -> None:
    answer = asked(keyless(AUTHORITY, LOG, DOCUMENT, key=new_key(kind)), demands=fulcio())
    assert answer.accepted, answer.reason


def test_the_issuer_may_be_spelled_in_either_extension_but_not_differently() -> None:
    for issuer, old, good in (
        (None, ISSUER, True),
        (ISSUER, ISSUER, True),
        (ISSUER, "https://evil.example", False),
        (None, None, False),
        ("https://evil.example", None, False),
    ):
        key = new_key()
        leaf = AUTHORITY.issue(key, issuer=issuer, issuer_v1=old)
        signature = keyless(AUTHORITY, LOG, DOCUMENT, certificate=leaf, key=key)
        answer = asked(signature, demands=fulcio())
        assert answer.accepted is good, (issuer, old, answer.reason)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": [x509.RFC822Name("other@example.com")]}, "other@example.com"),
        ({"names": [x509.DNSName("builder.example.com")]}, "not 'builder@example.com'"),
        ({"names": [x509.RFC822Name("builder@example.com.evil.org")]}, "evil.org"),
        ({"names": [x509.UniformResourceIdentifier(f"mailto:{EMAIL}")]}, EMAIL),
        ({"usages": [ExtendedKeyUsageOID.SERVER_AUTH]}, "code signing"),
        ({"usages": []}, "EKU"),
        ({"start": SIGNED_AT + timedelta(minutes=1)}, "2024-05-01"),
        ({"start": SIGNED_AT - timedelta(minutes=30)}, "2024-05-01"),
    ],
)
def test_a_certificate_that_is_not_right_is_refused(changes: dict[str, object], words: str) -> None:
    key = new_key()
    leaf = AUTHORITY.issue(key, **changes)
    answer = asked(keyless(AUTHORITY, LOG, DOCUMENT, certificate=leaf, key=key), demands=fulcio())
    refused(answer)
    if words != "EKU":
        assert words in answer.reason, answer.reason


def test_an_expired_certificate_without_a_receipt_is_refused() -> None:
    signature = altered(keyless(AUTHORITY, LOG, DOCUMENT), bundle=None)
    refused(asked(signature, demands=fulcio()), "without a log entry")


def test_a_certificate_of_another_authority_is_refused() -> None:
    strange = Authority()
    refused(asked(keyless(strange, LOG, DOCUMENT), demands=fulcio()), "does not lead")
    # Nor does its root count because the signature brings it along.
    chain = pem(strange.between, strange.root, AUTHORITY.root)
    refused(asked(altered(keyless(strange, LOG, DOCUMENT), chain=chain), demands=fulcio()))


def test_authorities_that_may_not_be_authorities_are_refused() -> None:
    for changes in (
        {"may_sign": False},
        {"usages": [ExtendedKeyUsageOID.SERVER_AUTH]},
        {"valid": (datetime(2020, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC))},
    ):
        authority = Authority(**changes)
        refused(asked(keyless(authority, LOG, DOCUMENT), demands=fulcio(authority)))


def test_a_leaf_is_no_authority_for_another_leaf() -> None:
    middle_key, key = new_key(), new_key()
    middle = AUTHORITY.issue(middle_key)
    pretender = Authority(key=middle_key)
    leaf = pretender.issue(key)
    signature = keyless(AUTHORITY, LOG, DOCUMENT, certificate=leaf, key=key)
    refused(asked(altered(signature, chain=pem(middle, AUTHORITY.between)), demands=fulcio()))


def test_a_chain_that_is_missing_or_rubbish_is_refused() -> None:
    good = keyless(AUTHORITY, LOG, DOCUMENT)
    many = pem(AUTHORITY.between) * 17
    for chain in (
        None,
        "",
        "rubbish",
        many,
        "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
    ):
        refused(asked(altered(good, chain=chain), demands=fulcio()))


def test_a_certificate_exchanged_for_another_is_refused() -> None:
    one, two = keyless(AUTHORITY, LOG, DOCUMENT), keyless(AUTHORITY, LOG, DOCUMENT)
    mixed = altered(one, certificate=two.annotations[CERTIFICATE])
    refused(asked(mixed, demands=fulcio()), "another certificate")
    twice = altered(one, certificate=one.annotations[CERTIFICATE] * 2)
    refused(asked(twice, demands=fulcio()), "more than one certificate")


def test_a_receipt_of_another_signature_or_document_is_refused() -> None:
    one, two = keyless(AUTHORITY, LOG, DOCUMENT), keyless(AUTHORITY, LOG, payload(NAME, OTHER))
    mixed = altered(one, bundle=two.annotations[BUNDLE])
    refused(asked(mixed, demands=fulcio()), "another signature")
    raw = base64.b64decode(one.annotations[SIGNATURE])
    entry = LOG.entry(one.annotations[CERTIFICATE], raw, payload(NAME, OTHER))
    refused(asked(altered(one, bundle=LOG.bundle(entry)), demands=fulcio()), "another document")


def test_a_receipt_whose_time_was_changed_is_refused() -> None:
    good = keyless(AUTHORITY, LOG, DOCUMENT)
    bundle = json.loads(good.annotations[BUNDLE])
    for key, value in (
        ("integratedTime", bundle["Payload"]["integratedTime"] + 1),
        ("logIndex", 1),
        ("logID", "00"),
        ("body", base64.b64encode(b"{}").decode()),
    ):
        changed = {**bundle, "Payload": {**bundle["Payload"], key: value}}
        refused(asked(altered(good, bundle=json.dumps(changed)), demands=fulcio()), "not signed by")


def test_receipts_that_can_be_misread_are_refused() -> None:
    good = keyless(AUTHORITY, LOG, DOCUMENT)
    text = good.annotations[BUNDLE]
    bundle = json.loads(text)
    fields = bundle["Payload"]
    stamp = bundle["SignedEntryTimestamp"]
    for changed in (
        "",
        "[]",
        "{}",
        text[:-1],
        text.replace('"Payload"', '"Payload": {}, "Payload"'),
        text.replace('"logIndex"', '"integratedTime": 1, "logIndex"'),
        json.dumps({**bundle, "more": 1}),
        json.dumps({"SignedEntryTimestamp": [], "Payload": fields}),
        json.dumps({"SignedEntryTimestamp": stamp, "Payload": {**fields, "more": 1}}),
        json.dumps({"SignedEntryTimestamp": stamp, "Payload": {**fields, "integratedTime": 1e3}}),
        json.dumps({"SignedEntryTimestamp": stamp, "Payload": {**fields, "integratedTime": True}}),
        json.dumps({"SignedEntryTimestamp": stamp, "Payload": {**fields, "integratedTime": -1}}),
        json.dumps(
            {"SignedEntryTimestamp": stamp, "Payload": {**fields, "integratedTime": 10**30}}
        ),
        json.dumps({"SignedEntryTimestamp": stamp, "Payload": {**fields, "logID": "é"}}),
        text + " " * 140_000,
    ):
        refused(asked(altered(good, bundle=changed), demands=fulcio()))


def test_entries_that_a_log_has_signed_but_are_not_of_our_kind_are_refused() -> None:
    good = keyless(AUTHORITY, LOG, DOCUMENT)
    raw = base64.b64decode(good.annotations[SIGNATURE])
    entry = LOG.entry(good.annotations[CERTIFICATE], raw, DOCUMENT)
    assert asked(altered(good, bundle=LOG.bundle(entry)), demands=fulcio()).accepted
    spec = entry["spec"]
    assert isinstance(spec, dict)
    for changed in (
        b"",
        b"null",
        {**entry, "kind": "rekord"},
        {**entry, "apiVersion": "0.0.2"},
        {"kind": "hashedrekord", "apiVersion": "0.0.1"},
        {**entry, "spec": {"signature": spec["signature"]}},
        {**entry, "spec": {**spec, "data": {"hash": {"algorithm": "sha1", "value": "0"}}}},
        {**entry, "spec": {**spec, "signature": {"content": spec["signature"]["content"]}}},
        json.dumps(entry).replace('"kind"', '"kind": "hashedrekord", "kind"').encode(),
        LOG.entry("rubbish", raw, DOCUMENT),
        LOG.entry(b"\xff", raw, DOCUMENT),
        LOG.entry(public_pem(KEY), raw, DOCUMENT),
    ):
        refused(asked(altered(good, bundle=LOG.bundle(changed)), demands=fulcio()))


def test_what_the_log_has_seen_must_be_signed_by_the_certificates_key() -> None:
    own = new_key()
    leaf = AUTHORITY.issue(new_key())
    refused(
        asked(keyless(AUTHORITY, LOG, DOCUMENT, certificate=leaf, key=own), demands=fulcio()),
        "another key",
    )


# -- an authority of the operator's own -------------------------------------------------------


def pki(authority: Authority = AUTHORITY, **values: object) -> Demand:
    root = {"subject_email": EMAIL, **values}
    return demand(keys=(), pki=PkiRoot(roots=pem(authority.root).encode(), **root))


def certified(**changes: object) -> Signature:
    key = new_key()
    life = {"start": SIGNED_AT, "life": timedelta(days=365), **changes}
    leaf = AUTHORITY.issue(key, issuer=None, **life)
    chain = pem(AUTHORITY.between, AUTHORITY.root)
    return signed(key, DOCUMENT, certificate=pem(leaf), chain=chain)


def test_a_certificate_of_ones_own_is_good_while_it_lasts() -> None:
    within = SIGNED_AT + timedelta(days=100)
    answer = asked(certified(), demands=pki(), now=within)
    assert answer.accepted, answer.reason
    assert answer.valid_until_s == int((SIGNED_AT + timedelta(days=365)).timestamp())
    refused(asked(certified(), demands=pki(), now=NOW), "2030-01-01")


def test_intermediates_may_come_from_the_policy() -> None:
    within = SIGNED_AT + timedelta(days=100)
    bare = altered(certified(), chain=None)
    refused(asked(bare, demands=pki(), now=within))
    policy = pki(intermediates=pem(AUTHORITY.between).encode())
    assert asked(bare, demands=policy, now=within).accepted


@pytest.mark.parametrize(
    ("offered", "good"),
    [
        ("build.example.com", True),
        ("*.example.com", True),
        ("*.build.example.com", False),
        ("example.com", False),
        ("build.example.com.evil.org", False),
        ("*.com", False),
    ],
)
def test_a_host_name_is_matched_label_by_label(offered: str, good: bool) -> None:
    policy = pki(subject_email="", subject_hostname="build.example.com")
    names = [x509.DNSName(offered)]
    answer = asked(certified(names=names), demands=policy, now=SIGNED_AT + timedelta(days=1))
    assert answer.accepted is good


def test_both_email_and_host_name_must_be_there_where_both_are_demanded() -> None:
    policy = pki(subject_hostname="build.example.com")
    within = SIGNED_AT + timedelta(days=1)
    refused(asked(certified(), demands=policy, now=within), "build.example.com")
    names = [x509.RFC822Name(EMAIL), x509.DNSName("build.example.com")]
    assert asked(certified(names=names), demands=policy, now=within).accepted


def test_a_certificate_of_ones_own_need_not_say_what_it_is_for_but_must_not_say_another_thing() -> (
    None
):
    within = SIGNED_AT + timedelta(days=1)
    assert asked(certified(usages=[]), demands=pki(), now=within).accepted
    other = certified(usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    refused(asked(other, demands=pki(), now=within), "code signing")


def test_a_signature_may_be_broken_into_lines() -> None:
    good = signed(KEY, DOCUMENT)
    text = good.annotations[SIGNATURE]
    assert asked(altered(good, signature=f"{text[:60]}\n{text[60:]}\n")).accepted


def test_roots_that_cannot_be_read_are_the_policys_fault() -> None:
    root = PkiRoot(roots=b"rubbish", subject_email=EMAIL)
    answer = asked(certified(), demands=demand(keys=(), pki=root))
    assert answer.is_policy_fault
