"""What `podwright check` says of policies, keys and blocked places."""

from __future__ import annotations

import json

import pytest

from cri.check.finding import Level
from cri.check.trust import trust
from imageservice.settings import ImageSettings
from tests.kit.signing import new_key, public_pem

ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}


def write(path, default, **scopes):
    docker = {scope.replace("__", "/").replace("_", "."): [one] for scope, one in scopes.items()}
    path.write_text(json.dumps({"default": [default], "transports": {"docker": docker}}))
    return path


def said(tmp_path, **settings):
    found = trust(ImageSettings(**settings), customary=tmp_path / "customary.json")
    return [(one.level, one.detail) for one in found]


def test_no_policy_is_said(tmp_path):
    assert said(tmp_path) == [(Level.OK, "none: every image is accepted")]
    write(tmp_path / "customary.json", ACCEPT)
    assert said(tmp_path) == [(Level.OK, "none: every image is accepted")]


def test_a_policy_of_other_programs_that_is_not_used_is_a_warning(tmp_path):
    write(tmp_path / "customary.json", REJECT)
    [(level, detail)] = said(tmp_path)
    assert level is Level.WARNING
    assert "customary.json is there and not used" in detail


def test_what_a_policy_does_is_told(tmp_path):
    key = tmp_path / "key.pub"
    key.write_bytes(public_pem(new_key()))
    signed = {"type": "sigstoreSigned", "keyPath": str(key)}
    path = write(tmp_path / "p.json", REJECT, a_com=signed, b_com__x=ACCEPT, c_com=REJECT)
    assert said(tmp_path, signature_policy=path) == [
        (
            Level.OK,
            f"{path}: accepts nothing by default, accepts all of b.com/x, rejects all of c.com,"
            " demands signatures of a.com",
        )
    ]


@pytest.mark.parametrize("material", [None, b"rubbish", public_pem(new_key()) * 2])
@pytest.mark.parametrize("kind", ["key", "fulcio", "rekor"])
def test_keys_that_cannot_be_used_are_errors(tmp_path, kind, material):
    path, good = tmp_path / "material", tmp_path / "good.pub"
    good.write_bytes(public_pem(new_key()))
    if material is not None:
        path.write_bytes(material)
    requirement = {"type": "sigstoreSigned", "rekorPublicKeyPath": str(good)}
    if kind == "fulcio":
        requirement["fulcio"] = {"caPath": str(path), "oidcIssuer": "a", "subjectEmail": "b"}
    else:
        requirement["keyPath"] = str(path if kind == "key" else good)
        requirement["rekorPublicKeyPath"] = str(good if kind == "key" else path)
    policy = write(tmp_path / "p.json", ACCEPT, a_com=requirement)
    [(level, detail)] = said(tmp_path, signature_policy=policy)
    assert level is Level.ERROR
    assert str(policy) in detail


def test_a_broken_policy_is_an_error_and_gpg_a_warning(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("{}")
    [(level, detail)] = said(tmp_path, signature_policy=path)
    assert level is Level.ERROR
    assert f"policy {path}" in detail
    assert said(tmp_path, signature_policy=tmp_path / "none")[0][0] is Level.ERROR
    gpg = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}
    [(level, detail)] = said(tmp_path, signature_policy=write(path, ACCEPT, a_com=gpg))
    assert level is Level.WARNING
    assert "all images of a.com are refused" in detail


def test_every_namespaces_policy_is_looked_at(tmp_path):
    directory = tmp_path / "namespaces"
    assert said(tmp_path, signature_policy_dir=directory)[0][0] is Level.WARNING
    directory.mkdir()
    write(directory / "a.json", ACCEPT)
    (directory / "b.json").write_text("{")
    levels = [level for level, _ in said(tmp_path, signature_policy_dir=directory)]
    assert levels == [Level.OK, Level.ERROR]


def test_blocked_places_are_named(tmp_path):
    assert said(tmp_path, blocked_registries=("*.a.com", "b.com"))[-1] == (
        Level.OK,
        "*.a.com, b.com",
    )
