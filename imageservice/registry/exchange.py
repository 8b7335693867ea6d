"""One question to one host: authorization, redirects, and what the answer's status means.

Redirects are followed here and not by the HTTP library, because every hop is a decision: may we go
there, and what may go with us. Once a hop has left the endpoint's origin (scheme, host and port),
neither the Authorization header nor the headers of hosts.toml are sent again, also not when a later
hop comes back (GHSA-vh4v-2xq2-g5cg, CVE-2026-50151).
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import msgspec

from imageservice.errors import RegistryProtocolError, TooLarge
from imageservice.registry.origins import origin_of, redirect_target
from imageservice.registry.retry import failure_for_status, parse_retry_after
from imageservice.registry.transport import Request, Response, Waiting
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from imageservice.credentials import Credential
    from imageservice.registry.auth import Authorizer
    from imageservice.registry.hosts import Endpoint, HostsDirectory
    from imageservice.registry.transport import HttpTransport
    from sandbox.host.clock import Clock

#: Real registries use one or two hops (registry, storage, nearest storage).
MAX_REDIRECTS: Final = 6
MAX_ERROR_BODY_BYTES: Final = 64 * 1024
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask an endpoint for.

    Attributes:
        repository: path of the repository, `library/busybox`.
        resource: below it, `manifests/latest` or `blobs/sha256:…`.
        what: the same for people, naming the image.
        credential: one that may be shown to this endpoint, or None.
        method: GET or HEAD.
        headers: Accept, Range; go along every hop.
        connect_timeout_s: see `Request`.
        response_timeout_s: see `Request`.
        accepted: statuses that are answers.
        waiting: see `Request`; a token is waited for in it as well, whose server has its own time.
    """

    repository: str
    resource: str
    what: str
    credential: Credential | None = None
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    connect_timeout_s: float = 30.0
    response_timeout_s: float = 60.0
    accepted: frozenset[int] = frozenset({200})
    waiting: Waiting = nullcontext


class _ErrorEntry(msgspec.Struct, frozen=True):
    code: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    errors: tuple[_ErrorEntry, ...] = ()


class Exchanger:
    """Asks endpoints; one per client."""

    def __init__(
        self,
        transport: HttpTransport,
        authorizer: Authorizer,
        hosts: HostsDirectory,
        *,
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._authorizer = authorizer
        self._hosts = hosts
        self._clock = clock

    @asynccontextmanager
    async def ask(self, endpoint: Endpoint, question: Question) -> AsyncIterator[Response]:
        """The answer, open for reading, its status one of `question.accepted`.

        Raises:
            PodwrightError: of the classes that `ImageSource` lists, by status.
        """
        url = f"{endpoint.origin}{endpoint.path}/{question.repository}/{question.resource}"
        if endpoint.namespace:
            url += "?" + urlencode({"ns": endpoint.namespace})
        who = (endpoint, question.repository, question.credential)
        authorization = self._authorizer.known(*who)
        async with AsyncExitStack() as answer:
            response, left = await self._follow(answer, endpoint, question, url, authorization)
            if response.status == 401 and not left:
                challenges = response.headers("WWW-Authenticate")
                await _drain(response)
                await answer.aclose()
                with question.waiting():
                    authorization = await self._authorizer.answer(
                        *who, challenges=challenges, rejected=authorization
                    )
                response, left = await self._follow(answer, endpoint, question, url, authorization)
            if response.status not in question.accepted:
                raise await self._failure(response, question)
            yield response

    async def _follow(
        self,
        answer: AsyncExitStack,
        endpoint: Endpoint,
        question: Question,
        url: str,
        authorization: str,
    ) -> tuple[Response, bool]:
        """The first answer that is no redirect, and whether the endpoint's origin was left."""
        private = [pair for pair in endpoint.headers if pair[0].lower() != "authorization"]
        if authorization:
            private.append(("Authorization", authorization))
        else:
            private.extend(pair for pair in endpoint.headers if pair[0].lower() == "authorization")
        left = False
        for _ in range(MAX_REDIRECTS + 1):
            target = origin_of(url)
            left = left or target != endpoint.origin
            request = Request(
                question.method,
                url,
                (*question.headers, *(() if left else private)),
                tls=self._hosts.tls_towards(target, endpoint),
                connect_timeout_s=question.connect_timeout_s,
                response_timeout_s=question.response_timeout_s,
                waiting=question.waiting,
            )
            response = await answer.enter_async_context(self._transport.open(request))
            location = response.header("Location")
            if response.status not in _REDIRECTS or not location:
                return response, left
            url = redirect_target(
                url,
                location,
                registry=endpoint.origin,
                is_plain_http_configured=self._hosts.is_plain_http,
            )
            await _drain(response)
            await answer.aclose()
        raise RegistryProtocolError(f"{question.what}: more than {MAX_REDIRECTS} redirects")

    async def _failure(self, response: Response, question: Question) -> PodwrightError:
        after = parse_retry_after(response.header("Retry-After"), now_wall_ns=self._clock.wall_ns())
        body = await _drain(response)
        return failure_for_status(
            response.status, what=question.what, codes=_codes(body), retry_after_s=after
        )


async def _drain(response: Response) -> bytes:
    """A small body to its end, so that the connection can be used again; a large one is dropped."""
    try:
        return await response.read(limit_bytes=MAX_ERROR_BODY_BYTES)
    except (TooLarge, PodwrightError):
        return b""


def _codes(body: bytes) -> tuple[str, ...]:
    """The error codes of a registry's error document; its free text may echo what we sent."""
    try:
        document = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(dict.fromkeys(entry.code.upper() for entry in document.errors[:4]))
