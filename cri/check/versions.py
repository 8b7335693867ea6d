"""Order of version numbers, the way Debian orders them.

One order serves for both kinds of numbers that holes are told by: those of Debian's packages, and
those of releases, whose candidates Debian writes with a tilde (`1.4.0-rc.3` is `1.4.0~rc.3`). The
rules are those of deb-version(7), "Sorting algorithm".
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Final

#: A candidate of a release, as upstreams write it.
_CANDIDATE: Final = re.compile(r"(?:[-.]|(?<=\d))(?=(?:rc|alpha|beta|[ab])[-.]?\d)")
_RUNS: Final = re.compile(r"(\D*)(\d*)")
#: A character of an end that one version has and the other has not.
_END: Final = 0


def is_before(left: str, right: str) -> bool:
    """Whether version `left` is older than version `right`."""
    return _compare(left, right) < 0


def release_of(text: str) -> str:
    """An upstream's number as Debian would write it, without a leading v and a build's suffix."""
    return _CANDIDATE.sub("~", text.strip().removeprefix("v").partition("+")[0])


def upstream_of(package: str) -> str:
    """What an upstream called the version that a Debian package holds: no epoch, no revision."""
    without_epoch = package.rpartition(":")[2]
    return release_of(without_epoch.rpartition("-")[0] or without_epoch)


def series(version: str) -> str:
    """The first two numbers, which name a line of releases."""
    return ".".join(re.split(r"[.~]", version)[:2])


def _compare(left: str, right: str) -> int:
    for mine, theirs in zip_longest(_parts(left), _parts(right), fillvalue=""):
        for (words, number), (other_words, other_number) in zip_longest(
            _RUNS.findall(mine), _RUNS.findall(theirs), fillvalue=("", "")
        ):
            for a, b in zip_longest(_weights(words), _weights(other_words), fillvalue=_END):
                if a != b:
                    return -1 if a < b else 1
            if int(number or 0) != int(other_number or 0):
                return -1 if int(number or 0) < int(other_number or 0) else 1
    return 0


def _parts(version: str) -> tuple[str, str, str]:
    """Epoch, upstream's number, revision."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "", version
    upstream, dash, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if dash else (epoch, rest, "")


def _weights(words: str) -> list[int]:
    """A tilde comes before everything, even the end; then letters, then all else."""
    return [-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in words]
