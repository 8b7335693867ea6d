"""The credentials of the node itself, for pulls that bring none: files, by namespace and for all.

Which file counts for a pull, the first that exists, and then that one alone:

    namespaced_auth_dir/NAMESPACE-SHA256.json   for one pull; removed when that has ended
    namespaced_auth_dir/NAMESPACE/config.json   for the pods of a namespace
    auth_file                                   for all

The namespace is that of the pod a PullImage is for. SHA256 is of the repository's full name without
tag or digest (`docker.io/library/busybox`). That is how CRI-O names such files, so its credential
provider, which the kubelet runs to fetch a namespace's secrets for mirrors, works here as well.
A file of a namespace stands in place of the common one, so one with `{}` takes that away from it.

A credential that came with the pull is asked first and for the registry always alone; the files
then only serve mirrors, which a pod's secret says nothing about. A host is shown what the file has
for that host, never what it has for the registry that the host stands in for.

Files are read for each pull and not kept. They hold passwords, so one that others than root can
write, or everybody can read, is refused by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import stat
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from imageservice.auth_files import MAX_AUTH_FILE_BYTES, AuthFile, parse_auth_file
from imageservice.credential_helpers import CredentialHelpers
from imageservice.credentials import Credential
from imageservice.errors import AuthFileInvalid
from sandbox.host.dropins import check_trusted
from sandbox.host.errors import NotFound, PodwrightError, map_os_errors
from sandbox.host.files import read_limited
from sandbox.host.journal import get_logger
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from imageservice.credentials import Keyring
    from imageservice.reference import Reference
    from imageservice.settings import ImageSettings
    from sandbox.host.processes import ProcessRunner

#: What Kubernetes calls a namespace (RFC 1123 label); only such a name becomes part of a path.
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
NAMESPACE_FILE: Final = "config.json"

_log = get_logger("imageservice.credentials")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it was read; `stamp` changes when somebody writes it again."""

    path: Path
    stamp: tuple[int, ...]
    content: AuthFile
    is_for_one_pull: bool = False


class NodeKeyrings:
    """Makes the keyring of each pull. For one event loop."""

    def __init__(self, settings: ImageSettings, runner: ProcessRunner) -> None:
        self._settings = settings
        env = settings.proxies.environment()
        self._helpers = CredentialHelpers(runner, settings.credential_helper_dirs, env=env)

    @asynccontextmanager
    async def of_pull(
        self, reference: Reference, namespace: str, credential: Credential | None
    ) -> AsyncIterator[Keyring | None]:
        """The secrets that a pull may use while it lasts; None when there are none.

        Raises:
            AuthFileInvalid: the file that counts cannot be used. A pull with a credential of its
                own goes on without the file, and the log says so.
        """
        try:
            found = await to_its_end(
                partial(find_file, self._settings, reference, namespace), unless=_remove_if_used
            )
        except AuthFileInvalid as error:
            if credential is None:
                raise
            _log.warning("mirrors get no credentials", error=error)
            found = None
        if found is None:
            yield credential
            return
        try:
            of_file = FileKeyring(found, self._helpers)
            yield of_file if credential is None else _First(credential, of_file)
        finally:
            await to_its_end(partial(_remove_if_used, found))

    async def of_node(self, reference: Reference, namespace: str) -> Keyring | None:
        """What the node itself may use for a repository now, outside of any pull; None: nothing.

        A file that is for one pull counts while it lies there and is left to that pull, which has
        brought it or is about to begin.

        Raises:
            AuthFileInvalid: the file that counts cannot be used.
        """
        found = await asyncio.to_thread(find_file, self._settings, reference, namespace)
        return None if found is None else FileKeyring(found, self._helpers)


