"""JSON from strangers: a value or a named error, never another exception.

Documents are kept whole (as `JsonObject`) next to the typed view of them, because a plugin's own
keys must reach the plugin unchanged and the view only knows the specification's.
"""

from __future__ import annotations

from typing import Final, TypeAlias, TypeVar

import msgspec

from sandbox.host.errors import Corrupt

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

#: Deeper nesting is refused. Real configurations are below 10. The encoder recurses within the
#: interpreter's limit, so what was read at a shallow call must be writable at a deep one.
DEPTH_LIMIT: Final = 100

S = TypeVar("S", bound=msgspec.Struct)


class MalformedDocument(Corrupt):
    """The bytes are not the JSON that was expected; the message says where."""


def decode_object(text: bytes | str) -> JsonObject:
    """The JSON object that `text` holds.

    Raises:
        MalformedDocument: not JSON, not an object, or nested too deeply.
    """
    try:
        value: JsonValue = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise MalformedDocument(f"not JSON: {error}") from error
    except RecursionError as error:
        raise MalformedDocument("JSON is nested too deeply") from error
    if not isinstance(value, dict):
        raise MalformedDocument(f"not a JSON object but {_kind(value)}")
    _check_depth(value)
    return value


def encode(value: JsonValue) -> bytes:
    """Compact JSON in the order of the keys as they are; for values that came from `decode`."""
    return msgspec.json.encode(value)


def view(document: JsonObject, kind: type[S]) -> S:
    """The typed view of a document; keys it does not know are left aside.

    Raises:
        MalformedDocument: a key is missing or of another type, named by its path.
    """
    try:
        return msgspec.convert(document, kind)
    except (msgspec.MsgspecError, UnicodeError, OverflowError) as error:
        text = str(error)
        raise MalformedDocument(text[:1].lower() + text[1:]) from error


def _kind(value: JsonValue) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
    return names.get(type(value), "a number")


def _check_depth(value: JsonValue) -> None:
    level: list[JsonValue] = [value]
    for _ in range(DEPTH_LIMIT):
        below: list[JsonValue] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise MalformedDocument("JSON is nested too deeply")
