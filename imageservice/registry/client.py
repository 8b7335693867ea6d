"""What a pull asks of registries: manifests, configs, blobs; and which answers are believed.

Which host is asked, in which order and how often, is `order`'s; how a blob's bytes come is
`transfer`'s.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imageservice.digest import Digest
from imageservice.errors import (
    DigestInvalid,
    DigestMismatch,
    ImageNotFound,
    ImageUnsupported,
    RegistryProtocolError,
    SizeMismatch,
    TooLarge,
)
from imageservice.manifest import ACCEPTED_TYPES, MAX_MANIFEST_BYTES, Descriptor
from imageservice.progress import SilentObserver, TransferObserver
from imageservice.registry.auth import Authorizer
from imageservice.registry.exchange import Exchanger, Question
from imageservice.registry.hosts import HostsDirectory
from imageservice.registry.http import WireTransport
from imageservice.registry.order import HostOrder
from imageservice.registry.room import Room
from imageservice.registry.source import ImageSource, Resolved
from imageservice.registry.transfer import MemorySink, SinkFailed, Transfer
from sandbox.host.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from imageservice.credentials import Keyring
    from imageservice.reference import Reference
    from imageservice.registry.hosts import Endpoint
    from imageservice.registry.source import BlobSink
    from imageservice.registry.transport import HttpTransport, Response
    from imageservice.settings import ImageSettings
    from sandbox.host.clock import Clock

_ACCEPT: Final = ("Accept", ", ".join((*ACCEPTED_TYPES, "*/*")))


class RegistryClient(ImageSource):
    """`ImageSource` over HTTP; one per daemon, on its event loop."""

    def __init__(
        self,
        settings: ImageSettings,
        *,
        clock: Clock | None = None,
        transport: HttpTransport | None = None,
        observer: TransferObserver | None = None,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._transport = transport or WireTransport(
            max_connections_per_host=settings.max_connections_per_host, proxies=settings.proxies
        )
        self._room = Room(settings.range_memory_bytes)
        self._observer: TransferObserver = observer or SilentObserver()
        self.hosts = HostsDirectory(settings.registry_config_dirs)
        authorizer = Authorizer(self._transport, self.hosts, settings=settings, clock=self._clock)
        self._exchanger = Exchanger(self._transport, authorizer, self.hosts, clock=self._clock)
        self._order = HostOrder(
            self.hosts,
            settings,
            clock=self._clock,
            observer=self._observer,
            random_unit=random_unit,
        )

    async def resolve(self, reference: Reference, credential: Keyring | None) -> Resolved:
        """See `ImageSource`."""
        question, capability = self._manifest_question(reference)

        async def ask(endpoint: Endpoint, question: Question) -> Resolved:
            async with self._exchanger.ask(endpoint, question) as response:
                content_type = _content_type(response, question)
                body = await response.read(limit_bytes=MAX_MANIFEST_BYTES)
                stated = _stated_digest(response, question)
            digest = reference.digest or stated or Digest.of(body)
            for expected in (digest, stated or digest):
                if not expected.matches(body):
                    raise DigestMismatch(f"{question.what}: body is not {expected}")
            descriptor = Descriptor(
                media_type=content_type, digest=str(digest), size_bytes=len(body)
            )
            return Resolved(descriptor, body, content_type, endpoint.origin.netloc)

        return await self._order.ask(reference, credential, capability, question, ask)

    async def head(self, reference: Reference, credential: Keyring | None) -> Descriptor | None:
        """See `ImageSource`."""
        question, capability = self._manifest_question(reference)
        question = replace(question, method="HEAD")

        async def ask(endpoint: Endpoint, question: Question) -> Descriptor | None:
            async with self._exchanger.ask(endpoint, question) as response:
                content_type = _content_type(response, question)
                stated = _stated_digest(response, question)
                length = response.header("Content-Length")
            if stated is None or not content_type or not length.isdigit() or len(length) > 10:
                return None
            if reference.digest is not None and stated != reference.digest:
                raise DigestMismatch(f"{question.what}: the registry says it is {stated}")
            return Descriptor(media_type=content_type, digest=str(stated), size_bytes=int(length))

        return await self._order.ask(reference, credential, capability, question, ask)

    async def fetch_manifest(
        self, reference: Reference, descriptor: Descriptor, credential: Keyring | None
    ) -> bytes:
        """See `ImageSource`."""
        digest = descriptor.parsed_digest
        question, capability = self._manifest_question(reference.with_digest(digest))
        _check_claim(descriptor, MAX_MANIFEST_BYTES, question.what)

        async def ask(endpoint: Endpoint, question: Question) -> bytes:
            async with self._exchanger.ask(endpoint, question) as response:
                _content_type(response, question)
                body = await response.read(limit_bytes=MAX_MANIFEST_BYTES)
            if len(body) != descriptor.size_bytes:
                raise SizeMismatch(
                    f"{question.what}: size is not what its descriptor says",
                    expected_bytes=descriptor.size_bytes,
                    actual_bytes=len(body),
                )
            if not digest.matches(body):
                raise DigestMismatch(f"{question.what}: body does not have this digest")
            return body

        return await self._order.ask(reference, credential, capability, question, ask)

    async def fetch_small_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Keyring | None,
        *,
        limit_bytes: int,
    ) -> bytes:
        """See `ImageSource`."""
        what = f"blob {descriptor.digest} of {reference.repository}"
        _check_claim(descriptor, limit_bytes, what)
        for origin_only in (False, True):
            sink = MemorySink()
            await self.fetch_blob(reference, descriptor, credential, sink, origin_only=origin_only)
            if descriptor.parsed_digest.matches(sink.data):
                return bytes(sink.data)
        raise DigestMismatch(f"{what}: bytes do not have this digest")

    async def fetch_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Keyring | None,
        sink: BlobSink,
        *,
        offset_bytes: int = 0,
        on_progress: Callable[[int], None] | None = None,
        origin_only: bool = False,
    ) -> None:
        """See `ImageSource`."""
        digest = descriptor.parsed_digest
        what = f"blob {digest} of {reference.repository}"
        if not 0 <= offset_bytes <= descriptor.size_bytes:
            raise SizeMismatch(f"{what}: {offset_bytes} bytes are held, more than it has")
        transfer = Transfer(
            descriptor,
            sink,
            offset_bytes=offset_bytes,
            on_progress=on_progress,
            stall_timeout_s=self._settings.pull_progress_timeout_s,
            min_progress_bytes=self._settings.min_progress_bytes,
            observer=self._observer,
            connections=self._settings.max_connections_per_layer,
            piece_bytes=self._settings.range_bytes,
            room=self._room,
        )
        if transfer.is_complete:
            return
        question = Question(reference.path, f"blobs/{digest}", what)

        async def ask(endpoint: Endpoint, question: Question) -> None:
            await transfer.advance(self._exchanger, endpoint, question)

        sink_error: Exception | None = None
        try:
            await self._order.ask(
                reference,
                credential,
                frozenset({"pull"}),
                question,
                ask,
                origin_only=origin_only,
                progress_bytes=lambda: transfer.received_bytes,
            )
        except SinkFailed as failed:
            sink_error = failed.error
        except ImageNotFound as error:
            if descriptor.is_foreign:
                raise ImageUnsupported(
                    f"{what}: a foreign layer that its registry does not hold",
                    hint="URLs in manifests are not followed; push the layer to the registry",
                ) from error
            raise
        if sink_error is not None:
            raise sink_error  # out of the handler, so that its own cause stays its cause

    async def close(self) -> None:
        """See `ImageSource`."""
        await self._transport.close()

    def _manifest_question(self, reference: Reference) -> tuple[Question, frozenset[str]]:
        """What to ask, and what a host must be trusted with: a tag's meaning, or bytes alone."""
        name = str(reference.digest or reference.tag)
        question = Question(
            reference.path,
            f"manifests/{name}",
            f"manifest {name} of {reference.repository}",
            headers=(_ACCEPT,),
            response_timeout_s=self._settings.response_timeout_s,
        )
        is_tag = reference.digest is None
        return question, frozenset({"pull", "resolve"} if is_tag else {"pull"})


def _content_type(response: Response, question: Question) -> str:
    if response.header("Content-Encoding").lower() not in ("", "identity"):
        raise RegistryProtocolError(f"{question.what}: sent compressed although not asked for")
    text = response.header("Content-Type").partition(";")[0].strip().lower()
    return text if text.isascii() and text.isprintable() else ""


def _stated_digest(response: Response, question: Question) -> Digest | None:
    text = response.header("Docker-Content-Digest")
    try:
        return Digest.parse(text) if text else None
    except DigestInvalid as error:
        raise RegistryProtocolError(f"{question.what}: digest header is malformed") from error


def _check_claim(descriptor: Descriptor, limit_bytes: int, what: str) -> None:
    if descriptor.size_bytes > limit_bytes:
        raise TooLarge(
            f"{what}: claims to be larger than {limit_bytes} bytes",
            size_bytes=descriptor.size_bytes,
        )