class FileKeyring:
    """What one file has; see `Keyring`. A helper is asked once for each host."""

    def __init__(self, file: FoundFile, helpers: CredentialHelpers) -> None:
        self._file = file
        self._helpers = helpers
        self._known: dict[tuple[frozenset[str], str], Credential | None] = {}
        self._lock = asyncio.Lock()

    @property
    def fingerprint(self) -> str:
        """By the file and not by its secrets: a helper makes new ones for the same rights."""
        text = f"{self._file.path}\0{self._file.stamp}"
        return "file " + hashlib.sha256(text.encode()).hexdigest()

    async def shown_to(
        self, hosts: Collection[str], path: str, *, is_origin: bool
    ) -> Credential | None:
        """See `Keyring`."""
        key = frozenset(hosts), path
        async with self._lock:  # the layers of an image ask at once
            if key not in self._known:
                self._known[key] = await self._find(hosts, path)
            return self._known[key]

    async def _find(self, hosts: Collection[str], path: str) -> Credential | None:
        for candidate in self._file.content.find(hosts, path):
            if isinstance(candidate, Credential):
                return candidate
            credential = await self._helpers.get(candidate)
            if credential is not None:
                return credential
        return None


@dataclass(frozen=True, slots=True)
class _First:
    """The pull's own credential where it may go, the node's for mirrors."""

    own: Credential
    node: FileKeyring

    @property
    def fingerprint(self) -> str:
        """Of both."""
        return f"{self.own.fingerprint} {self.node.fingerprint}"

    async def shown_to(
        self, hosts: Collection[str], path: str, *, is_origin: bool
    ) -> Credential | None:
        """See `Keyring`."""
        own = await self.own.shown_to(hosts, path, is_origin=is_origin)
        if own is not None or is_origin:
            return own
        return await self.node.shown_to(hosts, path, is_origin=is_origin)


def find_file(settings: ImageSettings, reference: Reference, namespace: str) -> FoundFile | None:
    """The file that counts for a pull, read; None when there is none. Blocking.

    Raises:
        AuthFileInvalid: it is there and cannot be used.
    """
    root = settings.namespaced_auth_dir
    if root is not None and _NAMESPACE.fullmatch(namespace) is not None:
        name = hashlib.sha256(reference.repository.encode()).hexdigest()
        found = read_auth_file(root / f"{namespace}-{name}.json", is_for_one_pull=True)
        found = found or read_auth_file(root / namespace / NAMESPACE_FILE)
        if found is not None:
            return found
    return None if settings.auth_file is None else read_auth_file(settings.auth_file)


def read_auth_file(path: Path, *, is_for_one_pull: bool = False) -> FoundFile | None:
    """A file of credentials, or None when there is none. Blocking.

    Raises:
        AuthFileInvalid: somebody else could have written it or everybody can read it, it is not a
            regular file, too large, or not what `auth_files` reads.
    """
    try:
        check_trusted(path)
        with map_os_errors("cannot read credentials", path=str(path)):
            status = path.stat()
        body = read_limited(path, MAX_AUTH_FILE_BYTES)
    except NotFound:
        return None
    except PodwrightError as error:
        raise AuthFileInvalid(
            f"credentials are not used: {error.message}", hint=error.hint, path=str(path)
        ) from error
    if status.st_mode & (stat.S_IROTH | stat.S_IXOTH):
        raise AuthFileInvalid(
            "credentials are not used: everybody can read them",
            hint=f"chmod 600 {path}, and change the passwords that were in it",
            path=str(path),
        )
    # Of before the reading: one that was written in between is another file.
    return FoundFile(path, _stamp(status), parse_auth_file(body, where=str(path)), is_for_one_pull)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remove_if_used(found: FoundFile | None) -> None:
    """Remove a file that was for one pull, unless it was written again for another meanwhile."""
    if found is None or not found.is_for_one_pull:
        return
    try:
        if _stamp(found.path.stat()) == found.stamp:
            found.path.unlink()
    except FileNotFoundError:
        pass  # another pull of the same image removed it
    except OSError as error:
        _log.warning("credentials of one pull stay", path=found.path, error=error)
