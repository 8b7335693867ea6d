"""The client against the distribution project's own registry (Debian package docker-registry).

The fake in tests/fakes is ours and could share our mistakes; this one is what registries in the
field are built on: its challenges, its ranges, its error documents, its media types.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import json
import shutil
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imageservice.credentials import Credential, from_auth_config
from imageservice.errors import (
    DigestMismatch,
    ImageNotFound,
    RegistryUnauthenticated,
    RegistryUntrusted,
)
from imageservice.manifest import (
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_config,
    parse_manifest,
)
from imageservice.reference import parse_reference
from imageservice.registry.client import RegistryClient
from imageservice.registry.transfer import MemorySink
from imageservice.settings import ImageSettings, RetryPolicy
from tests.fakes.registry import FakeRegistry, make_certificate, make_tar

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="Debian package docker-registry is missing"
)
#: bcrypt of `wonder:land`, cost 4.
HTPASSWD = "alice:$2b$04$lPUX.DW1vBru9XZmKJ92Jei/zNVX8t4p3zBiPVOSxFwhxHrPYvPDm\n"
ALICE = Credential(username="alice", password="wonder:land")
LAYER = gzip.compress(
    make_tar({"noise": b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(30_000))}),
    mtime=0,
)


@asynccontextmanager
async def run_registry(directory: Path, *sections: str):
    """A registry of its own on a free loopback port; yields `127.0.0.1:port`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = directory / "storage"
    config = directory / "registry.yml"
    tls = next((section for section in sections if section.startswith("  tls:")), "")
    others = [section for section in sections if section is not tls]
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage:\n  filesystem: {{rootdirectory: {storage}}}\n  delete: {{enabled: true}}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n{tls}" + "".join(others)
    )
    process = await asyncio.create_subprocess_exec(
        "docker-registry", "serve", str(config), stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not _listens(port):
            assert process.returncode is None, "the registry ended at once"
            await asyncio.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def push(
    domain: str, repository: str, tag: str, media_type: str = OCI_MANIFEST
) -> Descriptor:
    """One image of one layer by the distribution protocol's push half; returns its manifest."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": ["sha256:" + hashlib.sha256(gzip.decompress(LAYER)).hexdigest()],
            },
        }
    ).encode()
    family = "docker" if media_type == DOCKER_MANIFEST else "oci"
    types = {
        "oci": ("oci.image.config.v1+json", "oci.image.layer.v1.tar+gzip"),
        "docker": ("docker.container.image.v1+json", "docker.image.rootfs.diff.tar.gzip"),
    }[family]
    pointers = []
    for kind, blob in zip(types, (config, LAYER), strict=True):
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        begun = await asyncio.to_thread(
            send, domain, "POST", f"/v2/{repository}/blobs/uploads/", 202
        )
        location = begun.removeprefix(f"http://{domain}")
        await asyncio.to_thread(send, domain, "PUT", f"{location}&digest={digest}", 201, blob)
        mime = f"application/vnd.{kind}"
        pointers.append({"mediaType": mime, "digest": digest, "size": len(blob)})
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": pointers[0],
            "layers": pointers[1:],
        }
    ).encode()
    url = f"/v2/{repository}/manifests/{tag}"
    await asyncio.to_thread(send, domain, "PUT", url, 201, body, media_type)
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    return Descriptor(media_type=media_type, digest=digest, size_bytes=len(body))


def send(
    domain: str, method: str, target: str, status: int, body: bytes = b"", media_type: str = ""
) -> str:
    """One request of a push, which must have that answer; returns its Location."""
    headers = {"Authorization": ALICE.basic, "Content-Type": media_type}
    connection = http.client.HTTPConnection(domain)
    try:
        connection.request(method, target, body, {k: v for k, v in headers.items() if v})
        answer = connection.getresponse()
        assert answer.status == status, answer.read()
        return answer.getheader("Location", "")
    finally:
        connection.close()


@asynccontextmanager
async def open_client(certs: Path | None = None):
    settings = ImageSettings(
        registry_config_dirs=() if certs is None else (certs,), retry=RetryPolicy(attempts=1)
    )
    client = RegistryClient(settings)
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_a_whole_image_comes_over(tmp_path, media_type):
    async with run_registry(tmp_path) as domain, open_client() as client:
        pushed = await push(domain, "team/app", "1", media_type)
        reference = parse_reference(f"{domain}/team/app:1")

        assert await client.head(reference, None) == pushed
        resolved = await client.resolve(reference, None)
        assert resolved.descriptor == pushed
        manifest = parse_manifest(resolved.body, resolved.content_type)
        assert isinstance(manifest, Manifest)
        config = await client.fetch_small_blob(
            reference, manifest.config, None, limit_bytes=1 << 20
        )
        assert parse_config(config).config.cmd == ("/bin/sh",)
        sink = MemorySink()
        await client.fetch_blob(reference, manifest.layers[0], None, sink)
        assert sink.data == LAYER
        by_digest = reference.with_digest(pushed.parsed_digest)
        assert (await client.resolve(by_digest, None)).body == resolved.body
        assert await client.fetch_manifest(reference, pushed, None) == resolved.body


async def test_a_layer_is_continued_by_range(tmp_path):
    async with run_registry(tmp_path) as domain, open_client() as client:
        await push(domain, "a", "1")
        sink, progress = MemorySink(), []
        layer = Descriptor(
            digest="sha256:" + hashlib.sha256(LAYER).hexdigest(), size_bytes=len(LAYER)
        )
        await client.fetch_blob(
            parse_reference(f"{domain}/a:1"),
            layer,
            None,
            sink,
            offset_bytes=100_000,
            on_progress=progress.append,
        )
        assert sink.data == LAYER[100_000:]
        assert progress[-1] == len(LAYER)


async def test_what_is_not_there_is_not_found(tmp_path):
    async with run_registry(tmp_path) as domain, open_client() as client:
        await push(domain, "a", "1")
        for name in ("a:2", "b:1", "a@sha256:" + "0" * 64):
            reference = parse_reference(f"{domain}/{name}")
            with pytest.raises(ImageNotFound, match="_UNKNOWN") as caught:
                await client.resolve(reference, None)
            assert domain in str(caught.value)
        missing = Descriptor(digest="sha256:" + "0" * 64, size_bytes=1)
        with pytest.raises(ImageNotFound):
            await client.fetch_blob(parse_reference(f"{domain}/a"), missing, None, MemorySink())


async def test_bytes_that_rotted_on_the_registrys_disk_are_refused(tmp_path):
    async with run_registry(tmp_path) as domain, open_client() as client:
        pushed = await push(domain, "a", "1")
        hexadecimal = pushed.parsed_digest.hex
        [path] = (tmp_path / "storage").rglob(f"{hexadecimal}/data")
        path.write_bytes(path.read_bytes().replace(b"sha256", b"sha255", 1))
        # It serves the rotten manifest with a fresh digest header: only our own check can tell.
        with pytest.raises(DigestMismatch, match=pushed.digest):
            await client.resolve(parse_reference(f"{domain}/a@{pushed.digest}"), None)


async def test_basic_authorization(tmp_path):
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = f"auth:\n  htpasswd: {{realm: real, path: {tmp_path}/htpasswd}}\n"
    async with run_registry(tmp_path, auth) as domain, open_client() as client:
        await push(domain, "a", "1")
        reference = parse_reference(f"{domain}/a:1")
        await client.resolve(reference, ALICE)
        await client.resolve(reference, from_auth_config(auth="YWxpY2U6d29uZGVyOmxhbmQ="))
        for wrong in (None, Credential(username="alice", password="x")):
            with pytest.raises(RegistryUnauthenticated):
                await client.resolve(reference, wrong)
        elsewhere = Credential(username="alice", password="wonder:land", server="ghcr.io")
        with pytest.raises(RegistryUnauthenticated):
            await client.resolve(reference, elsewhere)


async def test_its_bearer_challenge_is_understood(tmp_path):
    """The registry rejects a token that nobody signed; what it asked for is what counts here."""
    pem = make_certificate(tmp_path)
    async with FakeRegistry(users={"alice": "wonder:land"}) as token_server:
        auth = (
            f"auth:\n  token:\n    realm: {token_server.url}/token\n    service: real registry\n"
            f"    issuer: fake\n    rootcertbundle: {pem.certificate}\n"
        )
        async with run_registry(tmp_path, auth) as domain, open_client() as client:
            with pytest.raises(RegistryUnauthenticated):
                await client.resolve(parse_reference(f"{domain}/team/app:1"), ALICE)
        [asked] = token_server.requests
        assert asked.query == {
            "service": ["real registry"],
            "scope": ["repository:team/app:pull"],
        }
        assert asked.header("Authorization") == ALICE.basic


async def test_tls_and_hosts_toml(tmp_path):
    pem = make_certificate(tmp_path)
    certs = tmp_path / "certs.d"
    tls = f"  tls: {{certificate: {pem.certificate}, key: {pem.key}}}\n"
    async with run_registry(tmp_path, tls) as domain, open_client(certs) as client:
        reference = parse_reference(f"{domain}/a:1")
        directory = certs / domain
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(f'server = "https://{domain}"\n')
        with pytest.raises(RegistryUntrusted):
            await client.resolve(reference, None)
        (directory / "hosts.toml").write_text(f'server = "https://{domain}"\nskip_verify = true\n')
        with pytest.raises(ImageNotFound):
            await client.resolve(reference, None)
        text = f'server = "https://{domain}"\nca = "{pem.certificate}"\n'
        (directory / "hosts.toml").write_text(text)
        with pytest.raises(ImageNotFound):
            await client.resolve(reference, None)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="Debian package skopeo is missing")
async def test_what_skopeo_pushes_can_be_pulled(tmp_path):
    async with run_registry(tmp_path) as domain, open_client() as client:
        await push(domain, "a", "1")
        process = await asyncio.create_subprocess_exec(
            "skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false",
            "--dest-tls-verify=false", "--format", "v2s2",
            f"docker://{domain}/a:1", f"docker://{domain}/b:2",
        )  # fmt: skip
        assert await process.wait() == 0
        resolved = await client.resolve(parse_reference(f"{domain}/b:2"), None)
        assert resolved.content_type == DOCKER_MANIFEST
        assert isinstance(parse_manifest(resolved.body, resolved.content_type), Manifest)
