"""The node's own credentials: which file counts, which is refused, and what helpers are asked."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from imageservice.credential_helpers import OUTPUT_LIMIT_BYTES
from imageservice.credentials import Credential
from imageservice.errors import AuthFileInvalid, CredentialHelperFailed
from imageservice.keyrings import NodeKeyrings
from imageservice.reference import parse_reference
from imageservice.settings import ImageSettings
from sandbox.host.errors import DeadlineExceeded
from sandbox.host.processes import HostProcessRunner
from tests.fakes.processes import FakeProcessRunner

APP = parse_reference("reg.example/team/app:1")
HUB = parse_reference("busybox")


class Files:
    """The places where a node may have credentials."""

    def __init__(self, root: Path) -> None:
        self.common = root / "auth.json"
        self.namespaced = root / "auth"
        self.helpers = root / "helpers"
        self.namespaced.mkdir(mode=0o700)
        self.helpers.mkdir(mode=0o755)
        self.settings = ImageSettings(
            auth_file=self.common,
            namespaced_auth_dir=self.namespaced,
            credential_helper_dirs=(self.helpers,),
        )

    def for_one_pull(self, namespace: str = "shop", repository: str = APP.repository) -> Path:
        name = hashlib.sha256(repository.encode()).hexdigest()
        return self.namespaced / f"{namespace}-{name}.json"

    def helper(self, name: str, script: str, mode: int = 0o755) -> Path:
        path = self.helpers / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        return path

    def keyrings(self, runner=None) -> NodeKeyrings:
        return NodeKeyrings(self.settings, runner or HostProcessRunner())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def write(path: Path, *keys: str, **more: object) -> Path:
    """A file in which the password of each entry is its key."""
    path.parent.mkdir(exist_ok=True)
    auths = {key: {"username": "u", "password": f"of {key} in {path.name}"} for key in keys}
    path.write_text(json.dumps({"auths": auths, **more}))
    path.chmod(0o600)
    return path


async def secret(
    files: Files,
    reference=APP,
    *,
    namespace: str = "",
    credential: Credential | None = None,
    host: str = "",
    runner=None,
) -> str:
    """The password that a host is shown; the registry itself by default."""
    async with files.keyrings(runner).of_pull(reference, namespace, credential) as keyring:
        if keyring is None:
            return ""
        hosts = {host or reference.domain}
        shown = await keyring.shown_to(hosts, reference.path, is_origin=not host)
    return "" if shown is None else shown.password or shown.identity_token


# -- which file -----------------------------------------------------------------------------


async def test_without_files_there_is_nothing_and_the_pulls_own_stays_what_it_is(files):
    own = Credential("u", "own")
    async with files.keyrings().of_pull(APP, "shop", None) as keyring:
        assert keyring is None
    async with files.keyrings().of_pull(APP, "shop", own) as keyring:
        assert keyring is own


async def test_the_common_file_is_for_everybody(files):
    write(files.common, "reg.example")
    assert await secret(files) == "of reg.example in auth.json"
    assert await secret(files, namespace="shop") == "of reg.example in auth.json"
    assert await secret(files, HUB) == ""


async def test_it_is_read_anew_for_each_pull(files):
    keyrings = files.keyrings()
    prints = []
    for key in ("reg.example", "other.example"):
        write(files.common, key)
        async with keyrings.of_pull(APP, "", None) as keyring:
            prints.append(keyring.fingerprint)
            shown = await keyring.shown_to({"reg.example"}, "a", is_origin=True)
            assert (shown is not None) is (key == "reg.example")
    assert prints[0] != prints[1]


async def test_a_namespace_has_a_file_of_its_own_in_place_of_the_common_one(files):
    write(files.common, "reg.example")
    write(files.namespaced / "shop" / "config.json", "other.example")
    assert await secret(files, namespace="shop") == ""
    assert await secret(files, namespace="bank") == "of reg.example in auth.json"
    assert await secret(files, namespace="shop", host="other.example") != ""


async def test_a_file_for_one_pull_comes_first_and_goes_with_it(files):
    write(files.common, "reg.example")
    write(files.namespaced / "shop" / "config.json", "reg.example")
    path = write(files.for_one_pull(), "reg.example")
    assert await secret(files, namespace="shop") == f"of reg.example in {path.name}"
    assert not path.exists()
    assert await secret(files, namespace="shop") == "of reg.example in config.json"
    assert files.common.exists()


async def test_it_goes_with_a_pull_that_fails_too(files):
    path = write(files.for_one_pull(), "reg.example")
    with pytest.raises(ZeroDivisionError):
        async with files.keyrings().of_pull(APP, "shop", None):
            raise ZeroDivisionError
    assert not path.exists()


async def test_one_that_was_written_again_meanwhile_is_anothers_and_stays(files):
    path = write(files.for_one_pull(), "reg.example")
    async with files.keyrings().of_pull(APP, "shop", None):
        path.unlink()
        write(path, "reg.example", "more.example")
    assert path.exists()


async def test_a_file_for_one_pull_is_of_one_namespace_and_repository(files):
    path = write(files.for_one_pull(), "reg.example")
    assert await secret(files, namespace="bank") == ""
    assert await secret(files, parse_reference("reg.example/team/other"), namespace="shop") == ""
    assert path.exists()


async def test_its_name_is_of_the_full_name_of_the_repository_as_cri_o_makes_it(files):
    """The name is of CRI-O's own test of this contract (test/namespaced_auth.bats)."""
    sha = "7aa25047c59c6c2e20b839f5b9820e3702dade4a97154d4df1f5cd1a9b44cfde"
    write(files.namespaced / f"default-{sha}.json", "quay.io")
    image = parse_reference("quay.io/crio/fedora-crio-ci:latest")
    assert await secret(files, image, namespace="default") != ""


