"""Policies and signatures that anything may have happened to: a value, or an honest refusal."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from imageservice.errors import PolicyInvalid
from imageservice.trust.judge import judge
from imageservice.trust.model import (
    BUNDLE,
    CERTIFICATE,
    CHAIN,
    SIGNATURE,
    Answer,
    Demand,
    FulcioRoot,
    Question,
    Signature,
    answer_decoder,
    encode,
    question_decoder,
)
from imageservice.trust.policy import Policy, parse_policy
from tests.kit.fuzzing import assert_tellable, fuzzed
from tests.kit.signing import (
    EMAIL,
    ISSUER,
    Authority,
    Log,
    keyless,
    new_key,
    payload,
    pem,
    public_pem,
    signed,
)

NAME, DIGEST = "registry.example.com/team/app:1", "sha256:" + "ab" * 32
KEY, AUTHORITY, LOG = new_key(), Authority(), Log()
DOCUMENT = payload(NAME, DIGEST)
GOOD = keyless(AUTHORITY, LOG, DOCUMENT)
DEMANDS = (
    Demand(
        label="r",
        fulcio=FulcioRoot(
            authorities=pem(AUTHORITY.root).encode(), oidc_issuer=ISSUER, subject_email=EMAIL
        ),
        rekor_keys=(LOG.pem,),
    ),
)
POLICY = {
    "default": [{"type": "reject"}],
    "transports": {
        "docker": {
            "": [{"type": "insecureAcceptAnything"}],
            "example.com/a": [
                {
                    "type": "sigstoreSigned",
                    "fulcio": {"caPath": "/a", "oidcIssuer": "i", "subjectEmail": "e"},
                    "rekorPublicKeyData": "AAAA",
                    "signedIdentity": {
                        "type": "remapIdentity",
                        "prefix": "a.b",
                        "signedPrefix": "c.d",
                    },
                },
                {"type": "sigstoreSigned", "keyPaths": ["/a"]},
            ],
        }
    },
}
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """Some bytes changed, left out, doubled or put in."""
    body = bytearray(text)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(body) - 1, 0)))
        length = draw(st.integers(0, 8))
        body[place : place + length] = draw(
            st.binary(max_size=4) | st.just(bytes(body[place : place + length]) * 2)
        )
    return bytes(body)


def _places(document: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [path]
    if isinstance(document, dict):
        for key, value in document.items():
            found += _places(value, (*path, key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            found += _places(value, (*path, number))
    return found


@fuzzed()
@given(st.sampled_from(_places(POLICY)[1:]), anything)
def test_a_policy_with_anything_in_any_place(place: tuple[object, ...], value: object) -> None:
    document = json.loads(json.dumps(POLICY))
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    _read(json.dumps(document).encode())


@fuzzed()
@given(damaged(json.dumps(POLICY).encode()))
def test_a_damaged_policy(body: bytes) -> None:
    _read(body)


def _read(body: bytes) -> None:
    try:
        policy = parse_policy(body)
    except PolicyInvalid as error:
        assert_tellable(error)
    else:
        assert isinstance(policy, Policy)
        assert policy.default
        assert all(policy.docker.values())
        assert all(isinstance(path, Path) for path in policy.sources())


def asked(signature: Signature, demands: tuple[Demand, ...] = DEMANDS) -> Answer:
    """The answer to a question that went over the wire."""
    question = Question(
        reference=NAME, digests=(DIGEST,), demands=demands, signatures=(signature,), now_s=2**31
    )
    answer = answer_decoder.decode(encode(judge(question_decoder.decode(encode(question)))))
    assert not answer.is_policy_fault
    assert answer.reason.isprintable()
    assert len(answer.reason) < 1500
    return answer


def test_undamaged_it_is_accepted() -> None:
    assert asked(GOOD).accepted


@fuzzed()
@given(st.sampled_from([SIGNATURE, CERTIFICATE, CHAIN, BUNDLE]), st.data())
def test_a_damaged_annotation(name: str, data: st.DataObject) -> None:
    text = data.draw(damaged(GOOD.annotations[name].encode())).decode("latin-1")
    answer = asked(Signature(payload=DOCUMENT, annotations={**GOOD.annotations, name: text}))
    if name == SIGNATURE and answer.accepted:
        # White space is all that may differ.
        assert "".join(text.split()) == GOOD.annotations[name]


@fuzzed()
@given(damaged(DOCUMENT))
def test_a_damaged_document_is_refused(body: bytes) -> None:
    signature = Signature(payload=body, annotations=GOOD.annotations)
    assert asked(signature).accepted is (body == DOCUMENT)


@fuzzed()
@given(damaged(DOCUMENT))
def test_a_damaged_document_that_was_signed_so_says_the_same_or_is_refused(body: bytes) -> None:
    demand = Demand(label="r", keys=(public_pem(KEY),))
    if asked(signed(KEY, body), (demand,)).accepted:
        critical = json.loads(body)["critical"]
        assert critical == json.loads(DOCUMENT)["critical"]


@fuzzed()
@given(damaged(LOG.entry("x", b"y", b"z").__repr__().encode()) | damaged(
    json.dumps(LOG.entry(GOOD.annotations[CERTIFICATE], b"raw", DOCUMENT)).encode()
))  # fmt: skip
def test_an_entry_that_a_log_has_signed_with_anything_in_it(entry: bytes) -> None:
    annotations = {**GOOD.annotations, BUNDLE: LOG.bundle(entry)}
    assert not asked(Signature(payload=DOCUMENT, annotations=annotations)).accepted
