"""The ten invariants of the fault matrix, and what a cell of it tells besides passing.

Every cell is judged by the same few: the census of a node (I2), its answers against the kernel
(I1), the pod that nobody touches (I4), the retry of the call (I3), the words of refusals (I6).
Whoever finds one broken raises `InvariantBroken` with its number, so that hack/faults can count by
it. What is measured on the way (how long a restart took, how many system calls were walked over) is
noted here and collected test by test.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import grpc

INVARIANTS: Final = {
    "I1": "no lies",
    "I2": "no leaks",
    "I3": "the retry succeeds",
    "I4": "data kept",
    "I5": "bounded",
    "I6": "honest codes",
    "I7": "host untouched",
    "I8": "idempotent teardown",
    "I9": "exactly-once events",
    "I10": "restart budget",
}

#: Words of the interpreter that no client should ever read.
_INTERNALS: Final = re.compile(
    r"Traceback|File \"|\.py\b|\b(?:KeyError|TypeError|AttributeError|ValueError|IndexError"
    r"|UnboundLocalError|RuntimeError|AssertionError|CancelledError)\b"
)
#: Refusals that the kubelet knows by these beginnings, which it sees under UNKNOWN alone.
_KUBELETS: Final = ("RegistryUnavailable: ", "SignatureValidationFailed: ")


class InvariantBroken(AssertionError):
    """One of the invariants does not hold.

    Attributes:
        invariant: "I1" to "I10".
        leaks: how many things of each kind were left, for I2.
    """

    def __init__(
        self, invariant: str, message: str, leaks: Mapping[str, int] | None = None
    ) -> None:
        assert invariant in INVARIANTS
        super().__init__(f"{invariant} ({INVARIANTS[invariant]}): {message}")
        self.invariant = invariant
        self.leaks = dict(leaks or {})


@dataclass
class Notes:
    """What one test has measured.

    Attributes:
        recoveries_s: from each start of a killed daemon to its answers having been found true.
        walks: (call, kind of step, how many of them the daemon was killed at).
        stalls_s: the longest that Version took, where it was watched.
    """

    recoveries_s: list[float] = field(default_factory=list)
    walks: list[tuple[str, str, int]] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)


#: Of the test that is running.
notes = Notes()


def collected() -> Notes:
    """What was noted since the last call, for whoever reports it."""
    taken = Notes(list(notes.recoveries_s), list(notes.walks), list(notes.stalls_s))
    for noted in (notes.recoveries_s, notes.walks, notes.stalls_s):
        noted.clear()
    return taken


@contextlib.contextmanager
def judging(invariant: str) -> Iterator[None]:
    """What fails within it breaks that invariant, unless it has named another itself."""
    try:
        yield
    except InvariantBroken:
        raise
    except AssertionError as error:
        raise InvariantBroken(invariant, str(error)) from error
    except grpc.RpcError as error:
        raise InvariantBroken(invariant, str(error)) from error


def dishonest(error: grpc.Call) -> str:
    """What is wrong with a refusal as a client sees it; empty when nothing is."""
    words = _words(error)
    known = (error.details() or "").removeprefix("ImageVolumeMountFailed: ")
    if error.code() is grpc.StatusCode.UNKNOWN and not known.startswith(_KUBELETS):
        return f"no class of error: {words}"
    if _INTERNALS.search(words):
        return f"words of the interpreter: {words}"
    return ""


def _words(error: grpc.Call) -> str:
    return f"{error.code().name}: {error.details()}"
