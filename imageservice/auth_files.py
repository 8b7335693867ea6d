"""Docker's configuration file, as the credentials of a node: which entry is for which repository.

    {"auths": {"registry.example/team": {"auth": "base64 of user:password"}},
     "credHelpers": {"gcr.io": "gcloud"}, "credsStore": "pass"}

What wrote the file does not matter: `docker login`, `podman login` and the kubelet's own files are
read alike. A key of `auths` is a host, a host with the beginning of a repository's path (podman), a
URL such as `https://index.docker.io/v1/` (docker), and may hold `*` inside DNS labels (kubelet).
The most specific key wins: the longest path first, then a host written out before a pattern. A path
ends between components, so `host/a` is not for `host/ab`; the kubelet compares mere characters
there, which would show a secret to a stranger's repository.

Of one host, an entry of `credHelpers` comes first, then `auths`, then `credsStore`. Docker asks the
store alone once it has one; here a secret that stands in the file is used, for who wrote it there
meant it. An empty entry, which docker leaves beside a store, is none.

Pure: bytes in, values out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from imageservice.credentials import Credential, from_auth_config, host_matches, server_host
from imageservice.errors import AuthFileInvalid, CredentialInvalid
from imageservice.reference import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: A file for many namespaces of a large company; etcd lets no secret of Kubernetes be larger.
MAX_AUTH_FILE_BYTES: Final = 1024 * 1024
#: Part of a program's name; docker itself takes anything there, `../` included.
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: What docker's own keys have after the host and what is no repository.
_API_PATHS: Final = frozenset({"v1", "v2"})


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


#: What docker leaves where the secret is in the store.
_EMPTY: Final = (None, _Entry())


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    auths: dict[str, _Entry | None] | None = None
    cred_helpers: dict[str, str] | None = None
    creds_store: str | None = None


@dataclass(frozen=True, slots=True)
class HelperName:
    """Ask this helper: `name` of `docker-credential-NAME`, and the server it is to be asked for."""

    name: str
    server: str


@dataclass(frozen=True, slots=True)
class AuthFile:
    """What a file says; the secrets in it are decoded when they are asked for, and not shown."""

    where: str
    entries: Mapping[tuple[str, str], _Entry] = field(repr=False)
    helpers: Mapping[str, str]
    store: str

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that are named, in alphabetical order."""
        return tuple(sorted({host for host, _ in self.entries} | set(self.helpers)))

    def find(self, hosts: Collection[str], path: str) -> tuple[Credential | HelperName, ...]:
        """What is there for a repository: to be tried in this order until one has a secret.

        Args:
            hosts: the names of one host, `name[:port]`.
            path: of the repository, `library/busybox`.

        Raises:
            AuthFileInvalid: the entry cannot be used; names its host, never its content.
        """
        found: list[Credential | HelperName] = []
        for pattern, name in self.helpers.items():
            meant = [host for host in sorted(hosts) if host_matches(pattern, host)]
            found += [HelperName(name, _helper_server(host)) for host in meant]
        entry = self._entry(hosts, path)
        if entry is not None:
            found.append(entry)
        if self.store:
            found += [HelperName(self.store, _helper_server(host)) for host in sorted(hosts)]
        return tuple(dict.fromkeys(found))

    def _entry(self, hosts: Collection[str], path: str) -> Credential | None:
        matching = [
            key
            for key in self.entries
            if any(host_matches(key[0], host) for host in hosts) and _holds(key[1], path)
        ]
        for host, prefix in sorted(matching, key=lambda key: (-len(key[1]), "*" in key[0], key)):
            entry = self.entries[host, prefix]
            try:
                credential = from_auth_config(
                    username=entry.username,
                    password=entry.password,
                    auth=entry.auth,
                    identity_token=entry.identitytoken,
                    registry_token=entry.registrytoken,
                )
            except CredentialInvalid as error:
                raise AuthFileInvalid(
                    f"entry for {host} cannot be used: {error.message}", path=self.where
                ) from error
            if credential is not None:
                return credential
        return None


def parse_auth_file(body: bytes, *, where: str) -> AuthFile:
    """Read a file.

    Args:
        body: its bytes, at most MAX_AUTH_FILE_BYTES.
        where: its path, for messages.

    Raises:
        AuthFileInvalid: not JSON of this form, or a helper's name is none. Never quotes it.
    """
    try:
        document = msgspec.json.decode(body, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # The cause would quote the document.
        raise AuthFileInvalid(
            "not a JSON document with auths, credHelpers and credsStore", path=where
        ) from None
    helpers = dict(document.cred_helpers or {})
    store = document.creds_store or ""
    for name in [*helpers.values(), *([store] if store else [])]:
        if _HELPER_NAME.fullmatch(name) is None:
            raise AuthFileInvalid("name of a credential helper is malformed", path=where)
    entries = {
        _split_key(key): entry
        for key, entry in (document.auths or {}).items()
        if entry not in _EMPTY
    }
    return AuthFile(
        where,
        {key: entry for key, entry in entries.items() if key[0]},
        {server_host(key): name for key, name in helpers.items() if server_host(key)},
        store,
    )


def _split_key(key: str) -> tuple[str, str]:
    """`https://index.docker.io/v1/` -> (`index.docker.io`, ""), `quay.io/a/b` -> that and `a/b`."""
    rest = key.strip().partition("://")[2] if "://" in key else key.strip()
    path = rest.partition("/")[2].strip("/")
    return server_host(key), "" if path.lower() in _API_PATHS else path


def _holds(prefix: str, path: str) -> bool:
    return not prefix or path == prefix or path.startswith(prefix + "/")


def _helper_server(host: str) -> str:
    """What docker calls a registry when it asks a helper."""
    is_hub = host_matches(DEFAULT_DOMAIN, host)
    return "https://index.docker.io/v1/" if is_hub else host.removesuffix(":443")
