"""The daemon's counters, gauges and histograms, in one registry of its own.

Every name begins with `podwright_` and ends in its unit. Labels have few values by construction:
names of methods, handlers, plugins and states, never ids or images. Who measures is handed this
object under a protocol of his own (`cri.server.RpcObserver` and its like); nothing but this file
and the endpoint knows prometheus_client.

What exists now is asked for when a scrape comes (pods and containers by state), what happened is
counted when it happens.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from metrics.pull_instruments import PullInstruments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: From a list answered out of memory (1 ms) to a pull or a grace period (10 min).
RPC_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
)  # fmt: skip
#: Programs that are started: a few milliseconds to their time limits.
OPERATION_BUCKETS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 240,
)  # fmt: skip

#: Text exposition format 0.0.4, which every scraper reads.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _States(Collector):
    """Numbers of objects by state, counted when asked."""

    def __init__(
        self, name: str, text: str, count: Callable[[], Mapping[str, int]], label: str = "state"
    ) -> None:
        self._name = name
        self._text = text
        self._count = count
        self._label = label

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The gauge without numbers: registering must not ask for them yet."""
        return [GaugeMetricFamily(self._name, self._text, labels=[self._label])]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One gauge with one label."""
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for state, number in sorted(self._count().items()):
            family.add_metric([state], number)
        return [family]


class _LogRates(Collector):
    """The pods that log fastest; names as labels, so few are let in (`metrics.log_rate_pods`)."""

    def __init__(self, rates: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        self._rates = rates

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The gauge without numbers."""
        return [self._family()]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One number for each pod."""
        family = self._family()
        for (namespace, pod), rate in sorted(self._rates().items()):
            family.add_metric([namespace, pod], rate)
        return [family]

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "podwright_pod_log_bytes_per_second",
            "Bytes per second written to the logs of the pods that write most",
            labels=["namespace", "pod"],
        )


class Instruments:
    """All instruments; methods may be called from any thread.

    Attributes:
        pulls: those of image pulls.
    """

    def __init__(self, version: str) -> None:
        # A second series per counter that says when it began: no dashboard of ours needs it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(namespace="podwright", registry=self.registry)
        GCCollector(registry=self.registry)
        build = Info("podwright_build", "Version of the daemon", registry=self.registry)
        build.info({"version": version, "python": platform.python_version()})
        self._rpc = Histogram(
            "podwright_rpc_duration_seconds",
            "Time to answer a gRPC call, by method",
            ["method"],
            buckets=RPC_BUCKETS_S,
            registry=self.registry,
        )
        self._rpc_errors = Counter(
            "podwright_rpc_errors_total",
            "gRPC calls that did not end with OK, by method and code",
            ["method", "code"],
            registry=self.registry,
        )
        self._runtime = Histogram(
            "podwright_runtime_operation_duration_seconds",
            "Time of one call of an OCI runtime or monitor, by operation and handler",
            ["operation", "handler"],
            buckets=OPERATION_BUCKETS_S,
            registry=self.registry,
        )
        self._runtime_errors = Counter(
            "podwright_runtime_operation_errors_total",
            "Calls of an OCI runtime or monitor that failed",
            ["operation", "handler"],
            registry=self.registry,
        )
        self._cni = Histogram(
            "podwright_cni_operation_duration_seconds",
            "Time of one call of a CNI plugin, by operation and plugin",
            ["operation", "plugin"],
            buckets=OPERATION_BUCKETS_S,
            registry=self.registry,
        )
        self._cni_errors = Counter(
            "podwright_cni_operation_errors_total",
            "Calls of a CNI plugin that failed",
            ["operation", "plugin"],
            registry=self.registry,
        )
        self.pulls = PullInstruments(self.registry)
        self._events_dropped = Counter(
            "podwright_events_dropped_total",
            "Container events that clients were too slow to read",
            registry=self.registry,
        )
        self._log_bytes = Counter(
            "podwright_container_log_bytes_total",
            "Bytes written to the logs of all containers",
            registry=self.registry,
        )
        self._log_rotations = Counter(
            "podwright_container_log_rotations_total",
            "Logs of containers that were seen to be replaced by new files",
            registry=self.registry,
        )
        self._repairs = Counter(
            "podwright_repairs_total",
            "Differences between records and the kernel that were repaired, by kind",
            ["kind"],
            registry=self.registry,
        )

    # What happened.

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """A gRPC call ended with `code` (the name, OK included)."""
        self._rpc.labels(method).observe(seconds)
        if code != "OK":
            self._rpc_errors.labels(method, code).inc()

    def runtime_operation(self, operation: str, handler: str, seconds: float, ok: bool) -> None:
        """An OCI runtime or monitor was called: create, start, kill, delete, exec ..."""
        self._runtime.labels(operation, handler).observe(seconds)
        if not ok:
            self._runtime_errors.labels(operation, handler).inc()

    def cni_operation(self, operation: str, plugin: str, seconds: float, ok: bool) -> None:
        """A network plugin was called: ADD, DEL, CHECK, STATUS, GC."""
        self._cni.labels(operation, plugin).observe(seconds)
        if not ok:
            self._cni_errors.labels(operation, plugin).inc()

    def events_dropped(self, count: int) -> None:
        """A client that listens to events was too slow for some of them."""
        self._events_dropped.inc(count)

    def logged(self, *, written_bytes: int, rotations: int) -> None:
        """Containers have written to their logs since the last call."""
        self._log_bytes.inc(written_bytes)
        self._log_rotations.inc(rotations)

    def repaired(self, kind: str) -> None:
        """The sweep has repaired something."""
        self._repairs.labels(kind).inc()

    # What is.

    def watch_retries(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Ask `count` for the number of teardowns that are tried again, by kind."""
        text = "Teardowns that failed and are tried again, by kind of object"
        self.registry.register(_States("podwright_retries", text, count, "kind"))

    def watch_log_rates(self, rates: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        """Ask `rates` for the fastest pods, (namespace, name) to bytes in a second, every time."""
        self.registry.register(_LogRates(rates))

    def watch_pods(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Ask `count` for the number of pods by state at every scrape."""
        self.registry.register(_States("podwright_pods", "Pods by state", count))

    def watch_containers(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Ask `count` for the number of containers by state at every scrape."""
        self.registry.register(_States("podwright_containers", "Containers by state", count))

    def exposition(self) -> bytes:
        """Everything in the text format."""
        return generate_latest(self.registry)
