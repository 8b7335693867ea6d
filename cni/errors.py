"""Failures of pod networks, by what the caller can do about them.

None of them is a `NotFound`, though a missing plugin program would suggest it: the kubelet takes
NOT_FOUND from StopPodSandbox for "the pod is gone" and would never call again, leaking the address.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from sandbox.host.errors import (
    Corrupt,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
)

#: A plugin's words are shown to clients; longer than this is cut, from the front, as the reason of
#: a failure stands at the end of what a program printed.
TEXT_LIMIT_CHARS: Final = 1024


class SpecCode(enum.IntEnum):
    """Error codes of the CNI specification 1.1.0, section "Error"; from 100 plugins' own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_NETWORK_CONFIG = 7
    TRY_AGAIN_LATER = 11
    PLUGIN_NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51


#: With these the plugin itself says that the same call may succeed later.
TEMPORARY: Final = frozenset(
    {SpecCode.TRY_AGAIN_LATER, SpecCode.PLUGIN_NOT_AVAILABLE, SpecCode.LIMITED_CONNECTIVITY}
)


class ConfigInvalid(FailedPrecondition):
    """A network configuration cannot be used; the message says which and why."""


class NetworkNotReady(Unavailable):
    """There is no network configuration that could be used at the moment."""


class ResultInvalid(Corrupt):
    """What a plugin answered, or what was saved of it, is not a usable result."""


class PluginFailed(Internal):
    """A plugin did not do what it was asked.

    Attributes:
        plugin: the plugin's type, which is its program's name.
        command: ADD, DEL, CHECK, GC, STATUS or VERSION.
        code: the plugin's error code (`SpecCode` below 100), None if it gave none.
        msg: its own short text, or ours when it died without one.
        details: its longer text, or empty.
    """

    def __init__(
        self,
        plugin: str,
        command: str,
        msg: str,
        *,
        code: int | None = None,
        details: str = "",
        hint: str = "",
        replay: str = "",
    ) -> None:
        self.plugin = plugin
        self.command = command
        self.code = code
        self.msg = presentable(msg)
        self.details = presentable(details)
        text = f"network plugin {plugin} failed {command}: {self.msg}"
        if self.details and self.details != self.msg:
            text = f"{text}: {self.details}"
        super().__init__(text, hint=hint, replay=replay, code=code)


class PluginUnavailable(Unavailable, PluginFailed):
    """The plugin says itself that it may work later."""


class PluginMissing(Unavailable, PluginFailed):
    """The plugin's program is in none of the directories, or cannot be executed."""


class PluginTimedOut(DeadlineExceeded, PluginFailed):
    """The plugin took longer than it was given and was killed with all its children."""


class PluginExhausted(ResourceExhausted, PluginFailed):
    """The plugin printed without end, or could not be started for lack of memory or descriptors."""


#: A key and what stands between it and its value. Possessive and from the beginning of a word only:
#: each character is looked at once, whatever a plugin repeats a thousand times.
_KEY: Final = re.compile(r"""(?<![\w-])([\w-]++)\\?["']?\s*+[:=]\s*+""")
#: Words that announce a secret. Plugins like to print their configuration when they fail, and
#: configurations hold tokens.
_SECRET_WORD: Final = re.compile(r"(?i)token|passw(?:or)?d|secret|authorization|api[_-]?key")
_VALUE_TEXT: Final = r"""(?:(?:bearer|basic)\s++)?(?:\\?"[^"]*+"?|\\?'[^']*+'?|[^\s,;}]++)"""
_VALUE: Final = re.compile(_VALUE_TEXT, re.IGNORECASE)
_BEARER: Final = re.compile(r"(?i)\b(?:bearer|basic)\s++[\w.~+/=-]{8,}+|\beyJ[\w-]{10,}+\.[\w.-]++")
#: What a cut may leave at the front: of a key its end, of a long token the part behind the word
#: that announced it; so the first value goes as well, whatever it belongs to.
_CUT: Final = re.compile(rf"""[\w.~+/=-]*+\\?["']?\s*+[:=]?\s*+(?:{_VALUE_TEXT})?""", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def presentable(text: str) -> str:
    """`text` as one line without control characters and secrets, at most TEXT_LIMIT_CHARS long."""
    # Cut before the patterns run, and once more after: they must not meet megabytes.
    if len(text) > 4 * TEXT_LIMIT_CHARS:
        text = _CUT.sub("...", text[-4 * TEXT_LIMIT_CHARS :], count=1)
    text = _BEARER.sub("[redacted]", _without_secrets(_CONTROL.sub(" ", text))).strip()
    return text if len(text) <= TEXT_LIMIT_CHARS else "..." + text[3 - TEXT_LIMIT_CHARS :]


def _without_secrets(text: str) -> str:
    """`text` with the values of keys that announce a secret replaced."""
    parts: list[str] = []
    at = kept = 0
    while key := _KEY.search(text, at):
        at = key.end()
        if _SECRET_WORD.search(key[1]) and (value := _VALUE.match(text, at)):
            parts += [text[kept:at], "[redacted]"]
            at = kept = value.end()
    return "".join([*parts, text[kept:]])


def failure_of(
    plugin: str, command: str, msg: str, *, code: int | None, details: str = "", replay: str = ""
) -> PluginFailed:
    """The failure a plugin reported, as the class its code stands for."""
    kind = PluginUnavailable if code in TEMPORARY else PluginFailed
    hint = ""
    if code == SpecCode.INCOMPATIBLE_VERSION:
        hint = "set cniVersion of the network configuration to one the plugin supports"
    return kind(plugin, command, msg, code=code, details=details, hint=hint, replay=replay)
