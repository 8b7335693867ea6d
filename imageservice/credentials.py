"""Who asks: the secrets of one pull, and for which registry they are meant.

A credential comes with each PullImage (CRI AuthConfig) or from the node's files (`keyrings`) and is
never stored. Its text forms show no secret. If it names a server it is used for that server only;
if not, it belongs to the registry that the reference names. It never goes to a mirror that it does
not name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from imageservice.errors import CredentialInvalid
from imageservice.reference import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Collection

#: AuthConfig values end in HTTP headers and form bodies; tokens of cloud registries take a few KiB.
MAX_SECRET_CHARS: Final = 64 * 1024
_HUB_HOSTS: Final = frozenset(
    {DEFAULT_DOMAIN, "index.docker.io", "registry-1.docker.io", "registry.docker.io"}
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Keyring(Protocol):
    """The secrets of one pull. A `Credential` is one of a single secret; `keyrings` has the others.

    `fingerprint` is equal for equal rights: what two pulls may share is decided by it.
    """

    @property
    def fingerprint(self) -> str:
        """A name that tells nothing about the secrets."""
        ...

    async def shown_to(
        self, hosts: Collection[str], path: str, *, is_origin: bool
    ) -> Credential | None:
        """What may be shown to one host, or None.

        Args:
            hosts: the names it goes by, `name[:port]` in lower case.
            path: of the repository that is asked for.
            is_origin: whether that is the registry the reference names (not a mirror).

        Raises:
            AuthFileInvalid: a file of the node's credentials cannot be used.
            CredentialHelperFailed: the program that has the secret does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Credential:
    """Exactly one of: username and password, identity token, registry token.

    Attributes:
        username: for Basic and for the token server.
        password: goes with `username`.
        identity_token: an OAuth 2 refresh token, exchanged at the token server.
        registry_token: a bearer token for the registry itself.
        server: `host[:port]` it is meant for, lower case, may hold `*` for one or part of a DNS
            label; empty for the registry that the reference names.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    @property
    def basic(self) -> str:
        """The value of a Basic Authorization header."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")

    @property
    def fingerprint(self) -> str:
        """A name for caches and single flight: equal for equal secrets, tells nothing about them.

        Hashed with every part length-prefixed, so that no two different credentials collide.
        """
        parts = (self.username, self.password, self.identity_token, self.registry_token)
        hasher = hashlib.sha256(b"podwright credential")
        for part in (*parts, self.server):
            raw = part.encode()
            hasher.update(len(raw).to_bytes(8, "big") + raw)
        return hasher.hexdigest()

    def is_for(self, host: str, *, is_origin: bool) -> bool:
        """Whether it may be shown to `host` (`name[:port]`).

        Args:
            host: where a request is about to go, or the domain a reference names.
            is_origin: whether that is the registry the reference names (not a mirror).
        """
        if not self.server:
            return is_origin
        return host_matches(self.server, host.lower())

    async def shown_to(
        self, hosts: Collection[str], path: str, *, is_origin: bool
    ) -> Credential | None:
        """See `Keyring`: this one, or nothing."""
        meant = any(self.is_for(host, is_origin=is_origin) for host in hosts)
        return self if meant else None

    def __repr__(self) -> str:
        """Which kind it is, for whom, and no secret."""
        kinds = (
            ("identity_token", self.identity_token),
            ("registry_token", self.registry_token),
            ("password", self.password),
        )
        kind = next((name for name, value in kinds if value), "empty")
        return f"Credential({kind}, server={self.server!r})"

    __str__ = __repr__


def from_auth_config(
    *,
    username: str = "",
    password: str = "",
    auth: str = "",
    server_address: str = "",
    identity_token: str = "",
    registry_token: str = "",
) -> Credential | None:
    """The credential a CRI AuthConfig stands for; None when it is empty.

    What is used, in this order, as containerd does: username and password, identity token,
    registry token, `auth` (base64 of `username:password`).

    Raises:
        CredentialInvalid: `auth` is not base64 of a pair, a value has control characters or is
            absurdly long. The message never quotes a value.
    """
    values = {
        "username": username,
        "password": password,
        "auth": auth,
        "server_address": server_address,
        "identity_token": identity_token,
        "registry_token": registry_token,
    }
    for name, value in values.items():
        if len(value) > MAX_SECRET_CHARS:
            raise CredentialInvalid(f"registry credential: {name} is too long")
        if _CONTROL.search(value):
            raise CredentialInvalid(f"registry credential: {name} has control characters")
    server = server_host(server_address)
    if username and password:
        return Credential(username=username, password=password, server=server)
    if identity_token:
        return Credential(username=username, identity_token=identity_token, server=server)
    if registry_token:
        return Credential(registry_token=registry_token, server=server)
    if auth:
        user, secret = _decode_auth(auth)
        return Credential(username=user, password=secret, server=server)
    if username:
        return Credential(username=username, server=server)
    return None


def _decode_auth(auth: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth + "=" * (-len(auth) % 4), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        # The cause would quote the secret in a traceback.
        raise CredentialInvalid("registry credential: auth is not base64 of UTF-8") from None
    user, colon, secret = text.partition(":")
    # Docker's own tools pad the decoded text with NUL.
    secret = secret.rstrip("\0")
    if not colon or _CONTROL.search(user + secret):
        raise CredentialInvalid("registry credential: auth does not hold username:password")
    return user, secret


def server_host(address: str) -> str:
    """`https://index.docker.io/v1/` -> `index.docker.io`; a default port is dropped."""
    text = address.strip().lower()
    scheme, found, rest = text.partition("://")
    host = (rest if found else text).partition("/")[0].rpartition("@")[2]
    if found and scheme == "https":
        host = host.removesuffix(":443")
    if found and scheme == "http":
        host = host.removesuffix(":80")
    return host


def host_matches(pattern: str, host: str) -> bool:
    """Whether `host` (`name[:port]`, lower case) is meant; all names of Docker Hub are one."""
    if pattern in _HUB_HOSTS:
        return host in _HUB_HOSTS
    wanted, actual = pattern.removesuffix(":443"), host.removesuffix(":443")
    if "*" not in wanted:
        return wanted == actual
    # The kubelet allows `*` inside a DNS label of its keys; it never spans a dot.
    labels, given = wanted.split("."), actual.split(".")
    return len(labels) == len(given) and all(
        re.fullmatch(".*".join(map(re.escape, label.split("*"))), part) is not None
        for label, part in zip(labels, given, strict=True)
    )
