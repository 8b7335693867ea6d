"""YAML of a CDI file, as JSON would come: mappings, lists and scalars.

Scalars stay texts until their field says what they are, so a device named 0 or `on` keeps its name,
and a file mode may be octal (0660, 0o660). Anchors are refused: no tool that writes these files
needs them, and a few lines of them can stand for gigabytes.
"""

from __future__ import annotations

from typing import Final

import yaml

from sandbox.host.errors import InvalidArgument

#: Nesting of a valid document is seven.
_DEPTH_LIMIT: Final = 32


class _Loader(yaml.CSafeLoader):
    """Every scalar stays a text; a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, object]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        """See the class."""
        found: dict[object, object] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in found:
                raise InvalidArgument(f"a key is no text or is there twice: {str(key)[:64]!a}")
            found[key] = self.construct_object(value_node, deep=True)
        return found


#: Fields with numbers; texts of YAML are read as it writes numbers.
_NUMBERS: Final = frozenset(
    {"major", "minor", "fileMode", "uid", "gid", "timeout", "additionalGids"}
)


def read(data: bytes) -> object:
    """The document.

    Raises:
        InvalidArgument: it is no YAML, nested too deeply, has anchors or a key twice.
    """
    try:
        _check_events(data)
        return _typed(yaml.load(data, Loader=_Loader), "")  # noqa: S506 - a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"not YAML: {' '.join(str(error).split())}") from error


def _check_events(data: bytes) -> None:
    """Look at the stream before anything is built from it: libyaml's builder recurses."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InvalidArgument("anchors and aliases of YAML are not allowed here")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEPTH_LIMIT:
                raise InvalidArgument("nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _typed(value: object, field: str) -> object:
    """Numbers where a field has numbers; a field without a value is one that is not there."""
    if isinstance(value, dict):
        return {k: _typed(v, str(k)) for k, v in value.items() if v is not None and v != ""}
    if isinstance(value, list):
        return [_typed(entry, field) for entry in value]
    if field in _NUMBERS and isinstance(value, str):
        return _number(value)
    return value


def _number(text: str) -> object:
    """As YAML 1.1 and 1.2 write whole numbers; what is none stays, for the type to refuse."""
    octal = len(text) > 1 and text[0] == "0" and text.isdecimal()
    try:
        return int(text, 8 if octal else 0)
    except ValueError:
        return text