@pytest.mark.parametrize("namespace", ["", "..", "../auth", "a/b", "Shop", "shop\0", "-", "a" * 64])
async def test_what_is_no_namespace_leads_nowhere(files, namespace):
    write(files.common, "reg.example")
    write(files.namespaced / "config.json", "reg.example")
    assert await secret(files, namespace=namespace) == "of reg.example in auth.json"


async def test_places_can_be_switched_off(files):
    write(files.common, "reg.example")
    files.settings = ImageSettings(auth_file=None, namespaced_auth_dir=None)
    assert await secret(files, namespace="shop") == ""


# -- whose secret goes where ----------------------------------------------------------------


async def test_a_pulls_own_secret_is_alone_for_the_registry(files):
    write(files.common, "reg.example", "mirror.example")
    own = Credential("u", "own")
    assert await secret(files, credential=own) == "own"
    assert await secret(files, credential=own, host="mirror.example") != "own"
    assert await secret(files, credential=own, host="other.example") == ""


async def test_a_pulls_own_secret_for_another_server_is_not_replaced(files):
    write(files.common, "reg.example")
    assert await secret(files, credential=Credential("u", "p", server="x.example")) == ""


async def test_a_mirror_is_shown_its_own_entry_only(files):
    write(files.common, "reg.example")
    assert await secret(files, host="mirror.example") == ""
    write(files.common, "reg.example", "mirror.example")
    assert await secret(files, host="mirror.example") == "of mirror.example in auth.json"


async def test_pulls_with_other_rights_have_other_fingerprints(files):
    write(files.common, "reg.example")
    write(files.namespaced / "shop" / "config.json", "reg.example")
    prints = set()
    for namespace in ("", "shop"):
        for own in (None, Credential("u", "a"), Credential("u", "b")):
            async with files.keyrings().of_pull(APP, namespace, own) as keyring:
                prints.add(keyring.fingerprint)
    assert len(prints) == 6


# -- files that do not count ----------------------------------------------------------------


def _readable(path: Path) -> None:
    path.chmod(0o604)


def _writable(path: Path) -> None:
    path.chmod(0o602)


def _of_another(path: Path) -> None:
    os.chown(path, 1234, 0)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _large(path: Path) -> None:
    path.write_bytes(b" " * (1024 * 1024 + 1))


def _garbage(path: Path) -> None:
    path.write_text("canary")


def _writable_directory(path: Path) -> None:
    path.parent.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        _readable,
        _writable,
        pytest.param(
            _of_another,
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away"),
        ),
        _directory,
        _fifo,
        _large,
        _garbage,
        _writable_directory,
    ],
)
async def test_a_file_that_cannot_be_trusted_ends_the_pull_by_name(files, spoil):
    path = write(files.namespaced / "shop" / "config.json", "reg.example")
    write(files.common, "reg.example")
    spoil(path)
    with pytest.raises(AuthFileInvalid) as caught:
        await secret(files, namespace="shop")
    assert str(path) in str(caught.value)
    assert "canary" not in str(caught.value)
    # With a credential of its own a pull needs the file for mirrors only.
    assert await secret(files, namespace="shop", credential=Credential("u", "own")) == "own"


