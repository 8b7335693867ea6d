"""What pulls of images count: how many and how long, where the time went, what had to be repeated.

The words of the labels are those of the image service's observer (`imageservice.progress`), which
this package may not know; a test holds the two lists together.
"""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Histogram

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

RESULTS: Final = ("ok", "error", "cancelled")
STAGES: Final = ("resolve", "wait", "download", "unpack", "commit")
OUTCOMES: Final = ("fetched", "loaded", "reused")
RETRIES: Final = ("unavailable", "throttled", "mismatch")
#: From an image that is there already to one that takes an hour.
PULL_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
#: A commit is a sync of milliseconds, a download may take as long as a pull.
STAGE_BUCKETS_S: Final = (0.005, 0.025, *PULL_BUCKETS_S[:11])


class PullInstruments:
    """The instruments of pulls, under the image service's protocol; for any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pulls = Histogram(
            "podwright_image_pull_duration_seconds",
            "Time from the request for an image to its being usable, by result",
            ["result"],
            buckets=PULL_BUCKETS_S,
            registry=registry,
        )
        self._stages = Histogram(
            "podwright_image_pull_stage_duration_seconds",
            "Time of a stage of a pull: to resolve a reference; of each layer to wait for its turn,"
            " to be downloaded, to be unpacked, to be committed",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._bytes = Counter(
            "podwright_image_pull_bytes_total",
            "Bytes of blobs received from registries",
            registry=registry,
        )
        self._layers = Counter(
            "podwright_image_layers_total",
            "Layers that images needed, by where they came from: registry, archive, or the node",
            ["outcome"],
            registry=registry,
        )
        self._retries = Counter(
            "podwright_image_pull_retries_total",
            "Requests made of a registry once more, by what was wrong with the last answer",
            ["reason"],
            registry=registry,
        )
        self._stalls = Counter(
            "podwright_image_pull_stalls_total",
            "Transfers of blobs that were given up because too little came",
            registry=registry,
        )
        self._resumes = Counter(
            "podwright_image_pull_resumes_total",
            "Transfers of blobs that went on, by a range, behind what was there",
            registry=registry,
        )
        self._resumed_bytes = Counter(
            "podwright_image_pull_resumed_bytes_total",
            "Bytes of blobs that were not fetched again because a transfer went on behind them",
            registry=registry,
        )
        # A series that appears with its first event hides that event from rate(): begin at 0.
        for result in RESULTS:
            self._pulls.labels(result)
        for stage in STAGES:
            self._stages.labels(stage)
        for outcome in OUTCOMES:
            self._layers.labels(outcome)
        for reason in RETRIES:
            self._retries.labels(reason)

    def asked_again(self, reason: str) -> None:
        """A registry was asked for the same thing once more."""
        self._retries.labels(reason).inc()

    def transfer_stalled(self) -> None:
        """A transfer was given up because too little came."""
        self._stalls.inc()

    def transfer_resumed(self, *, held_bytes: int) -> None:
        """A transfer goes on behind `held_bytes`."""
        self._resumes.inc()
        self._resumed_bytes.inc(held_bytes)

    def layer_fetched(self, *, fetched_bytes: int) -> None:
        """A blob came from a registry."""
        self._bytes.inc(fetched_bytes)

    def layer_ended(self, outcome: str) -> None:
        """A layer that an image needs is there."""
        self._layers.labels(outcome).inc()

    def stage_ended(self, stage: str, *, duration_s: float) -> None:
        """One stage ended well."""
        self._stages.labels(stage).observe(duration_s)

    def pull_ended(self, *, duration_s: float, error: BaseException | None) -> None:
        """A caller's pull ended: with an image, with an error, or because the caller left."""
        result = "ok" if error is None else "error"
        if isinstance(error, CancelledError):
            result = "cancelled"
        self._pulls.labels(result).observe(duration_s)
