"""conmon's exit files: what is in them, and what it means when it is something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host import files
from sandbox.host.errors import NotFound, PodwrightError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: An exit file is at most four characters.
_LIMIT_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class ExitFile:
    """A good exit file: the code, and when it was written (nanoseconds since the epoch)."""

    code: int
    modified_ns: int


def read_exit(candidates: Iterable[Path]) -> ExitFile | str:
    """The first good exit file; "" when none exists, else what is wrong with them. Blocking."""
    trouble = ""
    for path in candidates:
        try:
            text = files.read_limited(path, _LIMIT_BYTES)
            modified_ns = path.stat().st_mtime_ns
        except (NotFound, FileNotFoundError):
            continue
        except (OSError, PodwrightError) as error:
            trouble = trouble or f"its exit file cannot be read: {error}"
            continue
        code = parse_exit_code(text)
        if code is not None:
            return ExitFile(code, modified_ns)
        trouble = trouble or f"its exit file holds {text[:16]!r}"
    return trouble


def parse_exit_code(text: bytes) -> int | None:
    """0 to 255, or None for what conmon does not write (-1 when it lost track). Pure."""
    word = text.strip()
    if not word.isdigit() or len(word) > 3:
        return None
    code = int(word)
    return code if code <= 255 else None
