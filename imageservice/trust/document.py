"""The objects of a policy file, read so strictly that nothing in them can be overlooked."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TypeAlias

from imageservice.errors import PolicyInvalid

#: Key material: a file that is read whenever it is needed, or the bytes themselves.
Source: TypeAlias = "Path | bytes"


class Table:
    """An object of the document, of which every key must be known; messages say where it is."""

    def __init__(self, value: object, where: str, known: set[str] | None = None) -> None:
        """`known` None: the keys are names. Raises PolicyInvalid."""
        if not isinstance(value, dict):
            raise PolicyInvalid(f"{where} must be an object")
        self.fields: dict[str, object] = value
        self.where = where
        unknown = set() if known is None else set(self.fields) - known
        if unknown:
            raise PolicyInvalid(f"{where}: unknown key {shown(min(unknown))}")

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self.fields

    def take(self, key: str, default: object = None) -> object:
        """The value; raises PolicyInvalid where it is missing and there is no default."""
        if key not in self.fields and default is None:
            raise PolicyInvalid(f'{self.where}: key "{key}" is missing')
        return self.fields.get(key, default)

    def text(self, key: str, default: str | None = None) -> str:
        """A string that is not empty."""
        value = self.take(key, default)
        if not isinstance(value, str) or (not value and key in self.fields):
            raise PolicyInvalid(f"{self.where}.{key} must be a string that is not empty")
        return value

    def path(self, key: str) -> Path:
        """An absolute path."""
        return _path(self.text(key), f"{self.where}.{key}")

    def data(self, key: str) -> bytes:
        """Bytes in base64."""
        return _data(self.text(key), f"{self.where}.{key}")

    def texts(self, key: str) -> list[str]:
        """Strings, at least one."""
        value = self.take(key)
        if not isinstance(value, list) or not value:
            raise PolicyInvalid(f"{self.where}.{key} must be a list that is not empty")
        texts = [entry for entry in value if isinstance(entry, str) and entry]
        if len(texts) != len(value):
            raise PolicyInvalid(f"{self.where}.{key} must hold strings that are not empty")
        return texts

    def sources(self, name: str) -> tuple[Source, ...]:
        """What NAMEPath, NAMEPaths, NAMEData and NAMEDatas say; at most one may be there."""
        where = f"{self.where}.{name}"
        given = [key for key in spellings(name) if self.has(key)]
        if len(given) > 1:
            raise PolicyInvalid(f"{self.where}: only one of {', '.join(given)} may be there")
        match [key.removeprefix(name) for key in given]:
            case ["Path"]:
                return (self.path(f"{name}Path"),)
            case ["Data"]:
                return (self.data(f"{name}Data"),)
            case ["Paths"]:
                return tuple(_path(x, f"{where}Paths") for x in self.texts(f"{name}Paths"))
            case ["Datas"]:
                return tuple(_data(x, f"{where}Datas") for x in self.texts(f"{name}Datas"))
            case _:
                return ()

    def source(self, name: str) -> Source | None:
        """What NAMEPath or NAMEData says."""
        found = self.sources(name)
        return found[0] if found else None


def spellings(name: str) -> tuple[str, ...]:
    """The four keys that key material may be given by."""
    return tuple(f"{name}{ending}" for ending in ("Path", "Paths", "Data", "Datas"))


def _path(text: str, where: str) -> Path:
    if not text.startswith("/") or not text.isprintable():
        raise PolicyInvalid(f"{where} must be an absolute path")
    return Path(text)


def _data(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PolicyInvalid(f"{where} is not base64") from error


def shown(text: str) -> str:
    """A stranger's word fit for a message."""
    return ascii(text[:80])
