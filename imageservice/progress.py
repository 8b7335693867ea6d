"""The course of a pull: what a progress bar shows of it, and what metrics count of it.

Two listeners, for two kinds of questions. `Progress` is for who waits for one image: many small
steps of each layer, of which any may be missed. `PullObserver` is for who looks after the node:
each thing that happened, once, with few kinds by construction (never the name of an image).
"""

from __future__ import annotations

import enum
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.host.clock import Clock

#: What the time of a pull is spent on. Of layers that come at once each has its own, so that these
#: add up to more than the pull took.
PullStage = Literal["resolve", "wait", "download", "unpack", "commit"]
PULL_STAGES: Final[tuple[PullStage, ...]] = ("resolve", "wait", "download", "unpack", "commit")

#: How a layer came to be there: from a registry, from an archive, or it was there already.
LayerOutcome = Literal["fetched", "loaded", "reused"]
LAYER_OUTCOMES: Final[tuple[LayerOutcome, ...]] = ("fetched", "loaded", "reused")

#: Why a registry was asked again: it failed, it told us to wait, or its bytes were not those that
#: were asked for.
RetryReason = Literal["unavailable", "throttled", "mismatch"]
RETRY_REASONS: Final[tuple[RetryReason, ...]] = ("unavailable", "throttled", "mismatch")


class Stage(enum.Enum):
    """How far a layer is."""

    WAITING = "waiting"
    FETCHING = "fetching"
    UNPACKING = "unpacking"
    DONE = "done"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar shows of one layer.

    A layer may be unpacked while it is fetched: then the two take turns here, and each tells only
    of its own part.

    Attributes:
        layer: digest of its blob.
        done_bytes, total_bytes: of the compressed blob, in this stage.
    """

    layer: str
    stage: Stage
    done_bytes: int
    total_bytes: int


class TransferObserver(Protocol):
    """Hears how registries answer."""

    def asked_again(self, reason: RetryReason) -> None:
        """The same was asked of the same registry once more."""
        ...

    def transfer_stalled(self) -> None:
        """A transfer was given up because too little came."""
        ...

    def transfer_resumed(self, *, held_bytes: int) -> None:
        """A transfer went on behind what had come before: so much was not fetched again."""
        ...


class PullObserver(TransferObserver, Protocol):
    """Hears how pulls went; for metrics. Quick, on the event loop."""

    def layer_fetched(self, *, fetched_bytes: int) -> None:
        """A blob was fetched; bytes held from an earlier try are not counted."""
        ...

    def layer_ended(self, outcome: LayerOutcome) -> None:
        """A layer that somebody asked for is on the node."""
        ...

    def stage_ended(self, stage: PullStage, *, duration_s: float) -> None:
        """A stage of one layer (or of one reference) ended well."""
        ...

    def pull_ended(self, *, duration_s: float, error: BaseException | None) -> None:
        """A caller's pull ended; `error` is None when it has its image."""
        ...


class SilentObserver:
    """Nobody listens."""

    def asked_again(self, reason: RetryReason) -> None:
        """See `TransferObserver`."""

    def transfer_stalled(self) -> None:
        """See `TransferObserver`."""

    def transfer_resumed(self, *, held_bytes: int) -> None:
        """See `TransferObserver`."""

    def layer_fetched(self, *, fetched_bytes: int) -> None:
        """See `PullObserver`."""

    def layer_ended(self, outcome: LayerOutcome) -> None:
        """See `PullObserver`."""

    def stage_ended(self, stage: PullStage, *, duration_s: float) -> None:
        """See `PullObserver`."""

    def pull_ended(self, *, duration_s: float, error: BaseException | None) -> None:
        """See `PullObserver`."""


@contextmanager
def measured(observer: PullObserver, stage: PullStage, clock: Clock) -> Iterator[None]:
    """Tell `observer` how long the block took, if it ended well.

    A stage that failed is not a short stage: its time would make the averages look better the more
    goes wrong.
    """
    began_ns = clock.monotonic_ns()
    yield
    observer.stage_ended(stage, duration_s=(clock.monotonic_ns() - began_ns) / 1e9)
