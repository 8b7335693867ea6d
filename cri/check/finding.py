"""One line of `podwright check`."""

from __future__ import annotations

import enum

import msgspec


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    #: Pods run, but something asked for will be refused or be worse than it could be.
    WARNING = "warning"
    #: Pods cannot run as configured.
    ERROR = "missing"


class Finding(msgspec.Struct, frozen=True):
    """What was looked at, what was found, and what to do about it."""

    group: str
    name: str
    level: Level
    detail: str
    remedy: str = ""
