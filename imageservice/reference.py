"""Image references: what a pod spec calls an image, normalised the way Docker does.

`busybox` means `docker.io/library/busybox:latest`. The first component is a registry only if it
holds a dot or a colon or is `localhost`. (Docker also takes one with an upper-case letter; that is
refused here, because in lower case it would mean a repository of Docker Hub.) Only ASCII is
accepted (Unicode letters would let look-alikes in) and every length is bounded before a regular
expression sees the text. A reference with tag and digest keeps both: the digest decides what is
fetched.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final

from imageservice.digest import Digest
from imageservice.errors import DigestInvalid, ReferenceInvalid

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
#: Names of Docker Hub that mean the default domain.
HUB_ALIASES: Final = frozenset({"index.docker.io", "registry-1.docker.io"})
#: distribution/reference bounds the repository name to 255 characters.
MAX_NAME_CHARS: Final = 255
#: Name, tag (128), sha512 digest (135) and separators: nothing longer can be valid.
MAX_REFERENCE_CHARS: Final = 600

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,61}[a-zA-Z0-9])"
_DOMAIN_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_DOMAIN: Final = re.compile(
    r"(?P<host>\[[0-9a-fA-F:.]{2,45}\]|[a-zA-Z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?"
)
_PATH_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IMAGE_ID: Final = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference; at least one of `tag` and `digest` is set."""

    domain: str
    path: str
    tag: str | None
    digest: Digest | None = None

    @property
    def repository(self) -> str:
        """`docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def canonical(self) -> str:
        """The full text; parsing it again gives this value."""
        return self.repository + self._suffix()

    @property
    def familiar(self) -> str:
        """The shortest text that means the same, for people: `busybox:1.36`."""
        return self._familiar_name() + self._suffix()

    @property
    def tagged(self) -> str | None:
        """`docker.io/library/busybox:1.36` without any digest (CRI repo tag), if there is a tag."""
        return None if self.tag is None else f"{self.repository}:{self.tag}"

    def with_digest(self, digest: Digest) -> Reference:
        """This repository by `digest` alone (CRI repo digest)."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        """The canonical text."""
        return self.canonical

    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return tag if self.digest is None else f"{tag}@{self.digest}"

    def _familiar_name(self) -> str:
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        short = self.path.removeprefix("library/")
        for name in (short, self.path):
            # `docker.io/a.b/c` must not become `a.b/c`, which would be a registry called a.b.
            if _split_domain(name) == (self.domain, self.path) and not _IMAGE_ID.fullmatch(name):
                return name
        return self.repository


def parse_reference(text: str) -> Reference:
    """Read and normalise a reference.

    Args:
        text: what the client sent, e.g. `busybox`, `ghcr.io/a/b:1`, `[::1]:5000/a@sha256:…`.

    Returns:
        The reference; its tag is `latest` where neither tag nor digest was given.

    Raises:
        ReferenceInvalid: with the text (bounded, escaped) and what is wrong with it.
    """
    if not text:
        raise ReferenceInvalid("image reference is empty")
    if len(text) > MAX_REFERENCE_CHARS:
        raise _invalid(text, f"longer than {MAX_REFERENCE_CHARS} characters")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _invalid(text, "only printable ASCII without spaces is allowed")
    if "://" in text:
        raise _invalid(text, "a reference has no scheme")
    remainder, at, digest_text = text.partition("@")
    digest: Digest | None = None
    if at:
        try:
            digest = Digest.parse(digest_text)
        except DigestInvalid as error:
            raise _invalid(text, error.message) from error
    name, tag = _split_tag(text, remainder)
    if _IMAGE_ID.fullmatch(name):
        raise _invalid(text, "64 hexadecimal characters are an image id, not a name")
    domain, path = _split_domain(name)
    _check_domain(text, domain)
    _check_path(text, path)
    if len(domain) + 1 + len(path) > MAX_NAME_CHARS:
        raise _invalid(text, f"the name is longer than {MAX_NAME_CHARS} characters")
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    return Reference(domain, path, tag, digest)


def _split_tag(text: str, remainder: str) -> tuple[str, str | None]:
    """Name and tag; a colon before the last slash belongs to the port."""
    slash = remainder.rfind("/")
    colon = remainder.find(":", slash + 1)
    if colon < 0:
        return remainder, None
    tag = remainder[colon + 1 :]
    if _TAG.fullmatch(tag) is None:
        raise _invalid(text, "invalid tag")
    return remainder[:colon], tag


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # DNS names know no case; one spelling gives one set of mirrors, credentials and tags.
    first = first.lower()
    is_domain = slash and ("." in first or ":" in first or first == "localhost")
    domain, path = (first, rest) if is_domain else (DEFAULT_DOMAIN, name)
    if domain in HUB_ALIASES:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return domain, path


def _check_domain(text: str, domain: str) -> None:
    match = _DOMAIN.fullmatch(domain)
    if match is None:
        raise _invalid(text, "invalid registry host")
    host, port = match["host"], match["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise _invalid(text, "port out of range")
    if port is not None and port.startswith("0"):
        # A second spelling of one place would escape what is said of the first.
        raise _invalid(text, "port begins with 0")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError as error:
            raise _invalid(text, "invalid IPv6 address") from error
    elif _DOMAIN_NAME.fullmatch(host) is None:
        raise _invalid(text, "invalid registry host")


def _check_path(text: str, path: str) -> None:
    for component in path.split("/"):
        if _PATH_COMPONENT.fullmatch(component) is None:
            what = "must be lower case" if component != component.lower() else "is not valid"
            raise _invalid(text, f"repository name {what}")


def _invalid(text: str, why: str) -> ReferenceInvalid:
    shown = text if len(text) <= 120 else text[:120] + "…"
    return ReferenceInvalid(f"invalid image reference {shown!a}: {why}")
