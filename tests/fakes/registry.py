"""A small, strict registry over real loopback HTTP(S) that does what a script tells it.

It speaks the pull half of the distribution protocol on sockets, by hand, because half of what it is
for (a cut in the middle of a body, a false length, a flood of 1xx, headers without end) no HTTP
server library would send. Whatever is asked is recorded, so a test can see which secret went where.

    async with FakeRegistry() as registry:
        image = registry.add_image("library/busybox", "1", layers=[tar_gz])
        registry.on("/blobs/" + image.layers[0].digest, Cut(after_bytes=1000))  # the first time
        ...
        assert registry.requests[-1].header("Range") == "bytes=1000-"

Faults are taken from the front of the first script whose text is part of the request's target, one
per request; `times` repeats one, `FOREVER` never ends. Without a fault the registry answers truly.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import ssl
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlsplit

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREVER = 1 << 30
_REASONS = {200: "OK", 206: "Partial Content", 307: "Temporary Redirect", 401: "Unauthorized"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Base of what a script may contain; `times` is for how many requests it holds."""

    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Status(Fault):
    """An answer of its own, for example 503 or a redirect."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Pass(Fault):
    """The true answer: to let some requests through before the next fault."""


@dataclass(frozen=True, kw_only=True)
class Cut(Fault):
    """The true head, then the connection breaks after so many bytes of the body."""

    after_bytes: int


@dataclass(frozen=True, kw_only=True)
class Stall(Fault):
    """Nothing more comes after so many bytes of the body; None: not even a head."""

    after_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Hold(Fault):
    """The rest of the body comes only after `release`; until then the request counts as `held`."""

    after_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Drip(Fault):
    """The body one byte at a time, a pause between."""

    pause_s: float


@dataclass(frozen=True, kw_only=True)
class Slow(Fault):
    """The true answer, no faster than so many bytes a second on this connection."""

    bytes_per_s: int


@dataclass(frozen=True, kw_only=True)
class Alter(Fault):
    """The true answer with another body, length or headers.

    Attributes:
        body: sent instead; None is the true one.
        length: what Content-Length claims; None is the truth, "" leaves it out and closes.
        headers: replace those of the same name; None as a value removes.
        chunked: send in chunks, without a length.
        ignore_range: answer 200 with the whole blob to a request for a part.
    """

    body: bytes | None = None
    length: str | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    chunked: bool = False
    ignore_range: bool = False


@dataclass(frozen=True, kw_only=True)
class Raw(Fault):
    """Bytes on the wire, then the connection is closed."""

    data: bytes
    repeat: int = 1


@dataclass(frozen=True)
class Recorded:
    """One request as it came; `at_s` is when, by the monotonic clock."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    at_s: float = 0.0

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode()))

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)


@dataclass(frozen=True)
class Blob:
    """A descriptor's facts."""

    digest: str
    size: int
    media_type: str = OCI_LAYER_GZIP

    @property
    def json(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class FakeImage:
    """What `add_image` made."""

    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]


