"""One setting of the daemon, and the parsers that turn its TOML value into a checked value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from imageservice.trust.scopes import check_scope
from sandbox.host.errors import InvalidArgument
from sandbox.spec.rlimits import parse_rlimit

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T", covariant=True)
W = TypeVar("W", bound=str)


#: Nothing in this daemon waits longer than a week.
_SECONDS_LIMIT: Final = 7 * 24 * 3600.0
_INTEGER_LIMIT: Final = 2**53


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """One setting.

    Attributes:
        section: table of the TOML file.
        name: key in that table.
        parse: turns the TOML value into the value; raises InvalidArgument saying what is expected.
        default: the value when nothing is configured.
        help: one line for people.
        reloadable: a change takes effect without a restart.
    """

    section: str
    name: str
    parse: Callable[[object], T]
    default: T
    help: str
    reloadable: bool = False

    @property
    def key(self) -> str:
        """`section.name`."""
        return f"{self.section}.{self.name}"


def text(value: object) -> str:
    """A string on one line."""
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidArgument("expected a string on one line")
    return value


def path(value: object) -> Path:
    """An absolute path."""
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise InvalidArgument("expected an absolute path")
    return Path(value)


def optional_path(value: object) -> Path | None:
    """An absolute path, or "" for the derived default."""
    return None if value == "" else path(value)


def paths(value: object) -> tuple[Path, ...]:
    """A list of absolute paths."""
    if not isinstance(value, list):
        raise InvalidArgument("expected a list of absolute paths")
    return tuple(path(entry) for entry in value)


def words(value: object) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list):
        raise InvalidArgument("expected a list of strings")
    return tuple(text(entry) for entry in value)


def image_scopes(value: object) -> tuple[str, ...]:
    """A list of registries, namespaces, repositories, images or `*.DOMAIN`."""
    scopes = words(value)
    for scope in scopes:
        check_scope(scope)
    return scopes


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidArgument("expected true or false")
    return value


def seconds(value: object) -> float:
    """A duration in seconds, fractions allowed, 0 included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument("expected a number of seconds")
    if not 0 <= value <= _SECONDS_LIMIT:
        raise InvalidArgument(f"expected 0 to {_SECONDS_LIMIT:.0f} seconds")
    return float(value)


def integer(low: int, high: int = _INTEGER_LIMIT) -> Callable[[object], int]:
    """A whole number from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidArgument(f"expected a whole number from {low} to {high}")
        return value

    return parse


def choice(*allowed: W) -> Callable[[object], W]:
    """One of a few words."""

    def parse(value: object) -> W:
        for word in allowed:
            if value == word:
                return word
        raise InvalidArgument(f"expected one of {', '.join(allowed)}")

    return parse


def rlimits(value: object) -> tuple[str, ...]:
    """A list of resource limits, each NAME=SOFT:HARD."""
    entries = words(value)
    names = [parse_rlimit(entry).type for entry in entries]
    if len(set(names)) != len(names):
        raise InvalidArgument("a resource limit is there twice")
    return entries


def variables(value: object) -> tuple[tuple[str, str], ...]:
    """A list of NAME=value."""
    result = []
    for entry in words(value):
        name, equals, content = entry.partition("=")
        if not name or not equals:
            raise InvalidArgument('expected a list of "NAME=value"')
        result.append((name, content))
    return tuple(result)
