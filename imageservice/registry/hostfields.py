"""The fields of a hosts.toml table, read strictly: a wrong type is an error that names its key.

containerd accepts several shapes for most of them (a string or a list of strings, a pair or a list
of pairs); these functions bring each to one shape.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imageservice.errors import HostsConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]{0,65536}")
#: Headers whose meaning belongs to the client itself.
_RESERVED: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "accept",
        "range",
        "accept-encoding",
    }
)


def flag(table: Mapping[str, object], key: str, where: str) -> bool:
    """A boolean, false when absent."""
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise HostsConfigInvalid(f"hosts.toml: {key} must be true or false", path=where)
    return value


def strings(table: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    """A string or a list of strings, as a tuple; empty when absent."""
    value = table.get(key, ())
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple):
        texts = tuple(item for item in value if isinstance(item, str))
        if len(texts) == len(value):
            return texts
    raise HostsConfigInvalid(f"hosts.toml: {key} must be a string or strings", path=where)


def client_pairs(table: Mapping[str, object], where: str) -> tuple[tuple[str, str], ...]:
    """`client`: a file, files, or pairs of certificate and key; the key is "" when in one file."""
    value = table.get("client", ())
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise _bad_client(where)
    pairs: list[tuple[str, str]] = []
    for item in items:
        match item:
            case str():
                pairs.append((item, ""))
            case [str() as certificate]:
                pairs.append((certificate, ""))
            case [str() as certificate, str() as key]:
                pairs.append((certificate, key))
            case _:
                raise _bad_client(where)
    return tuple(pairs)


def headers(table: Mapping[str, object], where: str) -> tuple[tuple[str, str], ...]:
    """`header`: name to value or values; a value is never quoted in an error."""
    value = table.get("header", {})
    if not isinstance(value, dict):
        raise HostsConfigInvalid("hosts.toml: header must be a table", path=where)
    found: list[tuple[str, str]] = []
    for name in value:
        if _HEADER_NAME.fullmatch(name) is None or name.lower() in _RESERVED:
            raise HostsConfigInvalid(
                f"hosts.toml: header {name[:200]!a} is not allowed", path=where
            )
        for text in strings(value, name, where):
            if _HEADER_VALUE.fullmatch(text) is None:
                raise HostsConfigInvalid(f"hosts.toml: value of header {name[:200]!a}", path=where)
            found.append((name, text))
    return tuple(found)


def _bad_client(where: str) -> HostsConfigInvalid:
    return HostsConfigInvalid(
        "hosts.toml: client must be a file, files, or pairs of certificate and key", path=where
    )
