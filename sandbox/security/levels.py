"""SELinux levels of pods: two categories each, which no other living pod has.

Nothing is kept here but what is being recorded at the moment: a level is in use while some pod's
record says so, and free again with the record's end. So there is no book that could disagree with
the pods after a crash.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Categories that policies of distributions have: c0 to c1023 (targeted and mls alike).
CATEGORIES: Final = 1024
#: Tries by chance before the pairs are gone through in order. There are 523,776 of them, so with a
#: thousand pods already one try fails with one chance in five hundred.
_TRIES: Final = 32

_SINGLE: Final = re.compile(r"c([0-9]{1,4})")


class Levels:
    """Chooses levels; ask `hold` while the pod's record is being written."""

    def __init__(self, choose: Callable[[int], int] = secrets.randbelow) -> None:
        self._choose = choose
        self._held: list[frozenset[int]] = []

    @contextlib.contextmanager
    def hold(self, used: Iterable[str], *, wanted: str, sensitivity: str) -> Iterator[str]:
        """The level for a new pod; nobody else gets it while the block runs.

        Args:
            used: levels in the records of pods and containers.
            wanted: the level that the pod asks for itself, which several pods may share.
            sensitivity: of the node's default label, such as s0.

        Raises:
            ResourceExhausted: every pair is in use.
        """
        if wanted:
            pair = categories(wanted)
            level = wanted
        else:
            pair = self._free({*self._held, *(categories(level) for level in used)})
            low, high = sorted(pair)
            level = f"{sensitivity}:c{low},c{high}"
        self._held.append(pair)
        try:
            yield level
        finally:
            self._held.remove(pair)

    def _free(self, taken: set[frozenset[int]]) -> frozenset[int]:
        for _ in range(_TRIES):
            pair = frozenset({self._choose(CATEGORIES), self._choose(CATEGORIES)})
            if len(pair) == 2 and pair not in taken:
                return pair
        for low in range(CATEGORIES):
            for high in range(low + 1, CATEGORIES):
                if (pair := frozenset({low, high})) not in taken:
                    return pair
        raise ResourceExhausted("every selinux level is in use by a pod")


def categories(level: str) -> frozenset[int]:
    """The categories that a level names one by one, in any order; ranges count by their ends."""
    return frozenset(int(number) for number in _SINGLE.findall(level.partition(":")[2]))