class FakeRegistry:
    """See the module's text.

    Args:
        challenge: None (open), "Basic" or "Bearer".
        users: name to password; an empty mapping lets anonymous tokens through.
        identity_tokens: accepted by the token server's refresh grant.
        realm: instead of its own token server at /token.
        token_life_s: `expires_in` of tokens; None leaves it out.
        tls: a server context (see `make_certificate`).
        host: what it calls itself in references and realms.
    """

    def __init__(
        self,
        *,
        challenge: str | None = None,
        users: Mapping[str, str] | None = None,
        identity_tokens: Sequence[str] = (),
        realm: str | None = None,
        token_life_s: int | None = 300,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.challenge = challenge
        self.users = dict(users or {})
        self.identity_tokens = list(identity_tokens)
        self.realm = realm
        self.token_life_s = token_life_s
        self.host = host
        self.port = 0
        self.requests: list[Recorded] = []
        self.blobs: dict[str, bytes] = {}
        #: (repository, tag or digest) -> (media type, bytes)
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        #: token -> scopes it is good for
        self.tokens: dict[str, tuple[str, ...]] = {}
        self.open_connections = 0
        self.accepted_connections = 0
        #: Bytes of bodies handed to the kernel, by the last part of the path (a digest, a tag).
        self.served_bytes: Counter[str] = Counter()
        #: Requests that wait for `release`.
        self.held = 0
        self._released = asyncio.Event()
        self._tokens_made = 0
        self._tls = tls
        self._script: list[tuple[str, list[Fault]]] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()  # what stalled answers wait for

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> FakeRegistry:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls, limit=4 * 1024 * 1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._end.set()
        self._released.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def domain(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.domain}"

    def reference(self, name: str) -> str:
        """`name` as an image reference at this registry."""
        return f"{self.domain}/{name}"

    # -- content ----------------------------------------------------------------------------

    def add_blob(self, data: bytes, media_type: str = OCI_LAYER_GZIP) -> Blob:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return Blob(digest, len(data), media_type)

    def add_manifest(
        self,
        repository: str,
        body: bytes,
        *,
        tag: str | None = None,
        media_type: str = OCI_MANIFEST,
    ) -> Blob:
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self.manifests[repository, digest] = media_type, body
        if tag is not None:
            self.manifests[repository, tag] = media_type, body
        return Blob(digest, len(body), media_type)

    def add_image(
        self,
        repository: str,
        tag: str | None = None,
        *,
        layers: Sequence[bytes] | None = None,
        config: Mapping[str, object] | None = None,
        architecture: str = "amd64",
    ) -> FakeImage:
        """An image of gzip layers (plain tars are compressed); one small layer by default."""
        tars = [make_tar({"hello": b"world\n"})] if layers is None else list(layers)
        packed = [
            data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 6, mtime=0) for data in tars
        ]
        plain = [gzip.decompress(data) for data in packed]
        diff_ids = tuple("sha256:" + hashlib.sha256(data).hexdigest() for data in plain)
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
        config_blob = self.add_blob(json.dumps(document).encode(), OCI_CONFIG)
        layer_blobs = tuple(self.add_blob(data) for data in packed)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config_blob.json,
            "layers": [blob.json for blob in layer_blobs],
        }
        body = json.dumps(manifest).encode()
        return FakeImage(
            self.add_manifest(repository, body, tag=tag), config_blob, layer_blobs, diff_ids
        )

    def add_index(self, repository: str, tag: str, entries: Mapping[str, Blob]) -> Blob:
        """An index; keys are `os/architecture[/variant]`."""
        manifests = []
        for platform, blob in entries.items():
            names = ("os", "architecture", "variant")
            manifests.append(
                {**blob.json, "platform": dict(zip(names, platform.split("/"), strict=False))}
            )
        body = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        ).encode()
        return self.add_manifest(repository, body, tag=tag, media_type=OCI_INDEX)

    def on(self, part_of_target: str, *faults: Fault) -> None:
        """Let requests whose target contains the text meet these faults, in order."""
        self._script.append((part_of_target, list(faults)))

    def seen(self, part_of_target: str) -> list[Recorded]:
        """The recorded requests whose target contains the text."""
        return [request for request in self.requests if part_of_target in request.target]

    def release(self) -> None:
        """Let the answers go on that are held now; on the registry's own loop."""
        released, self._released = self._released, asyncio.Event()
        released.set()

    def calm(self) -> None:
        """Forget what is left of every script."""
        self._script.clear()

    # -- the wire ---------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        # Nothing waits for room in here: what was drained is the kernel's, and is not lost with the
        # connection.
        writer.transport.set_write_buffer_limits(high=0)
        self.open_connections += 1
        self.accepted_connections += 1
        try:
            while (request := await _read_request(reader, writer)) is not None:
                self.requests.append(request)
                if not await self._respond(request, writer):
                    break
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went, or the test ends
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _respond(self, request: Recorded, writer: asyncio.StreamWriter) -> bool:
        """Answer; whether the connection can be used again."""
        fault = self._next_fault(request)
        if isinstance(fault, Raw):
            for _ in range(fault.repeat):
                writer.write(fault.data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
            return False
        if isinstance(fault, Stall) and fault.after_bytes is None:
            await self._end.wait()
            return False
        if isinstance(fault, Status):
            headers = [("Content-Length", str(len(fault.body))), *fault.headers]
            body = b"" if request.method == "HEAD" else fault.body
            await self._send(request, writer, fault.status, headers, body)
            return True
        status, headers, body = self._truth(request, fault)
        if request.method == "HEAD":
            await self._send(
                request, writer, status, [*headers, ("Content-Length", str(len(body)))], b""
            )
            return True
        return await self._send_body(request, writer, fault, status, headers, body)

    async def _send_body(
        self,
        request: Recorded,
        writer: asyncio.StreamWriter,
        fault: Fault | None,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
    ) -> bool:
        length = ("Content-Length", str(len(body)))
        send = partial(self._send, request, writer)
        match fault:
            case Cut(after_bytes=count):
                await send(status, [*headers, length], body[:count])
                return False
            case Stall(after_bytes=count):
                await send(status, [*headers, length], body[:count])
                await self._end.wait()
                return False
            case Hold(after_bytes=count):
                await send(status, [*headers, length], body[:count])
                self.held += 1
                try:
                    await self._released.wait()
                finally:
                    self.held -= 1
                await self._write(request, writer, body[count:])
                return not self._end.is_set()
            case Drip(pause_s=pause_s):
                await send(status, [*headers, length], b"")
                for byte in body:
                    await self._write(request, writer, bytes([byte]))
                    await asyncio.sleep(pause_s)
                return True
            case Slow(bytes_per_s=bytes_per_s):
                await send(status, [*headers, length], b"")
                step = max(1, bytes_per_s // 50)
                for at in range(0, len(body), step):
                    await self._write(request, writer, body[at : at + step])
                    await asyncio.sleep(step / bytes_per_s)
                return True
            case Alter():
                replaced = {name.lower() for name in fault.headers}
                headers = [pair for pair in headers if pair[0].lower() not in replaced]
                headers += [
                    (name, value) for name, value in fault.headers.items() if value is not None
                ]
                body = body if fault.body is None else fault.body
                if fault.chunked:
                    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
                    await send(status, [*headers, ("Transfer-Encoding", "chunked")], framed)
                    return True
                claimed = str(len(body)) if fault.length is None else fault.length
                if claimed:
                    headers.append(("Content-Length", claimed))
                await send(status, headers, body)
                return claimed == str(len(body))
            case _:
                await send(status, [*headers, length], body)
                return True

    async def _send(
        self,
        request: Recorded,
        writer: asyncio.StreamWriter,
        status: int,
        headers: Sequence[tuple[str, str]],
        body: bytes,
    ) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await self._write(request, writer, body)

    async def _write(self, request: Recorded, writer: asyncio.StreamWriter, body: bytes) -> None:
        name = request.path.rpartition("/")[2]
        for start in range(0, len(body), 1 << 20):
            piece = body[start : start + (1 << 20)]
            writer.write(piece)
            await writer.drain()
            self.served_bytes[name] += len(piece)
        await writer.drain()

    def _next_fault(self, request: Recorded) -> Fault | None:
        for part, faults in self._script:
            if part in request.target and faults:
                fault = faults.pop(0)
                if fault.times > 1:
                    faults.insert(0, replace(fault, times=fault.times - 1))
                return None if isinstance(fault, Pass) else fault
        return None

    # -- the truth --------------------------------------------------------------------------

    def _truth(
        self, request: Recorded, fault: Fault | None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        path = request.path
        if path == "/token":
            return self._token(request)
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if path == "/v2/":
            return 200, [], b"{}"
        repository, kind, name = _split_path(path)
        if kind == "manifests" and (found := self.manifests.get((repository, name))):
            digest = "sha256:" + hashlib.sha256(found[1]).hexdigest()
            return 200, [("Content-Type", found[0]), ("Docker-Content-Digest", digest)], found[1]
        if kind == "blobs" and name in self.blobs:
            ignore = isinstance(fault, Alter) and fault.ignore_range
            return self._blob(request, self.blobs[name], ignore_range=ignore)
        code = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
        return 404, [("Content-Type", "application/json")], _error(code)

    def _blob(
        self, request: Recorded, data: bytes, *, ignore_range: bool
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = [("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes")]
        wanted = request.header("Range")
        if wanted is None or ignore_range:
            return 200, headers, data
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
        if start >= len(data):
            return 416, [*headers, ("Content-Range", f"bytes */{len(data)}")], b""
        span = f"bytes {start}-{end - 1}/{len(data)}"
        return 206, [*headers, ("Content-Range", span)], data[start:end]

    def _refusal(self, request: Recorded) -> tuple[int, list[tuple[str, str]], bytes] | None:
        if self.challenge is None:
            return None
        given = request.header("Authorization") or ""
        if self.challenge == "Basic":
            if _basic_user(given, self.users) is not None:
                return None
            wanted = 'Basic realm="fake"'
        else:
            repository = _split_path(request.path)[0]
            scope = f"repository:{repository}:pull"
            if scope in self.tokens.get(given.removeprefix("Bearer "), ()):
                return None
            realm = self.realm or f"{self.url}/token"
            wanted = f'Bearer realm="{realm}",service="fake",scope="{scope}"'
        headers = [("WWW-Authenticate", wanted), ("Content-Type", "application/json")]
        return 401, headers, _error("UNAUTHORIZED")

    def _token(self, request: Recorded) -> tuple[int, list[tuple[str, str]], bytes]:
        """The token server: GET with Basic, POST of the refresh grant."""
        if request.method == "POST":
            form = request.form
            if form.get("grant_type") != "refresh_token":
                return 400, [], b""
            allowed = form.get("refresh_token") in self.identity_tokens
            scopes = form.get("scope", "").split()
        else:
            scopes = request.query.get("scope", [])
            given = request.header("Authorization")
            anonymous = given is None and not self.users and not self.identity_tokens
            allowed = anonymous or _basic_user(given or "", self.users) is not None
        if not allowed:
            return 401, [], b""
        self._tokens_made += 1
        token = f"token-{self._tokens_made}-of-{self.port}"
        self.tokens[token] = tuple(scopes)
        document: dict[str, object] = {"token": token}
        if self.token_life_s is not None:
            document["expires_in"] = self.token_life_s
        return 200, [("Content-Type", "application/json")], json.dumps(document).encode()


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Recorded | None:
    try:
        start = await reader.readexactly(1)
        if start == b"\x16":  # a TLS hello on a plain port: servers answer in plain HTTP
            writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            await writer.drain()
            return None
        head = (start + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = first.split(" ")
    assert version == "HTTP/1.1", first
    pairs = tuple(
        (name, value.strip()) for name, _, value in (line.partition(":") for line in lines)
    )
    names = [name.lower() for name, _ in pairs]
    assert len(set(names)) == len(names), f"a header came twice: {names}"
    length = next((int(v) for k, v in pairs if k.lower() == "content-length"), 0)
    body = await reader.readexactly(length)
    return Recorded(method, target, pairs, body, time.monotonic())


def _split_path(path: str) -> tuple[str, str, str]:
    for kind in ("manifests", "blobs"):
        before, found, name = path.rpartition(f"/{kind}/")
        if found:
            return before.removeprefix("/v2/"), kind, name
    return "", "", ""


def _basic_user(header: str, users: Mapping[str, str]) -> str | None:
    if not header.startswith("Basic "):
        return None
    user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    return user if users.get(user) == password and user in users else None


def _error(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": "as scripted"}]}).encode()


def make_tar(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of regular files, the same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key, usable as authority, server and client."""

    certificate: Path
    key: Path

    def server_context(self, *, client_authority: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        if client_authority is not None:
            context.load_verify_locations(client_authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificate(
    directory: Path,
    name: str = "server",
    *,
    subject_names: str = "DNS:localhost,IP:127.0.0.1",
    days: int = 2,
) -> Certificate:
    """A certificate by the openssl program (about 30 ms); expired with `days` of -1."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName={subject_names}\nbasicConstraints=critical,CA:TRUE\n")
    _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", key, "-out", request, "-subj", f"/CN={name}")  # fmt: skip
    _openssl("x509", "-req", "-in", request, "-signkey", key, "-out", certificate,
             "-days", str(days), "-extfile", extensions)  # fmt: skip
    return Certificate(certificate, key)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