async def test_a_link_counts_for_where_it_leads(files, tmp_path):
    real = write(tmp_path / "real.json", "reg.example")
    files.common.symlink_to(real)
    assert await secret(files) != ""
    real.chmod(0o644)
    with pytest.raises(AuthFileInvalid):
        await secret(files)
    real.unlink()
    assert await secret(files) == ""


# -- helpers --------------------------------------------------------------------------------


async def test_a_helper_is_asked_by_its_protocol_once_for_each_host(files, tmp_path):
    seen = tmp_path / "seen"
    files.helper(
        "mine",
        f'echo "$1 $(cat) $PATH" >> {seen}\nenv >> {seen}\n'
        'echo \'{"ServerURL":"x","Username":"u","Secret":"from the helper"}\'',
    )
    write(files.common, credHelpers={"reg.example": "mine"})
    os.environ["CANARY_OF_THE_DAEMON"] = "1"
    try:
        async with files.keyrings().of_pull(APP, "", None) as keyring:
            for _ in range(3):
                shown = await keyring.shown_to({"reg.example"}, APP.path, is_origin=True)
                assert shown == Credential("u", "from the helper")
    finally:
        del os.environ["CANARY_OF_THE_DAEMON"]
    text = seen.read_text()
    assert text.count("get reg.example ") == 1
    assert "CANARY" not in text


async def test_a_helper_for_the_hub_is_asked_by_dockers_name_for_it(files):
    files.helper("pass", """printf '{"Username":"u","Secret":"%s"}' "$(cat)\"""")
    write(files.common, credsStore="pass")
    assert await secret(files, HUB) == "https://index.docker.io/v1/"


async def test_a_helper_may_have_an_identity_token(files):
    files.helper("cloud", """echo '{"Username":"<token>","Secret":"t"}'""")
    write(files.common, credHelpers={"reg.example": "cloud"})
    async with files.keyrings().of_pull(APP, "", None) as keyring:
        shown = await keyring.shown_to({"reg.example"}, APP.path, is_origin=True)
    assert shown == Credential(identity_token="t")


@pytest.mark.parametrize(
    "script",
    [
        "echo credentials not found in native keychain; exit 1",
        """echo '{"Username":"","Secret":""}'""",
    ],
)
async def test_a_helper_that_has_none_leaves_it_to_the_next(files, script):
    files.helper("mine", script)
    write(files.common, credHelpers={"reg.example": "mine"})
    assert await secret(files) == ""
    write(files.common, "reg.example", credHelpers={"reg.example": "mine"})
    assert await secret(files) == "of reg.example in auth.json"


@pytest.mark.parametrize(
    "script",
    [
        "echo canary; exit 1",
        "echo canary >&2; exit 3",
        "echo canary",
        "echo '[\"canary\"]'",
        """printf '{"Username":"canary\\\\n","Secret":"canary"}'""",
        f"head -c {OUTPUT_LIMIT_BYTES + 1} /dev/zero",
        "kill -9 $$",
    ],
)
async def test_a_helper_that_fails_is_named_and_not_quoted(files, script):
    path = files.helper("mine", script)
    write(files.common, "reg.example", credHelpers={"reg.example": "mine"})
    with pytest.raises(CredentialHelperFailed) as caught:
        await secret(files)
    assert str(path) in str(caught.value)
    assert "reg.example" in str(caught.value)
    assert "canary" not in str(caught.value)


async def test_a_helper_that_hangs_is_given_up(files):
    path = files.helper("mine", "sleep 1000")
    write(files.common, credHelpers={"reg.example": "mine"})
    runner = FakeProcessRunner()
    runner.on(path.name, DeadlineExceeded("did not end"))
    with pytest.raises(CredentialHelperFailed, match="did not end"):
        await secret(files, runner=runner)
    [run] = runner.runs
    assert run.timeout_s == 30.0


@pytest.mark.parametrize("mode", [0o775, 0o757])
async def test_a_helper_that_others_could_write_is_not_run(files, mode):
    files.helper("mine", "echo '{}'", mode)
    if mode == 0o775:
        files.helpers.chmod(0o777)
    write(files.common, credHelpers={"reg.example": "mine"})
    with pytest.raises(CredentialHelperFailed, match="is not run"):
        await secret(files, runner=FakeProcessRunner())


async def test_a_helper_that_is_not_there_says_what_to_configure(files):
    write(files.common, credHelpers={"reg.example": "mine"})
    with pytest.raises(CredentialHelperFailed, match=r"image\.credential_helper_dirs"):
        await secret(files, runner=FakeProcessRunner())
    assert await secret(files, HUB, runner=FakeProcessRunner()) == ""
