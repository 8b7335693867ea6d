"""The answer of a call that this version does not have: it says so, under its own name."""

from __future__ import annotations

from typing import NoReturn

from cri.status import Unimplemented


def later(method: str) -> NoReturn:
    """Raise Unimplemented for `method`; success without the work would be a lie."""
    raise Unimplemented(f"{method} is not implemented by this version of podwright")
