"""containers-policy.json(5): what is read, what is refused, and which part speaks of an image."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from imageservice.errors import PolicyInvalid
from imageservice.reference import parse_reference
from imageservice.trust.identity import matches
from imageservice.trust.model import Identity
from imageservice.trust.policy import Accept, Policy, Reject, Sigstore, Unsupported, parse_policy
from imageservice.trust.policy_files import PolicyFiles, demands
from imageservice.trust.scopes import check_scope, scopes_of
from sandbox.host.errors import InvalidArgument
from tests.kit.signing import new_key, public_pem

DIGEST = "sha256:" + "ab" * 32
ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}
KEY = {"type": "sigstoreSigned", "keyPath": "/etc/keys/a.pub"}
DATA = base64.b64encode(b"pem").decode()


def read(document: object) -> Policy:
    return parse_policy(json.dumps(document).encode())


def with_requirement(requirement: object) -> dict[str, object]:
    return {"default": [REJECT], "transports": {"docker": {"example.com/a": [requirement]}}}


def decided(policy: Policy, name: str) -> object:
    return policy.requirements(parse_reference(name))[1][0]


# -- scopes -----------------------------------------------------------------------------------


def test_scopes_go_from_the_image_to_the_widest_domain() -> None:
    assert list(scopes_of(parse_reference("reg.eu.example.com:5000/team/app:1"))) == [
        "reg.eu.example.com:5000/team/app:1",
        "reg.eu.example.com:5000/team/app",
        "reg.eu.example.com:5000/team",
        "reg.eu.example.com:5000",
        "*.eu.example.com",
        "*.example.com",
        "*.com",
    ]
    assert list(scopes_of(parse_reference("busybox"))) == [
        "docker.io/library/busybox:latest",
        "docker.io/library/busybox",
        "docker.io/library",
        "docker.io",
        "*.io",
    ]
    assert list(scopes_of(parse_reference("[::1]:5000/a:1"))) == [
        "[::1]:5000/a:1",
        "[::1]:5000/a",
        "[::1]:5000",
    ]


def test_a_digest_decides_over_a_tag() -> None:
    first = next(iter(scopes_of(parse_reference(f"example.com/a:1@{DIGEST}"))))
    assert first == f"example.com/a@{DIGEST}"


@pytest.mark.parametrize(
    "scope",
    [
        "docker.io", "docker.io/library", "docker.io/library/busybox", "docker.io/team",
        "docker.io/library/busybox:1", f"example.com/a@{DIGEST}", "example.com:5000",
        "example.com:5000/ns", "localhost", "localhost/a", "[::1]:5000/a", "*.example.com", "*.com",
    ],
)  # fmt: skip
def test_scopes_that_an_image_can_have(scope: str) -> None:
    check_scope(scope)


@pytest.mark.parametrize(
    "scope",
    [
        "busybox", "library/busybox", "docker.io/", "/a", "example.com//a", "https://example.com",
        "Example.com", "example.com/A", "example.com/a:", "example.com/a@sha256:12",
        "index.docker.io/library", "*", "*.", "*example.com", "a.*.com", "example*.com",
        "*.example.com/a", "*.example.com:5000", "*.a b", "example.com/a b", "example.com:99999",
        f"example.com/a:1@{DIGEST}", "example.com ", "é.com",
    ],
)  # fmt: skip
def test_scopes_that_no_image_can_have_are_refused(scope: str) -> None:
    with pytest.raises(InvalidArgument):
        check_scope(scope)
    with pytest.raises(PolicyInvalid, match=r"transports\.docker"):
        read({"default": [REJECT], "transports": {"docker": {scope: [ACCEPT]}}})


def test_the_nearest_scope_decides_alone() -> None:
    policy = read(
        {
            "default": [REJECT],
            "transports": {
                "docker": {
                    "": [ACCEPT],
                    "*.example.com": [REJECT],
                    "reg.example.com": [ACCEPT],
                    "reg.example.com/team": [REJECT],
                    "reg.example.com/team/app": [ACCEPT],
                    "reg.example.com/team/app:bad": [REJECT],
                    f"reg.example.com/team/app@{DIGEST}": [REJECT],
                }
            },
        }
    )
    for name, expected in (
        ("elsewhere.org/a:1", Accept()),
        ("a.example.com/a:1", Reject()),
        ("a.b.example.com/a:1", Reject()),
        ("example.com/a:1", Accept()),
        ("reg.example.com/a:1", Accept()),
        ("reg.example.com:5000/a:1", Reject()),
        ("reg.example.com/team/b:1", Reject()),
        ("reg.example.com/teams/b:1", Accept()),
        ("reg.example.com/team/app:1", Accept()),
        ("reg.example.com/team/app:bad", Reject()),
        (f"reg.example.com/team/app:1@{DIGEST}", Reject()),
    ):
        assert decided(policy, name) == expected, name
    assert policy.requirements(None)[1] == (Accept(),)


def test_without_a_scope_the_default_decides() -> None:
    assert decided(read({"default": [ACCEPT]}), "busybox") == Accept()
    other = read({"default": [REJECT], "transports": {"docker-daemon": {"": [ACCEPT]}}})
    assert decided(other, "busybox") == Reject()


# -- the grammar ------------------------------------------------------------------------------


def test_everything_that_a_requirement_may_say() -> None:
    fulcio = {"caData": DATA, "oidcIssuer": "https://a", "subjectEmail": "a@b"}
    pki = {"caRootsPath": "/r.pem", "caIntermediatesData": DATA, "subjectHostname": "a.b"}
    for requirement in (
        KEY,
        {"type": "sigstoreSigned", "keyPaths": ["/a", "/b"], "rekorPublicKeyPath": "/r"},
        {"type": "sigstoreSigned", "keyData": DATA, "rekorPublicKeyDatas": [DATA]},
        {"type": "sigstoreSigned", "keyDatas": [DATA, DATA], "rekorPublicKeyPaths": ["/r"]},
        {"type": "sigstoreSigned", "fulcio": fulcio, "rekorPublicKeyData": DATA},
        {"type": "sigstoreSigned", "pki": pki},
        *(
            {**KEY, "signedIdentity": identity}
            for identity in (
                {"type": "matchExact"},
                {"type": "matchRepoDigestOrExact"},
                {"type": "matchRepository"},
                {"type": "exactReference", "dockerReference": "example.com/a:1"},
                {"type": "exactRepository", "dockerRepository": "example.com/a"},
                {"type": "remapIdentity", "prefix": "a.com", "signedPrefix": "b.com/ns"},
            )
        ),
    ):
        assert isinstance(read(with_requirement(requirement)).docker["example.com/a"][0], Sigstore)
    gpg = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/a.gpg"}
    assert read(with_requirement(gpg)).docker["example.com/a"] == (Unsupported("signedBy"),)


FULCIO = {"caPath": "/f", "oidcIssuer": "https://a", "subjectEmail": "a@b"}
PKI = {"caRootsPath": "/r", "subjectEmail": "a@b"}
SIGNED = {"type": "sigstoreSigned"}


@pytest.mark.parametrize(
    "requirement",
    [
        None, 1, "reject", [], {}, {"type": None}, {"type": "Reject"}, {"Type": "reject"},
        {**ACCEPT, "more": 1}, {**REJECT, "keyPath": "/a"}, SIGNED, {**KEY, "keypath": "/a"},
        {**SIGNED, "keyPath": ""}, {**SIGNED, "keyPath": "relative"}, {**SIGNED, "keyPath": ["/a"]},
        {**SIGNED, "keyPath": None}, {**SIGNED, "keyPaths": []}, {**SIGNED, "keyPaths": "/a"},
        {**SIGNED, "keyPaths": ["/a", 1]}, {**SIGNED, "keyData": "not base64!"},
        {**SIGNED, "keyData": ""}, {**SIGNED, "keyDatas": [""]}, {**KEY, "keyPaths": ["/b"]},
        {**KEY, "keyData": DATA}, {**KEY, "fulcio": FULCIO, "rekorPublicKeyPath": "/r"},
        {**KEY, "pki": PKI}, {**SIGNED, "fulcio": FULCIO}, {**SIGNED, "fulcio": None},
        {**SIGNED, "fulcio": {**FULCIO, "more": 1}, "rekorPublicKeyPath": "/r"},
        {**SIGNED, "fulcio": {**FULCIO, "caData": DATA}, "rekorPublicKeyPath": "/r"},
        {**SIGNED, "fulcio": {**FULCIO, "subjectEmail": ""}, "rekorPublicKeyPath": "/r"},
        *(
            {**SIGNED, "fulcio": {k: v for k, v in FULCIO.items() if k != gone},
             "rekorPublicKeyPath": "/r"}
            for gone in FULCIO
        ),
        {**SIGNED, "pki": PKI, "rekorPublicKeyPath": "/r"},
        {**SIGNED, "pki": {"caRootsPath": "/r"}},
        {**SIGNED, "pki": {"subjectEmail": "a@b"}}, {**KEY, "rekorPublicKeyPath": ""},
        {**KEY, "rekorPublicKeyPath": "/r", "rekorPublicKeyData": DATA},
        *(
            {**KEY, "signedIdentity": identity}
            for identity in (
                None, "matchExact", {}, {"type": "matchexact"}, {"type": "matchExact", "more": 1},
                {"type": "exactReference"},
                {"type": "exactReference", "dockerReference": "example.com/a"},
                {"type": "exactReference", "dockerReference": "A B"},
                {"type": "exactRepository", "dockerRepository": "example.com/a:1"},
                {"type": "exactRepository", "dockerReference": "example.com/a"},
                {"type": "remapIdentity", "prefix": "a.com"},
                {"type": "remapIdentity", "prefix": "a.com/x:1", "signedPrefix": "b.com"},
                {"type": "remapIdentity", "prefix": "*.a.com", "signedPrefix": "b.com"},
                {"type": "remapIdentity", "prefix": "busybox", "signedPrefix": "b.com"},
            )
        ),
        {"type": "signedBy", "keyType": "GPGKeys", "more": "/a.gpg"},
    ],
)  # fmt: skip
def test_one_slip_refuses_the_whole_policy(requirement: object) -> None:
    with pytest.raises(PolicyInvalid, match=r"^SignatureValidationFailed: "):
        read(with_requirement(requirement))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b'{"default": []}', b'{"default": {}}', b'{"default": null}',
        b'{"transports": {}}', b'{"default": [{"type": "reject"}], "more": 1}',
        b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject"}], "transports": null}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": []}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"": []}}}',
        b'{"default": [{"type": "reject"}], "transports": {"dir": {"": [{"type": "x"}]}}}',
        b'{"default": [{"type": "reject"}]} {}', b'\xff{"default": [{"type": "reject"}]}',
        b'{"default": [{"type": "reject"}]' + b" " * (1 << 20) + b"}", b"[" * 1_000_000,
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused(body: bytes) -> None:
    with pytest.raises(PolicyInvalid):
        parse_policy(body)


# -- identities -------------------------------------------------------------------------------

A1, A2, B1 = "reg.com/ns/a:1", "reg.com/ns/a:2", "reg.com/ns/b:1"
HUB = "docker.io/library/x:latest"
A_DIGEST = f"reg.com/ns/a@{DIGEST}"


@pytest.mark.parametrize(
    ("identity", "reference", "accepted", "refused"),
    [
        (Identity(kind="matchExact"), A1, [A1], [A2, B1, "reg.com/ns/a", A_DIGEST]),
        (Identity(kind="matchExact"), A_DIGEST, [A_DIGEST], [A1, "reg.com/ns/a"]),
        (Identity(), A1, [A1], [A2, B1, "reg.com/ns/a", f"{A1}@{DIGEST}"]),
        (Identity(), A_DIGEST, [A1, A2, A_DIGEST], [B1, "reg.com/ns/a"]),
        (Identity(), HUB, [HUB, "x:latest"], ["x"]),
        (Identity(kind="matchRepository"), A1, [A1, A2, "reg.com/ns/a", A_DIGEST], [B1]),
        (Identity(kind="exactReference", value=A2), B1, [A2], [A1, B1, "reg.com/ns/a"]),
        (Identity(kind="exactRepository", value="reg.com/ns/a"), B1, [A1, "reg.com/ns/a"], [B1]),
        (
            Identity(kind="remapIdentity", prefix="mirror.com/x", signed_prefix="reg.com"),
            "mirror.com/x/ns/a:1",
            [A1],
            [A2, B1, "mirror.com/x/ns/a:1", "reg.com/ns/a"],
        ),
        (
            Identity(kind="remapIdentity", prefix="mirror.com/x", signed_prefix="reg.com"),
            "mirror.com/xx/ns/a:1",
            ["mirror.com/xx/ns/a:1"],
            [A1, "reg.comx/ns/a:1"],
        ),
        (
            Identity(kind="remapIdentity", prefix="reg.com/ns/a", signed_prefix="up.com/b"),
            A1,
            ["up.com/b:1"],
            [A1, "up.com/b:2", "up.com/b"],
        ),
    ],
)  # fmt: skip
def test_names_that_a_signature_may_carry(
    identity: Identity, reference: str, accepted: list[str], refused: list[str]
) -> None:
    for signed in accepted:
        assert matches(identity, reference, signed), signed
    for signed in [*refused, "", "A B", "reg.com/ns/a:1 ", "https://reg.com/ns/a:1", "x" * 2000]:
        assert not matches(identity, reference, signed), signed


# -- files ------------------------------------------------------------------------------------


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_a_policy_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.json", {"default": [ACCEPT]})
    files = PolicyFiles(path, None)
    first = files.load("")
    assert first is not None
    assert first.policy.default == (Accept(),)
    assert files.load("ns").policy is first.policy  # type: ignore[union-attr]
    write(path, {"default": [REJECT]})
    second = files.load("")
    assert second is not None
    assert second.policy.default == (Reject(),)


def test_a_policy_that_went_bad_refuses_and_is_good_again_when_mended(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.json", {"default": [ACCEPT]})
    files = PolicyFiles(path, None)
    assert files.load("")
    for spoil in (lambda: path.write_text("{"), path.unlink, path.mkdir):
        spoil()
        with pytest.raises(PolicyInvalid, match=str(path)):
            files.load("")
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(PolicyInvalid):
        files.load("")
    path.unlink()
    write(path, {"default": [ACCEPT]})
    assert files.load("")


def test_what_others_can_write_is_no_policy_and_no_key(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.json", {"default": [ACCEPT]})
    path.chmod(0o666)
    with pytest.raises(PolicyInvalid, match="written by others"):
        PolicyFiles(path, None).load("")
    key = tmp_path / "key.pub"
    key.write_bytes(public_pem(new_key()))
    key.chmod(0o646)
    with pytest.raises(PolicyInvalid, match="written by others"):
        demands(read({"default": [{**SIGNED, "keyPath": str(key)}]}).default)


def test_a_namespaces_own_policy_takes_the_place_of_the_nodes(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.json", {"default": [REJECT]})
    own = tmp_path / "namespaces"
    files = PolicyFiles(path, own)
    assert files.load("a").path == path  # type: ignore[union-attr]
    own.mkdir()
    write(own / "a.json", {"default": [ACCEPT]})
    assert files.load("a").path == own / "a.json"  # type: ignore[union-attr]
    assert files.load("b").path == path  # type: ignore[union-attr]
    assert files.load("").path == path  # type: ignore[union-attr]
    (own / "a.json").write_text("{}")
    with pytest.raises(PolicyInvalid, match=r"a\.json"):
        files.load("a")
    for name in ("../policy", "..", ".hidden", "a/b", "a\0"):
        with pytest.raises(InvalidArgument):
            files.load(name)
    assert PolicyFiles(None, own).load("b") is None


def test_keys_are_read_when_they_are_needed(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    policy = read({"default": [{**SIGNED, "keyPath": str(key)}]})
    with pytest.raises(PolicyInvalid, match=str(key)):
        demands(policy.default)
    for made in (public_pem(new_key()), public_pem(new_key())):
        key.write_bytes(made)
        assert demands(policy.default)[0].keys == (made,)
    key.write_bytes(b"x" * 300_000)
    with pytest.raises(PolicyInvalid, match=str(key)):
        demands(policy.default)
