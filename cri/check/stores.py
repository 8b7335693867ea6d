"""Findings about additional image stores: whether each can be used, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from imageservice.additional.reading import read_store
from sandbox.host.errors import PodwrightError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

GROUP: Final = "images"
NAME: Final = "additional store"


def additional_stores(roots: Iterable[Path]) -> list[Finding]:
    """What each store has; reads their catalogs. Blocks."""
    return [_store(root) for root in dict.fromkeys(roots)]


def _store(root: Path) -> Finding:
    try:
        contents = read_store(root)
    except PodwrightError as error:
        remedy, error.hint = error.hint, ""
        text = str(error) if str(root) in str(error) else f"{root}: {error}"
        return Finding(
            GROUP, NAME, Level.WARNING, text, remedy or "its images are pulled instead; mend it"
        )
    detail = f"{root}: {len(contents.images)} images of {len(contents.layers)} layers"
    if contents.lost:
        return Finding(
            GROUP,
            NAME,
            Level.WARNING,
            f"{detail}; {len(contents.lost)} more are recorded and not on its disk",
            f"see podwright verify --root {root}, and make the store anew",
        )
    return Finding(GROUP, NAME, Level.OK, detail)
