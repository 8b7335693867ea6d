"""The flow of a pull: which hosts, in which order, how often, and which answers are believed.

Hosts come from `hosts.py` in the operator's order. A mirror gets one try while another host is left
(a dead mirror must cost seconds, not the retry policy); the registry itself, and whoever is last,
gets the whole policy. A host that could not be reached is asked last for half a minute, so that the
layers of one image do not each wait for the same dead mirror. When all fail, the registry's own
answer is the error, and what the others said is in `tried`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from imageservice.digest import Digest
from imageservice.errors import (
    DigestInvalid,
    DigestMismatch,
    HostsConfigInvalid,
    ImageNotFound,
    ImageUnsupported,
    PullStalled,
    RegistryDenied,
    RegistryProtocolError,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
    SizeMismatch,
    TooLarge,
)
from imageservice.manifest import ACCEPTED_TYPES, MAX_MANIFEST_BYTES, Descriptor
from imageservice.progress import SilentObserver, TransferObserver
from imageservice.registry.auth import Authorizer
from imageservice.registry.exchange import Exchanger, Question
from imageservice.registry.hosts import HostsDirectory
from imageservice.registry.retry import NS_PER_S, delay_s, retry_reason
from imageservice.registry.source import ImageSource, Resolved
from imageservice.registry.transfer import MemorySink, SinkFailed, Transfer
from imageservice.registry.transport import AiohttpTransport
from sandbox.host.clock import SystemClock
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from imageservice.credentials import Credential, Keyring
    from imageservice.reference import Reference
    from imageservice.registry.hosts import Endpoint
    from imageservice.registry.origins import Origin
    from imageservice.registry.source import BlobSink
    from imageservice.registry.transport import HttpTransport, Response
    from imageservice.settings import ImageSettings
    from sandbox.host.clock import Clock
    from sandbox.host.errors import PodwrightError

_T = TypeVar("_T")
#: After a host could not be reached, others are asked before it for this long.
UNREACHABLE_REST_S: Final = 30.0
_ACCEPT: Final = ("Accept", ", ".join((*ACCEPTED_TYPES, "*/*")))
#: What one host may fail with while another may still succeed.
_NEXT_HOST: Final = (
    DigestMismatch,
    ImageNotFound,
    PullStalled,
    RegistryDenied,
    RegistryThrottled,
    RegistryUnauthenticated,
    RegistryUnavailable,
    SizeMismatch,
    TooLarge,
)
_log = get_logger("imageservice.registry")


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
        self._transport = transport or AiohttpTransport(
            max_connections_per_host=settings.max_connections_per_host, proxies=settings.proxies
        )
        self._observer: TransferObserver = observer or SilentObserver()
        self._random_unit = random_unit
        self._hosts = HostsDirectory(settings.registry_config_dirs)
        authorizer = Authorizer(self._transport, self._hosts, settings=settings, clock=self._clock)
        self._exchanger = Exchanger(self._transport, authorizer, self._hosts, clock=self._clock)
        self._resting_until_ns: dict[Origin, int] = {}

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

        return await self._ask_hosts(reference, credential, capability, question, ask)

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

        return await self._ask_hosts(reference, credential, capability, question, ask)

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

        return await self._ask_hosts(reference, credential, capability, question, ask)

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
        )
        if transfer.is_complete:
            return
        question = Question(reference.path, f"blobs/{digest}", what)

        async def ask(endpoint: Endpoint, question: Question) -> None:
            await transfer.advance(self._exchanger, endpoint, question)

        sink_error: Exception | None = None
        try:
            await self._ask_hosts(
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

    async def _ask_hosts(
        self,
        reference: Reference,
        credential: Keyring | None,
        capability: frozenset[str],
        question: Question,
        ask: Callable[[Endpoint, Question], Awaitable[_T]],
        *,
        origin_only: bool = False,
        progress_bytes: Callable[[], int] = lambda: 0,
    ) -> _T:
        """The first answer of the hosts in order; see the module's text."""
        every = await asyncio.to_thread(self._hosts.endpoints, reference.domain)
        able = [endpoint for endpoint in every if capability <= endpoint.capabilities]
        if origin_only:
            # Without the registry itself (an air-gapped node) the last host stands for it.
            able = [endpoint for endpoint in able if endpoint.is_origin] or able[-1:]
        if not able:
            raise HostsConfigInvalid(
                f"no host of {reference.domain} has the capabilities "
                f"{', '.join(sorted(capability))} in hosts.toml"
            )
        now_ns = self._clock.monotonic_ns()
        order = sorted(able, key=lambda host: self._resting_until_ns.get(host.origin, 0) > now_ns)
        failures: dict[Endpoint, PodwrightError] = {}
        for endpoint in order:
            is_last = endpoint is order[-1]
            try:
                asked = replace(
                    question,
                    credential=await _shown_to(endpoint, reference, credential),
                    connect_timeout_s=self._settings.connect_timeout_s
                    if is_last
                    else self._settings.mirror_connect_timeout_s,
                )
                if is_last or endpoint.is_origin:
                    return await self._ask_patiently(endpoint, asked, ask, progress_bytes)
                return await ask(endpoint, asked)
            except _NEXT_HOST as error:
                self._note_failure(endpoint, error)
                failures[endpoint] = error
        raise _verdict(able, failures, question)

    async def _ask_patiently(
        self,
        endpoint: Endpoint,
        question: Question,
        ask: Callable[[Endpoint, Question], Awaitable[_T]],
        progress_bytes: Callable[[], int],
    ) -> _T:
        """Ask one host by the retry policy; a transfer that moved on starts counting anew."""
        tries, spent_ns, before_bytes = 0, 0, progress_bytes()
        while True:
            started_ns = self._clock.monotonic_ns()
            try:
                return await ask(endpoint, question)
            except (RegistryUnavailable, RegistryThrottled) as error:
                if progress_bytes() - before_bytes >= self._settings.min_progress_bytes:
                    tries, spent_ns, before_bytes = 0, 0, progress_bytes()
                else:
                    spent_ns += self._clock.monotonic_ns() - started_ns
                tries += 1
                wait_s = delay_s(
                    error,
                    self._settings.retry,
                    tries=tries,
                    spent_s=spent_ns / NS_PER_S,
                    random_unit=self._random_unit(),
                )
                if wait_s is None:
                    raise
                self._observer.asked_again(retry_reason(error))
                _log.warning(
                    "asking a registry again",
                    host=str(endpoint.origin),
                    wanted=question.what,
                    reason=error.message,
                    tries=tries,
                    wait_s=round(wait_s, 3),
                )
            await self._clock.sleep(wait_s)

    def _note_failure(self, endpoint: Endpoint, error: PodwrightError) -> None:
        if isinstance(error, RegistryUnavailable) and error.is_unreachable:
            until_ns = self._clock.monotonic_ns() + int(UNREACHABLE_REST_S * NS_PER_S)
            if len(self._resting_until_ns) >= 1024:
                self._resting_until_ns.clear()
            self._resting_until_ns[endpoint.origin] = until_ns


async def _shown_to(
    endpoint: Endpoint, reference: Reference, credential: Keyring | None
) -> Credential | None:
    """What of `credential` this endpoint may see."""
    if credential is None:
        return None
    names = {endpoint.origin.netloc}
    if endpoint.is_origin:
        names.add(reference.domain)
    return await credential.shown_to(names, reference.path, is_origin=endpoint.is_origin)


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


def _verdict(
    configured: list[Endpoint], failures: dict[Endpoint, PodwrightError], question: Question
) -> PodwrightError:
    """One error for all hosts: the registry's own where it was asked, else the last host's."""
    chosen = next((host for host in configured if host.is_origin), configured[-1])
    error = failures[chosen]
    fields = dict(error.fields)
    if question.what not in error.message:
        fields["wanted"] = question.what
    fields["host"] = str(chosen.origin)
    others = [
        f"{host.origin}: {failures[host].message.removeprefix(RegistryUnavailable.PREFIX)}"
        for host in configured
        if host is not chosen
    ]
    if others:
        fields["tried"] = "; ".join(others)
    error.fields = fields
    return error
