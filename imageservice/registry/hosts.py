"""Which hosts serve a registry, in which order, with which TLS: `certs.d/HOST/hosts.toml`.

The format is containerd's, so that a node's configuration moves over unchanged: `server`, a table
`[host."URL"]` per mirror in order of the file, in each (and at the top, for the server)
`capabilities`, `ca`, `client`, `skip_verify`, `header`, `override_path`; a directory `_default` for
registries without their own; a port as `HOST:PORT` or `HOST_PORT_`; without a hosts.toml the
Docker files `*.crt`, `*.cert` and `*.key`. Files are looked at for each pull and parsed again when
their stamp changed.

Differences, on purpose: a credential is shown to a mirror only if it is meant for that mirror, by
its server or by the node's files (containerd shows it to every host), and a certificate file that
cannot be read is an error that names it. Without any configuration a registry is asked over HTTPS,
one on loopback over HTTP, as containerd does.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imageservice.errors import HostsConfigInvalid, RegistryProtocolError
from imageservice.reference import DEFAULT_DOMAIN
from imageservice.registry.hostfields import client_pairs, flag, headers, strings
from imageservice.registry.origins import AddressKind, Origin, address_kind, parse_url
from imageservice.registry.transport import Tls
from sandbox.host.errors import map_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HOSTS_FILE: Final = "hosts.toml"
DEFAULT_DIRECTORY: Final = "_default"
MAX_HOSTS_BYTES: Final = 1024 * 1024
MAX_CACHED_REGISTRIES: Final = 256
_HUB_SERVER: Final = "registry-1.docker.io"
#: Of what a file says, at most this much is quoted.
_NAMED_CHARS: Final = 200
_CAPABILITIES: Final = frozenset({"pull", "resolve", "push"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to ask for the images of a registry.

    Attributes:
        origin: scheme, host and port.
        path: what comes before `/<repository>/…`, usually `/v2`.
        capabilities: of `pull`, `resolve` (tags may be believed), `push`.
        is_origin: whether this is the registry that the reference names.
        namespace: the registry's name for `?ns=`, empty where the endpoint is that registry.
        tls: how to speak TLS with it.
        headers: sent to this endpoint only, never along a redirect to another origin.
    """

    origin: Origin
    path: str
    capabilities: frozenset[str]
    is_origin: bool
    namespace: str
    tls: Tls = field(default_factory=Tls)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class HostsDirectory:
    """Reads `certs.d` directories; methods block for a few file system calls."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)
        self._cache: dict[str, tuple[tuple[object, ...], tuple[Endpoint, ...]]] = {}

    def look_in(self, roots: Sequence[Path]) -> None:
        """Read other directories from now on."""
        self._roots = tuple(roots)
        self._cache.clear()

    def endpoints(self, domain: str) -> tuple[Endpoint, ...]:
        """Where to ask for images of `domain`, in order; at least one.

        Raises:
            HostsConfigInvalid: the file is not TOML, has a wrong type or names a missing file.
        """
        directory = self._directory(domain)
        if directory is None:
            return (default_endpoint(domain),)
        stamp = _stamp(directory)
        known = self._cache.get(domain)
        if known is not None and known[0] == stamp:
            return known[1]
        found = _read(directory, domain)
        if len(self._cache) >= MAX_CACHED_REGISTRIES:
            self._cache.clear()
        self._cache[domain] = (stamp, found)
        return found

    def configured(self, origin: Origin) -> Endpoint | None:
        """What the operator says about exactly this origin in a directory of its own name."""
        if self._directory(origin.netloc, with_default=False) is None:
            return None
        endpoints = self.endpoints(origin.netloc)
        return next((endpoint for endpoint in endpoints if endpoint.origin == origin), None)

    def is_plain_http(self, origin: Origin) -> bool:
        """Whether a hosts.toml of that host's own names it with http://."""
        return origin.scheme == "http" and self.configured(origin) is not None

    def tls_towards(self, target: Origin, endpoint: Endpoint) -> Tls:
        """How to speak TLS with a host that `endpoint` sends us to (redirect, token server).

        The endpoint's own rules hold for its own host only: a `skip_verify` or a client certificate
        meant for a registry must not reach whoever it names (CVE-2019-10214).
        """
        if target.host == endpoint.origin.host:
            return endpoint.tls
        known = self.configured(target)
        return endpoint.tls.for_stranger() if known is None else known.tls

    def _directory(self, domain: str, *, with_default: bool = True) -> Path | None:
        for root in self._roots:
            for name in _directory_names(domain, with_default=with_default):
                if (root / name).is_dir():
                    return root / name
        return None


def default_endpoint(domain: str) -> Endpoint:
    """The registry itself, as it is asked when nothing is configured."""
    host = _HUB_SERVER if domain == DEFAULT_DOMAIN else domain
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    is_local = address_kind(bare.strip("[]")) is AddressKind.LOOPBACK
    url = f"{'http' if is_local else 'https'}://{host}"
    return Endpoint(parse_url(url, what="registry")[1], "/v2", _CAPABILITIES, True, "")


def _directory_names(domain: str, *, with_default: bool) -> Iterable[str]:
    host, colon, port = domain.rpartition(":")
    if colon and port.isdigit():
        yield f"{host}_{port}_"
    yield domain
    if with_default:
        yield DEFAULT_DIRECTORY


