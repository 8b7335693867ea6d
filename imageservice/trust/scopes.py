"""Which parts of a policy speak of an image: the names that hold for a reference, nearest first.

For `registry.example.com:5000/team/app:1` these are, in this order: the image itself, its
repository, every namespace above it, the host with its port, and `*.example.com`, `*.com`. A
wildcard stands for at least one label and knows no port (containers-policy.json(5), "docker:"). A
name with tag and digest is looked up by its digest alone, because that decides what is fetched.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from imageservice.errors import ReferenceInvalid
from imageservice.reference import DEFAULT_DOMAIN, HUB_ALIASES, parse_reference
from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imageservice.reference import Reference

_WILDCARD: Final = re.compile(r"\*(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+", re.ASCII)


def identity_of(reference: Reference) -> Reference:
    """The name that a policy sees: with a digest or with a tag, never with both."""
    return reference if reference.digest is None else replace(reference, tag=None)


def scopes_of(reference: Reference) -> Iterator[str]:
    """Names that hold for the image, nearest first; see the module's text."""
    usual = _usual(reference)
    for written, plain in zip(_names(reference), _names(usual), strict=True):
        yield written
        if plain != written:
            yield plain
    host = "" if usual.domain.startswith("[") else usual.domain.partition(":")[0]
    while "." in host:
        host = host.partition(".")[2]
        yield f"*.{host}"


def _usual(reference: Reference) -> Reference:
    """The same place as people write it: another spelling of the port must escape no scope."""
    domain = reference.domain.removesuffix(":443")
    return replace(reference, domain=DEFAULT_DOMAIN if domain in HUB_ALIASES else domain)


def _names(reference: Reference) -> Iterator[str]:
    yield identity_of(reference).canonical
    name = reference.repository
    while True:
        yield name
        above, slash, _ = name.rpartition("/")
        if not slash:
            return
        name = above


def check_scope(text: str) -> None:
    """Refuse a scope that no reference can ever have: a slip here would leave images unguarded.

    Raises:
        InvalidArgument: saying what is expected.
    """
    if text.startswith("*"):
        if _WILDCARD.fullmatch(text) is None:
            raise InvalidArgument(f"{text[:120]!a}: a wildcard is *.DOMAIN and nothing after it")
        return
    # As an image, as a namespace or host above one; Docker Hub's short names need the difference.
    written = ""
    for tried in (text, f"{text}/a"):
        try:
            reference = parse_reference(tried)
        except ReferenceInvalid:
            continue
        if text in scopes_of(reference):
            return
        written = written or identity_of(reference).canonical
    hint = f", perhaps {written}?" if written else ""
    raise InvalidArgument(
        f"{text[:120]!a} is no full name of a registry, namespace or image (HOST[/…]){hint}"
    )
