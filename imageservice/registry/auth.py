"""Challenge to Authorization header: Basic, tokens of a token server, and their life.

The first request goes out bare; the registry's 401 says what it wants. What it granted is kept per
(endpoint, repository, credential) and sent ahead of the next request. A header that the registry
rejects is renewed once, by one caller while the others wait. Nothing here is written to disk.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode
from weakref import WeakValueDictionary

import msgspec

from imageservice.errors import RegistryProtocolError, RegistryUnauthenticated
from imageservice.registry.challenge import (
    BasicChallenge,
    BearerChallenge,
    choose,
    parse_challenges,
    pull_scopes,
)
from imageservice.registry.origins import Origin, check_realm
from imageservice.registry.retry import NS_PER_S, failure_for_status, parse_retry_after
from imageservice.registry.transport import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imageservice.credentials import Credential
    from imageservice.registry.hosts import Endpoint, HostsDirectory
    from imageservice.registry.transport import HttpTransport
    from imageservice.settings import ImageSettings
    from sandbox.host.clock import Clock

MAX_TOKEN_RESPONSE_BYTES: Final = 1024 * 1024
MAX_TOKEN_CHARS: Final = 64 * 1024
#: What a token without expires_in lives (distribution specification, token authentication).
DEFAULT_TOKEN_LIFE_S: Final = 60.0
#: Renewed before it ends, so that it does not end on the way.
EXPIRY_MARGIN_S: Final = 10.0
MAX_GRANTS: Final = 1024
CLIENT_ID: Final = "podwright"
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")

#: Whose authority, where, for what: a token never serves another user or repository.
_Key = tuple[Origin, str, str]


@dataclass(frozen=True, slots=True)
class _Grant:
    """An Authorization header that worked, or should."""

    header: str = field(repr=False)
    expires_ns: int | None = None


class _TokenResponse(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None
    expires_in: int | float | None = None


class Authorizer:
    """Makes and keeps Authorization headers; one per client."""

    def __init__(
        self,
        transport: HttpTransport,
        hosts: HostsDirectory,
        *,
        settings: ImageSettings,
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._hosts = hosts
        self._settings = settings
        self._clock = clock
        self._grants: OrderedDict[_Key, _Grant] = OrderedDict()
        self._locks: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    def known(self, endpoint: Endpoint, repository: str, credential: Credential | None) -> str:
        """The header to send ahead; empty when the registry must be asked first.

        `credential` is one that may be shown to this endpoint, here and below.
        """
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}"
        key = _key(endpoint, repository, credential)
        grant = self._grants.get(key)
        if grant is None:
            return ""
        if grant.expires_ns is not None and grant.expires_ns <= self._clock.monotonic_ns():
            del self._grants[key]
            return ""
        self._grants.move_to_end(key)
        return grant.header

    async def answer(
        self,
        endpoint: Endpoint,
        repository: str,
        credential: Credential | None,
        *,
        challenges: Sequence[str],
        rejected: str,
    ) -> str:
        """A header that answers a 401.

        Args:
            endpoint: who sent the 401.
            repository: path of the repository.
            credential: see `known`.
            challenges: its WWW-Authenticate headers.
            rejected: the header that was sent and not accepted, or empty.

        Raises:
            RegistryUnauthenticated: there is nothing (else) to offer, or the token server refuses.
            RegistryProtocolError: the token server's address breaks a rule of `origins.py`.
            RegistryUnavailable, RegistryThrottled: the token server fails.
        """
        key = _key(endpoint, repository, credential)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            current = self.known(endpoint, repository, credential)
            if current and current != rejected:
                return current  # someone renewed it while we waited
            self._grants.pop(key, None)
            grant = await self._grant(endpoint, repository, credential, challenges)
            if grant.header == rejected:
                raise RegistryUnauthenticated(f"registry {endpoint.origin} rejects the credentials")
            self._grants[key] = grant
            while len(self._grants) > MAX_GRANTS:
                self._grants.popitem(last=False)
            return grant.header

    async def _grant(
        self,
        endpoint: Endpoint,
        repository: str,
        credential: Credential | None,
        challenges: Sequence[str],
    ) -> _Grant:
        origin = endpoint.origin
        if credential is not None and credential.registry_token:
            raise RegistryUnauthenticated(f"registry {origin} rejects the registry token")
        match choose(parse_challenges(challenges)):
            case BearerChallenge() as bearer:
                return await self._token(endpoint, repository, credential, bearer)
            case BasicChallenge() if credential is None:
                raise RegistryUnauthenticated(
                    f"registry {origin} wants a user name and password",
                    hint="add an imagePullSecret for this registry",
                )
            case BasicChallenge() if credential is not None and not credential.identity_token:
                return _Grant(credential.basic)
            case BasicChallenge():
                raise RegistryUnauthenticated(
                    f"registry {origin} wants a user name and password, not an identity token"
                )
            case None:
                raise RegistryUnauthenticated(
                    f"registry {origin} names no way to authorize that is known here"
                )

    async def _token(
        self,
        endpoint: Endpoint,
        repository: str,
        credential: Credential | None,
        challenge: BearerChallenge,
    ) -> _Grant:
        target = check_realm(
            challenge.realm,
            registry=endpoint.origin,
            is_plain_http_configured=self._hosts.is_plain_http,
        )
        scopes = pull_scopes(challenge.scopes, repository)
        request = self._token_request(endpoint, target, challenge, scopes, credential)
        async with self._transport.open(request) as response:
            what = f"token from {target} for {repository}"
            if response.status in (400, 401, 403):
                whose = "anonymous pulls" if credential is None else "the credentials"
                raise RegistryUnauthenticated(
                    f"token server {target} does not accept {whose} ({response.status})"
                )
            if response.status != 200:
                after = parse_retry_after(
                    response.header("Retry-After"), now_wall_ns=self._clock.wall_ns()
                )
                if 300 <= response.status < 400 or response.status == 404:
                    # Following would show the secret, or lose it, at an address nobody checked.
                    raise RegistryProtocolError(
                        f"{what}: token server answers {response.status}, not a token"
                    )
                raise failure_for_status(response.status, what=what, retry_after_s=after)
            body = await response.read(limit_bytes=MAX_TOKEN_RESPONSE_BYTES)
        return self._grant_of(body, target)

    def _token_request(
        self,
        endpoint: Endpoint,
        target: Origin,
        challenge: BearerChallenge,
        scopes: tuple[str, ...],
        credential: Credential | None,
    ) -> Request:
        """GET with Basic for a password, POST of OAuth 2's refresh grant for an identity token."""
        query = [("service", challenge.service)] if challenge.service else []
        headers = [("Accept", "application/json")]
        # Headers of hosts.toml belong to that endpoint: its token server gets them on its own host.
        if target == endpoint.origin:
            own = [pair for pair in endpoint.headers if pair[0].lower() != "authorization"]
            headers.extend(own)
        method, url, body = "GET", challenge.realm, b""
        if credential is not None and credential.identity_token:
            method = "POST"
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                *query,
                ("scope", " ".join(scopes)),
                ("refresh_token", credential.identity_token),
            ]
            body = urlencode(form).encode("ascii")
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        else:
            if credential is not None:
                headers.append(("Authorization", credential.basic))
            pairs = urlencode([*query, *(("scope", scope) for scope in scopes)])
            url += ("&" if "?" in url else "?") + pairs
        return Request(
            method,
            url,
            tuple(headers),
            body,
            tls=self._hosts.tls_towards(target, endpoint),
            connect_timeout_s=self._settings.connect_timeout_s,
            response_timeout_s=self._settings.response_timeout_s,
        )

    def _grant_of(self, body: bytes, target: Origin) -> _Grant:
        try:
            response = msgspec.json.decode(body, type=_TokenResponse)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # The cause would quote the answer, which holds a token.
            raise RegistryProtocolError(f"token server {target} sent no token document") from None
        token = response.token or response.access_token or ""
        if len(token) > MAX_TOKEN_CHARS or _TOKEN.fullmatch(token) is None:
            raise RegistryProtocolError(f"token server {target} sent no usable token")
        life_s = float(response.expires_in or DEFAULT_TOKEN_LIFE_S)
        if not 0 < life_s < 10 * 365 * 86400:
            life_s = DEFAULT_TOKEN_LIFE_S
        life_s -= min(EXPIRY_MARGIN_S, life_s / 5)
        # Counted from receipt by our own clock: issued_at is the word of a clock we do not know.
        expires_ns = self._clock.monotonic_ns() + int(life_s * NS_PER_S)
        return _Grant(f"Bearer {token}", expires_ns)


def _key(endpoint: Endpoint, repository: str, credential: Credential | None) -> _Key:
    return endpoint.origin, repository, "" if credential is None else credential.fingerprint