def _stamp(directory: Path) -> tuple[object, ...]:
    """Changes whenever a file in the directory is replaced, written or removed."""
    with map_os_errors("reading a registry directory", path=str(directory)):
        entries = [
            (entry.name, (status := entry.stat()).st_mtime_ns, status.st_size, status.st_ino)
            for entry in os.scandir(directory)
            if entry.is_file()
        ]
    return (str(directory), *sorted(entries))


def _read(directory: Path, domain: str) -> tuple[Endpoint, ...]:
    path = directory / HOSTS_FILE
    if not path.exists():
        return (_with_docker_files(directory, default_endpoint(domain)),)
    with map_os_errors("reading a registry configuration", path=str(path)):
        if path.stat().st_size > MAX_HOSTS_BYTES:
            raise HostsConfigInvalid(f"larger than {MAX_HOSTS_BYTES} bytes", path=str(path))
        text = path.read_bytes()
    try:
        document = tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HostsConfigInvalid(f"hosts.toml is not valid: {error}", path=str(path)) from error
    hosts = document.get("host", {})
    if not isinstance(hosts, dict):
        raise HostsConfigInvalid("hosts.toml: host must be a table", path=str(path))
    found: list[Endpoint] = []
    for url, table in hosts.items():
        if not isinstance(table, dict):
            raise HostsConfigInvalid(
                f"hosts.toml: host.{url[:_NAMED_CHARS]!a} must be a table", path=str(path)
            )
        found.append(_endpoint(path, domain, url, table))
    server = document.get("server", "")
    if not isinstance(server, str):
        raise HostsConfigInvalid("hosts.toml: server must be a string", path=str(path))
    last = _endpoint(path, domain, server or str(default_endpoint(domain).origin), document)
    # A table for the registry itself (for its own ca, say) replaces the server, not doubles it.
    if not any(host.origin == last.origin and host.path == last.path for host in found):
        found.append(last)
    return tuple(found)


def _endpoint(file: Path, domain: str, url: str, table: dict[str, object]) -> Endpoint:
    """One `[host."URL"]` table, or the top of the file for the server."""
    where = str(file)
    named = ascii(url[:_NAMED_CHARS])
    absolute = url if "://" in url else f"{'http' if _is_local(url) else 'https'}://{url}"
    try:
        split, origin = parse_url(absolute, what="host")
    except RegistryProtocolError as error:
        message = error.message.removeprefix(RegistryProtocolError.PREFIX)
        raise HostsConfigInvalid(f"hosts.toml: {message}", path=where, host=named) from error
    if split.query:
        raise HostsConfigInvalid("hosts.toml: a host has no query", path=where, host=named)
    path = split.path.rstrip("/")
    if not flag(table, "override_path", where) and not path.endswith("/v2"):
        path += "/v2"
    capabilities = frozenset(strings(table, "capabilities", where)) or _CAPABILITIES
    if not capabilities <= _CAPABILITIES:
        unknown = ", ".join(sorted(capabilities - _CAPABILITIES))
        raise HostsConfigInvalid(f"hosts.toml: unknown capability {unknown!a}", path=where)
    is_origin = _is_origin(origin, domain)
    tls = _tls(
        file.parent,
        authorities=strings(table, "ca", where),
        pairs=client_pairs(table, where),
        verify=not flag(table, "skip_verify", where),
    )
    namespace = "" if is_origin else domain
    return Endpoint(origin, path, capabilities, is_origin, namespace, tls, headers(table, where))


def _is_local(authority: str) -> bool:
    host = authority.partition("/")[0]
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return address_kind(bare.strip("[]")) is AddressKind.LOOPBACK


def _is_origin(origin: Origin, domain: str) -> bool:
    """Whether an endpoint is the very registry a reference names, possibly over plain HTTP."""
    if domain == DEFAULT_DOMAIN:
        return origin == default_endpoint(domain).origin
    return origin.netloc == domain or f"{origin.netloc}:{origin.port}" == domain


def _tls(
    directory: Path,
    *,
    authorities: Iterable[str],
    pairs: Iterable[tuple[str, str]],
    verify: bool = True,
) -> Tls:
    """Make paths absolute (they are relative to the file) and stamp them."""
    files = tuple(str(directory / name) for name in authorities)
    clients = tuple(
        (str(directory / certificate), str(directory / key) if key else "")
        for certificate, key in pairs
    )
    every = [*files, *(name for pair in clients for name in pair if name)]
    stamps: list[tuple[int, int]] = []
    for name in every:
        try:
            status = Path(name).stat()
        except (OSError, ValueError) as error:  # ValueError: no path can hold a NUL
            reason = getattr(error, "strerror", None) or error
            raise HostsConfigInvalid(
                f"certificate file cannot be read: {reason}", path=ascii(name[:_NAMED_CHARS])[1:-1]
            ) from error
        stamps.append((status.st_mtime_ns, status.st_size))
    return Tls(ca_files=files, client_pairs=clients, verify=verify, stamps=tuple(stamps))


def _with_docker_files(directory: Path, endpoint: Endpoint) -> Endpoint:
    """The older form: authorities `*.crt`, client certificates `*.cert` with `*.key`."""
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    pairs = [
        (name, name.removesuffix(".cert") + ".key") for name in names if name.endswith(".cert")
    ]
    authorities = [name for name in names if name.endswith(".crt")]
    tls = _tls(directory, authorities=authorities, pairs=pairs)
    return Endpoint(
        endpoint.origin, endpoint.path, endpoint.capabilities, True, endpoint.namespace, tls
    )
