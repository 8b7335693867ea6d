"""The grammar of WWW-Authenticate (RFC 9110, section 11), and what a registry's challenge asks for.

Pure and linear in the input: a scanner over a bounded string, no regular expression that can run
away (CVE-2020-8492). A header that does not parse yields the challenges before the fault; what is
guessed at could send a secret by the wrong scheme.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: All WWW-Authenticate headers of one answer together.
MAX_HEADER_CHARS: Final = 16 * 1024
MAX_CHALLENGES: Final = 16
MAX_PARAMETERS: Final = 32
#: A scope is sent on in a URL; longer than this is no scope for one repository.
MAX_SCOPE_CHARS: Final = 1024
# Single character classes without nesting: matching cannot backtrack.
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_SPACE: Final = re.compile(r"[ \t]*")
_QUOTED_RUN: Final = re.compile(r'[^"\\\x00-\x08\x0a-\x1f\x7f]*')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authorize: scheme in lower case, parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BearerChallenge:
    """Ask `realm` for a token for `service` and `scope` (distribution specification)."""

    realm: str
    service: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BasicChallenge:
    """Send user name and password."""


class _Malformed(Exception):
    """The scanner cannot go on."""


class _Scanner:
    """Position in the text and the few moves the grammar needs."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip_space(self) -> bool:
        """Move over blanks; whether there were any."""
        before = self.at
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at > before

    def skip_commas(self) -> None:
        """Move over blanks and empty list elements."""
        self.skip_space()
        while self.peek() == ",":
            self.at += 1
            self.skip_space()

    def peek(self) -> str:
        """The next character, or nothing."""
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str]) -> str:
        """What `pattern` matches here; raises _Malformed when it does not."""
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _Malformed
        self.at = match.end()
        return match[0]

    def take_quoted(self) -> str:
        """A quoted string, unescaped."""
        self.at += 1
        parts: list[str] = []
        while True:
            parts.append(self.take(_QUOTED_RUN))
            match self.peek():
                case '"':
                    self.at += 1
                    return "".join(parts)
                case "\\" if self.at + 1 < len(self.text):
                    parts.append(self.text[self.at + 1])
                    self.at += 2
                case _:
                    raise _Malformed


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Every well-formed challenge of all WWW-Authenticate headers, in order; never raises."""
    found: list[Challenge] = []
    budget = MAX_HEADER_CHARS
    for header in headers:
        if len(header) > budget:
            break
        budget -= len(header)
        scanner = _Scanner(header)
        try:
            scanner.skip_commas()
            while scanner.peek() and len(found) < MAX_CHALLENGES:
                found.append(_challenge(scanner))
                scanner.skip_commas()
        except _Malformed:
            continue
    return tuple(found)


def _challenge(scanner: _Scanner) -> Challenge:
    scheme = scanner.take(_TOKEN).lower()
    if not scanner.skip_space() or scanner.peek() in ("", ","):
        if scanner.peek() not in ("", ","):
            raise _Malformed
        return Challenge(scheme)
    start = scanner.at
    parameters: dict[str, str] = {}
    while True:
        before = scanner.at
        parameter = _parameter(scanner)
        if parameter is None:
            scanner.at = before
            break
        name, value = parameter
        # The first of two equal names counts; RFC 9110 forbids the second.
        parameters.setdefault(name, value)
        if len(parameters) > MAX_PARAMETERS:
            raise _Malformed
        scanner.skip_space()
        if scanner.peek() not in ("", ","):
            raise _Malformed
        scanner.skip_commas()
        if not scanner.peek():
            break
    if not parameters and scanner.at == start:
        scanner.take(_TOKEN68)
        scanner.skip_space()
        if scanner.peek() not in ("", ","):
            raise _Malformed
    return Challenge(scheme, parameters)


def _parameter(scanner: _Scanner) -> tuple[str, str] | None:
    """`name=value` here, or None when what comes is the next challenge (or a token68)."""
    match = _TOKEN.match(scanner.text, scanner.at)
    if match is None:
        return None
    scanner.at = match.end()
    scanner.skip_space()
    if scanner.peek() != "=":
        return None
    scanner.at += 1
    scanner.skip_space()
    if scanner.peek() == '"':
        return match[0].lower(), scanner.take_quoted()
    value = _TOKEN.match(scanner.text, scanner.at)
    if value is None:
        return None
    scanner.at = value.end()
    return match[0].lower(), value[0]


def choose(challenges: Iterable[Challenge]) -> BearerChallenge | BasicChallenge | None:
    """The challenge to answer: Bearer with a realm before Basic; None when neither is offered."""
    basic: BasicChallenge | None = None
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
            return BearerChallenge(
                realm=challenge.parameters["realm"],
                service=challenge.parameters.get("service", ""),
                scopes=tuple(challenge.parameters.get("scope", "").split()),
            )
        if challenge.scheme == "basic":
            basic = BasicChallenge()
    return basic


def pull_scopes(asked: Iterable[str], repository_path: str) -> tuple[str, ...]:
    """The scopes to request: what the registry asked for, cut down to reading.

    A challenge may name more than a pull needs (push, delete, `*`); a token that can do less is
    worth less to a thief. Scopes of a shape we do not know pass as they are.

    Args:
        asked: scopes of the challenge, may be empty.
        repository_path: `library/busybox`, the scope when none was named.
    """
    result: list[str] = []
    for scope in asked:
        kind, _, rest = scope.partition(":")
        if kind.partition("(")[0] == "repository" and ":" in rest:
            name, _, actions = rest.rpartition(":")
            if not {"pull", "*"} & set(actions.split(",")):
                continue
            scope = f"{kind}:{name}:pull"
        if len(scope) <= MAX_SCOPE_CHARS and scope not in result:
            result.append(scope)
    return tuple(result[:4]) or (f"repository:{repository_path}:pull",)
