"""Command line of hack/bench --plot: how runtimes fare as their node fills, as a table and an SVG.

The samples are kept as JSON beside the picture, so that it can be drawn again, and so that whoever
doubts a line can look at what it was made of.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from protos import api_pb2 as api
from tests.kit.bench import NOTHING, machine, make_target, numbers, tell
from tests.kit.chart import Panel, draw
from tests.kit.grow import CLIENTS, Filling, Growth, Samples, Stage
from tests.kit.images import make_sets
from tests.kit.measure import BUSYBOX, one_life, pull
from tests.kit.measure_pull import quantile
from tests.kit.registry import running_registry
from tests.kit.runtimes import end_in_order

RUNTIMES: Final = ("podwright", "containerd")
SIZES: Final = [10, 50, 100, 200, 500]


class Record(msgspec.Struct):
    """What is kept of a run."""

    machine: str
    date: str
    growths: list[Growth]


#: A number of a stage; None where there is no sample.
Figure = Callable[[Stage], float | None]


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(prog="hack/bench --plot")
    parser.add_argument("picture", type=Path)
    parser.add_argument("runtimes", nargs="*")
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--sizes", type=numbers, default=SIZES)
    parser.add_argument("--hold-seconds", type=float, default=12.0)
    parser.add_argument("--last-hold-seconds", type=float)
    parser.add_argument("--redraw", action="store_true")
    # Intermixed: runtimes may stand behind the options.
    options = parser.parse_intermixed_args()
    kept = options.picture.with_suffix(".json")
    if options.redraw:
        record = msgspec.json.decode(kept.read_bytes(), type=Record)
    else:
        record = measure(
            options.runtimes or RUNTIMES,
            options.storage,
            sizes=sorted(options.sizes),
            hold_s=options.hold_seconds,
            last_hold_s=options.last_hold_seconds or options.hold_seconds,
        )
        kept.write_bytes(msgspec.json.encode(rounded(record)) + b"\n")
    options.picture.write_text(picture(record))
    print(report(record))
    return 0


def measure(
    names: Sequence[str], storage: Path, *, sizes: list[int], hold_s: float, last_hold_s: float
) -> Record:
    """One runtime after the other: hundreds of pods of two at once would only measure memory."""
    registry = make_sets(storage, ["first-pod", "critest"])
    growths = []
    with (
        tempfile.TemporaryDirectory(prefix="podwright-plot-") as work,
        running_registry(registry, Path(work)) as port,
    ):
        for name in names:
            with contextlib.ExitStack() as daemon:
                target = make_target(name, port, daemon)
                answer = target.runtime.Version(api.VersionRequest(), timeout=30)
                target.version = f"{answer.runtime_name} {answer.runtime_version}"
                pull(target, BUSYBOX)
                one_life(target, "warm-up", note=False)
                filling = Filling(target, tell)
                growths.append(filling.run(sizes, hold_s=hold_s, last_hold_s=last_hold_s))
    return Record(machine(), time.strftime("%Y-%m-%d"), growths)


def rounded(record: Record) -> Record:
    """With times as whole microseconds: more digits are noise, and the file is kept in the tree."""

    def shorten(samples: Samples) -> None:
        for name, values in samples.took_ms.items():
            samples.took_ms[name] = [round(value, 3) for value in values]

    for growth in record.growths:
        shorten(growth.emptying)
        for stage in growth.stages:
            for samples in (stage.filling, stage.holding, stage.probing, stage.floor):
                shorten(samples)
    return record


# Figures.


def median(samples: Samples, name: str) -> float | None:
    """Of the calls of that name; None without any."""
    took_ms = samples.took_ms.get(name)
    return statistics.median(took_ms) if took_ms else None


def late(samples: Samples, name: str) -> float | None:
    """What 99 of 100 of them do not exceed."""
    took_ms = samples.took_ms.get(name)
    return quantile(took_ms, 0.99) if took_ms else None


def cpu_per_minute(stage: Stage) -> float:
    """Seconds of processor time in a minute of polling, of the daemon and its helpers."""
    return 60 * sum(stage.cpu_s.values()) / stage.held_s


FIGURES: Final[dict[str, Figure]] = {
    "pod to running, one at a time, ms": lambda s: median(s.probing, "pod to running"),
    "its floor, the kernel and the programs alone": lambda s: median(s.floor, "pod to running"),
    "RunPodSandbox": lambda s: median(s.probing, "RunPodSandbox"),
    "CreateContainer": lambda s: median(s.probing, "CreateContainer"),
    "StartContainer": lambda s: median(s.probing, "StartContainer"),
    "StopPodSandbox": lambda s: median(s.probing, "StopPodSandbox"),
    "RemovePodSandbox": lambda s: median(s.probing, "RemovePodSandbox"),
    "processor time of the daemon for one pod's life": lambda s: s.life_cpu_ms,
    f"{CLIENTS} clients starting, per pod": lambda s: s.per_pod_ms,
    "Version meanwhile, median": lambda s: median(s.filling, "Version"),
    "Version meanwhile, 99 %": lambda s: late(s.filling, "Version"),
    "ListPodSandbox": lambda s: median(s.holding, "ListPodSandbox"),
    "ListContainers": lambda s: median(s.holding, "ListContainers"),
    "ListPodSandboxStats": lambda s: median(s.holding, "stats"),
    "processor time of the daemon, s per minute": lambda s: 60 * s.cpu_s["daemon"] / s.held_s,
    "and of its helpers": lambda s: 60 * s.cpu_s["helpers"] / s.held_s,
    "memory of the daemon, MiB": lambda s: s.pss_mib["daemon"],
    "failed calls": lambda s: float(failures(s)),
}


def failures(stage: Stage) -> int:
    """All of a stage."""
    return sum(sum(each.failed.values()) for each in (stage.filling, stage.holding, stage.probing))


def helpers_of(growth: Growth) -> list[str]:
    """Programs that run for pods, in the order in which they were met."""
    seen = dict.fromkeys(name for stage in growth.stages for name in stage.pss_mib)
    return [name for name in seen if name != "daemon"]


# For people.


def report(record: Record) -> str:
    """Tables, one for each runtime, columns by number of pods."""
    parts = []
    for growth in record.growths:
        stages = growth.stages
        head = [f"{growth.name} ({growth.version}), ms unless said, pods"]
        lines = [
            f"| {' | '.join([*head, *(str(s.pods) for s in stages)])} |",
            f"|---|{'---:|' * len(stages)}",
        ]
        figures = dict(FIGURES)
        for name in helpers_of(growth):
            figures[f"memory of {name}, MiB each"] = lambda s, n=name: (  # type: ignore[misc]
                s.pss_mib[n] / s.processes[n] if s.processes.get(n) else None
            )
        for name, figure in figures.items():
            cells = [_text(figure(stage)) for stage in stages]
            lines.append(f"| {' | '.join([name, *cells])} |")
        lines += ["", _emptied(growth), ""]
        parts.append("\n".join(lines))
    return "\n".join([*parts, f"{record.machine}, {record.date}"])


def _emptied(growth: Growth) -> str:
    left = sum(growth.emptying.failed.values())
    return (
        f"removed by {CLIENTS} clients in {growth.emptied_per_pod_ms:.1f} ms per pod, {left} calls "
        f"failed; daemon {growth.idle_pss_mib:.1f} MiB before, {growth.after_pss_mib:.1f} after"
    )


def _text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def picture(record: Record) -> str:
    """The SVG: start, lists, processor time, memory."""

    def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
        found = {}
        for growth in record.growths:
            points = [(float(s.pods), value) for s in growth.stages if (value := figure(s))]
            found[growth.name] = points
        return found

    def lists(stage: Stage) -> float | None:
        parts = [median(stage.holding, name) for name in ("ListPodSandbox", "ListContainers")]
        return sum(part for part in parts if part is not None) or None

    starts = lines(lambda s: median(s.probing, "pod to running"))
    floors = lines(lambda s: median(s.floor, "pod to running"))
    starts |= {f"floor of {name}": points for name, points in floors.items() if points}
    panels = [
        Panel("Pod to running, one at a time", "ms", starts),
        Panel("ListPodSandbox and ListContainers", "ms", lines(lists)),
        Panel("Processor time while polled", "s per minute", lines(cpu_per_minute)),
        Panel("Memory, daemon and helpers", "MiB", lines(lambda s: sum(s.pss_mib.values()))),
    ]
    versions = ", ".join(growth.version for growth in record.growths)
    return draw(panels, "pods", f"{record.machine}, {record.date}; {versions}")


if __name__ == "__main__":
    sys.exit(main())
