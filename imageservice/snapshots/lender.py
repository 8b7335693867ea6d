"""A store whose layers this node uses and never writes to, as far as a layer needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

CATALOG_NAME: Final = "catalog.db"


@dataclass(frozen=True, slots=True)
class Lender:
    """See the module's text.

    Attributes:
        root: the store, as the operator named it.
        stamp: inode, length and time of change of its catalog when it was read. A disk that is
            mounted again has them still; another store in its place has not, and its directory `7`
            is another layer.
    """

    root: Path
    stamp: tuple[int, int, int]

    @classmethod
    def at(cls, root: Path) -> Lender:
        """The store that is there now. Blocking; raises OSError."""
        return cls(root, _stamp(root))

    @property
    def layers_dir(self) -> Path:
        """Where its layers are."""
        return self.root / "layers"

    def check(self) -> None:
        """Whether it is still there and still that one. Blocking.

        Raises:
            Unavailable: it is not.
        """
        try:
            now = _stamp(self.root)
        except OSError as error:
            raise Unavailable(
                f"the additional image store {self.root} cannot be read",
                hint="mount its disk again, or take it out of image.additional_stores, restart"
                " and pull the image",
                reason=error.strerror,
            ) from error
        if now != self.stamp:
            raise Unavailable(
                f"the additional image store {self.root} is another than at the start",
                hint="restart podwright, which pods do not notice, so that it reads the new one",
            )


def _stamp(root: Path) -> tuple[int, int, int]:
    status = (root / CATALOG_NAME).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
